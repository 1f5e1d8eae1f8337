"""Temporary: the name under which other modules still import `csoftmax._runtime.optional`."""

from .._runtime.optional import UnusableError, check_folder, check_picture, load, new_figure, progress, save

__all__ = ["UnusableError", "check_folder", "check_picture", "load", "new_figure", "progress", "save"]
