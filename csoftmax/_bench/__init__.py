"""Measuring: interleaved timing beside peers and plain copies, on the CPU and on a CUDA device."""
