#!/bin/sh
# Export a data set, fine-tune the ONNX model on it, and look at what comes back. Needs the extra [train].
set -eu
work=${1:-$(mktemp -d)}
mkdir -p "$work"
work=$(cd "$work" && pwd)
cd "$(dirname "$0")"
"${PYTHON:-python3}" draw.py "$work"
export LABELLOOP_LOCAL_FILES_ROOT="$work/images" LABELLOOP_HOME="${LABELLOOP_HOME:-$work/home}"

echo "1. The data set, as plain files in $work/shapes/latest:"
labelloop export "$work/export.json" --label-config config.xml --format coco,yolo-detect --copy-images --to "$work/shapes"

echo "2. Minutes of fine-tuning; your own trainer reads the same files (docs/how-to/continuous-training.md):"
labelloop train --data "$work/shapes" --minutes "${MINUTES:-2}" --out "$work/shapes.onnx"

echo "3. The same graph with new weights and the project's labels:"
labelloop models inspect "$work/shapes.onnx" --image "$work/images/001.png" --out "$work/drawn.png"

echo "4. Serve it (Ctrl-C ends it):  labelloop ml serve --model $work/shapes.onnx"
