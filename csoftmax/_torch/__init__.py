"""The operators of csoftmax.torch."""
