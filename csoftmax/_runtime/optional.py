"""Packages that the commands use and csoftmax itself does not need: imported late, and missed politely."""

import importlib
import sys
from pathlib import Path

# Where the name to import is not the name to install.
PACKAGES = {"sklearn": "scikit-learn"}


class UnusableError(Exception):
    """A command cannot be carried out; the message says why and what to do. Ends with exit code 2."""


def load(module, extra):
    """The module, or an error that names the extra of csoftmax which installs it."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnusableError(
            f"this needs {PACKAGES.get(package, package)}, which cannot be imported ({error}); install it with: "
            f"pip install 'csoftmax[{extra}]'"
        ) from error


def check_picture(path):
    """Find out before the work, not after it, that a picture cannot be written."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UnusableError(f"a picture's name must end in .png, .svg or .pdf, got {str(path)!r}")
    if not path.resolve().parent.is_dir():
        raise UnusableError(f"cannot write {str(path)!r}: there is no folder {str(path.resolve().parent)!r}")


def new_figure(extra, width, height):
    """A matplotlib figure that needs no display and leaves the user's matplotlib state alone."""
    figure = load("matplotlib.figure", extra).Figure(figsize=(width, height), layout="constrained")
    load("matplotlib.backends.backend_agg", extra).FigureCanvasAgg(figure)
    return figure


def save(figure, path):
    try:
        figure.savefig(Path(path), dpi=150)
    except OSError as error:
        raise UnusableError(f"cannot write {str(path)!r}: {error}") from error


class Counter:
    """What `progress` shows where tqdm is not installed: a count, on a terminal only."""

    def __init__(self, total, desc):
        self.total, self.desc, self.done, self.note = total, desc, 0, ""

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        if sys.stderr.isatty():
            print(file=sys.stderr)

    def set_postfix_str(self, note):
        self.note = note

    def update(self):
        self.done += 1
        if sys.stderr.isatty():
            of = f"/{self.total}" if self.total else ""
            print(f"\r{self.desc}: {self.done}{of} {self.note:<50.50}", end="", file=sys.stderr, flush=True)


def progress(total, desc):
    """A progress bar on stderr, silent where that is no terminal."""
    try:
        from tqdm import tqdm
    except ImportError:
        return Counter(total, desc)
    return tqdm(total=total, desc=desc, disable=None, dynamic_ncols=True)
