"""Owns looking into a model file: what was recognised and why, and what it sees on a photo, in words and drawn."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ml_backend.detection.detections import Detections, corners_of
from ml_backend.detection.preprocess import InputSpec, Photo
from ml_backend.inference.detector import Detector
from ml_backend.inference.slicing import Slices, detect_sliced
from ml_backend.predict.shapes import SURE_POINT

MOST_NAMED = 12
"""Class names listed before "and n more"."""

MOST_LISTED = 50
"""Detections listed, best first."""

COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000", "#808000", "#000075")


@dataclass(frozen=True)
class Sight:
    """What a model sees on one photo, best first, and its names."""

    photo: Photo
    found: Detections
    names: tuple[str, ...]


def look(detector: Detector, photo: Photo, *, threshold: float, slices: Slices) -> Sight:
    """What a model sees on a photo.

    Args:
        detector: The model.
        photo: (h, w, 3) uint8 RGB, decoded whole.
        threshold: Scores below it are left out.
        slices: How large photos are cut.

    Raises:
        ModelBroken: The engine failed.
    """
    return Sight(photo, detect_sliced(detector, photo, slices, floor=threshold), detector.names.names)


def describe(detector: Detector) -> Iterator[str]:
    """What was recognised and why, a line a fact."""
    graph, reader, names = detector.engine.graph, detector.reader, detector.names
    yield f"Model:    {detector.path} ({detector.version})"
    yield f"Layout:   {detector.layout}, because: {detector.why}"
    for place, tensor in enumerate(graph.inputs):
        yield f"{'Input:' if place == 0 else '':<10}{tensor}"
    yield f"Shown as: {_shown(reader.spec)}"
    for place, tensor in enumerate(graph.outputs):
        unread = "" if tensor.name in reader.outputs else " (not read)"
        yield f"{'Outputs:' if place == 0 else '':<10}{tensor}{unread}"
    yield f"Gives:    {', '.join(sorted(reader.gives))}" + (f" ({', '.join(detector.points)})" if reader.points else "")
    more = f" and {len(names.names) - MOST_NAMED} more" if len(names.names) > MOST_NAMED else ""
    yield f"Classes:  {len(names.names)}, from {names.source}: {', '.join(names.names[:MOST_NAMED])}{more}"
    suppressed = "by the graph itself" if reader.suppress_iou is None else f"above an overlap of {reader.suppress_iou}"
    yield f"Doubles:  suppressed {suppressed}"


def listed(sight: Sight) -> Iterator[str]:
    """The detections, a line each: class, score, box."""
    found = sight.found
    many = "1 detection" if len(found) == 1 else f"{len(found)} detections"
    yield f"{many} on a photo of {sight.photo.shape[1]} x {sight.photo.shape[0]} pixels"
    rows = zip(found.classes.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    for place, (class_, score, box) in enumerate(rows):
        if place == MOST_LISTED:
            yield f"  ... and {len(found) - MOST_LISTED} more"
            return
        turn = f", turned {np.degrees(found.turned[place, 4]) % 360:.0f} degrees" if found.turned is not None else ""
        corners = " ".join(f"{side:.0f}" for side in box)
        yield f"  {score:.2f}  {sight.names[class_]}  at {corners}{turn}"


def draw(sight: Sight) -> Image.Image:
    """The photo with what was seen on it: masks, outlines, points, and each class in a colour of its own."""
    found = sight.found
    image = Image.fromarray(_with_masks(sight))
    pen = ImageDraw.Draw(image)
    side = max(image.size)
    thick, radius = max(2, side // 400), max(3, side // 250)
    font = ImageFont.load_default(max(12, side // 60))
    if found.turned is not None:
        outlines = corners_of(found.turned)
    else:
        left, top, right, bottom = found.boxes.T if len(found) else np.zeros((4, 0))
        outlines = np.stack([left, top, right, top, right, bottom, left, bottom], axis=1).reshape(-1, 4, 2)
    for place in reversed(range(len(found))):  # the best is drawn last, over the others
        class_ = int(found.classes[place])
        color = COLORS[class_ % len(COLORS)]
        ring = [(float(x), float(y)) for x, y in outlines[place]]
        pen.line([*ring, ring[0]], fill=color, width=thick, joint="curve")
        for x, y, sure in found.keypoints[place].tolist() if found.keypoints is not None else []:
            if sure >= SURE_POINT:
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color, outline="white")
        words = f"{sight.names[class_]} {found.scores[place]:.2f}"
        width, height = pen.textbbox((0, 0), words, font=font)[2:]
        x = min(max(0.0, min(point[0] for point in ring)), max(0.0, image.width - width - 4))
        y = max(0.0, min(point[1] for point in ring) - height - 4)
        pen.rectangle((x, y, x + width + 4, y + height + 4), fill=color)
        pen.text((x + 2, y + 1), words, fill="white", font=font)
    return image


def _with_masks(sight: Sight) -> Photo:
    pixels = sight.photo.copy()
    for class_, segment in zip(sight.found.classes.tolist(), sight.found.segments or (), strict=False):
        inside = segment.mask()
        color = Image.new("RGB", (1, 1), COLORS[class_ % len(COLORS)]).getpixel((0, 0))
        pixels[inside] = (pixels[inside] * 0.5 + np.array(color) * 0.5).astype(np.uint8)
    return pixels


def _shown(spec: InputSpec) -> str:
    placement = {
        "top-left": f"scaled to fit, top left on {spec.pad}",
        "centre": f"scaled to fit, in the middle on {spec.pad}",
        "stretch": "stretched to both sides",
        "crop": "its middle, filling the input",
    }[spec.placement]
    values = "0..255" if spec.scale == 1 else "0..1"
    if (spec.mean, spec.std) != ((0.0,) * 3, (1.0,) * 3):
        values += f" less {spec.mean}, over {spec.std}"
    return f"{spec.width} x {spec.height} pixels {spec.color} {values}, {spec.layout}; {placement}"
