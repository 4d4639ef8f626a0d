"""The first project: a label config in everyday words, photographs uploaded as tasks, pre-labels on all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from labelloop.service.media import Media
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from labelloop.stack.demo_images import own_photos, packaged_photos
from labelloop.stack.errors import StackError
from labelloop.stack.progress import Step

# The Header shows quality control's note. It must not be Text: that would make `qc_note` mandatory in every task.
LABEL_CONFIG = """\
<View>
  <Header value="$qc_note"/>
  <Image name="image" value="$image" zoom="true"/>
  <RectangleLabels name="objects" toName="image" model_score_threshold="0.25">
    <Label value="Person" background="#d9480f"/>
    <Label value="Cat" background="#1971c2"/>
    <Label value="Dog" background="#2f9e44"/>
    <Label value="Motorbike" background="#e03131" predicted_values="motorbike,motorcycle"/>
    <Label value="Car" background="#9c36b5"/>
    <Label value="Chair" background="#f08c00"/>
    <Label value="Table" background="#0c8599" predicted_values="diningtable,dining table"/>
    <Label value="Plant" background="#66a80f" predicted_values="pottedplant,potted plant"/>
  </RectangleLabels>
</View>
"""
INSTRUCTION = (
    "Draw a box around every person, animal and thing that has a label. Boxes that the model has drawn are only a"
    " proposal: move, relabel or delete what is wrong, add what is missing, then press Submit."
)
UPLOAD_FILES = 20


class PrelabelsMissing(StackError):
    """Fewer tasks have pre-labels than there are tasks."""

    code = "prelabels_missing"


@dataclass(frozen=True)
class Source:
    """Where photographs come from.

    Attributes:
        key: What the project is remembered by.
        title: The project's title.
        files: Gets the files; may raise NoPhotos.
    """

    key: str
    title: str
    files: Callable[[], list[Path]]


def packaged_source(folder: Path, label_studio: Path | None) -> Source:
    """Photographs that come inside installed packages, written to `folder`."""
    return Source("demo", "Photos", lambda: packaged_photos(folder, label_studio=label_studio))


def own_source(images: Path) -> Source:
    """The user's own photographs."""
    place = images.expanduser().absolute()
    return Source(str(place), f"Photos: {place.name}"[:50], lambda: own_photos(place))


def create_project(studio: Studio, title: str) -> int:
    """Make the project; two annotators a task from the start, so that agreement can be measured."""
    made = studio.create_project(
        title=title,
        label_config=LABEL_CONFIG,
        maximum_annotations=2,
        show_instruction=False,
        expert_instruction=INSTRUCTION,
        enable_empty_annotation=True,
    )
    return int(made["id"])


def upload(studio: Studio, project: int, photos: Sequence[Path], step: Step) -> None:
    """Upload photographs through Label Studio's own upload, a task each."""
    for start in range(0, len(photos), UPLOAD_FILES):
        step.say("uploading", done=start, total=len(photos))
        studio.upload_images(project, photos[start : start + UPLOAD_FILES])
    step.say("uploaded", done=len(photos), total=len(photos))


def prelabel(studio: Studio, project: int, step: Step, *, settings: Settings, log: Path) -> int:
    """Import the served model's pre-labels for every task, as `labelloop prelabel` does.

    Label Studio's own way, "Retrieve Predictions", takes three times as long, and calls it a success whatever happens.

    Returns:
        How many tasks have pre-labels.

    Raises:
        PrelabelsMissing: Fewer tasks than there are have any.
        LabelloopError: The model cannot be opened, or Label Studio not be asked.
    """
    from ml_backend.bulk.prelabel import prelabel as look_at_all
    from ml_backend.predict.protocol import ProjectOptions, with_thresholds
    from ml_backend.serving import activation

    step.say("opening the model")
    detector, thresholds = activation.open_served(settings, project)
    report = look_at_all(
        studio,
        project,
        detector=detector,
        photos=Media(settings, studio),
        score_threshold=settings.score_threshold,
        options=with_thresholds(ProjectOptions(), thresholds),
        progress=lambda done, total: step.say("the model looks at the photos", done=done, total=total),
    )
    labelled = report.there + report.made
    if labelled < report.tasks:
        reasons = "; ".join(dict.fromkeys(one.reason for one in report.bad[:3]))
        raise PrelabelsMissing(
            f"{report.tasks - labelled} of {report.tasks} tasks have no pre-labels{f': {reasons}' if reasons else '.'}",
            fix="labelloop doctor says what is wrong with the ML backend.",
            log=log,
        )
    return labelled
