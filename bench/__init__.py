"""Measurements of perdure, each beside its limit in the same run: `python -m bench`."""
