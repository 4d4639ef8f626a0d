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
        box = self.box
        if box is not None:  # both scales differ only by rounding, so a rotated box stays one
            box = Rectangle(box.x * across, box.y * down, box.width * across, box.height * down, box.rotation)
        return replace(
            self,
            box=box,
            positives=tuple((x * across, y * down) for x, y in self.positives),
            negatives=tuple((x * across, y * down) for x, y in self.negatives),
        )
