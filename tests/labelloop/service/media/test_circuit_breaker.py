"""A host that is down costs a few waits, not one for each of its images; it is asked again after a while."""

from contextlib import suppress

import pytest
import stamina

from labelloop.service.media import Media, MediaMissing, MediaUnreachable
from labelloop.service.media.circuit_breaker import MAX_FAILURES, PAUSE_S, HostCircuitBreaker
from labelloop.service.media.errors import MediaHostSilent
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from tests.web_server import WebServer


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ask(clock):
    """Request an image from a host; return whether the request was made."""
    hosts = HostCircuitBreaker(clock)

    def ask(error=None, host="a"):
        was_requested = False
        with suppress(MediaUnreachable, MediaMissing), hosts.guard(host, "http://a/1.jpg"):
            was_requested = True
            if error:
                raise error
        return was_requested

    return ask


SILENCE = MediaHostSilent("http://a/1.jpg", "not there in time")


def test_silent_host_is_left_alone_for_a_while(ask, clock):
    assert all(ask(SILENCE) for _ in range(MAX_FAILURES))
    assert not ask()
    assert ask(host="b")
    clock.now += PAUSE_S
    assert ask(SILENCE)
    assert not ask()
    clock.now += PAUSE_S
    assert ask()
    assert all(ask(SILENCE) for _ in range(MAX_FAILURES))


@pytest.mark.parametrize("answer", [None, MediaMissing("u", "404"), MediaUnreachable("u", "the host answered 500")])
def test_host_that_answers_anything_is_asked_on(ask, answer):
    for _ in range(3):
        assert all(ask(SILENCE) for _ in range(MAX_FAILURES - 1))
        assert ask(answer)


@pytest.fixture
def _quick_retries():
    with stamina.set_testing(True, attempts=1):
        yield


@pytest.mark.usefixtures("_quick_retries")
def test_not_every_image_waits_for_a_dead_label_studio(tmp_path, monkeypatch):
    calls = []
    studio = Studio("http://127.0.0.1:1", "a-legacy-token")
    media = Media(Settings(home=tmp_path), studio)
    attempt = media._downloader._attempt
    monkeypatch.setattr(media._downloader, "_attempt", lambda *call: calls.append(call) or attempt(*call))
    reasons = []
    for number in range(MAX_FAILURES + 20):
        with pytest.raises(MediaUnreachable) as error:
            media.size(f"/data/upload/1/{number}.jpg")
        reasons.append(error.value.reason)
    assert len({address for address, *_ in calls}) == MAX_FAILURES
    assert "127.0.0.1:1 did not answer" in reasons[-1]
    media.close()
    studio.close()


def test_a_rejected_token_is_named(tmp_path):
    with WebServer(lambda request: (401, {"detail": "Invalid token."})) as server:
        studio = Studio(server.url, "0123456789abcdef")
        media = Media(Settings(home=tmp_path), studio)
        with pytest.raises(MediaMissing) as error:
            media.size("/data/upload/1/a.jpg")
        media.close()
        studio.close()
    assert "rejects the token" in error.value.reason
    assert "LABELLOOP_LABEL_STUDIO_API_KEY" in error.value.fix
