"""The report of `csoftmax.metrics.evaluate` as an HTML page: templates, tables and pictures."""

from .images import Images, take_images
from .render import render

__all__ = ["Images", "render", "take_images"]
