#!/usr/bin/env bash
# Writes the data of configs/small.toml: 240 synthetic tasks without numbers, dates and single letters, which a short
# run does not learn. The same version of the generator writes the same bytes.
#
#   bash scripts/small_data.sh [FOLDER]     the folder is configs/small by default
set -euo pipefail
folder=${1:-configs/small}
mkdir -p "$folder"
left_out=()
for category in "lists of numbers" "number formats" "arithmetic" "letters" "letter questions" "digits" "number questions" \
    "money" "dates" "date questions" "units" "times" "conditions" "list questions"; do
    left_out+=(--exclude "$category")
done
"${PROMPTLORA:-promptlora}" synth -o "$folder/rows.jsonl.gz" --tasks 240 --rows 12 --wordings "$folder/wordings.jsonl.gz" \
    "${left_out[@]}"
