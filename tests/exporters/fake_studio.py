"""Fixture `fake_studio`: what the exporters ask of Label Studio, without a server."""

import json
from pathlib import Path

import msgspec
import pytest

from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import read_task
from labelloop.service.studio import StudioRefused, StudioUnreachable
from labelloop.service.studio.tasks import TaskStamp


class FakeStudio:
    """What the exporters ask of Label Studio, which answers for itself in the system tests.

    ``asked`` lists the tasks that were sent; ``fail_after`` ends the connection after that number of tasks.
    """

    url = "http://label-studio"

    def __init__(self, tasks: list[dict], xml: str, *, title: str = "cars") -> None:
        self.now = 0
        self.tasks_by_id: dict[int, dict] = {}
        self.title, self.xml = title, xml
        self.asked: list[int] = []
        self.fail_after: int | None = None
        self.snapshots: dict[int, str] = {}
        self.may_snapshot = True
        for task in tasks:
            self.save(task)

    def save(self, task: dict, *, silently: bool = False) -> None:
        """Create or change a task; silently: without a trace in its time, as some bulk actions do."""
        self.now += 1
        live = [annotation for annotation in task["annotations"] if not annotation.get("was_cancelled")]
        before = self.tasks_by_id.get(task["id"], {})
        self.tasks_by_id[task["id"]] = task | {
            "updated_at": before.get("updated_at", "")
            if silently
            else f"2026-02-01T{self.now // 3600:02d}:{self.now // 60 % 60:02d}:{self.now % 60:02d}.000000Z",
            "total_annotations": len(live),
            "cancelled_annotations": len(task["annotations"]) - len(live),
        }

    def project(self, number: int) -> dict:
        tasks = self.tasks_by_id.values()
        return {
            "id": number,
            "title": self.title,
            "created_at": "2026-01-01",
            "task_number": len(tasks),
            "total_annotations_number": sum(task["total_annotations"] for task in tasks),
            "skipped_annotations_number": sum(task["cancelled_annotations"] for task in tasks),
        }

    def label_config(self, number: int) -> LabelConfig:
        return LabelConfig.parse(self.xml)

    def tasks(self, number: int, *, page_size: int, ordering: list[str]):
        assert ordering == ["-tasks:updated_at"]
        for task in sorted(self.tasks_by_id.values(), key=lambda task: task["updated_at"], reverse=True)[:page_size]:
            yield read_task(task)

    def raw_tasks(self, number: int, *, page_size: int = 100, filters: dict | None = None, only_ids=None):
        tasks = sorted(self.tasks_by_id.values(), key=lambda task: task["id"])
        for item in (filters or {}).get("items", ()):
            key = item["filter"].rpartition(":")[2]
            tasks = [task for task in tasks if task[key] > item["value"]]
        for task in tasks:
            if only_ids is None or task["id"] in only_ids:
                if self.fail_after is not None and len(self.asked) >= self.fail_after:
                    raise StudioUnreachable(url=self.url, reason="the cable is cut")
                self.asked.append(task["id"])
                yield json.dumps(task).encode()

    def stamps(self, number: int):
        for task in sorted(self.tasks_by_id.values(), key=lambda task: task["id"]):
            yield msgspec.convert(task, TaskStamp)

    def count_tasks(self, number: int, *, filters: dict | None = None) -> int:
        tasks = list(self.tasks_by_id.values())
        for item in (filters or {}).get("items", ()):
            key = item["filter"].rpartition(":")[2]
            if key.startswith("data."):
                tasks = [task for task in tasks if task["data"].get(key[5:]) == item["value"]]
            else:
                tasks = [task for task in tasks if task[key] > item["value"]]
        return len(tasks)

    def snapshot(self, number: int, title: str) -> int:
        if not self.may_snapshot:
            raise StudioRefused("POST /api/projects/7/exports/", 504, "Gateway Timeout")
        numbers = [number for number, name in self.snapshots.items() if name == title]
        self.snapshots.setdefault(numbers[0] if numbers else len(self.snapshots) + 1, title)
        return numbers[0] if numbers else len(self.snapshots)

    def download_snapshot(self, number: int, snapshot: int, to: Path) -> None:
        if self.fail_after is not None:
            raise StudioUnreachable(url=self.url, reason="the cable is cut")
        to.write_text(json.dumps(sorted(self.tasks_by_id.values(), key=lambda task: -task["id"])))

    def delete_snapshot(self, number: int, snapshot: int) -> None:
        self.snapshots.pop(snapshot, None)  # one that is gone is no error

    def close(self) -> None:
        pass


@pytest.fixture
def fake_studio() -> type[FakeStudio]:
    """A Label Studio of one project, without a server."""
    return FakeStudio
