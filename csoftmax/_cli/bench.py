"""``python -m csoftmax bench``: speed beside the installed peers and a plain copy, in one interleaved run."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys

from .._bench import cases, compare, cuda, peers, picture, table, terminal
from .._cpu import binding
from .._runtime.optional import UnusableError, check_picture, load
from .arguments import parse_counts, parse_names, parse_path, parse_positive, parse_shapes

# Values of ATEN_CPU_CAPABILITY, which holds PyTorch to the same instruction set.
TORCH_ISA = {"scalar": "default", "avx2": "avx2", "avx512": "avx512"}

SHAPES_HELP = (
    "these shapes instead, such as 128x1000,8x10; cross_entropy, sparsemax, entmax: ROWSxCLASSES; "
    "linear_cross_entropy: ROWSxFEATURESxCLASSES; topk, topk_softmax: ROWSxCLASSESxK, such as 32x100x5; crf, "
    "crf_marginals, crf_decode: SEQUENCESxPOSITIONSxTAGS; alias: CLASSESxDRAWS; sampled: "
    "ROWSxFEATURESxNEGATIVESxCLASSES; hs, adaptive: ROWSxFEATURESxCLASSES; int8: ROWSxFEATURESxCLASSESxK; mach: "
    "ROWSxFEATURESxCLASSESxBUCKETSxHASHES"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add = parser.add_argument
    add("--op", choices=cases.OPS, default="softmax", help="default: softmax")
    add("--peers", type=parse_names(peers.PEERS), help="comma-separated, or none; default: all that are installed")
    add("--group", choices=(*cases.GROUPS, "all"), help="a group of the usual shapes; default: all")
    add("--shapes", type=parse_shapes, metavar="AxB,CxD", help=SHAPES_HELP)
    add("--axis", type=int, help="with --shapes; default: -1")
    add("--dtype", choices=tuple(binding.DTYPES), help="with --shapes; default: float32")
    add("--threads", type=parse_counts, metavar="N,M", help="default: 1, and as many as csoftmax uses here")
    add("--fresh", action="store_true", help="also measure results in new memory, without out=")
    add("--rounds", type=parse_positive, help="default: as many as fit in 4 seconds a line, 5 to 41")
    add("--isa", choices=binding.isa_available(), help="instruction set for csoftmax (and PyTorch)")
    add(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: through CuPy, with --op, --shapes, --dtype, --rounds, --json, --markdown",
    )
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="as JSON")
    forms.add_argument("--markdown", action="store_true", help="as a page of Markdown")
    add("--plot", type=parse_path, metavar="FILE.png", help="write a picture of the ratios (PNG, SVG or PDF)")


def main(arguments: argparse.Namespace) -> int:
    """Measure and show the report."""
    if arguments.shapes and arguments.group:
        raise UnusableError("--group chooses among the usual shapes; it cannot be used with --shapes")
    if arguments.device == "cuda":
        if arguments.plot:
            raise UnusableError("--plot belongs to --device cpu")
        return compare_on_device(arguments)
    if not arguments.shapes and (arguments.axis is not None or arguments.dtype):
        raise UnusableError("--axis and --dtype belong to --shapes; the usual shapes have their own")
    if arguments.plot:
        load("matplotlib", "bench")
        check_picture(arguments.plot)
    if arguments.isa and os.environ.get("CSOFTMAX_ISA") != arguments.isa:
        restart(arguments)
    report = compare.compare(make_request(arguments))
    if arguments.json:
        print(json.dumps(report, indent=2))
    elif arguments.markdown:
        print(table.format_report_markdown(report))
    elif console := terminal.make_console():
        terminal.show_report(console, report)
    else:
        print(table.format_report(report))
    if arguments.plot:
        picture.draw(report, arguments.plot)
        print(f"picture: {arguments.plot}", file=sys.stderr)
    return 0


def make_request(arguments: argparse.Namespace) -> compare.Request:
    """Return the comparison that the arguments ask for."""
    if arguments.shapes:
        axis = -1 if arguments.axis is None else arguments.axis
        chosen = cases.given_cases(arguments.op, arguments.shapes, axis, arguments.dtype or "float32")
    else:
        chosen = cases.usual_cases(arguments.op, arguments.group or "all")
    return compare.Request(
        op=arguments.op,
        cases=chosen,
        peers=list(peers.PEERS) if arguments.peers is None else arguments.peers,
        threads=arguments.threads,
        fresh=arguments.fresh,
        rounds=arguments.rounds,
        isa=arguments.isa,
        command=arguments.argv,
    )


def compare_on_device(arguments: argparse.Namespace) -> int:
    """Measure on a CUDA device and show the report."""
    report = cuda.compare_on_device(
        arguments.op,
        arguments.shapes,
        arguments.dtype or "float32",
        arguments.rounds or 9,
        shlex.join(["python", "-m", "csoftmax", *arguments.argv]),
    )
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print(cuda.format_device_report(report, arguments.markdown))
    return 0


def restart(arguments: argparse.Namespace) -> None:
    """Start the command again with the instruction set forced: libraries choose theirs when they are loaded."""
    environment = os.environ | {"CSOFTMAX_ISA": arguments.isa}
    if arguments.isa in TORCH_ISA:
        environment["ATEN_CPU_CAPABILITY"] = TORCH_ISA[arguments.isa]
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "csoftmax", *arguments.argv], environment)
