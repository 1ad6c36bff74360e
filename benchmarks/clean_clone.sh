#!/usr/bin/env bash
# How long the README's two commands take from a clean clone with a new environment and empty caches of packages and models.
#   bash benchmarks/clean_clone.sh benchmarks/results/clean_clone.json
set -euo pipefail
result=$(realpath "${1:?usage: clean_clone.sh RESULT.json}")
source=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git clone -q "$source" "$folder/main"
cd "$folder/main"
export PROMPTLORA_CACHE=$folder/cache PIP_CACHE_DIR=$folder/pip
timed() { local start=$SECONDS; "$@" > "$folder/log" 2>&1 < /dev/null || { tail -30 "$folder/log" >&2; exit 1; }; took=$((SECONDS - start)); }
timed make setup; setup=$took
timed make demo; first=$took
timed make demo; later=$took
timed make test; tests=$took
cpu=$(lscpu | sed -n 's/^Model name: *//p')
printf '{"commit": "%s", "cpu": "%s", "cores": %s, "seconds": {"setup": %s, "first_demo_after_it": %s, "later_demo": %s, "test_after_it": %s}}\n' \
  "$(git rev-parse --short HEAD)" "$cpu" "$(nproc)" "$setup" "$first" "$later" "$tests" > "$result"
