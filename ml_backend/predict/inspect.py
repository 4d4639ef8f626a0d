"""Inspect a model file: the recognised layout and why, and its detections on one image, as text and as a drawing."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ml_backend.detection.detections import Detections, corners_of
from ml_backend.detection.preprocess import InputSpec, RgbImage
from ml_backend.inference.detector import Detector
from ml_backend.inference.slicing import Slices, detect_sliced
from ml_backend.predict.shapes import MIN_KEYPOINT_CONFIDENCE

# Class names listed before "and n more".
MOST_NAMED = 12

# Detections listed, best first.
MOST_LISTED = 50

COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000", "#808000", "#000075")


@dataclass(frozen=True)
class ImageDetections:
    """The detections of a model on one image, best first, with the model's class names."""

    image: RgbImage
    detections: Detections
    names: tuple[str, ...]


def detect_on_image(detector: Detector, photo: RgbImage, *, threshold: float, slices: Slices) -> ImageDetections:
    """Run a model on one image.

    Args:
        detector: The model.
        photo: (h, w, 3) uint8 RGB, decoded at full size.
        threshold: Minimum score.
        slices: Tiling of large images.

    Raises:
        ModelBroken: The engine failed.
    """
    return ImageDetections(photo, detect_sliced(detector, photo, slices, floor=threshold), detector.names.names)


def describe(detector: Detector) -> Iterator[str]:
    """Yield the recognised properties of a model, one per line."""
    graph, reader, names = detector.engine.graph, detector.reader, detector.names
    yield f"Model:    {detector.path} ({detector.version})"
    yield f"Layout:   {detector.layout}, because: {detector.why}"
    if detector.layout_file is not None:
        text = detector.layout_file.read_text(encoding="utf-8")
        yield from (f"          | {line}" for line in text.splitlines() if line and not line.startswith("#"))
    for index, tensor in enumerate(graph.inputs):
        yield f"{'Input:' if index == 0 else '':<10}{tensor}"
    yield f"Shown as: {_input_text(reader.spec)}"
    if graph.cut is not None:
        yield "Padding:  cut off, the boxes are the same"
    elif detector.uncut:
        yield f"Padding:  run as well, which takes longer: {detector.uncut}"
    for index, tensor in enumerate(graph.outputs):
        unread = "" if tensor.name in reader.outputs else " (not read)"
        yield f"{'Outputs:' if index == 0 else '':<10}{tensor}{unread}"
    yield f"Gives:    {', '.join(sorted(reader.provides))}" + (
        f" ({', '.join(detector.keypoint_names)})" if reader.keypoints else ""
    )
    more = f" and {len(names.names) - MOST_NAMED} more" if len(names.names) > MOST_NAMED else ""
    yield f"Classes:  {len(names.names)}, from {names.source}: {', '.join(names.names[:MOST_NAMED])}{more}"
    iou = reader.suppress_iou
    yield f"NMS:      {'by the graph, or not needed' if iou is None else f'above an IoU of {iou}'}"


def detection_lines(sight: ImageDetections) -> Iterator[str]:
    """Yield the detections, one per line: class, score, box."""
    detections = sight.detections
    count = "1 detection" if len(detections) == 1 else f"{len(detections)} detections"
    yield f"{count} in an image of {sight.image.shape[1]} x {sight.image.shape[0]} pixels"
    rows = zip(detections.classes.tolist(), detections.scores.tolist(), detections.boxes.tolist(), strict=True)
    for index, (class_, score, box) in enumerate(rows):
        if index == MOST_LISTED:
            yield f"  ... and {len(detections) - MOST_LISTED} more"
            return
        turned = detections.rotated
        rotation = f", turned {np.degrees(turned[index, 4]) % 360:.0f} degrees" if turned is not None else ""
        corners = " ".join(f"{side:.0f}" for side in box)
        yield f"  {score:.2f}  {sight.names[class_]}  at {corners}{rotation}"


def draw_detections(sight: ImageDetections) -> Image.Image:
    """Draw the detections on the image: masks, outlines and keypoints, one colour per class."""
    detections = sight.detections
    image = Image.fromarray(_with_masks(sight))
    pen = ImageDraw.Draw(image)
    side = max(image.size)
    thick, radius = max(2, side // 400), max(3, side // 250)
    font = ImageFont.load_default(max(12, side // 60))
    if detections.rotated is not None:
        outlines = corners_of(detections.rotated)
    else:
        left, top, right, bottom = detections.boxes.T if len(detections) else np.zeros((4, 0))
        outlines = np.stack([left, top, right, top, right, bottom, left, bottom], axis=1).reshape(-1, 4, 2)
    for index in reversed(range(len(detections))):  # the best on top
        class_ = int(detections.classes[index])
        color = COLORS[class_ % len(COLORS)]
        ring = [(float(x), float(y)) for x, y in outlines[index]]
        pen.line([*ring, ring[0]], fill=color, width=thick, joint="curve")
        for x, y, visibility in detections.keypoints[index].tolist() if detections.keypoints is not None else []:
            if visibility >= MIN_KEYPOINT_CONFIDENCE:
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color, outline="white")
        caption = f"{sight.names[class_]} {detections.scores[index]:.2f}"
        width, height = pen.textbbox((0, 0), caption, font=font)[2:]
        x = min(max(0.0, min(point[0] for point in ring)), max(0.0, image.width - width - 4))
        y = max(0.0, min(point[1] for point in ring) - height - 4)
        pen.rectangle((x, y, x + width + 4, y + height + 4), fill=color)
        pen.text((x + 2, y + 1), caption, fill="white", font=font)
    return image


def _with_masks(sight: ImageDetections) -> RgbImage:
    pixels = sight.image.copy()
    for class_, segment in zip(sight.detections.classes.tolist(), sight.detections.segments or (), strict=False):
        if segment is None:
            continue
        inside, bounds = segment.crop()
        left, top, right, bottom = (int(side) for side in bounds)
        part = pixels[top:bottom, left:right]
        color = Image.new("RGB", (1, 1), COLORS[class_ % len(COLORS)]).getpixel((0, 0))
        part[inside] = (part[inside] * 0.5 + np.array(color) * 0.5).astype(np.uint8)
    return pixels


def _input_text(spec: InputSpec) -> str:
    placement = {
        "top-left": f"scaled to fit, top left on {spec.pad}",
        "centre": f"scaled to fit, in the middle on {spec.pad}",
        "stretch": "stretched to both sides",
        "crop": "its middle, filling the input",
    }[spec.placement]
    values, mean = "0..255" if spec.scale == 1 else "0..1", spec.mean
    if spec.scale == 1 / 127.5:  # 0..2, from which 1 is subtracted
        values, mean = "-1..1", (mean[0] - 1, mean[1] - 1, mean[2] - 1)
    if (mean, spec.std) != ((0.0,) * 3, (1.0,) * 3):
        values += f" less {mean}, over {spec.std}"
    return f"{spec.width} x {spec.height} pixels {spec.color} {values}, {spec.layout}; {placement}"
