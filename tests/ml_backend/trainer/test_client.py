"""What stands between a trainer and its ML backend: proxies that answer in its place."""

import httpx
import pytest

from labelloop.service.errors import LabelloopError
from ml_backend.finetune.protocol import TrainOffer
from ml_backend.trainer.client import MAX_PAUSE_S, BackendRefused, BackendUnreachable, TrainerClient

OFFER = TrainOffer(1, 7, "a lease", 90.0, 1.0, "model.onnx", "", "", 1000)


def answering(status, *, content=b"", headers=None):
    """A client whose every request gets one answer."""
    transport = httpx.MockTransport(lambda _: httpx.Response(status, content=content, headers=headers))
    return TrainerClient("http://user:secret@labels.example.org/ml", "a-token", transport=transport)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 520, 599])
def test_a_busy_proxy_is_asked_again(status):
    with answering(status, content=b"<html>") as client, pytest.raises(BackendUnreachable, match=str(status)):
        client.work("gpu-box", "cpu", wait_s=0)


@pytest.mark.parametrize("content", [b"<html>a log-in page", b"", b"[1, 2]", b'"\xff"'])
def test_a_page_in_place_of_an_answer_is_asked_again(content):
    with answering(200, content=content) as client:
        for ask in (lambda: client.work("gpu-box", "cpu", wait_s=0), lambda: client.data(OFFER)):
            with pytest.raises(BackendUnreachable, match="not that of an ML backend"):
                ask()


def test_a_redirect_is_refused_with_the_address_it_names():
    headers = {"Location": "https://user:secret@labels.example.org/ml?code=secret"}
    with answering(301, headers=headers) as client, pytest.raises(BackendRefused) as refused:
        client.work("gpu-box", "cpu", wait_s=0)
    assert "it redirects to https://labels.example.org/ml" in str(refused.value)
    assert "Give --url" in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("stated", ["Wed, 21 Oct 2026 07:28:00 GMT", "99999999999", "-1"])
def test_no_proxy_makes_a_trainer_wait_for_long(stated):
    with answering(204, headers={"Retry-After": stated}) as client:
        offer, wait_s = client.work("gpu-box", "cpu", wait_s=0)
    assert offer is None
    assert 0 < wait_s <= MAX_PAUSE_S


@pytest.mark.parametrize("status", [400, 418, 499])
def test_other_refusals_are_said_once(status):
    content = b'{"error": {"code": "odd", "message": "what is this"}}'
    with answering(status, content=content) as client, pytest.raises(LabelloopError, match="what is this"):
        client.work("gpu-box", "cpu", wait_s=0)
