"""The CPU backend: the extension `binding` on the C core, and the linear layer over a BLAS."""
