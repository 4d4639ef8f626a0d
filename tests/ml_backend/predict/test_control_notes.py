"""Notes on controls: whose features answers are learned on, and which key points are learned poorly."""

import pytest

from labelloop.labeling.studio.config import LabelConfig
from ml_backend.predict.control_notes import hints_of, notes_of
from ml_backend.predict.control_support import ModelOutputs, controls_of

IMAGE = '<Image name="image" value="$image"/>'
CHOICES = '<Choices name="kind" toName="image"><Choice value="a"/><Choice value="b"/></Choices>'
BODY = "".join(f'<Label value="{name}"/>' for name in ("nose", "left_eye", "Right shoulder", "l-knee", "left ankle"))
FISH = "".join(f'<Label value="{name}"/>' for name in ("mouth", "eye", "tail", "fin"))
LENT = "it has no feature map that describes a whole image"


def hints(xml, **outputs):
    config = LabelConfig.parse(f"<View>{IMAGE}{xml}</View>")
    model = ModelOutputs(("car",), frozenset({"boxes"}), **outputs)
    return hints_of(config, controls_of(config, model), model)


def test_answers_on_lent_features_are_named_with_the_reason():
    [note] = hints(CHOICES, lent=LENT)
    assert note == f"kind: learned on features of the embedded model, which runs next to the served one, since {LENT}."
    assert not hints(CHOICES)
    assert not hints('<RectangleLabels name="box" toName="image"><Label value="car"/></RectangleLabels>', lent=LENT)


@pytest.mark.parametrize("case", ["labelled", "generic"])
def test_points_of_persons_are_named_with_their_figures(case):
    def control(labels):
        if case == "labelled":
            return f'<KeyPointLabels name="pose" toName="image">{labels}</KeyPointLabels>'
        return f'<Labels name="pose" toName="image">{labels}</Labels><KeyPoint name="point" toName="image"/>'

    [note] = hints(control(BODY))
    assert "0.44" in note
    assert "pose model of your own" in note
    assert not hints(control(FISH))
    assert not hints(control(BODY), keypoint_names=("nose",))


def test_notes_begin_with_what_is_not_served():
    config = LabelConfig.parse(f'<View>{IMAGE}{CHOICES}<TextArea name="text" toName="image"/></View>')
    model = ModelOutputs(("car",), frozenset({"boxes"}), lent=LENT)
    notes = notes_of(config, controls_of(config, model), model)
    assert "no model writes free answers" in notes[1]
    assert "embedded model" in notes[-1]
