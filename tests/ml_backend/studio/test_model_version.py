"""Label Studio follows a version: asked once where the backend says that all its workers swapped, else until so."""

from itertools import chain, repeat

import pytest

from ml_backend.studio.model_version import CONSECUTIVE_ANSWERS, NotSwapped, follow_version
from tests.ml_backend.studio.test_connect import FakeStudio
from tests.web_server import WebServer

NEW, OLD = "learned-9-0123456789ab", "learned-8-0123456789ab"


class CountingStudio(FakeStudio):
    """Counts how often it had to ask the backend."""

    requests = 0

    def ml_backends(self, project):
        self.requests += 1
        return super().ml_backends(project)

    def update_ml_backend(self, backend, *, current=None, **fields):
        assert current is not None  # else Label Studio would be asked for what it just told
        return super().update_ml_backend(backend, **fields)


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


def studio_of(settings, *, knows=NEW, title=OLD):
    row = {"id": 3, "url": settings.ml_url, "title": title, "auth_method": "NONE", "model_version": knows}
    studio = CountingStudio(rows=[row])
    studio.fields["model_version"] = title
    return studio


def test_label_studio_is_asked_once_when_every_worker_has_swapped(backend):
    settings, requests = backend(chain([OLD, NEW, NEW, OLD], repeat(NEW)))
    studio = studio_of(settings)
    changes = follow_version(studio, 7, NEW, settings)
    assert studio.requests == 1
    assert len(requests) == 4 + CONSECUTIVE_ANSWERS
    assert all(path == "/versions?project=7&stored=no" for path in requests)
    assert studio.rows[0]["title"] == studio.fields["model_version"] == NEW
    assert all(change.done for change in changes[:1])


def test_unreachable_backend_is_polled_through_label_studio(settings, free_port):
    elsewhere = settings.replace(ml_url=f"http://127.0.0.1:{free_port()}")
    studio = studio_of(elsewhere)
    follow_version(studio, 7, NEW, elsewhere)
    assert studio.requests == CONSECUTIVE_ANSWERS
    assert studio.rows[0]["title"] == NEW


def test_backend_that_does_not_swap_is_an_error(backend):
    settings, _ = backend(repeat(OLD))
    studio = studio_of(settings, knows=OLD)
    with pytest.raises(NotSwapped, match=OLD):
        follow_version(studio, 7, NEW, settings, wait_s=0.2)
    assert studio.rows[0]["title"] == OLD


def test_a_project_that_is_not_connected_is_left_alone(backend):
    settings, _ = backend(repeat(NEW))
    assert follow_version(CountingStudio(), 7, NEW, settings) == []
