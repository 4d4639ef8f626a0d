"""Layout files decode like plain loops, and a wrong key is refused by name."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from ml_backend.detection.preprocess import prepare
from ml_backend.errors import LayoutFileError
from ml_backend.inference.detector import DECLARED, load_detector
from ml_backend.inference.version_id import model_version
from ml_backend.layouts.layout_file import LayoutFile, layout_file_of, parse_layout, read_layout_file, write_layout
from ml_backend.predict.inspect import describe
from tests.ml_backend.family_cases import mmdeploy, retinaface, ultraface, yolo_fastestv2, yunet
from tests.ml_backend.layout_cases import (
    FLOOR,
    HEIGHT,
    WIDTH,
    end2end,
    fastestdet,
    nanodet,
    tf_od,
    yolov5,
    yolov5_heads,
    yolov8,
    yolov8_segment,
    yolox,
)

SHIPPED = sorted((Path(__file__).parents[3] / "bench" / "layout_files").glob("*.toml"))

PIXELS = '[input]\ncolor = "RGB"\nrange = "0..1"\nletterbox = "stretch"\n'
CELLS = "[anchors]\nstrides = [8, 16, 32]\n"
V5_ANCHORS = """[anchors]
strides = [8, 16, 32]
sizes = [[[10, 13], [16, 30], [33, 23]], [[30, 61], [62, 45], [59, 119]], [[116, 90], [156, 198], [373, 326]]]
"""


def heads(output, axes):
    return f"""{V5_ANCHORS}
[boxes]
output = {output}
axes = "{axes}"
columns = [0, 4]
format = "yolov5"
[objectness]
output = {output}
axes = "{axes}"
columns = [4, 5]
activation = "sigmoid"
[scores]
output = {output}
axes = "{axes}"
columns = [5, 8]
activation = "sigmoid"
"""


MAPS = '["map8", "map16", "map32"]'

DECLARED_CASES = {
    "YOLOX's raw grid": (yolox, f"""{CELLS}
[boxes]
output = "output"
columns = [0, 4]
format = "yolox"
[objectness]
output = "output"
columns = [4, 5]
[scores]
output = "output"
columns = [5, 8]
"""),
    "YOLOv8, axes swapped": (yolov8, """
[boxes]
output = "output0"
axes = "BCN"
columns = [0, 4]
format = "centre"
[scores]
output = "output0"
axes = "BCN"
columns = [4, 7]
"""),
    "YOLOv8 with prototypes": (yolov8_segment, """
[boxes]
output = "output0"
axes = "BCN"
columns = [0, 4]
format = "centre"
[scores]
output = "output0"
axes = "BCN"
columns = [4, 7]
[masks]
output = "output0"
axes = "BCN"
columns = [7, 11]
prototypes = "output1"
"""),
    "YOLOv5's heads": (yolov5_heads, heads(MAPS, "BAHWC")),
    "YOLOv5's heads, anchors as channels": (lambda: yolov5_heads(flat=True), heads(MAPS, "B(AC)HW")),
    "FastestDet's map": (fastestdet, """
[anchors]
strides = [16]
[boxes]
output = "758"
columns = [1, 5]
format = "fastestdet"
[objectness]
output = "758"
columns = [0, 1]
combine = "powers"
weights = [0.6, 0.4]
[scores]
output = "758"
columns = [5, 8]
"""),
    "NanoDet's distributions": (nanodet, f"""{CELLS}
[boxes]
output = ["703", "704", "705"]
format = "distances"
unit = "strides"
bins = 8
[scores]
output = ["700", "701", "702"]
"""),
    "TensorFlow, y first, classes from 1, counted": (tf_od, """
[boxes]
output = "detection_boxes"
format = "corners"
unit = "normalised"
order = "yx"
[scores]
output = "detection_scores"
axes = "BN"
[classes]
output = "detection_classes"
first = 1
[count]
output = "num_detections"
[suppression]
done = true
"""),
    "six columns": (end2end, """
[boxes]
output = "output0"
columns = [0, 4]
format = "corners"
[scores]
output = "output0"
columns = [4, 5]
[classes]
output = "output0"
column = 5
"""),
    "MMDeploy": (mmdeploy, """
[boxes]
output = "dets"
columns = [0, 4]
format = "corners"
[scores]
output = "dets"
columns = [4, 5]
[classes]
output = "labels"
"""),
    "UltraFace's offsets": (lambda: ultraface(decoded=False), """
[anchors]
strides = [8, 16, 32, 64]
sizes = [[10, 16, 24], [32, 48], [64, 96], [128, 192, 256]]
[boxes]
output = "boxes"
format = "ssd"
[scores]
output = "scores"
background = "first"
"""),
    "RetinaFace with points": (retinaface, """
[anchors]
strides = [8, 16, 32]
sizes = [[16, 32], [64, 128], [256, 512]]
[boxes]
output = "0"
format = "ssd"
[scores]
output = "1"
background = "first"
[keypoints]
output = "2"
format = "ssd"
"""),
    "YuNet's geometric mean": (yunet, """
[anchors]
strides = [8, 16, 32]
offset = 0.0
[boxes]
output = ["bbox_8", "bbox_16", "bbox_32"]
format = "yolox"
[scores]
output = ["cls_8", "cls_16", "cls_32"]
[objectness]
output = ["obj_8", "obj_16", "obj_32"]
combine = "geometric-mean"
[keypoints]
output = ["kps_8", "kps_16", "kps_32"]
format = "strides"
"""),
    "scores shared by the anchors of a cell": (yolo_fastestv2, """
[anchors]
strides = [16, 32]
sizes = [[[12, 19], [37, 51], [55, 138]], [[126, 78], [131, 214], [279, 258]]]
[boxes]
output = ["map16", "map32"]
axes = "BHWC"
columns = [0, 12]
format = "yolov5"
activation = "none"
[objectness]
output = ["map16", "map32"]
axes = "BHWC"
columns = [12, 15]
[scores]
output = ["map16", "map32"]
axes = "BHWC"
columns = [15, 18]
shared = true
"""),
}  # fmt: skip


def declared(make_onnx, case, text):
    path = make_onnx(case.outputs, **case.options)
    path.with_name("tiny.layout.toml").write_text(f"{PIXELS}{text}")
    return path


@pytest.mark.parametrize("which", DECLARED_CASES)
def test_layout_files_decode_like_a_plain_loop(which, make_onnx):
    make, text = DECLARED_CASES[which]
    case = make()
    detector = load_detector(declared(make_onnx, case, text))
    assert detector.layout == DECLARED
    scale = 1.0 if detector.spec.dtype == "uint8" else 1 / 255
    assert (detector.spec.color, detector.spec.scale, detector.spec.placement) == ("RGB", scale, "stretch")
    blank = (HEIGHT, WIDTH, 3) if detector.spec.layout == "NHWC" else (3, HEIGHT, WIDTH)
    outputs = detector.engine.run([np.zeros(blank, detector.spec.dtype)], detector.reader.outputs)
    [found] = detector.reader.decode(outputs, FLOOR)
    found = detector.map_classes(found)
    expected = sorted((entry for entry in case.expected if entry[1] >= FLOOR), key=lambda entry: entry[1])
    order = np.argsort(found.scores, kind="stable")
    assert len(found) == len(expected) > 1
    np.testing.assert_allclose(found.scores[order], [entry[1] for entry in expected], rtol=1e-4)
    np.testing.assert_allclose(found.boxes[order], [entry[0] for entry in expected], rtol=1e-3, atol=1e-2)
    assert found.classes[order].tolist() == [entry[2] for entry in expected]
    if "[keypoints]" in text:
        np.testing.assert_allclose(found.keypoints[order], [entry[3] for entry in expected], rtol=1e-4, atol=1e-3)
    assert (found.segments is not None) == ("[masks]" in text)


V8 = DECLARED_CASES["YOLOv8, axes swapped"][1]

WRONG = {
    # a file -> the key named, and words of the reason
    "format = [": ("", "is not TOML"),
    "colour = 1": ("colour", "is not a known key. Known keys: format, layout, input"),
    f"{PIXELS}pads = 3\n{V8}": ("input.pads", "is not a known key. Known keys: size, color"),
    f"{PIXELS}pad = 300\n{V8}": ("input.pad", "is 300; it must be 0 to 255"),
    f"{PIXELS}size = [3, 4]\n{V8}": ("input.size", "each side must be 16 to 8192"),
    f"{PIXELS}std = [1.0, 0.0, 1.0]\n{V8}": ("input.std", "has a zero"),
    f"{PIXELS}mean = [1.0, 0.0]\n{V8}": ("input.mean", "is wrong: expected `array` of length 3"),
    PIXELS.replace("RGB", "GBR") + V8: ("input.color", "must be one of 'BGR', 'GRAY', 'RGB'"),
    V8: ("input", "is missing"),
    PIXELS: ("boxes", "is missing"),
    f'{PIXELS}[boxes]\noutput = "a"\nformat = "corners"': ("scores", "is missing"),
    PIXELS + V8.replace('"centre"', '"center"'): ("boxes.format", "must be one of"),
    PIXELS + V8.replace('format = "centre"\n', ""): ("boxes.format", "is missing"),
    PIXELS + V8.replace('"centre"', '"yolox"'): ("anchors", "is missing, and boxes.format = 'yolox'"),
    f"{PIXELS}{CELLS}" + V8.replace('"centre"', '"ssd"'): ("anchors.sizes", "'ssd' needs the size of each anchor"),
    PIXELS + V8.replace("[0, 4]", "[4, 0]"): ("boxes.columns", "must be [first, end]"),
    PIXELS + V8.replace('"output0"\naxes', '["a", "b"]\naxes', 1): ("boxes.output", "names 2 outputs for 1"),
    f"{PIXELS}[anchors]\nstrides = [8, 16]\nsizes = [[3]]\n{V8}": ("anchors.sizes", "has 1 levels, and"),
    f"{PIXELS}[anchors]\nstrides = [8]\nsizes = [[[3, 4, 5]]]\n{V8}": ("anchors.sizes", "an anchor is a side"),
    f"{PIXELS}{V8}[suppression]\niou = 2.0": ("suppression.iou", "must be above 0 and at most 1"),
    f'layout = "yolov8"\n{PIXELS}{V8}': ("boxes", "cannot be combined with layout = 'yolov8'"),
    f"format = 2\n{PIXELS}{V8}": ("format", "is 2; it must be one of 1"),
    f"{PIXELS}{V8}bins = true": ("scores.bins", "is not a known key"),
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_wrong_files_are_refused_by_key(text):
    key, reason = WRONG[text]
    with pytest.raises(LayoutFileError) as error:
        parse_layout(text, Path("best.layout.toml"))
    assert error.value.key == key
    assert reason in error.value.message
    assert "layout-file.md" in error.value.fix


MISFITS = {
    # a file that does not fit YOLOv8's graph -> the key named, and words of the reason
    V8.replace('"output0"', '"dets"', 1): ("boxes.output", "names 'dets', and the graph has output0"),
    V8.replace("[4, 7]", "[4, 9]"): ("scores.columns", "ends at 9, and there are 7"),
    V8.replace("[0, 4]", "[0, 5]"): ("boxes.columns", "are 5 values a row, and centre needs 4"),
    V8.replace('axes = "BCN"', 'axes = "BCHW"', 1): ("boxes.axes", "is BCHW, and the output is [1, 7, 126]"),
    V8.replace('axes = "BCN"', 'axes = "BNC"', 1): ("scores.output", "has 126 rows, and the boxes have 7"),
    f"[anchors]\nstrides = [8]\n{V8}": ("anchors", "give 96 rows at 96 x 64 pixels, and the boxes have 126"),
    f'{V8}[count]\noutput = "n"': ("count.output", "names 'n'"),
    V8.replace('"centre"', '"centre"\nunit = "normalised"'): ("boxes", "most boxes lie outside"),
    V8.replace("[4, 7]", "[0, 3]"): ("scores", "probabilities lie in 0..1"),
}  # fmt: skip


@pytest.mark.parametrize("text", MISFITS)
def test_files_that_do_not_fit_the_graph_name_the_key(text, make_onnx):
    key, reason = MISFITS[text]
    with pytest.raises(LayoutFileError) as error:
        load_detector(declared(make_onnx, yolov8(), text))
    assert (error.value.key, reason in error.value.message) == (key, True), error.value.message


def test_declared_size_must_be_that_of_the_graph(make_onnx):
    path = declared(make_onnx, yolov8(), V8)
    path.with_name("tiny.layout.toml").write_text(f"{PIXELS}size = [64, 64]\n{V8}")
    with pytest.raises(LayoutFileError, match=r"`input.size` has the width 64, and the graph takes 96"):
        load_detector(path)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_example_files_are_valid_and_survive_rewriting(file):
    read = read_layout_file(file)
    assert parse_layout(write_layout(read, comment="a\nb"), file) == read


def test_written_text_escapes_quotes_and_control_characters():
    file = parse_layout(f"{PIXELS}{V8}", Path("x"))
    odd = msgspec.structs.replace(file.boxes, output='a"b\\c\n\x7f')
    written = write_layout(msgspec.structs.replace(file, boxes=odd))
    assert parse_layout(written, Path("x")).boxes == odd


def test_known_layout_with_other_preprocessing(make_onnx):
    case = yolov8()
    path = make_onnx(case.outputs, **case.options)
    path.with_name("tiny.onnx.layout.toml").write_text(
        'layout = "yolov8"\n[input]\ncolor = "BGR"\nrange = "-1..1"\nletterbox = "crop"\n[suppression]\niou = 0.7\n'
        '[classes]\nnames = ["x", "y", "z"]\n'
    )
    detector = load_detector(path)
    assert (detector.layout, detector.names.names) == ("yolov8", ("x", "y", "z"))
    assert (detector.spec.color, detector.spec.placement, detector.reader.suppress_iou) == ("BGR", "crop", 0.7)
    white = prepare(np.full((HEIGHT, WIDTH, 3), 255, np.uint8), detector.spec).tensor
    np.testing.assert_allclose([white.min(), white.max()], 1, atol=1e-5)
    assert any("layout = " in line for line in describe(detector))


def test_unknown_name_of_a_layout_is_refused(make_onnx):
    path = make_onnx(yolov8().outputs, **yolov8().options)
    path.with_name("tiny.layout.toml").write_text('layout = "yolo99"')
    with pytest.raises(LayoutFileError, match=r"`layout` is 'yolo99'; known layouts: labelloop"):
        load_detector(path)


def test_forced_layout_takes_precedence_over_the_file(make_onnx):
    path = declared(make_onnx, yolov5(), V8)
    assert load_detector(path, layout="yolov5").layout == "yolov5"


def test_layout_file_is_part_of_the_version(make_onnx):
    path = make_onnx(yolov8().outputs, **yolov8().options)
    before = model_version(path)
    declared_path = path.with_name("tiny.layout.toml")
    declared_path.write_text(f"{PIXELS}{V8}")
    after = model_version(path)
    declared_path.write_text(f"{PIXELS}pad = 3\n{V8}")
    assert len({before, after, model_version(path)}) == 3
    assert model_version(path, layout="yolov8") == model_version(path, layout="yolov8")
    assert layout_file_of(path) == declared_path


def test_empty_declaration_is_not_a_layout():
    with pytest.raises(LayoutFileError):
        parse_layout(write_layout(LayoutFile()), Path("x"))
