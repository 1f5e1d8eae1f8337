#!/bin/bash
# Measures two commits with asv, their rounds interleaved.
#
#     asv_bench/compare.sh BASE NEW [benchmarks]       a regular expression; default: time_ and track_ulp
#
# Exits with 1 if a benchmark has become worse by more than FACTOR (default 1.15), and asserts that something was
# measured.  Needs asv, virtualenv and a C compiler: each commit is built in an environment of its own.
set -eu -o pipefail
cd "$(dirname "$0")"
BASE=$(git rev-parse "$1") NEW=$(git rev-parse "$2") WHICH=${3:-time_|track_ulp} FACTOR=${FACTOR:-1.15}
[ -f "${ASV_MACHINE:-$HOME/.asv-machine.json}" ] || asv machine --yes
mark=$(mktemp)
status=0
asv continuous --interleave-rounds --factor "$FACTOR" --show-stderr -b "$WHICH" "$BASE" "$NEW" || status=$?
for commit in "$BASE" "$NEW"; do
    new=$(find ../.asv/results -name "${commit:0:8}-*.json" -newer "$mark")
    [ -n "$new" ] || { echo "no new results of $commit" >&2; exit 2; }
done
rm -f "$mark"
exit $status
