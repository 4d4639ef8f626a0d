#!/bin/sh
# Quality control of a JSON export: no server, nothing connected.
set -eu
work=${1:-$(mktemp -d)}
mkdir -p "$work"
work=$(cd "$work" && pwd)
cd "$(dirname "$0")"
data="--from export.json --label-config config.xml"

echo "1. Agreement, conflicts and annotators:"
labelloop qc report $data --json "$work/report.json"

echo "2. The consensus, as annotations that Label Studio imports:"
labelloop qc consensus $data --out "$work/consensus.json"

echo "3. The policy that reaches an error of 10 % with the fewest labels:"
labelloop qc tune $data --target-error .10 --json "$work/tune.json"

echo "Files: $work"
