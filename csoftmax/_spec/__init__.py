"""The promises of csoftmax: one record for each public function that computes.

Tests, selftest, benchmarks and documents read these records, so that a new function is described in one place.  Only
NumPy is needed to import this folder; csoftmax itself is loaded when a record first calls it.
"""
