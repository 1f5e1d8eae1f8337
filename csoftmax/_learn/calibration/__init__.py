"""Calibrators, one file per method: the classes of `csoftmax.calibration`."""
