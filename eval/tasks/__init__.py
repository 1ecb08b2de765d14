"""Benchmarks: one file each; `registry.py` names them."""
