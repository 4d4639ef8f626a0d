"""A Label Studio in memory for the exporters: one project to export, or projects that imports make."""

import json

import pytest

from exporters.model.file_names import IMPORT_META
from tests.fake_label_studio import FakeLabelStudio

PROJECT = 7


class ExportStudio(FakeLabelStudio):
    """Project 7 with these tasks.

    Attributes:
        fields: The project's fields.
        read: The ids of the tasks that were read in pages to be exported.
    """

    def __init__(self, tasks: list[dict], xml: str, *, title: str = "cars") -> None:
        super().__init__()
        self.put_project(PROJECT, title=title, label_config=xml)
        self.fields, self.read = self.projects_by_id[PROJECT], []
        for task in tasks:
            self.put_task(PROJECT, **task)

    def raw_tasks(self, project, **options):
        for raw in super().raw_tasks(project, **options):
            self.read.append(json.loads(raw)["id"])
            yield raw


class ImportStudio(FakeLabelStudio):
    """Label Studio without projects."""

    def results(self, project: int = 1) -> dict[str, list[int]]:
        """The number of results in each annotation, by image name."""
        return {
            task["meta"][IMPORT_META]["name"].rpartition("/")[2]: [
                len(annotation["result"]) for annotation in task["annotations"]
            ]
            for task in self.tasks_by_id.values()
            if task["project"] == project
        }


@pytest.fixture
def fake_studio() -> type[ExportStudio]:
    """A Label Studio of one project, without a server."""
    return ExportStudio
