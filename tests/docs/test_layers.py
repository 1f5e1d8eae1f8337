"""The layers of the code: imports and includes run only downward, in no circle, and no file or function is too long.

The lists below are those of docs/design/layers.md, from the lowest layer to the highest; things on one line do not use
each other. Imports are read from the syntax tree, so that those inside functions count as well.
"""

import ast
import re
import subprocess

import pytest
from helpers import ROOT

PYTHON_LAYERS = [
    {"_cpu"},
    {"_cuda"},
    {"_runtime"},
    {"_arguments"},
    {"_ops"},
    {"__init__"},
    {"samplers", "geometric", "_distributed"},
    {"_torch", "_jax", "_dask"},
    {"_spec", "_learn"},
    {
        "adversarial",
        "choice",
        "torch",
        "dask",
        "jax",
        "heads",
        "linear_model",
        "ray",
        "spark",
        "calibration",
        "class_weight",
        "sequence",
        "distributed",
    },
    {"metrics"},
    {"_bench"},
    {"_cli"},
    {"__main__"},
    {"asv_bench", "tests", "examples", "setup.py"},
]
C_LAYERS = [{"vec"}, {"math"}, {"kernel"}, {"core"}, {"isa"}, {"ops"}]
ANYWHERE = {"registry.h", "csoftmax.h", "csoftmax_shards.h"}  # lists, and the public interface

MAX_FILE_LINES = 700
MAX_FUNCTION_LINES = 100  # without the docstring
LONG_FUNCTIONS = {}  # "file:function": why it is in one piece


def tracked(*patterns):
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *patterns], cwd=ROOT, capture_output=True, text=True
    )
    files = [ROOT / line for line in listed.stdout.splitlines()]
    if listed.returncode != 0:  # an sdist
        files = [path for pattern in patterns for path in ROOT.rglob(pattern)]
    environments = {folder.parent for folder in ROOT.glob("*/pyvenv.cfg")}  # of a user, within the checkout
    return sorted(path for path in files if path.is_file() and not environments & set(path.parents))


def layer_of(part, layers):
    return next((i for i, layer in enumerate(layers) if part in layer), None)


def part_of_module(module):
    """The part of the package that a dotted name lies in: "csoftmax._ops.topk" is in "_ops"."""
    names = module.split(".")
    return "__init__" if names == ["csoftmax"] else names[1] if names[0] == "csoftmax" else None


def python_files():
    return tracked("csoftmax/*.py", "tests/*.py", "asv_bench/*.py", "examples/*.py", "setup.py")


def imported_modules(path):
    """Full names of the modules of csoftmax that a file imports, `from package import module` resolved."""
    package = list(path.relative_to(ROOT).with_suffix("").parts)[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inside = ROOT.joinpath(*origin.split("."), alias.name)
                is_module = inside.with_suffix(".py").exists() or inside.with_suffix(".pyi").exists() or inside.is_dir()
                yield f"{origin}.{alias.name}" if is_module and alias.name != "csoftmax" else origin


def part_of_file(path):
    parts = path.relative_to(ROOT).parts
    return parts[1].removesuffix(".py") if parts[0] == "csoftmax" else parts[0]


def runs_down(origin, target, layers):
    """Whether one part may use another: itself, or one on a lower line."""
    return origin == target or layer_of(target, layers) < layer_of(origin, layers)


def test_python_imports_run_down():
    for path in python_files():
        origin = part_of_file(path)
        assert layer_of(origin, PYTHON_LAYERS) is not None, f"{path.relative_to(ROOT)} is in no layer of test_layers.py"
        for module in imported_modules(path):
            part = part_of_module(module)
            if part in (None, "cpu"):  # another package, or the compiled interface for cimport
                continue
            arrow = f"{path.relative_to(ROOT)} imports {module}"
            assert layer_of(part, PYTHON_LAYERS) is not None, f"{arrow}, which is in no layer"
            assert runs_down(origin, part, PYTHON_LAYERS), f"{arrow}, which is not below it"


def file_of(module):
    path = ROOT.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()), None)


def find_circle(graph):
    """A path that ends where it began, or None."""
    done, trail = set(), []

    def visit(node):
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return None
        trail.append(node)
        for other in sorted(graph.get(node, ())):
            if found := visit(other):
                return found
        trail.pop()
        done.add(node)
        return None

    return next((found for node in sorted(graph) if (found := visit(node))), None)


def test_no_circle_of_imports():
    graph = {}
    for path in tracked("csoftmax/*.py"):
        targets = {file_of(module) for module in imported_modules(path) if module.startswith("csoftmax")}
        graph[path] = targets - {None, path}
    circle = find_circle(graph)
    assert circle is None, " -> ".join(str(path.relative_to(ROOT)) for path in circle)


def includes(path):
    """Files of the core that a file includes."""
    for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.M):
        candidates = [path.parent / name, ROOT / "src_c" / name, ROOT / "csoftmax" / "include" / name]
        found = next((p.resolve() for p in candidates if p.exists()), None)
        assert found is not None, f"{path.relative_to(ROOT)} includes {name}, which does not exist"
        yield found


def test_c_includes_run_down():
    graph = {}
    for path in tracked("src_c/*.c", "src_c/*.h"):
        graph[path] = set(includes(path))
        if path.name in ANYWHERE:
            continue
        folder = path.relative_to(ROOT / "src_c").parts[0]
        assert layer_of(folder, C_LAYERS) is not None, f"{path.relative_to(ROOT)} is in no layer of test_layers.py"
        for target in graph[path]:
            if target.name not in ANYWHERE:
                arrow = f"{path.relative_to(ROOT)} includes {target.relative_to(ROOT)}"
                part = target.relative_to(ROOT / "src_c").parts[0]
                assert layer_of(part, C_LAYERS) is not None, f"{arrow}, which is in no layer"
                assert runs_down(folder, part, C_LAYERS), f"{arrow}, which is not below it"
    circle = find_circle(graph)
    assert circle is None, " -> ".join(str(path.relative_to(ROOT)) for path in circle)


CODE = ("*.py", "*.pyx", "*.pxi", "*.pxd", "*.c", "*.h", "*.cu", "*.cuh", "*.cpp", "*.sh")
GENERATED = "Generated by"  # the first lines of a file that a script writes


def hand_written():
    return [path for path in tracked(*CODE) if GENERATED not in path.read_text()[:400]]


def test_no_file_is_too_long():
    for path in hand_written():
        lines = len(path.read_text().splitlines())
        assert lines <= MAX_FILE_LINES, (
            f"{path.relative_to(ROOT)} has {lines} lines; at most {MAX_FILE_LINES} are allowed"
        )


def python_functions(path):
    """Names and lengths of functions, without their docstrings."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                lines -= first.end_lineno - first.lineno + 1
            yield node.name, lines


def c_functions(path):
    """Names and lengths of what begins with a line that ends in "{" and ends with "}" at the first column."""
    start = name = None
    for number, line in enumerate(path.read_text().splitlines()):
        if (start is None and line.endswith("{") and re.match(r"\S", line)) or (
            start is None and re.match(r"\s.*\) \{$", line)
        ):
            start, name = number, re.sub(r"\s*\{$", "", line).strip()
        elif start is not None and line.startswith("}"):
            yield name, number - start + 1
            start = None


@pytest.mark.parametrize("kind", ["python", "c"])
def test_no_function_is_too_long(kind):
    read = python_functions if kind == "python" else c_functions
    suffixes = (".py",) if kind == "python" else (".c", ".h", ".cu", ".cuh", ".cpp")
    too_long = []
    for path in hand_written():
        if path.suffix in suffixes:
            for name, lines in read(path):
                place = f"{path.relative_to(ROOT)}:{name}"
                if lines > MAX_FUNCTION_LINES and place not in LONG_FUNCTIONS:
                    too_long.append(f"{place} has {lines} lines")
    assert not too_long, "\n".join(too_long)


def test_planted_faults_are_found(tmp_path):
    """Arrows that run up or sideways, circles and long functions are found where they are."""
    assert runs_down("linear_model", "_ops", PYTHON_LAYERS)
    assert not runs_down("_ops", "linear_model", PYTHON_LAYERS)
    assert not runs_down("torch", "jax", PYTHON_LAYERS)
    assert not runs_down("kernel", "core", C_LAYERS)
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
    long = tmp_path / "long.c"
    long.write_text("static int f(void) {\n" + "    g();\n" * 120 + "}\n")
    assert list(c_functions(long)) == [("static int f(void)", 122)]
    long = tmp_path / "long.py"
    long.write_text('def f():\n    """Text.\n\n    More text.\n    """\n' + "    g()\n" * 120)
    assert list(python_functions(long)) == [("f", 121)]
