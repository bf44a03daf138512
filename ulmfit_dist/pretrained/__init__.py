"""Pretrained language models of others: their names, downloads and file formats, read without running what is in them."""
