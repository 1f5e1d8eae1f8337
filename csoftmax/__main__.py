"""The command line: ``python -m csoftmax``.  Here the options, in _cli/ the work."""

import argparse
import importlib
import os
import sys
from pathlib import Path

from . import __version__
from ._cli import choices
from ._cli.optional import UnusableError
from ._config import get_cmake_dir, get_include, get_library, link_flags
from ._cpu import binding


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


class Say(argparse.Action):
    """Says its constant as it is, where action="version" would break the line."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Print it and end."""
        print(self.const)
        parser.exit()


def parser():
    top = argparse.ArgumentParser(prog="python -m csoftmax", description="The softmax family on this machine.")
    top.add_argument("--version", action="version", version=f"csoftmax {__version__}")
    library = Path(get_library()).parent
    for name, text, meaning in (
        ("cflags", f"-I{get_include()}", "where csoftmax.h is, for a C compiler"),
        ("libs", link_flags(), "the library, for a linker"),
        ("cmakedir", get_cmake_dir(), "for CMake: -Dcsoftmax_DIR="),
        ("pkgconfigdir", library / "pkgconfig", "for pkg-config: PKG_CONFIG_PATH="),
    ):
        top.add_argument(f"--{name}", action=Say, nargs=0, const=text, help=meaning)
    commands = top.add_subparsers(
        dest="command", required=True, metavar="info|selftest|bench|demo|fit|predict|evaluate|calibrate"
    )

    info = commands.add_parser("info", help="versions, instruction sets, OpenMP, threads")
    info.add_argument("--json", action="store_true", help="as JSON")

    selftest = commands.add_parser("selftest", help="check the promises on this machine, in seconds")
    selftest.add_argument("--json", action="store_true", help="as JSON")

    bench = commands.add_parser("bench", help="speed beside the installed peers and a plain copy")
    bench.add_argument(
        "--op", choices=(*binding.OPS, *choices.LOSSES, *choices.SPARSE), default="softmax", help="default: softmax"
    )
    bench.add_argument("--peers", type=names(choices.PEERS), help="comma-separated, or none; default: those installed")
    bench.add_argument("--group", choices=(*choices.GROUPS, "all"), help="which of the usual shapes; default: all")
    bench.add_argument("--shapes", type=shapes, metavar="AxB,CxD", help="these shapes instead, such as 128x1000,8x10")
    bench.add_argument("--axis", type=int, help="with --shapes; default: -1")
    bench.add_argument("--dtype", choices=tuple(binding.DTYPES), help="with --shapes; default: float32")
    bench.add_argument("--threads", type=counts, metavar="N,M", help="default: 1 and as many as csoftmax uses here")
    bench.add_argument("--fresh", action="store_true", help="also measure results in new memory, without out=")
    bench.add_argument("--rounds", type=positive, help="default: as many as fit in 4 seconds a line, 5 to 41")
    bench.add_argument("--isa", choices=binding.isa_available(), help="instruction set for csoftmax (and PyTorch)")
    bench.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: through CuPy, with --op, --shapes, --dtype, --rounds, --json",
    )
    bench.add_argument("--json", action="store_true", help="as JSON")
    bench.add_argument("--plot", type=Path, metavar="FILE.png", help="write a roofline picture (PNG, SVG or PDF)")

    demo = commands.add_parser("demo", help="train a classifier on real images of digits, calibrate and check it")
    demo.add_argument("--output", type=Path, default=Path("csoftmax-demo.html"), help="default: csoftmax-demo.html")
    demo.add_argument("--no-plot", action="store_true", help="write no page")
    learning(commands)
    return top


def fraction(text):
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not in [0, 1]")
    return value


def not_negative(text):
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not at least 0 and finite")
    return value


def learning(commands):
    """The commands for people who have a file."""
    table = "table: .csv or .tsv with a header, .npz with one two-dimensional array, or .parquet"
    fit = commands.add_parser("fit", help="train softmax regression on a table")
    fit.add_argument("data", type=Path, help=table)
    fit.add_argument("--target", required=True, metavar="COLUMN", help="the column of labels")
    fit.add_argument("--output", type=Path, default=Path("model.safetensors"), help="default: model.safetensors")
    fit.add_argument("--solver", choices=("lbfgs", "adamw"), default="lbfgs", help="default: lbfgs")
    fit.add_argument("--penalty-l2", type=not_negative, default=1e-4, help="default: 1e-4")
    fit.add_argument("--class-weight", choices=("balanced", "effective_number"), help="default: none")
    fit.add_argument("--label-smoothing", type=fraction, default=0.0, help="default: 0")
    fit.add_argument("--max-epochs", type=positive, default=500, help="default: 500")
    fit.add_argument("--learning-rate", type=not_negative, default=1e-2, help="of adamw; default: 0.01")
    fit.add_argument("--batch-norm", action="store_true", help="of the logits, with adamw")
    fit.add_argument("--early-stopping", action="store_true", help="hold out a tenth, keep the best epoch")
    fit.add_argument("--no-standardize", dest="standardize", action="store_false", help="take the columns as they are")
    fit.add_argument("--save-every", type=positive, metavar="N", help="also save the model after every N epochs")
    fit.add_argument("--seed", type=int, default=0, help="default: 0")

    predict = commands.add_parser("predict", help="labels and probabilities of a table, as CSV")
    predict.add_argument("model", type=Path)
    predict.add_argument("data", type=Path, help=table)
    predict.add_argument("--target", metavar="COLUMN", help="a column to leave out, if it is there")
    predict.add_argument("--top", type=positive, metavar="K", help="the K most probable labels; default: 1")
    predict.add_argument("--output", type=Path, help="default: standard output")

    evaluate = commands.add_parser("evaluate", help="accuracy, F1, ROC-AUC, calibration of a model on a table")
    evaluate.add_argument("model", type=Path)
    evaluate.add_argument("data", type=Path, help=table)
    evaluate.add_argument("--target", required=True, metavar="COLUMN", help="the column of labels")
    evaluate.add_argument("--json", action="store_true", help="as JSON")
    evaluate.add_argument("--html", type=Path, metavar="PAGE.html", help="also write one page with plots")

    calibrate = commands.add_parser("calibrate", help="fit the model's temperature on held-out data")
    calibrate.add_argument("model", type=Path)
    calibrate.add_argument("data", type=Path, help=table)
    calibrate.add_argument("--target", required=True, metavar="COLUMN", help="the column of labels")
    calibrate.add_argument("--output", type=Path, help="default: the model's own file")


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
    if command in ("fit", "predict", "evaluate", "calibrate"):
        command = "learn"
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
