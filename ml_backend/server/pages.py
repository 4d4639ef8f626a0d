"""Owns the views for people: the front page of the service, and each project's page of learning."""

from flask import Response

from labelloop.service.settings import Settings
from ml_backend.errors import ModelError
from ml_backend.learning.report.page import front_page, learning_page, page_headers
from ml_backend.learning.service import LearningService
from ml_backend.learning.store.annotations import NotConnected
from ml_backend.predict.control_support import ModelOutputs, controls_of, reasons, unlearned
from ml_backend.server.project_options import Projects
from ml_backend.serving.model_server import ModelServer

LONGEST_ID = 9
"""Digits of a project's number: longer ones are no 32-bit numbers, and databases take none."""


class Pages:
    """Answers browsers; what it shows is read when it is asked for."""

    def __init__(self, settings: Settings, door: LearningService, serving: ModelServer, projects: Projects) -> None:
        self._studio = settings.label_studio_public_url or settings.label_studio_url
        self._door = door
        self._serving = serving
        self._projects = projects

    def front(self) -> Response:
        """What this service is, and the way to each project's page: for who opens the address in Label Studio."""
        projects = [
            (number, labelled, self._active(number), self._notes(number)) for number, labelled in self._door.projects()
        ]
        return _page(front_page(projects, served=self._active()))

    def learning(self, project: int) -> Response:
        """How learning of a project went, how it stands, and what comes next.

        Raises:
            NotConnected: It was never connected.
        """
        if len(str(project)) > LONGEST_ID:
            raise NotConnected(project)
        version, config = self._serving.version(str(project)), self._projects.config(project)
        report = self._door.report(project, version, unlearned=unlearned(project, config))
        return _page(learning_page(report, label_studio=self._studio, notes=self._notes(project)))

    def _notes(self, project: int) -> list[str]:
        """What is not pre-labelled or not learned from in a project, as far as its label config is known here."""
        config, detector = self._projects.config(project), self._serving.loaded(project)
        unserved = [one for one in [self._serving.unserved(project)] if one]
        if config is None:
            return unserved
        return [*unserved, *reasons(controls_of(config, ModelOutputs.of(detector) if detector else None))]

    def _active(self, project: int | None = None) -> str:
        try:
            return self._serving.active(project)
        except ModelError:
            return ""


def _page(html: str) -> Response:
    return Response(html, content_type="text/html; charset=utf-8", headers=page_headers())
