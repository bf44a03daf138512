"""Measurements against fastai, side by side; each module is a script with a table at its end."""
