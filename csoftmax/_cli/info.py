"""``python -m csoftmax info``: what is installed and what it found on this machine."""

from __future__ import annotations

import argparse
import json

from .._runtime.config import show_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def main(arguments: argparse.Namespace) -> int:
    """Show the configuration."""
    if arguments.json:
        print(json.dumps(show_config("dicts"), indent=2))
    else:
        show_config()
    return 0
