"""Temporary: the name under which selftest still imports `csoftmax._bench.table`."""

from .._bench.table import layout

__all__ = ["layout"]
