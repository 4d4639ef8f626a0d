"""`models inspect --suggest` on files whose layout is known from a layout file: the rank of the right proposal."""

from __future__ import annotations

import tempfile
import time
import tomllib
from pathlib import Path

import numpy as np

from bench.layouts_found import HERE, LAYOUT_FILES, _photos, _read
from ml_backend.layouts.declared import anchor_grid
from ml_backend.layouts.layout_file import LayoutFile, read_layout_file
from ml_backend.predict.suggest import suggest

SIDE = 640


def run() -> str:
    """Propose a layout for every file with a layout file, from each photo, and give the table."""
    sources = tomllib.loads((HERE / "sources.toml").read_text())["source"]
    photos = _photos([one for one in sources if "layouts_photos" in one["benches"]])
    rows = [
        "Rank of the first proposal that decodes as the layout file says, and of the first that also shows the image",
        "so (colour order, range, mean and deviation), on one photo.",
        "",
        "| file | photo | decoding | with pixels | plausibility of the first | s |",
        "|---|---|---|---|---|---|",
    ]
    for one in sources:
        data = _read(one) if "layouts_found" in one["benches"] and one.get("layout_file") else None
        if data is None:
            continue
        right = read_layout_file(LAYOUT_FILES / one["layout_file"])
        if right.layout:  # a known layout with other pixels: there is nothing to decode
            continue
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(one["path"]).name
            file.write_bytes(data)
            started = time.monotonic()
            found = suggest(file, photos[one["photos"]][0])
            spent = time.monotonic() - started
        ranks = [rank for rank, candidate in enumerate(found, 1) if _same(candidate.file, right)]
        shown = [rank for rank in ranks if _pixels(found[rank - 1].file) == _pixels(right)]
        best = f"{found[0].plausibility:.2f}" if found else "none"
        cells = [str(numbers[0]) if numbers else "none" for numbers in (ranks, shown)]
        rows.append(f"| {one['repo']}: {file.name} | {one['photos']} | {' | '.join(cells)} | {best} | {spent:.0f} |")
    return "\n".join(rows)


def _same(one: LayoutFile, other: LayoutFile) -> bool:
    """Whether two files decode alike: encoding, anchors, activations and what is multiplied."""
    if one.boxes is None or other.boxes is None or one.scores is None or other.scores is None:
        return False
    keys = [
        (
            file.boxes.format,
            file.boxes.activation,
            file.scores.activation,
            file.scores.background,
            bool(file.objectness),
        )
        for file in (one, other)
        if file.boxes and file.scores
    ]
    if keys[0] != keys[1] or (one.anchors is None) != (other.anchors is None):
        return False
    if one.anchors is None or other.anchors is None:
        return True
    first, second = (anchor_grid(anchors, SIDE, SIDE) for anchors in (one.anchors, other.anchors))
    return first.sizes.shape == second.sizes.shape and bool(
        np.allclose(first.sizes, second.sizes) and np.allclose(first.points, second.points)
    )


def _pixels(file: LayoutFile) -> tuple[object, ...]:
    pixels = file.input
    return () if pixels is None else (pixels.color, pixels.range, pixels.mean, pixels.std)


if __name__ == "__main__":
    print(run())
