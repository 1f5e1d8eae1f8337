"""The program that type checkers check uses every public function, and runs."""

import inspect
import re
import runpy
import warnings
from pathlib import Path

import csoftmax

PROGRAM = Path(__file__).with_name("user_of_every_function.py")


def test_program_uses_every_function():
    used = set(re.findall(r"csoftmax\.(\w+)\(", PROGRAM.read_text()))
    assert {name for name in csoftmax.__all__ if inspect.isroutine(getattr(csoftmax, name))} <= used


def test_program_runs(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the fit is cut short
        runpy.run_path(str(PROGRAM), run_name="__main__")
    assert "csoftmax" in capsys.readouterr().out
