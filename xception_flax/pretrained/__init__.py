"""Weights that others have trained: names and layouts of other libraries."""
