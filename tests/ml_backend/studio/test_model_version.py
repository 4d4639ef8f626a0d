"""Label Studio follows a version: asked once where the backend says that all its workers swapped, else until so."""

from itertools import chain, repeat

import pytest

from ml_backend.studio.model_version import CONSECUTIVE_ANSWERS, NotSwapped, follow_version
from tests.fake_label_studio import FakeLabelStudio
from tests.web_server import WebServer

NEW, OLD = "learned-9-0123456789ab", "learned-8-0123456789ab"


@pytest.fixture
def backend(settings):
    """Answers as a backend whose workers swap one after the other; (settings with its address, what it says)."""
    message, requests = iter(()), []

    def answer(request):
        requests.append(request.path)
        return 200, {"versions": [next(message)]}

    def says(versions):
        nonlocal message
        message = iter(versions)
        return settings.replace(ml_url=server.url), requests

    with WebServer(answer) as server:
        yield says


class SwappingStudio(FakeLabelStudio):
    """Project 7, and its ML backend if there is one."""

    def __init__(self):
        super().__init__(served_version="")
        self.put_project(7)

    @property
    def polls(self):
        """How often Label Studio had to ask the backend."""
        assert all("current" in call for call in self.calls_of("update_ml_backend")), "it knows the backend already"
        return len(self.calls_of("ml_backends"))

    @property
    def title(self):
        return self.backends_by_id[1]["title"]


def studio_of(settings, *, knows=NEW, title=OLD):
    studio = SwappingStudio()
    studio.put_backend(7, settings.ml_url, title, model_version=knows)
    studio.projects_by_id[7]["model_version"] = title
    return studio


def test_label_studio_is_asked_once_when_every_worker_has_swapped(backend):
    settings, requests = backend(chain([OLD, NEW, NEW, OLD], repeat(NEW)))
    studio = studio_of(settings)
    changes = follow_version(studio, 7, NEW, settings)
    assert studio.polls == 1
    assert len(requests) == 4 + CONSECUTIVE_ANSWERS
    assert all(path == "/versions?project=7&stored=no" for path in requests)
    assert studio.title == studio.projects_by_id[7]["model_version"] == NEW
    assert all(change.done for change in changes[:1])


def test_unreachable_backend_is_polled_through_label_studio(settings, free_port):
    elsewhere = settings.replace(ml_url=f"http://127.0.0.1:{free_port()}")
    studio = studio_of(elsewhere)
    follow_version(studio, 7, NEW, elsewhere)
    assert studio.polls == CONSECUTIVE_ANSWERS
    assert studio.title == NEW


def test_backend_that_does_not_swap_is_an_error(backend):
    settings, _ = backend(repeat(OLD))
    studio = studio_of(settings, knows=OLD)
    with pytest.raises(NotSwapped, match=OLD):
        follow_version(studio, 7, NEW, settings, wait_s=0.2)
    assert studio.title == OLD


def test_a_project_that_is_not_connected_is_left_alone(backend):
    settings, _ = backend(repeat(NEW))
    assert follow_version(SwappingStudio(), 7, NEW, settings) == []
