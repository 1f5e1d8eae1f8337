"""Parts of `csoftmax.jax`, which names the public ones."""
