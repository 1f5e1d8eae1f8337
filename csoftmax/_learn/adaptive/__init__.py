"""The layer of `csoftmax.heads.AdaptiveSoftmax`."""
