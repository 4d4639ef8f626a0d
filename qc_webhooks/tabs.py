"""The tabs of the Data Manager that show what quality control found; made, repaired, never doubled, never first."""

from collections.abc import Mapping
from typing import Any

from labelloop.service.changes import Change
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

# Pixels: wide enough that a sentence of the note takes few lines.
_WIDTHS = {"tasks:data.qc_note": 720, "tasks:data.qc_agreement": 110, "tasks:data.qc_annotators": 110}

# Title -> the flat data key and the value that a task of this tab has.
TABS: Mapping[str, tuple[str, str]] = {
    "QC: disputed": ("qc_status", "disputed"),
    "QC: to review": ("qc_review", "yes"),
}


def tab_data(title: str) -> dict[str, Any]:
    """A tab as Label Studio stores it: least agreement first, as numbers."""
    key, value = TABS[title]
    hidden = [*HIDDEN_COLUMNS, *_NOISE]
    return {
        "title": title,
        "type": "list",
        "target": "tasks",
        "hiddenColumns": {"explore": hidden, "labeling": hidden},
        "columnsWidth": dict(_WIDTHS),
        "columnsDisplayType": {"tasks:data.qc_agreement": "Number"},
        "gridWidth": 4,
        "filters": {
            "conjunction": "and",
            "items": [
                {"filter": f"filter:tasks:data.{key}", "operator": "equal", "type": "String", "value": value},
            ],
        },
        "ordering": ["tasks:data.qc_agreement"],
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
