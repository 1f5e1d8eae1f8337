"""Invented tables of many kinds, and how the commands are run on them."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np

from csoftmax.__main__ import main

N = 60
_RNG = np.random.default_rng(0)
U, V = (_RNG.normal(size=N).round(2).tolist() for _ in range(2))
T = ["abc"[(u + v > 0) + (u + v > 0 and u > 0.8)] for u, v in zip(U, V)]
ROWS = [f"{u},{v},{t}" for u, v, t in zip(U, V, T)]
BASE = "u,v,t\n" + "\n".join(ROWS) + "\n"


def write(name, text, encoding="utf-8"):
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode(encoding))


def write_rows(name, header, *columns):
    lines = [header, *(",".join(map(str, row)) for row in zip(*columns))]
    write(name, "\n".join(lines) + "\n")


def command(*arguments):
    """Exit code, standard output and standard error of a command; a traceback fails the test."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as error:
            code = error.code
    return code, out.getvalue(), err.getvalue()


def run(*arguments):
    """Standard output and error of a command that must succeed."""
    code, out, err = command(*arguments)
    assert code == 0, err
    return out, err


def refuse(*arguments):
    """The one line of a command that must be refused."""
    code, out, err = command(*arguments)
    assert code == 2, (code, out, err)
    assert not out
    assert err.count("\n") == 1, err
    return err


def chain(name, target, *fit_options, options=()):
    """Run fit, calibrate, evaluate and predict on a table; returns fit's stderr, the report and the predictions."""
    _, err = run("fit", name, "--target", target, "-o", "chain.safetensors", *fit_options, *options)
    run("calibrate", "chain.safetensors", name, *options)
    out, _ = run("evaluate", "chain.calibrated.safetensors", name, "--json", *options)
    rows = run("predict", "chain.calibrated.safetensors", name, "--json", *options)[0].splitlines()
    return err, json.loads(out), [json.loads(row) for row in rows]
