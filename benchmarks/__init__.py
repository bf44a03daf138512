"""Benchmarks against fastai; each module is a script that prints a table."""
