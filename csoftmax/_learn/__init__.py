"""Private parts of `csoftmax.linear_model`, `csoftmax.metrics` and `csoftmax.class_weight`."""
