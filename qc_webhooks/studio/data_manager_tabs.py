"""The tabs of the Data Manager that show what quality control found; made, repaired, never doubled, never first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labelloop.service.connect_report import Change
from labelloop.service.studio import Studio

# A tab made over the API shows every column unless it is named here (the default tab hides these by itself).
HIDDEN_COLUMNS = (
    "tasks:inner_id",
    "tasks:annotations_results",
    "tasks:annotations_ids",
    "tasks:predictions_score",
    "tasks:predictions_model_versions",
    "tasks:predictions_results",
    "tasks:file_upload",
    "tasks:storage_filename",
    "tasks:created_at",
    "tasks:updated_at",
    "tasks:updated_by",
    "tasks:avg_lead_time",
    "tasks:draft_exists",
)

# What Label Studio's own default tab hides besides while labeling, where the list is a narrow strip.
_LABELING_HIDDEN = (
    "tasks:id",
    "tasks:completed_at",
    "tasks:cancelled_annotations",
    "tasks:total_predictions",
    "tasks:annotators",
)

# What a reviewer does not choose a task by takes the place of the note.
_NOISE = (
    "tasks:completed_at",
    "tasks:total_annotations",
    "tasks:cancelled_annotations",
    "tasks:total_predictions",
    "tasks:annotators",
    "tasks:data.qc_status",
    "tasks:data.qc_review",
)


@dataclass(frozen=True)
class Tab:
    """Which tasks a tab shows, and in which order.

    Attributes:
        key: The flat data key that it filters by.
        operator: Of Label Studio's filter; `kind` and `value` go with it.
        order: The data key that the tasks are sorted by, as a number; a minus before it: the highest first.
        note: The key of the note that says why a task is there, and is given room.
    """

    key: str
    operator: str
    kind: str
    value: str | float
    order: str = "qc_agreement"
    note: str = "qc_note"

    @property
    def filter(self) -> dict[str, Any]:
        """As Label Studio stores it."""
        name = f"filter:tasks:data.{self.key}"
        return {"filter": name, "operator": self.operator, "type": self.kind, "value": self.value}


TABS: Mapping[str, Tab] = {
    "QC: disputed": Tab("qc_status", "equal", "String", "disputed"),
    "QC: to review": Tab("qc_review", "equal", "String", "yes"),
    "QC: model doubts": Tab("qc_model_score", "greater", "Number", 0, order="-qc_model_score", note="qc_model_note"),
}


def tab_data(title: str) -> dict[str, Any]:
    """A tab as Label Studio stores it: what needs a look most comes first."""
    tab = TABS[title]
    hidden = [*HIDDEN_COLUMNS, *_NOISE]
    number = f"tasks:data.{tab.order.removeprefix('-')}"
    sign = "-" if tab.order.startswith("-") else ""
    return {
        "title": title,
        "type": "list",
        "target": "tasks",
        "hiddenColumns": {"explore": hidden, "labeling": hidden},
        # Pixels: wide enough that a sentence of the note takes few lines.
        "columnsWidth": {f"tasks:data.{tab.note}": 720, number: 140, "tasks:data.qc_annotators": 110},
        "columnsDisplayType": {number: "Number"},
        "gridWidth": 4,
        "filters": {"conjunction": "and", "items": [tab.filter]},
        "ordering": [f"{sign}{number}"],
    }


def default_tab() -> dict[str, Any]:
    """The tab of all tasks that Label Studio makes by itself, but only where a project has no tab at all."""
    explore = list(HIDDEN_COLUMNS)
    return {
        "title": "Default",
        "type": "list",
        "target": "tasks",
        "hiddenColumns": {"explore": explore, "labeling": [*_LABELING_HIDDEN, *explore]},
        "columnsWidth": {},
        "columnsDisplayType": {},
        "gridWidth": 4,
        "filters": {"conjunction": "and", "items": []},
        "ordering": [],
    }


def ensure_tabs(studio: Studio, project: int) -> list[Change]:
    """Makes the tabs that are missing and puts a changed filter right; columns and order stay as people set them.

    The first tab is what everybody sees who opens the project. Where there is none yet, Label Studio's own default
    is made first: with ours alone the project would open on an empty list.
    """
    views: dict[str, dict[str, Any]] = {}
    for found in studio.views(project):
        views.setdefault(found.get("data", {}).get("title"), found)  # a copy that somebody made stays theirs
    changes = []
    if not views:
        studio.add_view(project, default_tab())
        changes.append(Change('tab "Default" with all tasks', done=True))
    for title in TABS:
        wanted = tab_data(title)
        view = views.get(title)
        right = view is not None and _filter_of(view["data"]) == _filter_of(wanted)
        if view is None:
            studio.add_view(project, wanted)
        elif not right:
            studio.update_view(view["id"], project, {**view["data"], "filters": wanted["filters"]})
        changes.append(Change(f'tab "{title}"', done=not right))
    return changes


def _filter_of(data: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    # The type is left out: the browser writes back "Unknown" for "String", with the same rows.
    items = (data.get("filters") or {}).get("items") or []
    return [(item.get("filter"), item.get("operator"), item.get("value")) for item in items]
