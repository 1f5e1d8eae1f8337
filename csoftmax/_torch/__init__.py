"""The parts of csoftmax.torch."""
