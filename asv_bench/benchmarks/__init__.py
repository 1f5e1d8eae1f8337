"""Benchmarks of the records in csoftmax/_spec and the cases of csoftmax/_bench, which name the operations."""
