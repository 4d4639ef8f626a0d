#!/bin/sh
# Serve a detector that labelloop does not know: describe its outputs, look at its boxes, check it.
set -eu
work=${1:-$(mktemp -d)}
mkdir -p "$work"
work=$(cd "$work" && pwd)
cd "$(dirname "$0")"
rm -f "$work"/*.toml
"${PYTHON:-python3}" make_model.py "$work/blobs.onnx" "$work/photo.png"

echo "1. Without help it is refused, not guessed:"
! labelloop models inspect "$work/blobs.onnx" || exit 1

echo "2. With a layout file beside it:"
cp blobs.layout.toml "$work/"
labelloop models inspect "$work/blobs.onnx" --image "$work/photo.png" --out "$work/drawn.png"

echo "3. Serve it (Ctrl-C ends it):  labelloop ml serve --model $work/blobs.onnx"
