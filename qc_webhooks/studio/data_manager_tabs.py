"""Data Manager tabs of quality control: created once, filters repaired, never the first tab."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labelloop.service.connect_report import ConnectionChange
from labelloop.service.studio import Studio

# A tab created over the API shows every column that is not listed here (the default tab hides these by itself).
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

# Columns that Label Studio's default tab also hides while labeling, where the list is narrow.
_LABELING_HIDDEN = (
    "tasks:id",
    "tasks:completed_at",
    "tasks:cancelled_annotations",
    "tasks:total_predictions",
    "tasks:annotators",
)

# Columns that reviewers do not choose tasks by; hidden to make room for the note.
_OTHER_COLUMNS = (
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
    """Filter and order of a tab.

    Attributes:
        key: Flat data key to filter by.
        operator: Operator of Label Studio's filter.
        kind: Type of the filter's value.
        value: Value of the filter.
        order: Data key to sort by, as a number; a leading minus sorts the highest first.
        note: Key of the note that explains why a task is listed; its column is wide.
    """

    key: str
    operator: str
    kind: str
    value: str | float
    order: str = "qc_agreement"
    note: str = "qc_note"

    @property
    def filter(self) -> dict[str, Any]:
        """Filter item as Label Studio stores it."""
        name = f"filter:tasks:data.{self.key}"
        return {"filter": name, "operator": self.operator, "type": self.kind, "value": self.value}


# Beginning of the title of an annotator's own tab, and the most such tabs in a project.
PERSONAL = "Sent back: "
MAX_PERSONAL = 30

TABS: Mapping[str, Tab] = {
    "QC: disputed": Tab("qc_status", "equal", "String", "disputed"),
    "QC: to review": Tab("qc_review", "equal", "String", "yes"),
    "QC: sent back": Tab("qc_sent_back", "equal", "String", "sent back", note="qc_comment"),
    "QC: model doubts": Tab("qc_model_score", "greater", "Number", 0, order="-qc_model_score", note="qc_model_note"),
}


def tab_data(title: str, tab: Tab | None = None) -> dict[str, Any]:
    """A tab as Label Studio stores it, the most urgent tasks first; by default that of TABS."""
    tab = tab or TABS[title]
    hidden = [*HIDDEN_COLUMNS, *_OTHER_COLUMNS]
    number = f"tasks:data.{tab.order.removeprefix('-')}"
    sign = "-" if tab.order.startswith("-") else ""
    return {
        "title": title,
        "type": "list",
        "target": "tasks",
        "hiddenColumns": {"explore": hidden, "labeling": hidden},
        # Pixels; wide enough for a sentence of the note in a few lines.
        "columnsWidth": {f"tasks:data.{tab.note}": 720, number: 140, "tasks:data.qc_annotators": 110},
        "columnsDisplayType": {number: "Number"},
        "gridWidth": 4,
        "filters": {"conjunction": "and", "items": [tab.filter]},
        "ordering": [f"{sign}{number}"],
    }


def default_tab() -> dict[str, Any]:
    """Label Studio's default tab of all tasks, which it creates only in a project without tabs."""
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


def ensure_tabs(studio: Studio, project: int) -> list[ConnectionChange]:
    """Create missing tabs and restore changed filters; columns and order set by people stay.

    A project opens on its first tab. Where there is none yet, Label Studio's default tab is created first: otherwise
    the project would open on an empty list.
    """
    views: dict[str, dict[str, Any]] = {}
    for view in studio.views(project):
        views.setdefault(view.get("data", {}).get("title"), view)  # copies made by people stay
    changes = []
    if not views:
        studio.add_view(project, default_tab())
        changes.append(ConnectionChange('tab "Default" with all tasks', done=True))
    for title in TABS:
        wanted = tab_data(title)
        stored = views.get(title)
        is_current = stored is not None and _filter_of(stored["data"]) == _filter_of(wanted)
        if stored is None:
            studio.add_view(project, wanted)
        elif not is_current:
            studio.update_view(stored["id"], project, {**stored["data"], "filters": wanted["filters"]})
        changes.append(ConnectionChange(f'tab "{title}"', done=not is_current))
    return changes


def ensure_personal_tabs(studio: Studio, project: int, names: Sequence[str]) -> dict[str, int]:
    """Give each annotator with tasks to redo a tab with these, and delete the tabs of those who have none.

    Args:
        studio: Label Studio.
        project: The project's id.
        names: Names of the annotators, as in ``qc_sent_to``; those beyond ``MAX_PERSONAL`` use "QC: sent back".

    Returns:
        Name -> id of the tab.
    """
    wanted = {f"{PERSONAL}{name}": name for name in sorted(names)[:MAX_PERSONAL]}
    tabs: dict[str, int] = {}
    for view in studio.views(project):
        title, filters = str(view.get("data", {}).get("title", "")), _filter_of(view.get("data", {}))
        if not title.startswith(PERSONAL) or not any(item[0] == "filter:tasks:data.qc_sent_to" for item in filters):
            continue
        if title in wanted and title not in tabs:
            tabs[title] = int(view["id"])
        else:
            studio.delete_view(view["id"])
    for title, name in wanted.items():
        if title not in tabs:
            tab = Tab("qc_sent_to", "contains", "String", name, note="qc_comment")
            tabs[title] = int(studio.add_view(project, tab_data(title, tab))["id"])
    return {name: tabs[title] for title, name in wanted.items()}


def _filter_of(data: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    # The type is ignored: the browser writes back "Unknown" for "String", with the same rows.
    items = (data.get("filters") or {}).get("items") or []
    return [(item.get("filter"), item.get("operator"), item.get("value")) for item in items]
