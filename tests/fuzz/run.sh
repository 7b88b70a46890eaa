#!/bin/bash
# Fuzzes: tests/fuzz/run.sh SECONDS [READER ...] builds build-fuzz with clang and its libFuzzer, and runs the programs of
# these readers (of all) one after another. New inputs and finds go to build-fuzz/found/READER, never into the tree.
set -u
seconds=${1:?tests/fuzz/run.sh SECONDS [READER ...]}
shift
cd "$(dirname "$0")/../.." || exit 1
clang=$(command -v clang || command -v clang-14) || { echo "clang is needed" >&2; exit 1; }
if [ ! -f build-fuzz/build.ninja ]; then
    CC=$clang meson setup build-fuzz -Dbench=false -Dfuzz=true -Db_sanitize=address,undefined -Db_lundef=false || exit 1
fi
[ $# -gt 0 ] || set -- $(cd tests/fuzz/corpus && echo *)
ninja -C build-fuzz "${@/#/tests/fuzz/fuzz_}" || exit 1
failed=0
for reader in "$@"; do
    found=build-fuzz/found/$reader
    mkdir -p "$found"
    OPENBLAS_NUM_THREADS=1 "build-fuzz/tests/fuzz/fuzz_$reader" -max_total_time="$seconds" -timeout=10 \
        -rss_limit_mb=1024 -malloc_limit_mb=64 -print_final_stats=1 -artifact_prefix="$found-" \
        "$found" "tests/fuzz/corpus/$reader" >"$found.log" 2>&1 || { failed=1; echo "$reader: see $found.log"; }
    echo "$reader: $(grep -o 'cov: .*' "$found.log" | tail -n 1)"
done
exit "$failed"
