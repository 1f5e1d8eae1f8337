#!/bin/bash
# Builds the C core and its tests with compilers alone, without Python, and runs them.
#
#     tests/c/run.sh [part ...]        default: native clang simde neon asan exp
#
#   native    gcc; scalar, avx2 and (where the CPU has it) avx512 compared byte for byte
#   clang     the same with clang and no OpenMP; equal output hash
#   simde     the avx512 unit emulated, on any CPU with AVX2
#   neon      AArch64 under qemu-user; equal output hash
#   asan      gcc's address and undefined-behaviour sanitizers
#   tsan      clang's ThreadSanitizer: the pool's threads and atomics are plain ones, which it understands by itself;
#             OpenMP is only asked for the number of threads
#   exp       the exp core on a sample, natively and on NEON; exp-all: every float, on emulated units too, written to
#             exp_exhaustive.json
#   valgrind  memcheck: nothing depends on uninitialised memory
#   long      every case of native and simde, more of neon and asan, tsan, valgrind, exp-all
#
# CSM_EVERY=K runs every K-th case of native.  CSM_BUILD is the build directory (default: a temporary one); a program
# `native` in it is not built again, nor is an object that is newer than all sources.
# A part whose tools are missing fails and names them.
set -eu -o pipefail
cd "$(dirname "$0")/../.."
BUILD=${CSM_BUILD:-$(mktemp -d)}
[ -n "${CSM_BUILD:-}" ] || trap 'rm -rf "$BUILD"' EXIT
mkdir -p "$BUILD"

# flags_of KINDS FILE: from src_c/flags.txt; FILE is a file of src_c, or * for the flags of all files.
flags_of() {
    awk -v kinds=" $1 " -v file="$2" '/^[a-z]/ && index(kinds, " " $1 " ") && $2 == file {
        for (i = 3; i <= NF; i++) print $i
    }' src_c/flags.txt
}

mapfile -t FLAGS < <(flags_of gnu '*' && echo -Werror)
mapfile -t GCC_FLAGS < <(flags_of gcc '*' && echo -fopenmp)
mapfile -t AVX2 < <(flags_of gnu-x86 isa/avx2.c)
mapfile -t AVX512 < <(flags_of gnu-x86 isa/avx512.c)
EMULATED=("${AVX2[@]}" -O1 -DCSM_AVX512_EMULATED -include tests/c/avx512_simde.h)
DEEP=-DCSM_STACK_BYTES=2097152 # for workers: frames of kernels that are not optimised are ten times as large
WRAP=-Wl,--wrap=malloc,--wrap=calloc,--wrap=posix_memalign,--wrap=free
FEATURES_FILE=src_c/isa/cpu.c
SAMPLE=160 # of the cases, for emulators: their hash is compared with that of a native run of the same cases

need() {
    command -v "$1" >/dev/null || { echo "tests/c/run.sh: $1 is missing (Debian package $2)" >&2; exit 1; }
}

x86() { [ "$(uname -m)" = x86_64 ]; }

# build NAME COMPILER [FLAG ...]: $BUILD/NAME from the core, every unit and test_core.c.
# AVX512_FLAGS and FEATURES (the file with csm_cpu_features) may be set.
build() {
    local name=$1 cc=$2 unit flags
    shift 2
    local out=$BUILD/$name.o.d
    mkdir -p "$out"
    local files=() jobs=() object
    for unit in src_c/{core,ops,isa}/*.c; do [ "$unit" = $FEATURES_FILE ] || files+=("$unit"); done
    for unit in "${FEATURES:-$FEATURES_FILE}" "${files[@]}"; do
        object=$out/$(basename "$unit" .c).o
        if [ -f "$object" ] && [ -z "$(find src_c csoftmax/include tests/c -newer "$object" \( -name '*.[ch]' -o -name flags.txt \) -print -quit)" ]; then
            continue
        fi
        mapfile -t flags < <(flags_of gnu "${unit#src_c/}")
        if [ "${TARGET:-$(uname -m)}" = x86_64 ]; then
            case $unit in
            */avx2.c) flags=("${AVX2[@]}") ;;
            */avx512.c) if [ -n "${AVX512_FLAGS:-}" ]; then flags=(${AVX512_FLAGS}); else flags=("${AVX512[@]}"); fi ;;
            esac
        fi
        "$cc" "${FLAGS[@]}" "$@" "${flags[@]}" -c "$unit" -o "$object" &
        jobs+=($!)
        if [ ${#jobs[@]} -ge "$(nproc)" ]; then wait "${jobs[0]}"; jobs=("${jobs[@]:1}"); fi
    done
    for unit in "${jobs[@]}"; do wait "$unit"; done
    "$cc" "${FLAGS[@]}" "$@" tests/c/problem.c tests/c/test_*.c "$out"/*.o "$WRAP" -lm -o "$BUILD/$name"
}

hash_of() { sed -n 's/^hash //p' "$1"; }

# run NAME COMMAND ...: shows the output, and keeps it in $BUILD/NAME.log
run() {
    local name=$1
    shift
    echo "== $name: $*"
    "$@" | tee "$BUILD/$name.log"
}

same_hash() {
    local a b
    a=$(hash_of "$BUILD/$1.log") b=$(hash_of "$BUILD/$2.log")
    [ -n "$a" ] && [ "$a" = "$b" ] || { echo "FAILED the outputs of $1 ($a) and $2 ($b) differ" >&2; exit 1; }
    echo "equal hashes: $1, $2"
}

native_built() { [ -x "$BUILD/native" ] || build native gcc "${GCC_FLAGS[@]}"; }
native_sample() {
    [ -f "$BUILD/sample-$1.log" ] && return
    native_built
    run "sample-$1" "$BUILD/native" --every "$1"
}

native() {
    native_built
    run native "$BUILD/native" --every "${1:-${CSM_EVERY:-4}}"
}

clang_() {
    need clang clang
    build clang clang
    native_sample 25
    run clang "$BUILD/clang" --every 25
    same_hash clang sample-25
}

simde() {
    x86 || { echo "simde: not on $(uname -m)"; return; }
    [ -f /usr/include/simde/x86/avx512.h ] || { echo "tests/c/run.sh: SIMDe is missing (Debian package libsimde-dev)" >&2; exit 1; }
    AVX512_FLAGS="${EMULATED[*]}" FEATURES=tests/c/cpu_emulated.c build simde gcc "${GCC_FLAGS[@]}" "$DEEP"
    native_sample 25
    run simde "$BUILD/simde" --every "${1:-25}"
    grep -q 'compared: scalar avx2 avx512' "$BUILD/simde.log"
    [ -n "${1:-}" ] || same_hash simde sample-25
}

QEMU=(qemu-aarch64 -L /usr/aarch64-linux-gnu)
neon() {
    need aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu
    need qemu-aarch64 qemu-user
    local every=${1:-$SAMPLE}
    TARGET=aarch64 build neon aarch64-linux-gnu-gcc "${GCC_FLAGS[@]}"
    native_sample "$every"
    run neon "${QEMU[@]}" "$BUILD/neon" --every "$every"
    grep -q 'compared: scalar neon' "$BUILD/neon.log"
    same_hash neon "sample-$every"
}

asan() {
    local AVX512_FLAGS="${AVX512[*]}" # a unit that cannot run on this CPU needs no sanitizer
    ! x86 || grep -qw avx512f /proc/cpuinfo || AVX512_FLAGS+=" -fno-sanitize=all"
    # ASan detects null pointers anyway, and with a separate check of each access compilation takes a third longer
    build asan gcc "${GCC_FLAGS[@]}" "$DEEP" -Wno-error -O0 -fsanitize=address,undefined -fno-sanitize=null -fno-sanitize-recover=all
    # no detect_stack_use_after_return: its frames are not aligned for AVX-512's vectors (GCC bug 110027)
    run asan env ASAN_OPTIONS=detect_stack_use_after_return=0:allocator_may_return_null=1 "$BUILD/asan" --every "${1:-$SAMPLE}"
}

tsan() {
    need clang clang
    local flags=("$DEEP" -Wno-error -fopenmp -fsanitize=thread -g -O1) # -Wno-error: -O1 leaves loops rolled in spite of the pragma, and warns
    build tsan clang "${flags[@]}"
    clang "${FLAGS[@]}" "${flags[@]}" -Icsoftmax/include -Icsoftmax tests/c/race.c csoftmax/_cpu/pages.c \
        "$BUILD"/tsan.o.d/*.o -lm -o "$BUILD/race"
    local checked=(env "TSAN_OPTIONS=ignore_noninstrumented_modules=1 exitcode=66")
    run race "${checked[@]}" "$BUILD/race" "${1:-5}" 2>&1
    run tsan "${checked[@]}" "$BUILD/tsan" --every 1000
}

valgrind_() {
    need valgrind valgrind
    native_built
    # valgrind's arithmetic rounds some subnormal fma differently from the CPU: only memcheck's verdict counts here
    local status=0
    valgrind -q --error-exitcode=99 "$BUILD/native" --every 400 >"$BUILD/valgrind.log" 2>"$BUILD/valgrind.err" || status=$?
    cat "$BUILD/valgrind.err"
    [ "$status" -le 1 ] && [ ! -s "$BUILD/valgrind.err" ] && echo "1 passed, 0 failed"
}

# exp_program NAME COMPILER [emulated]: builds exp_exhaustive.c; emulated: with AVX-512 through SIMDe
exp_program() {
    local name=$1 cc=$2 isas=(scalar avx2 avx512) isa flags objects=() jobs=() avx512=("${AVX512[@]}") features=$FEATURES_FILE
    [ "$cc" = aarch64-linux-gnu-gcc ] && isas=(scalar neon)
    if [ -n "${3:-}" ]; then
        avx512=("${EMULATED[@]}")
        features=tests/c/cpu_emulated.c
    fi
    for isa in "${isas[@]}"; do
        flags=()
        [ "$isa" = avx2 ] && flags=("${AVX2[@]}")
        [ "$isa" = avx512 ] && flags=("${avx512[@]}")
        "$cc" "${FLAGS[@]}" -Wno-unused-function "${flags[@]}" -DEXP_UNIT="$isa" -DEXP_SOURCE="\"../../src_c/isa/$isa.c\"" \
            -c tests/c/exp_unit.c -o "$BUILD/$name.$isa.o" &
        jobs+=($!)
        objects+=("$BUILD/$name.$isa.o")
    done
    for isa in "${jobs[@]}"; do wait "$isa"; done
    "$cc" "${FLAGS[@]}" -fopenmp -O3 tests/c/exp_exhaustive.c "$features" "${objects[@]}" -lm -o "$BUILD/$name"
}

exp_() {
    exp_program exp gcc
    run exp "$BUILD/exp" --stride 997
    if command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64 >/dev/null; then
        exp_program exp-neon aarch64-linux-gnu-gcc
        run exp-neon-sample "${QEMU[@]}" "$BUILD/exp-neon" --stride 20011
        run exp-sample "$BUILD/exp" --stride 20011
        [ "$(grep checksum "$BUILD/exp-sample.log")" = "$(grep checksum "$BUILD/exp-neon-sample.log")" ]
    fi
}

exp_all() {
    local options=()
    if x86 && ! grep -qw avx512vl /proc/cpuinfo && [ -f /usr/include/simde/x86/avx512.h ]; then
        exp_program exp gcc emulated
        options+=(--emulated avx512)
    else
        exp_program exp gcc
    fi
    if x86 && command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64 >/dev/null; then
        exp_program exp-neon aarch64-linux-gnu-gcc
        run exp-neon-all "${QEMU[@]}" "$BUILD/exp-neon" --only neon
        options+=(--other neon --checksum "$(sed -n 's/.*"checksum": "\(.*\)".*/\1/p' "$BUILD/exp-neon-all.log")")
    fi
    run exp-all "$BUILD/exp" --json tests/records/exp_exhaustive.json --commit "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" \
        "${options[@]}"
}

long() {
    native 1
    simde 1
    asan 8
    neon 7
    tsan 60
    valgrind_
    exp_all
}

[ $# -gt 0 ] || set -- native clang simde neon asan exp
for part; do
    case $part in
    native | simde | neon | asan | tsan | long) begin=$SECONDS; "$part" ;;
    clang | valgrind | exp) begin=$SECONDS; "${part}_" ;;
    exp-all) begin=$SECONDS; exp_all ;;
    *) sed -n '2,23s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
    echo "== $part done in $((SECONDS - begin)) s"
done
