#!/usr/bin/env bash
# Instructions of one step of a fixed small model, as callgrind counts them: a guard against a hot path
# that has become much longer, without a clock. Loading is taken off as the difference of two runs.
#   step_instructions_test.sh PROGRAM MODEL LIMIT
# Exits with 77 (skipped) where valgrind is missing. valgrind knows AVX2, not AVX-512: that is counted.
set -euo pipefail
program="${1:?program}" model="${2:?model}" limit="${3:?limit}"
if ! command -v valgrind >/dev/null; then
  echo "skipped: valgrind is not installed"
  exit 77
fi
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

count() {
  valgrind --tool=callgrind --callgrind-out-file="$folder/out" "$program" "$model" "$1" 2>"$folder/log" ||
    { cat "$folder/log"; exit 1; }
  sed -n 's/^==[0-9]*== Collected : \([0-9]*\).*/\1/p' "$folder/log"
}

few="$(count 2)"
many="$(count 12)"
step=$(((many - few) / 10))
echo "$step instructions a step; at most $limit are expected"
((step > 0 && step <= limit))
