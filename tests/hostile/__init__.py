"""Makers of hostile files, one module a kind; `tests/corpus.py` puts them together."""
