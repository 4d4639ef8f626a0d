"""Cut the padding off a letterboxed network input: the grid of a graph whose input may be any smaller rectangle.

A 4:3 image in a square input leaves a quarter of it to padding. Convolutions see a little of the padding next to the
image, so `MARGIN` pixels of it stay: then AP50 is that of whole inputs (`bench/results/predict.md`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.detection.preprocess import InputSpec

# Least padding next to the image, in pixels of the input.
MARGIN = 16

# Metadata key under which `ml_backend.inference.cut_graph` describes the grid.
CUT = "labelloop.cut"

# Additional input of a graph with baked grids: which cells of the whole input's grid lie in the rectangle, (n,) int64.
ROWS = "labelloop.rows"


@dataclass(frozen=True)
class CutGrid:
    """The input and grid of a graph whose height and width were opened.

    Attributes:
        height: Of the whole input, pixels.
        width: Of the whole input, pixels.
        strides: Strides of the levels, in the order of the grid's cells; the sides of a rectangle are their multiples.
        has_rows: Whether the graph has the input `ROWS`.
        shapes: Shapes of the outputs for the whole input, as the file declares them.
    """

    height: int
    width: int
    strides: tuple[int, ...]
    has_rows: bool
    shapes: Mapping[str, tuple[int | None, ...]]

    @classmethod
    def parse(cls, text: str) -> "CutGrid":
        """Read the metadata `CUT`."""
        fields = json.loads(text)
        shapes = {name: tuple(shape) for name, shape in fields["shapes"].items()}
        return cls(fields["height"], fields["width"], tuple(fields["strides"]), fields["has_rows"], shapes)

    def dump(self) -> str:
        """Write the metadata `CUT`."""
        return json.dumps(
            {"height": self.height, "width": self.width, "strides": self.strides, "has_rows": self.has_rows,
             "shapes": self.shapes}
        )  # fmt: skip

    def spec(self, spec: InputSpec, width: int, height: int) -> InputSpec:
        """The smallest input format for an image of this size, at the scale of the whole input."""
        if spec.placement not in {"top-left", "centre"}:
            return spec
        scale, step = min(spec.width / width, spec.height / height), max(self.strides)
        rows, columns = (-(-(round(side * scale) + MARGIN) // step) * step for side in (height, width))
        return replace(spec, height=min(rows, spec.height), width=min(columns, spec.width))

    def feeds(self, height: int, width: int) -> dict[str, npt.NDArray[np.int64]]:
        """The additional inputs of a run on a rectangle of this size."""
        return {ROWS: cells_inside(self, height, width)} if self.has_rows else {}

    def __hash__(self) -> int:
        """Of what decides on its cells."""
        return hash((self.height, self.width, self.strides))


@lru_cache(maxsize=64)
def cells_inside(grid: CutGrid, height: int, width: int) -> npt.NDArray[np.int64]:
    """Indices of the cells of the whole input's grid that lie in a rectangle at its top left, (n,) int64."""
    kept: list[npt.NDArray[Any]] = []
    first = 0
    for stride in grid.strides:
        rows, columns = -(-grid.height // stride), -(-grid.width // stride)
        numbers = np.arange(first, first + rows * columns).reshape(rows, columns)
        kept.append(numbers[: -(-height // stride), : -(-width // stride)].ravel())
        first += rows * columns
    cells: npt.NDArray[np.int64] = np.concatenate(kept).astype(np.int64)
    cells.flags.writeable = False
    return cells
