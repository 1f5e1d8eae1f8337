"""The command line: ``python -m csoftmax info|selftest|bench|demo``.  Here the options, in _cli/ the work."""

import argparse
import importlib
import os
import sys
from pathlib import Path

from . import __version__, _cpu
from ._cli import choices
from ._cli.optional import UnusableError


def names(allowed):
    """A type for argparse: a comma-separated list of names out of `allowed`, or "none"."""

    def parse(text):
        given = [name for name in text.split(",") if name]
        if given == ["none"]:
            return []
        for name in given:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(allowed)}, none")
        return given

    return parse


def positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def counts(text):
    return [positive(part) for part in text.split(",")]


def shapes(text):
    return [tuple(positive(length) for length in part.split("x")) for part in text.split(",")]


def parser():
    top = argparse.ArgumentParser(prog="python -m csoftmax", description="The softmax family on this machine.")
    top.add_argument("--version", action="version", version=f"csoftmax {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="info|selftest|bench|demo")

    info = commands.add_parser("info", help="versions, instruction sets, OpenMP, threads")
    info.add_argument("--json", action="store_true", help="as JSON")

    selftest = commands.add_parser("selftest", help="check the promises on this machine, in seconds")
    selftest.add_argument("--json", action="store_true", help="as JSON")

    bench = commands.add_parser("bench", help="speed beside the installed peers and a plain copy")
    bench.add_argument(
        "--op", choices=(*_cpu.OPS, *choices.LOSSES, *choices.SPARSE), default="softmax", help="default: softmax"
    )
    bench.add_argument("--peers", type=names(choices.PEERS), help="comma-separated, or none; default: those installed")
    bench.add_argument("--group", choices=(*choices.GROUPS, "all"), help="which of the usual shapes; default: all")
    bench.add_argument("--shapes", type=shapes, metavar="AxB,CxD", help="these shapes instead, such as 128x1000,8x10")
    bench.add_argument("--axis", type=int, help="with --shapes; default: -1")
    bench.add_argument("--dtype", choices=tuple(_cpu.DTYPES), help="with --shapes; default: float32")
    bench.add_argument("--threads", type=counts, metavar="N,M", help="default: 1 and as many as csoftmax uses here")
    bench.add_argument("--fresh", action="store_true", help="also measure results in new memory, without out=")
    bench.add_argument("--rounds", type=positive, help="default: as many as fit in 4 seconds a line, 5 to 41")
    bench.add_argument("--isa", choices=_cpu.isa_available(), help="instruction set for csoftmax (and PyTorch)")
    bench.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: through CuPy, with --op, --shapes, --dtype, --rounds, --json",
    )
    bench.add_argument("--json", action="store_true", help="as JSON")
    bench.add_argument("--plot", type=Path, metavar="FILE.png", help="write a roofline picture (PNG, SVG or PDF)")

    demo = commands.add_parser("demo", help="train a classifier on real images of digits, and check it")
    demo.add_argument("--output", type=Path, default=Path("csoftmax-demo.png"), help="default: csoftmax-demo.png")
    demo.add_argument("--no-plot", action="store_true", help="write no picture")
    return top


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    top = parser()
    options = top.parse_args(argv)
    options.argv = argv
    if options.command == "bench":
        if options.shapes and options.group:
            top.error("bench: --group chooses among the usual shapes; it cannot be used with --shapes")
        if not options.shapes and options.device == "cpu" and (options.axis is not None or options.dtype):
            top.error("bench: --axis and --dtype belong to --shapes; the usual shapes have their own")
    command = options.command
    if command == "bench" and options.device == "cuda":
        command = "bench_cuda"
    try:
        return importlib.import_module(f"._cli.{command}", __package__).run(options)
    except UnusableError as error:
        print(f"csoftmax {options.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # who reads has had enough, as `head` does; the interpreter must not try again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"csoftmax {options.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
