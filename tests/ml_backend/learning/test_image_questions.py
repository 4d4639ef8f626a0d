"""Projects that ask about whole images only: their vectors are the features that answers are learned from."""

import pytest

from labelloop.labeling.studio.config import LabelConfig
from ml_backend.learning.image_vectors import is_about_images

IMAGE = '<Image name="image" value="$image"/>'
CHOICES = '<Choices name="kind" toName="image"><Choice value="a"/></Choices>'
BOX = '<RectangleLabels name="box" toName="image"><Label value="a"/></RectangleLabels>'


@pytest.mark.parametrize(
    ("controls", "expected"),
    [
        (CHOICES, True),
        (CHOICES + '<TextArea name="note" toName="image"/>', True),
        ('<Rating name="stars" toName="image"/>', True),
        (CHOICES + BOX, False),
        (BOX, False),
        (CHOICES.replace("<Choices ", '<Choices perRegion="true" ') + BOX, False),
        ('<TextArea name="note" toName="image"/>', False),
    ],
)
def test_drawn_projects_are_not_about_whole_images(controls, expected):
    assert is_about_images(LabelConfig.parse(f"<View>{IMAGE}{controls}</View>")) is expected
