"""Benchmarks made from the one list of operations, tests/ops.py: no operation is named in this folder."""
