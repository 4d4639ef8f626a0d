"""HTML views: the front page of the service, and the training page of each project."""

from flask import Response

from labelloop.service.settings import Settings
from ml_backend.errors import ModelError
from ml_backend.learning.report.page import front_page, learning_page, page_headers
from ml_backend.learning.service import LearningService
from ml_backend.learning.store.annotations import NotConnectedToLearning
from ml_backend.predict.control_notes import notes_of
from ml_backend.predict.control_support import ModelOutputs, controls_of, why_not_learnable
from ml_backend.server.project_options import ProjectOptionsStore
from ml_backend.serving.model_server import ModelServer

# Maximum digits of a project id: a longer number does not fit the database's 32-bit integer.
MAX_ID_DIGITS = 9


class Pages:
    """The views; their content is read per request."""

    def __init__(
        self, settings: Settings, learning: LearningService, serving: ModelServer, projects: ProjectOptionsStore
    ) -> None:
        self._studio = settings.label_studio_public_url or settings.label_studio_url
        self._learning = learning
        self._serving = serving
        self._projects = projects

    def front(self) -> Response:
        """The front page: what this service is, with a link to each project's training page."""
        projects = [
            (number, labelled, self._active(number), self._notes(number))
            for number, labelled in self._learning.projects()
        ]
        return _page(front_page(projects, served=self._active()))

    def learning(self, project: int) -> Response:
        """The training page of a project: history, current state and next steps.

        Raises:
            NotConnected: The project was never connected.
        """
        if len(str(project)) > MAX_ID_DIGITS:
            raise NotConnectedToLearning(project=project)
        version, config = self._serving.version(str(project)), self._projects.config(project)
        report = self._learning.report(project, version, unlearned=why_not_learnable(project, config))
        return _page(learning_page(report, label_studio=self._studio, projects_at="../../", notes=self._notes(project)))

    def _notes(self, project: int) -> list[str]:
        """What is not pre-labelled or not learned from in a project, as far as its label config is known."""
        config, detector = self._projects.config(project), self._serving.loaded(project)
        unserved = [reason for reason in [self._serving.unserved(project)] if reason]
        if config is None:
            return unserved
        outputs = ModelOutputs.of(detector) if detector else None
        options = self._projects.options(project).controls
        return [*unserved, *notes_of(config, controls_of(config, outputs, options=options), outputs)]

    def _active(self, project: int | None = None) -> str:
        try:
            return self._serving.active(project)
        except ModelError:
            return ""


def _page(html: str) -> Response:
    return Response(html, content_type="text/html; charset=utf-8", headers=page_headers())
