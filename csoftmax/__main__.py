"""The command line, ``python -m csoftmax``: finds the command; each module of _cli/ is one."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__
from ._runtime.config import get_cmake_dir, get_include, get_library, link_flags
from ._runtime.optional import UnusableError

# The modules of _cli/, with the lines of --help.
COMMANDS = {
    "info": "versions, instruction sets, OpenMP, threads",
    "selftest": "check the promises on this machine, in seconds",
    "bench": "speed beside the installed peers and a plain copy",
    "demo": "train a classifier on real images of digits, calibrate and check it",
    "fit": "train softmax regression on a table",
    "predict": "labels and probabilities of a table, as CSV",
    "evaluate": "accuracy, F1, ROC-AUC, calibration of a model on a table",
    "calibrate": "fit the model's temperature on held-out data",
}


class PrintText(argparse.Action):
    """Prints its constant on one line and exits; action="version" would wrap the line."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Print and exit."""
        print(self.const)
        parser.exit()


def make_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of the command line, with the arguments of the command that `argv` names."""
    parser = argparse.ArgumentParser(prog="python -m csoftmax", description="The softmax family on this machine.")
    parser.add_argument("--version", action="version", version=f"csoftmax {__version__}")
    for name, text, meaning in (
        ("cflags", f"-I{get_include()}", "the folder of csoftmax.h, for a C compiler"),
        ("libs", link_flags(), "the library, for a linker"),
        ("cmakedir", get_cmake_dir(), "for CMake: -Dcsoftmax_DIR="),
        ("pkgconfigdir", Path(get_library()).parent / "pkgconfig", "for pkg-config: PKG_CONFIG_PATH="),
    ):
        parser.add_argument(f"--{name}", action=PrintText, nargs=0, const=text, help=meaning)
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    for name, meaning in COMMANDS.items():
        command = commands.add_parser(name, help=meaning)
        if name not in argv:
            continue  # its module need not be imported: bench alone takes 10 ms
        module = importlib.import_module(f"._cli.{name}", __package__)
        module.add_arguments(command)
        command.set_defaults(main=module.main)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = make_parser(argv).parse_args(argv)
    arguments.argv = list(argv)
    try:
        return int(arguments.main(arguments))
    except UnusableError as error:
        print(f"csoftmax {arguments.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # the reader has stopped, as `head` does; the interpreter must not flush again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"csoftmax {arguments.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
