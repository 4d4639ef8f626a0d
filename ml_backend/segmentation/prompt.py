"""The prompt of one object: a loose box, clicks, or both."""

from dataclasses import dataclass, replace

from labelloop.labeling.geometry.shapes import Point, Rectangle


@dataclass(frozen=True)
class Prompt:
    """The prompt of one object, in pixels of the image.

    Attributes:
        box: A loose box, upright or rotated; None with clicks alone.
        positives: (x, y) of clicks on the object.
        negatives: (x, y) of clicks on the background.
    """

    box: Rectangle | None = None
    positives: tuple[Point, ...] = ()
    negatives: tuple[Point, ...] = ()

    def scaled(self, across: float, down: float) -> "Prompt":
        """Scale to an image of `across` times the width and `down` times the height."""
        return replace(
            self,
            box=None if self.box is None else scaled_box(self.box, across, down),
            positives=tuple((x * across, y * down) for x, y in self.positives),
            negatives=tuple((x * across, y * down) for x, y in self.negatives),
        )


def scaled_box(box: Rectangle, across: float, down: float) -> Rectangle:
    """The box on an image of `across` times the width and `down` times the height.

    Both scales differ by rounding only, so that a rotated box stays one.
    """
    return Rectangle(box.x * across, box.y * down, box.width * across, box.height * down, box.rotation)
