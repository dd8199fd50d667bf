"""Makers of hostile files, one module for each kind; `tests/corpus.py` joins them."""
