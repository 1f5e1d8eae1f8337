"""Parts of `csoftmax.distributed`."""
