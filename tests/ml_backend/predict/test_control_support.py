"""What each control gets and teaches is said from one table, and means what the mapping really fills."""

from pathlib import Path

import pytest

from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.connect_report import ConnectionChange
from labelloop.service.db.engine import open_database
from labelloop.service.settings import Settings
from ml_backend.learning.service import connect_to_learning
from ml_backend.learning.store.annotations import TrainingDataStore
from ml_backend.predict.control_support import ModelOutputs, controls_of, learnable, reasons
from ml_backend.predict.controls import CONTROLS
from ml_backend.predict.label_mapping import BOXES, find_targets
from tests.fake_label_studio import FakeLabelStudio

ROOT = Path(__file__).parents[3]
IMAGE = '<Image name="i" value="$image"/>'
DETECTOR = ModelOutputs(("cat", "dog"), BOXES)
MODELS = {
    "detector": DETECTOR,
    "segmenter": ModelOutputs(("cat",), frozenset({"boxes", "masks"})),
    "classifier": ModelOutputs(("cat",), frozenset({"classes"}), unlearnable="its boxes are of no use"),
    "poses": ModelOutputs(("person",), frozenset({"boxes", "keypoints"}), keypoint_names=("nose",)),
    "unknown": None,
}


def labelled(tag, *, on="i", more=""):
    return f'<{tag} name="c" toName="{on}" {more}><Label value="cat"/><Choice value="cat"/></{tag}>'


SEGMENTER = "pre-labelled from boxes by the segmenter"

CASES = {
    # label config: what is said of the control c, with a detector
    "boxes": (IMAGE + labelled("RectangleLabels"), True, True, ""),
    "ellipses": (IMAGE + labelled("EllipseLabels"), True, True, ""),
    "labels with a rectangle": (IMAGE + labelled("Labels") + '<Rectangle name="r" toName="i"/>', True, True, ""),
    "labels with a brush": (IMAGE + labelled("Labels") + '<Brush name="b" toName="i"/>', True, True, SEGMENTER),
    "labels with nothing": (IMAGE + labelled("Labels"), False, False, "no Rectangle"),
    "polygons": (IMAGE + labelled("PolygonLabels"), True, True, SEGMENTER),
    "a brush": (IMAGE + labelled("BrushLabels"), True, True, SEGMENTER),
    "points": (IMAGE + labelled("KeyPointLabels"), True, True, ""),
    "choices": (IMAGE + labelled("Choices"), False, True, "no answer is learned yet"),
    "choices of regions": (IMAGE + labelled("Choices", more='perRegion="true"'), False, True, "no answer is learned"),
    "text": ('<Text name="i" value="$text"/>' + labelled("Labels"), False, False, "on Text"),
    "hypertext": ('<HyperText name="i" value="$html"/>' + labelled("HyperTextLabels"), False, False, "on HyperText"),
    "audio": ('<Audio name="i" value="$sound"/>' + labelled("Labels"), False, False, "on Audio"),
    "video": ('<Video name="i" value="$film"/>' + labelled("VideoRectangle"), False, False, "on Video"),
    "a rating": (IMAGE + '<Rating name="c" toName="i"/>', False, True, "no answer is learned yet"),
    "a caption": (IMAGE + '<TextArea name="c" toName="i"/>', False, False, "free answers"),
    "a tag of another release": (IMAGE + labelled("HologramLabels"), False, False, "HologramLabels"),
    "no such object": (IMAGE + labelled("RectangleLabels", on="other"), False, False, "no object other"),
    "a repeater": (
        '<Image name="i" value="$pages[{{idx}}].url"/>' + labelled("RectangleLabels"), False, False, "a Repeater",
    ),
    "a path": ('<Image name="i" value="$photo.url"/>' + labelled("RectangleLabels"), True, True, ""),
    "labels of the task": (
        IMAGE + '<RectangleLabels name="c" toName="i" value="$options"/>', False, True, "come from each task",
    ),
    "labels of no class": (
        IMAGE + '<RectangleLabels name="c" toName="i"><Label value="bolt"/></RectangleLabels>', False, True,
        "none of its labels (bolt) is a class of the model (cat, dog)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("xml", "prelabels", "learns", "message"), CASES.values(), ids=CASES)
def test_each_control_says_what_it_gets_and_teaches(xml, prelabels, learns, message):
    [control] = controls_of(LabelConfig.parse(f"<View>{xml}</View>"), DETECTOR)
    assert (control.control, control.prelabels, control.learns) == ("c", prelabels, learns)
    assert message in control.sentence
    assert bool(reasons([control])) == (not (prelabels and learns))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("xml", [xml for xml, *_ in CASES.values()], ids=CASES)
def test_what_is_said_is_what_the_mapping_fills(xml, model):
    config, outputs = LabelConfig.parse(f"<View>{xml}</View>"), MODELS[model]
    [control] = controls_of(config, outputs)
    if outputs is None:
        assert control.prelabels in {None, False}
        return
    targets = find_targets(config, outputs.names, provides=outputs.provides, keypoint_names=outputs.keypoint_names)
    assert control.prelabels == any(first.labels or first.keypoint_labels for first in targets)
    assert control.sentence.endswith(".")
    assert control.reason or (control.prelabels and control.learns)


def test_a_classifier_is_not_said_to_be_learned_on():
    config = LabelConfig.parse(f"<View>{IMAGE}{labelled('RectangleLabels')}</View>")
    [control] = controls_of(config, MODELS["classifier"])
    assert (control.prelabels, control.learns) == (False, False)
    assert "cannot be learned on" in control.sentence


def test_a_mixed_project_says_it_control_by_control():
    xml = IMAGE + labelled("RectangleLabels") + labelled("Choices").replace('"c"', '"d"')
    boxes, choices = controls_of(LabelConfig.parse(f"<View>{xml}</View>"), DETECTOR)
    assert (boxes.prelabels, choices.prelabels) == (True, False)
    [message] = reasons([boxes, choices])
    assert message.startswith("d (Choices on Image)")


def templates():
    """The label configs that come with Label Studio, where it is installed."""
    homes = (ROOT / ".labelloop" / "label-studio").glob("venv/lib/python3*/site-packages/label_studio")
    return sorted(file for home in homes for file in home.glob("annotation_templates/**/config.*ml"))


def test_every_label_studio_template_is_covered():
    result = templates()
    if not result:
        pytest.skip("needs Label Studio in .labelloop/label-studio")
    for file in result:
        text = file.read_text(encoding="utf-8")
        config = LabelConfig.parse(text[text.index("<View") : text.rindex("</View>") + len("</View>")])
        for model in MODELS.values():
            for first in controls_of(config, model):
                assert first.sentence.endswith("."), file
                assert first.tag.lower() in CONTROLS, file


def test_every_tag_of_the_table_is_in_the_reference():
    page = (ROOT / "docs" / "reference" / "controls.md").read_text(encoding="utf-8")
    assert [kind.tag for kind in CONTROLS.values() if f"`{kind.tag}`" not in page] == []


def studio_with(label_config):
    studio = FakeLabelStudio()
    studio.put_project(7, label_config=label_config)
    return studio


def test_connect_says_that_a_label_config_cannot_be_read(tmp_path):
    settings = Settings(home=tmp_path)
    [change] = connect_to_learning(studio_with("<View"), 7, settings, open_database(settings))
    assert change.note
    assert "cannot be read" in change.what


PROMISES = {
    "boxes": (CASES["boxes"][0].replace('value="cat"', 'value="car"'), "learns c from 2 labelled tasks on", True),
    "text": (CASES["text"][0], "does not learn: no control", False),
    "polygons": (CASES["polygons"][0].replace('value="cat"', 'value="car"'), "learns c from 2 labelled tasks on", True),
}


@pytest.mark.parametrize(("xml", "message", "learns"), PROMISES.values(), ids=PROMISES)
def test_connect_promises_learning_only_where_it_comes(xml, message, learns, tmp_path):
    settings = Settings(home=tmp_path)
    engine = open_database(settings)
    studio = studio_with(f"<View>{xml}</View>")
    first, *notes = connect_to_learning(studio, 7, settings, engine)
    assert message in first.what
    assert first.note == (not learns)
    assert learnable(studio.label_config(7)) == learns
    assert all(first.note for first in notes)
    assert bool(notes) == (not learns)
    assert TrainingDataStore(engine).project(7) is not None
    assert isinstance(first, ConnectionChange)


REFUSED = "controls in the extra params names 'd'"


@pytest.mark.parametrize(
    ("controls", "note"), [({"c": False}, "it is switched off in the extra params"), ({"d": False}, REFUSED)]
)
def test_connect_reads_the_extra_params_as_setup_does(controls, note, tmp_path):
    settings = Settings(home=tmp_path)
    studio = studio_with(f"<View>{PROMISES['boxes'][0]}</View>")
    studio.put_backend(7, settings.ml_url, "", extra_params={"controls": controls})
    _, *notes = connect_to_learning(studio, 7, settings, open_database(settings))
    assert [note in change.what for change in notes] == [True]
