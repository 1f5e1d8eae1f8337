"""Optional packages: imported on first use; a missing one is reported with the command that installs it."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

# Packages whose name to install differs from the name to import.
PACKAGES = {"sklearn": "scikit-learn", "python_calamine": "python-calamine"}

# The style file of all pictures, csoftmax/style.mplstyle, by the name that matplotlib knows it under.
STYLE = "csoftmax.style"


class UnusableError(Exception):
    """A command cannot be carried out.  The message gives the reason and the remedy; the exit code is 2."""


class MissingPackageError(UnusableError, ImportError):
    """An optional package cannot be imported."""


def load(module: str, extra: str) -> Any:
    """Import a module, or raise an error that names the extra of csoftmax which installs it."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"this needs {PACKAGES.get(package, package)}, which cannot be imported ({error}); install it with: "
            f"pip install 'csoftmax[{extra}]'"
        ) from error


def check_folder(path: Path) -> None:
    """Refuse, before the work starts, an output file whose folder does not exist."""
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UnusableError(f"cannot write {str(path)!r}: there is no folder {str(folder)!r}")


def check_picture(path: Path) -> None:
    """Refuse, before the work starts, a picture that could not be written."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UnusableError(f"a picture's name must end in .png, .svg or .pdf, got {str(path)!r}")
    check_folder(path)


def picture_style(extra: str) -> AbstractContextManager[None]:
    """Return the context in which pictures are drawn and written: the style file, over matplotlib's defaults.

    The user's own settings, such as LaTeX for all text, neither reach the picture nor change.  matplotlib reads most of
    its settings when an artist is made and some when it is drawn, so the context has to hold from the figure to its
    file.
    """
    context: AbstractContextManager[None] = load("matplotlib.style", extra).context(["default", STYLE])
    return context


def new_figure(extra: str, width: float, height: float) -> Any:
    """Create a matplotlib figure that needs no display and leaves the user's matplotlib state alone.

    It does not enter `picture_style` itself: settings belong to the process, so that only one thread may change them.
    """
    figure = load("matplotlib.figure", extra).Figure(figsize=(width, height), layout="constrained")
    load("matplotlib.backends.backend_agg", extra).FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure to a file, at the resolution of the style that holds."""
    try:
        figure.savefig(path)
    except OSError as error:
        raise UnusableError(f"cannot write {str(path)!r}: {error}") from error


class _Silent:
    """The part of tqdm's interface that the commands use, for an installation without tqdm."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self) -> None:
        """Count one more step."""

    def set_postfix_str(self, note: str) -> None:
        """Set the text after the count."""


def progress(total: int | None, desc: str) -> Any:
    """Create tqdm's progress bar on stderr; silent if stderr is not a terminal, and without tqdm."""
    try:
        from tqdm import tqdm
    except ImportError:
        return _Silent()
    return tqdm(total=total, desc=desc, disable=None, dynamic_ncols=True)
