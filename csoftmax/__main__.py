"""The command line, ``csoftmax`` or ``python -m csoftmax``: finds the command; each module of _cli/ is one."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from ._cli.arguments import parse_path
from ._runtime.config import get_cmake_dir, get_include, get_library, link_flags
from ._runtime.interrupts import INTERRUPTED, watch_command
from ._runtime.optional import UnusableError, load

# The modules of _cli/, with the lines of --help.
COMMANDS = {
    "info": "versions, instruction sets, OpenMP, threads",
    "selftest": "check the promises on this machine, in seconds",
    "bench": "speed beside the installed peers and a plain copy",
    "demo": "train a classifier on real images of digits, calibrate and check it",
    "fit": "train softmax regression on a table",
    "predict": "labels and probabilities of a table, as CSV",
    "evaluate": "accuracy, F1, ROC-AUC, calibration of a model on a table",
    "tag": "train a tagger of sentences, tag files of tokens, measure it (a linear-chain CRF)",
    "calibrate": "fit a calibrator on held-out data: a temperature, or another method",
}
EXIT_CODES = "exit codes: 0 done, 1 a check failed, 2 arguments or files cannot be used, 130 interrupted"


class Parser(argparse.ArgumentParser):
    """A parser whose refusals are one line, like those of the commands."""

    def error(self, message: str) -> NoReturn:
        """Print the refusal and exit."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


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


class PrintCompletion(argparse.Action):
    """Prints the script with which a shell completes the command line, and exits."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Print and exit."""
        try:
            shtab = load("shtab", "cli")
        except UnusableError as error:
            parser.error(str(error))
        complete = make_parser(tuple(COMMANDS))
        complete_files(complete, shtab.FILE)
        print(shtab.complete(complete, str(values)))
        parser.exit()


def complete_files(parser: argparse.ArgumentParser, how: dict[str, str]) -> None:
    """Complete the arguments that are names of files, of all commands; shtab completes nothing that is not marked."""
    for action in parser._actions:
        if action.type is parse_path:
            action.complete = how  # type: ignore[attr-defined]
        elif isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                complete_files(command, how)


def make_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of the command line, with the arguments of the command that `argv` names."""
    parser = Parser(
        prog="csoftmax",
        description="The softmax family on this machine, softmax regression on tables, and taggers of sentences.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"csoftmax {__version__}")
    for name, text, meaning in (
        ("cflags", f"-I{get_include()}", "the folder of csoftmax.h, for a C compiler"),
        ("libs", link_flags(), "the library, for a linker"),
        ("cmakedir", get_cmake_dir(), "for CMake: -Dcsoftmax_DIR="),
        ("pkgconfigdir", Path(get_library()).parent / "pkgconfig", "for pkg-config: PKG_CONFIG_PATH="),
    ):
        parser.add_argument(f"--{name}", action=PrintText, nargs=0, const=text, help=meaning)
    parser.add_argument(
        "--print-completion", choices=("bash", "zsh"), action=PrintCompletion, help="the completion script of a shell"
    )
    commands = parser.add_subparsers(dest="command", metavar="|".join(COMMANDS))
    for name, meaning in COMMANDS.items():
        command = commands.add_parser(
            name, help=meaning, description=f"{meaning[0].upper()}{meaning[1:]}.", epilog=EXIT_CODES
        )
        if name not in argv:
            continue  # its module need not be imported: bench alone takes 10 ms
        module = importlib.import_module(f"._cli.{name}", __package__)
        module.add_arguments(command)
        command.set_defaults(main=module.main)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    prepare_streams()
    program = "csoftmax"
    try:
        watch_command()
        parser = make_parser(argv)
        arguments = parser.parse_args(argv)
        if arguments.command is None:
            parser.print_help()
            return 0
        arguments.argv = list(argv)
        program += f" {arguments.command}"
        if sys.stdout is None:
            raise UnusableError("standard output is closed")
        code = int(arguments.main(arguments))
        sys.stdout.flush()
        return code
    except UnusableError as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except MemoryError:
        print(f"{program}: there is not enough memory", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # the reader has stopped, as `head` does
        silence_output()
        return 1
    except OSError as error:  # of the standard output, such as a full disk; the commands refuse their own files
        reason = f"{error.filename!r}: {error.strerror}" if error.filename else error.strerror or str(error)
        silence_output()
        print(f"{program}: cannot write the result: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return INTERRUPTED


def prepare_streams() -> None:
    """Let standard output take every letter, and send messages nowhere if standard error is closed.

    Letters that its encoding lacks, such as ö in the C locale, are written as escapes, as on standard error; `predict`,
    whose labels are data, refuses them. Without a standard error Python's `print` would write to standard output.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - it stays open
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def silence_output() -> None:
    """Send what is left of standard output nowhere: the interpreter flushes it at exit, which would fail again."""
    with contextlib.suppress(OSError, ValueError):  # of a stream without a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
