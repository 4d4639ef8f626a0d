"""Layouts of face detectors: UltraFace, RetinaFace, SCRFD, YuNet, BlazeFace, YOLOv5-face, and MediaPipe's palms.

Their shapes are few, so shape alone is no proof: each needs a second sign, such as five points that lie like the eyes,
nose and mouth of a face, boxes near their own anchors, or the family's names of outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ml_backend.detection.detections import Floats
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.detection.preprocess import InputSpec
from ml_backend.layouts.base import Layout, OutputReader, apply_input_metadata, image_size, in_unit_range, input_sides
from ml_backend.layouts.declared import anchor_grid, declared_reader, decode_boxes, input_spec
from ml_backend.layouts.layout_file import (
    Anchors,
    Boxes,
    Input,
    Keypoints,
    LayoutFile,
    Objectness,
    Scores,
    Suppression,
)
from ml_backend.layouts.plausibility import Misfit

# Order of the five points of WIDER FACE models.
FACE_POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
# Order of MediaPipe's six points.
BLAZE_POINTS = ("right_eye", "left_eye", "nose", "mouth", "right_ear", "left_ear")
PALM_POINTS = (
    "wrist", "index_finger_mcp", "middle_finger_mcp", "ring_finger_mcp", "pinky_mcp", "thumb_cmc", "thumb_mcp",
)  # fmt: skip

# Minimum share of rows whose points lie like a face's: trained networks predict the mean face even on a grey image.
MIN_FACE_SHARE = 0.8

# Maximum median distance in strides between the centre of a decoded box and its own anchor.
MAX_DISTANCE = 2.0

_Declare = Callable[[Graph, Arrays], "tuple[LayoutFile, str] | None"]


def declared_layout(
    declare: _Declare, *, names: tuple[str, ...] = (), points: tuple[str, ...] = ()
) -> Layout:  # fmt: skip
    """Build a layout from a function that declares the outputs, and says why.

    Args:
        declare: (graph, outputs) -> declaration and reason; None where the graph is of another layout. Raises Misfit
            where the shapes match and a second sign does not.
        names: Class names of the family, for files without.
        points: Names of its keypoints.
    """

    def recognise(graph: Graph, outputs: Arrays) -> str | None:
        declaration = declare(graph, outputs)
        return declaration[1] if declaration else None

    def read(graph: Graph, outputs: Arrays) -> OutputReader:
        try:
            declaration = declare(graph, outputs)
        except Misfit as error:  # the user names the layout: the shapes decide
            declaration = getattr(error, "declared", None)
        if declaration is None:
            raise ValueError("its outputs do not have this layout's shapes")
        return declared_family(declaration[0], graph, outputs, names, points)

    return Layout(recognise, read)


def declared_family(
    file: LayoutFile, graph: Graph, outputs: Arrays, names: tuple[str, ...], points: tuple[str, ...]
) -> OutputReader:
    """Bind a family's declaration; the file's metadata `input` takes precedence over its preprocessing."""
    spec = _spec(file, graph)
    if "input" in graph.metadata:
        spec = apply_input_metadata(graph, spec)
    reader = declared_reader(file, graph, outputs, spec)
    own = names if reader.classes == len(names) else ()
    return replace(reader, names=own, keypoint_names=points if reader.keypoints == len(points) else ())


def _spec(file: LayoutFile, graph: Graph) -> InputSpec:
    assert file.input is not None
    return input_spec(msgspec.structs.replace(file.input, size=image_size(graph)), graph)


def doubtful(reason: str, file: LayoutFile, why: str) -> Misfit:
    """The error of a second sign that is missing; `--layout` and `MODEL.layout.toml` can still name the layout."""
    error = Misfit(reason)
    error.declared = file, why  # type: ignore[attr-defined]
    return error


def _rows_of(array: npt.NDArray[Any]) -> Floats:
    """The rows of one image: (n, c) of (n, c) or (batch, n, c)."""
    return np.asarray(as_float32(array).reshape(-1, *array.shape[-2:])[0], np.float32)


def levels_of(outputs: Arrays, rows: Sequence[int], width: int) -> tuple[str, ...] | None:
    """The output of each level, by its number of rows and columns; None where one is missing or ambiguous."""
    level_names = []
    for count in rows:
        matching = [
            name for name, array in outputs.items() if array.ndim in {2, 3} and array.shape[-2:] == (count, width)
        ]
        if len(matching) != 1:
            return None
        level_names.append(matching[0])
    return tuple(level_names)


def single(outputs: Arrays, rows: int, width: int) -> str | None:
    """The only output with this number of rows and columns."""
    level_names = levels_of(outputs, [rows], width)
    return level_names[0] if level_names else None


def face_share(points: Floats) -> float:
    """Share of rows (n, 5, 2) whose points lie like a face: left of right, eyes above the mouth."""
    if not len(points):
        return 0.0
    x, y = points[..., 0], points[..., 1]
    like = (x[:, 0] < x[:, 1]) & (x[:, 3] < x[:, 4]) & (y[:, :2].mean(axis=1) < y[:, 3:].mean(axis=1))
    return float(like.mean())


def _rows_per_level(anchors: Anchors, graph: Graph) -> list[int]:
    height, width = image_size(graph)
    return [cells * per_cell for cells, per_cell in anchor_grid(anchors, height, width).counts]


def _checked_faces(file: LayoutFile, graph: Graph, outputs: Arrays, why: str) -> tuple[LayoutFile, str]:
    """Check that the keypoints are a face's.

    Raises:
        Misfit: They are not.
    """
    assert file.keypoints is not None
    points = declared_reader(file, graph, outputs, _spec(file, graph)).decode(outputs, -np.inf)[0].keypoints
    assert points is not None
    share = face_share(points[..., :2])
    if share < MIN_FACE_SHARE:
        raise doubtful(
            f"only {share:.0%} of its rows have five points like the eyes, nose and mouth of a face: they are other "
            "points, or other anchors",
            file,
            why,
        )
    return file, f"{why}; five points, like a face in {share:.0%} of the rows"


# --- UltraFace: boxes (n, 4) and scores (n, classes) of priors --------------------------------------------------------

ULTRAFACE_ANCHORS = Anchors(
    strides=(8, 16, 32, 64), sizes=((10, 16, 24), (32, 48), (64, 96), (128, 192, 256))
)  # fmt: skip
_ULTRAFACE_INPUT = Input(color="RGB", range="0..255", mean=(127, 127, 127), std=(128, 128, 128), letterbox="stretch")


def _ultraface(graph: Graph, outputs: Arrays) -> tuple[LayoutFile, str] | None:
    count = sum(_rows_per_level(ULTRAFACE_ANCHORS, graph))
    boxes = single(outputs, count, 4)
    if len(outputs) != 2 or boxes is None:
        return None
    scores = next(name for name in outputs if name != boxes)
    if outputs[scores].ndim not in {2, 3} or outputs[scores].shape[-2] != count or outputs[scores].shape[-1] < 2:
        return None
    rows, chances = _rows_of(outputs[boxes]), _rows_of(outputs[scores])
    if not (in_unit_range(chances) and np.allclose(chances.sum(axis=1), 1, atol=0.02)):
        return None
    distance = _distance(rows, graph, ULTRAFACE_ANCHORS)
    decoded = distance <= MAX_DISTANCE
    file = LayoutFile(
        input=_ULTRAFACE_INPUT,
        anchors=ULTRAFACE_ANCHORS,
        boxes=Boxes(output=boxes, format="corners", unit="normalised")
        if decoded
        else Boxes(output=boxes, format="ssd"),
        scores=Scores(output=scores, background="first"),
        suppression=Suppression(iou=0.3),
    )
    why = f"{count} priors of UltraFace, scores that sum to 1"
    if decoded:
        return file, f"{why}, and boxes near their own priors ({distance:.1f} strides)"
    spec = _spec(file, graph)
    raw = decode_boxes(
        Boxes(output=boxes, format="ssd"), rows, anchor_grid(ULTRAFACE_ANCHORS, *image_size(graph)), spec
    )
    distance = _distance(np.asarray(raw / input_sides(spec), np.float32), graph, ULTRAFACE_ANCHORS)
    if distance > MAX_DISTANCE:
        raise doubtful(
            f"its boxes lie neither as they are nor as offsets near UltraFace's priors ({distance:.1f} strides)",
            file,
            why,
        )
    return file, f"{why}, and offsets that put boxes near their own priors ({distance:.1f} strides)"


def _distance(corners: Floats, graph: Graph, anchors: Anchors) -> float:
    """Median distance between centres of normalised corners (n, 4) and their own anchors, in strides."""
    height, width = image_size(graph)
    grid = anchor_grid(anchors, height, width)
    centres = (corners[:, :2] + corners[:, 2:]) / 2 * np.array([width, height], np.float32)
    if not np.isfinite(centres).all() or (corners[:, 2:] < corners[:, :2]).mean() > 0.5:
        return float("inf")
    return float(np.median(np.abs(centres - grid.points).max(axis=1) / grid.strides[:, 0]))


# --- RetinaFace (https://arxiv.org/abs/1905.00641): offsets, two scores and five points of priors ---------------------

RETINAFACE_ANCHORS = Anchors(strides=(8, 16, 32), sizes=((16, 32), (64, 128), (256, 512)))


def _retinaface(graph: Graph, outputs: Arrays) -> tuple[LayoutFile, str] | None:
    count = sum(_rows_per_level(RETINAFACE_ANCHORS, graph))
    boxes, scores, points = (single(outputs, count, width) for width in (4, 2, 10))
    if len(outputs) != 3 or boxes is None or scores is None or points is None:
        return None
    chances = _rows_of(outputs[scores])
    activated = in_unit_range(chances) and np.allclose(chances.sum(axis=1), 1, atol=0.02)
    file = LayoutFile(
        input=Input(color="BGR", range="0..255", mean=(104, 117, 123), letterbox="top-left", pad=0),
        anchors=RETINAFACE_ANCHORS,
        boxes=Boxes(output=boxes, format="ssd"),
        scores=Scores(output=scores, activation="none" if activated else "softmax", background="first"),
        keypoints=Keypoints(output=points, format="ssd", names=FACE_POINTS),
        suppression=Suppression(iou=0.4),
    )
    return _checked_faces(file, graph, outputs, f"{count} priors of RetinaFace with offsets, two scores and points")


# --- SCRFD (https://arxiv.org/abs/2105.04714): a score, distances and points, two anchors a cell ----------------------

SCRFD_ANCHORS = Anchors(strides=(8, 16, 32), per_cell=(2, 2, 2), offset=0.0)


def _scrfd(graph: Graph, outputs: Arrays) -> tuple[LayoutFile, str] | None:
    rows = _rows_per_level(SCRFD_ANCHORS, graph)
    scores, boxes, points = (levels_of(outputs, rows, width) for width in (1, 4, 10))
    if scores is None or boxes is None or len(outputs) != (6 if points is None else 9):
        return None
    chances = np.concatenate([_rows_of(outputs[name]) for name in scores])
    sides = np.concatenate([_rows_of(outputs[name]) for name in boxes])
    file = LayoutFile(
        input=Input(
            color="RGB", range="0..255", mean=(127.5, 127.5, 127.5), std=(128, 128, 128), letterbox="top-left", pad=0
        ),
        anchors=SCRFD_ANCHORS,
        boxes=Boxes(output=boxes, format="distances", unit="strides"),
        scores=Scores(output=scores, activation="none" if in_unit_range(chances) else "sigmoid"),
        keypoints=Keypoints(output=points, format="strides", names=FACE_POINTS) if points else None,
        suppression=Suppression(iou=0.4),
    )
    why = "three levels of a score and four distances, two anchors a cell (SCRFD)"
    positive = float((sides > -0.05).mean())
    if positive < 0.95:
        raise doubtful(f"{1 - positive:.0%} of the values that would be distances are negative", file, why)
    if points is None:
        return file, f"{why}; {positive:.0%} of the distances are positive"
    return _checked_faces(file, graph, outputs, why)


# --- YuNet (https://github.com/ShiqiYu/libfacedetection): twelve outputs named by role and stride ---------------------

_YUNET = tuple(f"{role}_{stride}" for role in ("cls", "obj", "bbox", "kps") for stride in (8, 16, 32))
YUNET_ANCHORS = Anchors(strides=(8, 16, 32), offset=0.0)


def _yunet(graph: Graph, outputs: Arrays) -> tuple[LayoutFile, str] | None:
    if set(outputs) != set(_YUNET):
        return None
    rows = _rows_per_level(YUNET_ANCHORS, graph)
    if any(outputs[f"bbox_{stride}"].shape[-2:] != (count, 4) for stride, count in zip((8, 16, 32), rows, strict=True)):
        return None
    cls, obj, bbox, kps = (tuple(_YUNET[at : at + 3]) for at in (0, 3, 6, 9))
    file = LayoutFile(
        input=Input(color="BGR", range="0..255", letterbox="top-left", pad=0),
        anchors=YUNET_ANCHORS,
        boxes=Boxes(output=bbox, format="yolox"),
        scores=Scores(output=cls),
        objectness=Objectness(output=obj, combine="geometric-mean"),
        keypoints=Keypoints(output=kps, format="strides", names=FACE_POINTS),
        suppression=Suppression(iou=0.3),
    )
    return _checked_faces(file, graph, outputs, "outputs cls, obj, bbox and kps of the strides 8, 16 and 32 (YuNet)")


# --- BlazeFace (https://arxiv.org/abs/1907.05047) and MediaPipe's palm detector: offsets in pixels --------------------

# Two anchors a cell at the first stride, six at the second: inputs of 128 and 192 pixels, and of 256.
_BLAZE = tuple(Anchors(strides=strides, per_cell=(2, 6)) for strides in ((8, 16), (16, 32)))
# MediaPipe's own names of outputs; other exports were also trained with other ranges of pixels.
_BLAZE_NAMES = {"regressors", "classificators", "classifiers"}


def _blaze(points: int, pixels: str) -> _Declare:
    def declare(graph: Graph, outputs: Arrays) -> tuple[LayoutFile, str] | None:
        if len(outputs) != 2:
            return None
        columns = 4 + 2 * points
        for anchors in _BLAZE:
            count = sum(_rows_per_level(anchors, graph))
            boxes, scores = single(outputs, count, columns), single(outputs, count, 1)
            if boxes is not None and scores is not None:
                break
        else:
            return None
        file = LayoutFile(
            input=Input(color="RGB", range=pixels, letterbox="centre", pad=0),  # type: ignore[arg-type]
            anchors=anchors,
            boxes=Boxes(output=boxes, columns=(0, 4), format="mediapipe"),
            scores=Scores(output=scores, activation="sigmoid"),
            keypoints=Keypoints(
                output=boxes,
                columns=(4, columns),
                format="mediapipe",
                names=BLAZE_POINTS if points == 6 else PALM_POINTS,
            ),
            suppression=Suppression(iou=0.3),
        )
        why = f"{count} anchors of MediaPipe with {points} points"
        if not set(outputs) & _BLAZE_NAMES:
            raise doubtful(
                f"its outputs ({', '.join(outputs)}) do not have MediaPipe's names, and such exports take pixels of "
                "-1..1 or of 0..1: a layout file has to say which",
                file,
                why,
            )
        return file, f"{why}, and MediaPipe's names of outputs"

    return declare


# --- YOLOv5-face (https://arxiv.org/abs/2105.12931): raw heads of a box, an objectness, five points and a class -------

YOLOV5_FACE_ANCHORS = Anchors(
    strides=(8, 16, 32),
    sizes=(
        ((4, 5), (8, 10), (13, 16)), ((23, 29), (43, 55), (73, 105)), ((146, 217), (231, 300), (335, 433)),
    ),
    offset=0.0,
)  # fmt: skip


def _yolov5_face(graph: Graph, outputs: Arrays) -> tuple[LayoutFile, str] | None:
    height, width = image_size(graph)
    names = []
    for stride in YOLOV5_FACE_ANCHORS.strides:
        size = (3, -(-height // stride), -(-width // stride), 16)
        matching = [name for name, array in outputs.items() if array.shape[1:] == size]
        if len(matching) != 1:
            return None
        names.append(matching[0])
    if len(outputs) != 3:
        return None
    output = tuple(names)
    file = LayoutFile(
        input=Input(color="RGB", range="0..1", letterbox="centre", pad=114),
        anchors=YOLOV5_FACE_ANCHORS,
        boxes=Boxes(output=output, columns=(0, 4), format="yolov5"),
        objectness=Objectness(output=output, columns=(4, 5), activation="sigmoid"),
        keypoints=Keypoints(output=output, columns=(5, 15), format="yolov5-face", names=FACE_POINTS),
        scores=Scores(output=output, columns=(15, 16), activation="sigmoid"),
    )
    return _checked_faces(file, graph, outputs, "three raw heads of three anchors with 16 values (YOLOv5-face)")


ULTRAFACE = declared_layout(_ultraface, names=("face",))
RETINAFACE = declared_layout(_retinaface, names=("face",), points=FACE_POINTS)
SCRFD = declared_layout(_scrfd, names=("face",), points=FACE_POINTS)
YUNET = declared_layout(_yunet, names=("face",), points=FACE_POINTS)
BLAZEFACE = declared_layout(_blaze(6, "-1..1"), names=("face",), points=BLAZE_POINTS)
PALM = declared_layout(_blaze(7, "0..1"), names=("palm",), points=PALM_POINTS)
YOLOV5_FACE = declared_layout(_yolov5_face, names=("face",), points=FACE_POINTS)
