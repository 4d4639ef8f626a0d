"""Predictions for labeling interfaces as users write them are valid to Label Studio's own SDK."""

import json

import numpy as np
import pytest
from label_studio_sdk.label_interface import LabelInterface

from labelloop.labeling.studio.config import LabelConfig
from ml_backend.inference.detector import load_detector
from ml_backend.predict.control_support import ModelOutputs, controls_of
from ml_backend.predict.label_mapping import find_targets
from ml_backend.predict.predictor import Predictor
from ml_backend.predict.protocol import FailedPrediction, ProjectOptions

LABELS = '<Label value="Cat"/><Label value="Person"/><Label value="Car"/>'
IMAGE = '<Image name="image" value="$image"/>'
OTHER = '<Image name="other" value="$other"/>'
BOXES = f'<RectangleLabels name="label" toName="image">{LABELS}</RectangleLabels>'
SEPARATE = f'{IMAGE}<Labels name="label" toName="image">{LABELS}</Labels>'
# Values of the tasks.
DATA = {
    "image": "a",
    "other": "a",
    "images": ["a", "a"],
    "labels": [{"value": "Cat"}],
    "text": "abc",
    "photo": {"url": "a"},
    "pages": [{}, {"file": "a"}],
}

CHOICES = '<Choices name="c" toName="image" perRegion="true" whenTagName="label"><Choice value="a"/></Choices>'
TEXT = f'<Text name="t" value="$text"/><Labels name="ner" toName="t">{LABELS}</Labels>'
TRANSCRIPTION = '<TextArea name="text" toName="image" perRegion="true"/>'


def boxes(old, new):
    """The control of boxes, with one part written in another way."""
    return BOXES.replace(old, new)


# What the interface has -> its tags, and the results of two detections.
SERVED = {
    "views in views": (f'<View><View>{IMAGE}</View></View><View><Header value="x"/>{BOXES}</View>', 2),
    "panels": (f'<Collapse><Panel value="x"><View>{IMAGE}{BOXES}</View></Panel></Collapse>', 2),
    "a list as value": (f'<Image name="image" value="$images"/>{BOXES}', 4),
    "several pages": (f'<Image name="image" valueList="$images"/>{BOXES}', 4),
    "one control of two images": (IMAGE + OTHER + boxes('"image"', '"image,other"'), 4),
    "a name in the alias": (IMAGE + boxes('"Cat"', '"A cat" alias="Cat"'), 2),
    "a code in the alias": (IMAGE + boxes('"Cat"', '"Cat" alias="c1"'), 2),
    "labels of the task beside its own": (IMAGE + boxes(" name=", ' value="$labels" name='), 2),
    "display attributes": (IMAGE + boxes(" name=", ' opacity="0.3" showInline="true" choice="multiple" name='), 2),
    "names with spaces": (IMAGE + boxes('"label"', '"my label-1"'), 2),
    "tags in lower case": (IMAGE.replace("Image", "image") + boxes("RectangleLabels", "rectanglelabels"), 2),
    "attributes of regions": (f'{IMAGE}{BOXES}<View visibleWhen="region-selected">{CHOICES}</View>', 2),
    "a text beside": (IMAGE + TEXT + BOXES, 2),
    "labels drawn in two ways": (
        f'{SEPARATE}<Rectangle name="r" toName="image"/><Polygon name="p" toName="image"/>{TRANSCRIPTION}', 4,
    ),
    "labels of ellipses": (f'{SEPARATE}<Ellipse name="e" toName="image"/>', 4),
    "labels of brushes": (f'{SEPARATE}<Brush name="b" toName="image"/>', 4),
    "a path": (IMAGE.replace("$image", "$photo.url") + BOXES, 2),
    "a path with a number": (IMAGE.replace("$image", "$pages[1].file") + BOXES, 2),
    "two controls of a kind": (
        f'{IMAGE}{BOXES}<RectangleLabels name="two" toName="image"><Label value="cat"/></RectangleLabels>', 3,
    ),
    "labels in other scripts": (
        IMAGE + boxes('"Cat"', '"猫 Кошка شخص" predicted_values="cat"'), 2,
    ),
    "hidden and styled labels": (
        IMAGE + boxes('"Cat"', '"Cat" hidden="true" background="#f00" html="&lt;b&gt;Cat&lt;/b&gt;" maxUsages="1"'), 2,
    ),
    "boxes, polygons and brushes of the same labels": (
        IMAGE + BOXES + f'<PolygonLabels name="p" toName="image">{LABELS}</PolygonLabels>'
        f'<BrushLabels name="br" toName="image">{LABELS}</BrushLabels>', 2,
    ),
    "points of their own": (f'{IMAGE}<KeyPointLabels name="k" toName="image">{LABELS}</KeyPointLabels>', 2),
    "bitmasks": (f'{IMAGE}<BitmaskLabels name="m" toName="image">{LABELS}</BitmaskLabels>', 2),
    "ellipses": (f'{IMAGE}<EllipseLabels name="e" toName="image">{LABELS}</EllipseLabels>', 2),
    "labels of points": (f'{SEPARATE}<KeyPoint name="k" toName="image"/>', 4),
}  # fmt: skip

REPEATED = '<Image name="i_{{idx}}" value="$images[{{idx}}]"/>' + boxes('"image"', '"i_{{idx}}"')

# What the interface has -> its tags, and why nothing is pre-labelled.
NOT_SERVED = {
    "labels of the task alone": (
        f'{IMAGE}<RectangleLabels name="label" toName="image" value="$labels"/>', "its labels come from each task",
    ),
    "vectors": (f'{IMAGE}<VectorLabels name="label" toName="image">{LABELS}</VectorLabels>', "no model draws vectors"),
    "a magic wand": (f'{SEPARATE}<MagicWand name="w" toName="image"/>', "the image has no Rectangle"),
    "no labels": (f'{IMAGE}<Rectangle name="label" toName="image"/>', "it draws without labels"),
    "a repeater": (f'<Repeater on="$images" indexFlag="{{{{idx}}}}">{REPEATED}</Repeater>', "inside a Repeater"),
}  # fmt: skip


@pytest.fixture
def predicted(labelloop_model, album):
    """predicted(xml) -> the entry of one task, and the reasons of the controls that are not served."""
    detector = load_detector(labelloop_model())

    def predict(xml):
        config = LabelConfig.parse(xml)
        targets = find_targets(config, detector.names.names)
        predictor = Predictor(album(a=np.zeros((128, 192, 3), np.uint8)), score_threshold=0.3)
        task = {"id": 1, "data": DATA}
        [entry] = predictor.predict([task], detector=detector, targets=targets, options=ProjectOptions())
        outputs = ModelOutputs(detector.names.names, frozenset({"boxes"}))
        return entry, [support.reason for support in controls_of(config, outputs) if not support.prelabels]

    return predict


@pytest.mark.parametrize("which", SERVED)
def test_predictions_are_valid_to_label_studio(which, predicted):
    tags, count = SERVED[which]
    entry, _ = predicted(f"<View>{tags}</View>")
    results = json.loads(json.dumps(entry.result))
    assert len(results) == count
    prediction = {"result": results, "score": entry.score, "model_version": entry.model_version}
    assert LabelInterface(f"<View>{tags}</View>").validate_prediction(prediction, return_errors=True) == []


@pytest.mark.parametrize("which", NOT_SERVED)
def test_what_is_not_served_is_said(which, predicted):
    tags, words = NOT_SERVED[which]
    entry, reasons = predicted(f"<View>{tags}</View>")
    assert isinstance(entry, FailedPrediction)
    assert any(words in reason for reason in reasons)
