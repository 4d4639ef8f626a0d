"""`ImportStudio`: what an import asks of Label Studio, which answers for itself in the system tests."""

from pathlib import Path
from typing import Any

from exporters.model.file_names import IMPORT_META
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import read_task
from labelloop.service.studio import StudioRefused


class ImportStudio:
    """Projects and tasks in memory.

    ``refuse`` maps the name of a call to the status and the words that it is refused with.
    """

    url = "http://label-studio"
    fingerprint = "import"

    def __init__(self) -> None:
        self.made: dict[int, dict[str, Any]] = {}
        self.tasks_of: dict[int, list[dict[str, Any]]] = {}
        self.refuse: dict[str, tuple[int, str]] = {}

    def close(self) -> None:
        """As the real one."""

    def projects(self) -> list[dict[str, Any]]:
        return list(self.made.values())

    def project(self, project: int) -> dict[str, Any]:
        return self.made[project]

    def label_config(self, project: int) -> LabelConfig:
        return LabelConfig.parse(self.made[project]["label_config"])

    def create_project(self, **fields: Any) -> dict[str, Any]:
        self._may("create_project")
        number = len(self.made) + 1
        self.made[number] = fields | {"id": number}
        self.tasks_of[number] = []
        return self.made[number]

    def update_project(self, project: int, **fields: Any) -> dict[str, Any]:
        self.made[project] |= fields
        return self.made[project]

    def delete_project(self, project: int) -> None:
        del self.made[project], self.tasks_of[project]

    def tasks(self, project: int, **_: Any):
        return map(read_task, self.tasks_of[project])

    def upload_files(self, project: int, paths: list[Path]) -> list[str]:
        self._may("upload_files")
        return [f"/data/upload/{project}/0a1b2c3d-{path.name}" for path in paths]

    def import_tasks(self, project: int, tasks: list[dict[str, Any]]) -> list[int]:
        self._may("import_tasks")
        existing = self.tasks_of[project]
        for task in tasks:
            existing.append({"id": len(existing) + 1, "annotations": [], "predictions": []} | task)
        return [task["id"] for task in existing[-len(tasks) :]]

    def add_annotation(self, task: int, result: list[dict[str, Any]], *, ground_truth: bool) -> None:
        (target,) = (task_item for tasks in self.tasks_of.values() for task_item in tasks if task_item["id"] == task)
        target["annotations"].append({"result": result, "ground_truth": ground_truth})

    def import_predictions(self, project: int, predictions: list[dict[str, Any]]) -> int:
        for prediction in predictions:
            self.tasks_of[project][prediction["task"] - 1]["predictions"].append(prediction)
        return len(predictions)

    def annotations(self, project: int = 1) -> dict[str, list[int]]:
        """Photo -> how many results each of its annotations has."""
        return {
            task["meta"][IMPORT_META]["name"].rpartition("/")[2]: [
                len(annotation["result"]) for annotation in task["annotations"]
            ]
            for task in self.tasks_of[project]
        }

    def _may(self, call: str) -> None:
        if call in self.refuse:
            status, words = self.refuse[call]
            raise StudioRefused(f"POST /api/{call}", status, words)
