#!/bin/bash
# Builds a free-threaded CPython, installs csoftmax there, and runs the tests without the GIL.
#
#     tests/tools/free_threaded.sh [pytest argument ...]      default: all tests but those of the CUDA model
#
#   CSM_FREE_THREADED  folder of the interpreter and of its virtual environment, both kept for the next run
#                      (default: ~/.cache/csoftmax/free-threaded)
#   CSM_SUITE, CSM_SOURCE  the Debian suite and source package to build (default: trixie, python3.13)
#
# PyPI has no interpreter, so this uses Debian's source package, without Debian's patches: they move site-packages to a
# folder in which a virtual environment of a free-threaded build does not search.
set -eu -o pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
FOLDER=${CSM_FREE_THREADED:-${XDG_CACHE_HOME:-$HOME/.cache}/csoftmax/free-threaded}
SUITE=${CSM_SUITE:-trixie}
SOURCE=${CSM_SOURCE:-python3.13}
PYTHON=$FOLDER/$SOURCE/bin/${SOURCE}t
export PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH PYTHON_GIL CSOFTMAX_ISA CSOFTMAX_NUM_THREADS || true

need() { # PROGRAM PACKAGE
    command -v "$1" >/dev/null || { echo "tests/tools/free_threaded.sh: $1 is missing (Debian package $2)" >&2; exit 1; }
}

# The source package has separate apt lists; those of the system are not changed.
fetch() {
    local keys=/usr/share/keyrings/debian-archive-keyring.gpg
    mkdir -p "$FOLDER"/apt/{lists/partial,cache/archives/partial,source}
    echo "deb-src [signed-by=$keys] http://deb.debian.org/debian $SUITE main" >"$FOLDER/apt/sources.list"
    local apt=(apt-get -qq -o "Dir::Etc::sourcelist=$FOLDER/apt/sources.list" -o Dir::Etc::sourceparts=-
        -o "Dir::State::lists=$FOLDER/apt/lists" -o "Dir::Cache=$FOLDER/apt/cache" -o APT::Sandbox::User=)
    "${apt[@]}" update
    (cd "$FOLDER/apt/source" && "${apt[@]}" source --download-only "$SOURCE")
    rm -rf "$FOLDER/build"
    (cd "$FOLDER/apt/source" && dpkg-source --no-check --no-copy --skip-patches -x "$SOURCE"_*.dsc "$FOLDER/build" >/dev/null)
}

build_interpreter() {
    local tool
    for tool in gcc make apt-get; do need "$tool" "${tool/apt-get/apt}"; done
    need dpkg-source dpkg-dev
    for tool in openssl/ssl.h:libssl-dev zlib.h:zlib1g-dev ffi.h:libffi-dev sqlite3.h:libsqlite3-dev; do
        echo "#include <${tool%:*}>" | gcc -E -x c - >/dev/null 2>&1 ||
            { echo "tests/tools/free_threaded.sh: ${tool%:*} is missing (Debian package ${tool#*:})" >&2; exit 1; }
    done
    fetch
    (
        cd "$FOLDER/build"
        ./configure -q --prefix="$FOLDER/$SOURCE" --disable-gil --with-ensurepip=no --disable-test-modules
        make -s -j "$(nproc)"
        make -s altinstall
    ) >"$FOLDER/build.log" 2>&1 || { tail -40 "$FOLDER/build.log" >&2; exit 1; }
    rm -rf "$FOLDER/build"
}

# Installs those packages of the test extra that have a wheel here; tests of missing ones are skipped.
install() {
    local wanted
    "$PYTHON" -m venv "$FOLDER/venv"
    "$FOLDER/venv/bin/pip" install -q -U pip
    "$FOLDER/venv/bin/python" - "$ROOT/pyproject.toml" >"$FOLDER/wanted" <<'PY'
import sys
import tomllib
extras = tomllib.load(open(sys.argv[1], "rb"))["project"]["optional-dependencies"]
print(*(wanted for name in ("test", "learn") for wanted in extras[name] if not wanted.startswith("csoftmax")), sep="\n")
PY
    "$FOLDER/venv/bin/pip" install -q --only-binary :all: "numpy>=1.26"
    while read -r wanted; do
        "$FOLDER/venv/bin/pip" install -q --only-binary :all: "$wanted" 2>/dev/null || echo "no wheel: $wanted"
    done <"$FOLDER/wanted"
    "$FOLDER/venv/bin/pip" install -q -e "$ROOT"  # as `python -m csoftmax` in a checkout finds that package
}

[ -x "$PYTHON" ] || build_interpreter
install
cd "$ROOT"
PATH=$FOLDER/venv/bin:$PATH
python -W error - <<'PY'
import sys, platform, numpy, csoftmax, csoftmax.cpu
assert not sys._is_gil_enabled()
print(f"CPython {platform.python_version()} without the GIL, NumPy {numpy.__version__}")
PY
# PYTHON_GIL=0: it stays off with extensions of other packages that have not declared themselves safe
[ $# -gt 0 ] || set -- -n "$(nproc)" --dist worksteal --ignore=tests/cuda
PYTHON_GIL=0 python -m pytest -q "$@"
