"""The layers of `csoftmax.heads.HashedSoftmax` and `csoftmax.heads.BloomSoftmax`."""
