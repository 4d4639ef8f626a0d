"""The demo projects: a label config each, uploaded images as tasks, and pre-labels for all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from labelloop.service.media import Media
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from labelloop.stack.demo_images import packaged_images, user_images
from labelloop.stack.errors import StackError
from labelloop.stack.progress import Step


@dataclass(frozen=True)
class DemoInterface:
    """What annotators do in a demo project.

    Attributes:
        name: Key in `INTERFACES`.
        title: What is drawn or answered, for the project's title.
        label_config: The label config. The Header shows the note of quality control; a Text tag would make `qc_note`
            mandatory in every task.
        instruction: For annotators.
        is_prelabelled: Whether the embedded model fills it before it has learned from the project.
    """

    name: str
    title: str
    label_config: str
    instruction: str
    is_prelabelled: bool = True


_LABELS = """\
    <Label value="Person" background="#d9480f"/>
    <Label value="Cat" background="#1971c2"/>
    <Label value="Dog" background="#2f9e44"/>
    <Label value="Motorbike" background="#e03131" predicted_values="motorbike,motorcycle"/>
    <Label value="Car" background="#9c36b5"/>
    <Label value="Chair" background="#f08c00"/>
    <Label value="Table" background="#0c8599" predicted_values="diningtable,dining table"/>
    <Label value="Plant" background="#66a80f" predicted_values="pottedplant,potted plant"/>
"""
_TOY_LABELS = """\
    <Label value="Balloon" background="#e64980"/>
    <Label value="Parcel" background="#12b886"/>
    <Label value="Beach ball" background="#fab005"/>
"""
_VIEW = """\
<View>
  <Header value="$qc_note"/>
  <Image name="image" value="$image" zoom="true"/>
{control}</View>
"""


def _drawn(tag: str, labels: str = f"{_LABELS}{_TOY_LABELS}") -> str:
    control = f'  <{tag} name="objects" toName="image" model_score_threshold="0.25">\n{labels}  </{tag}>\n'
    return _VIEW.format(control=control)


_SUBJECTS = """\
  <Choices name="subject" toName="image" choice="single" required="true" showInline="true">
    <Choice value="Person"/>
    <Choice value="Cat"/>
    <Choice value="Motorbike"/>
    <Choice value="Flower"/>
  </Choices>
"""
_CORRECT = "move, relabel or delete what is wrong, add what is missing, then press Submit."
_TOYS = "It does not know balloons, parcels and beach balls yet: it learns them from your first submits."

# Demo projects by name. To add one: add its interface.
INTERFACES: Mapping[str, DemoInterface] = {
    interface.name: interface
    for interface in (
        DemoInterface(
            "boxes",
            "Photos",
            _drawn("RectangleLabels"),
            "Draw a box around every person, animal, toy and thing that has a label. The model's boxes are only"
            f" proposals: {_CORRECT} {_TOYS}",
        ),
        DemoInterface(
            "outlines",
            "Photos: outlines",
            _drawn("PolygonLabels"),
            "Draw the outline of every person, animal, toy and thing that has a label. The model's outlines are only"
            f" proposals: {_CORRECT} {_TOYS}",
        ),
        DemoInterface(
            "subjects",
            "Photos: image labels",
            _VIEW.format(control=_SUBJECTS),
            "Choose what the photo mainly shows. After a few submits the model proposes an answer: change it where"
            " it is wrong, then press Submit.",
            is_prelabelled=False,
        ),
    )
}
BOXES = INTERFACES["boxes"]
# Images of the user have no toys.
OWN_IMAGES = DemoInterface(
    "boxes",
    "Photos",
    _drawn("RectangleLabels", _LABELS),
    "Draw a box around every person, animal and thing that has a label. The model's boxes are only proposals:"
    f" {_CORRECT}",
)
LABEL_CONFIG = BOXES.label_config
UPLOAD_FILES = 20


@dataclass(frozen=True)
class DemoSource:
    """A demo project: its images, and what annotators do with them.

    Attributes:
        key: Key of the project in the state file.
        title: The project's title.
        files: Returns the files; may raise StackError.
        interface: What annotators do.
    """

    key: str
    title: str
    files: Callable[[], list[Path]]
    interface: DemoInterface = BOXES


def packaged_sources(folder: Path, label_studio: Path | None) -> list[DemoSource]:
    """One project of each interface, with sample images from installed packages, written to `folder`; boxes first."""
    files = cache(lambda: packaged_images(folder, label_studio=label_studio))
    return [
        DemoSource("demo" if interface == BOXES else f"demo-{interface.name}", interface.title, files, interface)
        for interface in INTERFACES.values()
    ]


def user_source(images: Path) -> DemoSource:
    """A folder of the user, for boxes."""
    folder = images.expanduser().absolute()
    return DemoSource(str(folder), f"Photos: {folder.name}"[:50], lambda: user_images(folder), OWN_IMAGES)


def create_project(studio: Studio, source: DemoSource) -> int:
    """Create the project with two annotators per task, so that agreement can be measured."""
    project = studio.create_project(
        title=source.title,
        label_config=source.interface.label_config,
        maximum_annotations=2,
        show_instruction=False,
        expert_instruction=source.interface.instruction,
        enable_empty_annotation=True,
    )
    return int(project["id"])


def upload_images(studio: Studio, project: int, images: Sequence[Path], step: Step) -> None:
    """Upload images in batches through Label Studio's upload; each becomes a task."""
    for start in range(0, len(images), UPLOAD_FILES):
        step.say("uploading", done=start, total=len(images))
        studio.upload_images(project, images[start : start + UPLOAD_FILES])
    step.say("uploaded", done=len(images), total=len(images))


def prelabel(studio: Studio, project: int, step: Step, *, settings: Settings, log: Path) -> int:
    """Import the served model's pre-labels for every task, as `labelloop prelabel` does.

    Label Studio's "Retrieve Predictions" takes three times as long and reports success even if it fails.

    Returns:
        The number of tasks with pre-labels.

    Raises:
        StackError: Some tasks have none.
        LabelloopError: The model cannot be opened, or a request to Label Studio fails.
    """
    from ml_backend.bulk.prelabel import prelabel as prelabel_project
    from ml_backend.predict.protocol import ProjectOptions, with_thresholds
    from ml_backend.serving import activation

    step.say("opening the model")
    detector, thresholds = activation.open_served_model(settings, project)
    report = prelabel_project(
        studio,
        project,
        detector=detector,
        photos=Media(settings, studio),
        score_threshold=settings.score_threshold,
        options=with_thresholds(ProjectOptions(), thresholds),
        progress=lambda done, total: step.say("running the model on the images", done=done, total=total),
    )
    labelled = report.already_done + report.imported
    if labelled < report.tasks:
        reasons = "; ".join(dict.fromkeys(failure.reason for failure in report.failures[:3]))
        raise StackError(
            f"{report.tasks - labelled} of {report.tasks} tasks have no pre-labels{f': {reasons}' if reasons else '.'}",
            fix=f"Correct these images, or see `labelloop doctor {project}`. Then: `labelloop prelabel {project}`.",
            log=log,
            code="prelabels_missing",
        )
    return labelled
