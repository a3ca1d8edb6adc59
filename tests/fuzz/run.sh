#!/usr/bin/env bash
# usage: run.sh PYTHON MUTANTS SECONDS
#
# Feeds damaged input to every reader: MUTANTS damaged JPEG files, then each libFuzzer target for SECONDS. Ends with an
# error at the first finding; the input lies in build/fuzz/findings.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$1 mutants=$2 seconds=$3
build=$PWD/build/fuzz
mkdir -p "$build/findings"

clang=$(command -v clang++ || command -v clang++-14 || true)
if [ -z "$clang" ]; then
  echo "No Clang: the libFuzzer targets in C++ are left out (Debian: apt-get install clang-14 libclang-rt-14-dev)" >&2
fi
cmake -S tests/fuzz -B "$build/programs" ${clang:+-DCMAKE_CXX_COMPILER="$clang"} > /dev/null
cmake --build "$build/programs" -j 2 > /dev/null

"$python" tests/fuzz/seeds.py "$build/seeds"
(cd "$build/findings" && "$build/programs/mutated_jpegs" "$mutants" "$build"/seeds/*.jpg)
(cd "$build/findings" && "$build/programs/mutated_stores" "$mutants" "$build/store-seeds")

# fuzz TARGET COMMAND...
fuzz() {
  local target=$1
  shift
  mkdir -p "$build/corpus/$target"
  echo "$target:"
  "$@" "$build/corpus/$target" -artifact_prefix="$build/findings/" -max_total_time="$seconds" -max_len=4096 \
    -rss_limit_mb=4096 -timeout=20 -print_final_stats=1 > "$build/$target.log" 2>&1 ||
    { tail -40 "$build/$target.log"; exit 1; }
  grep -E '^Done|new_units' "$build/$target.log"
}

if [ -n "$clang" ]; then
  fuzz decode "$build/programs/fuzz_decode" "$build/seeds"
  fuzz store "$build/programs/fuzz_store" "$build/store-seeds"
fi
# libFuzzer ends Python without tidying up.
TMPDIR=$(mktemp -d -p "$([ -d /dev/shm ] && echo /dev/shm || echo /tmp)")
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
export PYTHONPATH="${PYTHONPATH:-}:tests:$build/atheris"
"$python" -c "import atheris" 2> /dev/null || "$python" -m pip install -q --no-deps --target "$build/atheris" atheris
for layout in $("$python" tests/fuzz/damaged_lists.py); do
  fuzz "$layout" "$python" tests/fuzz/fuzz_lists.py "$layout"
done
