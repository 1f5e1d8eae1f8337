"""The CPU backend: the binding of the C core, the four dtypes, and the linear layer over a BLAS."""
