"""The report of `csoftmax.metrics.evaluate` as an HTML page: templates, tables and pictures."""

from .render import render

__all__ = ["render"]
