"""An export from beginning to end: source -> tasks one at a time -> data set items -> writers -> store, manifest last."""

from collections.abc import Callable, Sequence
from pathlib import Path

from exporters.accounting import Report
from labelloop.service.settings import Settings

Progress = Callable[[int, int | None], None]
"""Called with (tasks done, tasks in all or None where the source does not say)."""


def export(
    source: str | int | Path,
    *,
    settings: Settings,
    formats: Sequence[str] = ("coco",),
    to: str | None = None,
    label_config: str | None = None,
    annotation: str = "latest",
    split: str = "train=.8,val=.1,test=.1",
    disputed: str = "exclude",
    max_errors: float = 0.01,
    fetch: bool = True,
    copy_images: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Make one new version of a data set in the store from annotated tasks."""
    raise NotImplementedError
