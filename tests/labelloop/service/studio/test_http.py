"""The connection to Label Studio: tokens, retries and errors, against an HTTP server that behaves as output."""

import base64
import json
import socket
import threading
import time

import pytest
import stamina

from labelloop.service.studio import (
    PredictionsDropped,
    Studio,
    StudioError,
    StudioNotFound,
    StudioRefused,
    StudioUnauthorized,
    StudioUnreachable,
)
from tests.web_server import WebServer

LEGACY = "0123456789abcdef0123456789abcdef01234567"


def jwt(kind, lives_s, mark="x"):
    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    claims = {"token_type": kind, "exp": int(time.time() + lives_s), "jti": mark}
    return f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims)}.c2lnbmF0dXJl"


PAT = jwt("refresh", 1e9)


class Server(WebServer):
    """Answers with `answer(method, path, authorization, body)` -> (status, body[, headers]); remembers the calls."""

    def __init__(self):
        super().__init__(lambda sent: self.respond(sent.method, sent.path, sent.headers["Authorization"], sent.body))
        self.asked, self.lives_s, self.exchanges, self.accepts = [], 300.0, 0, None
        self.answer, self.connections = lambda *_: (200, {}), 0

    def process_request(self, *connection):
        self.connections += 1
        super().process_request(*connection)

    def respond(self, method, path, authorization, body):
        if path.endswith("/api/token/refresh/"):
            if json.loads(body)["refresh"] != PAT:
                return 401, {"detail": "Token is invalid"}
            self.exchanges += 1
            self.current = jwt("access", self.lives_s, f"{self.exchanges}")
            return 200, {"access": self.current}
        self.asked.append((method, path, authorization))
        if self.accepts is not None and not self.accepts(authorization):
            return 401, {"detail": "Authentication credentials were not provided."}
        return self.answer(method, path, authorization, body)


@pytest.fixture
def server():
    with Server() as server:
        yield server


@pytest.fixture(autouse=True)
def _quick_retries():
    with stamina.set_testing(True, attempts=4, cap=True):
        yield


@pytest.mark.parametrize("copied", [f" {LEGACY}\n", f"Token {LEGACY}", f"'{LEGACY}'", f'"Bearer {LEGACY}"'])
def test_a_legacy_token_is_sent_without_what_was_copied_along(server, copied):
    Studio(server.url, copied).me()
    assert server.asked == [("GET", "/api/current-user/whoami", f"Token {LEGACY}")]


def test_requests_over_http_do_not_wait_for_a_delayed_ack_on_a_kept_connection(server):
    studio = Studio(server.url, LEGACY)
    for _ in range(3):
        studio.me()
    assert server.connections == 3


def test_a_personal_access_token_is_exchanged_once_for_many_threads(server):
    studio = Studio(server.url, PAT)
    threads = [threading.Thread(target=studio.me) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.exchanges == 1
    assert {authorization for _, _, authorization in server.asked} == {f"Bearer {server.current}"}


def test_an_expired_access_token_is_exchanged_before_use(server):
    server.lives_s = 1.2
    studio = Studio(server.url, PAT)
    studio.me()
    time.sleep(1.5)
    studio.me()
    assert server.exchanges == 2
    assert len(server.asked) == 2


def test_a_refused_access_token_is_exchanged_even_for_post(server):
    studio = Studio(server.url, PAT)
    studio.me()
    server.accepts = lambda authorization: authorization == f"Bearer {server.current}" and server.exchanges == 2
    studio.create_project(title="again")
    assert [method for method, _, _ in server.asked] == ["GET", "POST", "POST"]
    assert server.exchanges == 2


def test_requests_and_token_exchange_keep_a_path_prefix(server):
    headers_seen = []
    respond = server.respond
    server.respond = lambda method, path, *rest: (headers_seen.append(path), respond(method, path, *rest))[1]
    Studio(f"{server.url}/annotate/", PAT).me()
    assert headers_seen == ["/annotate/api/token/refresh/", "/annotate/api/current-user/whoami"]


@pytest.mark.parametrize(
    ("token", "detail", "kind", "fix"),
    [
        ("", "", "missing", "LABELLOOP_LABEL_STUDIO_API_KEY"),
        (jwt("refresh", -10), "", "expired", "Create a personal access token"),
        (jwt("refresh", 1e9, "other"), "", "wrong", "another Label Studio"),
        (jwt("access", 200), "", "wrong", "five minutes"),
        (LEGACY, "Invalid token.", "wrong", "does not know this legacy token"),
        (PAT[:60].replace(".", ""), "Invalid token.", "wrong", "copy it again, in full"),
        (
            LEGACY,
            "Authentication token no longer valid: legacy token authentication has been disabled for this organization",
            "legacy disabled",
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN",
        ),
    ],
    ids=["missing", "expired", "of another server", "an access token", "unknown legacy", "cut off", "legacy disabled"],
)
def test_a_refused_token_is_explained_and_never_shown(server, token, detail, kind, fix):
    server.answer = lambda *_: (401, {"detail": detail})
    with pytest.raises(StudioUnauthorized) as caught:
        Studio(server.url, token).me()
    assert caught.value.kind == kind
    assert fix in str(caught.value)
    assert not token or token not in str(caught.value)


def test_a_page_instead_of_a_token_asks_for_the_address_without_a_path(server):
    server.respond = lambda *_: (200, b"<html>")
    with pytest.raises(StudioUnreachable, match="without /projects"):
        Studio(f"{server.url}/projects/1/data", PAT).me()


def test_a_refused_connection_is_named_without_the_number_of_the_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(StudioUnreachable, match=rf"http://127.0.0.1:{port}: Connection refused"):
        Studio(f"http://127.0.0.1:{port}", LEGACY).me()


def test_https_to_a_port_that_speaks_http_is_named(server):
    with pytest.raises(StudioUnreachable, match="speaks http, not https"):
        Studio(server.url.replace("http:", "https:"), LEGACY).me()


@pytest.mark.parametrize("call", [lambda s: s.me(), lambda s: s.update_project(1, title="new")], ids=["GET", "PATCH"])
@pytest.mark.parametrize("status", [502, 503, 504, 429])
def test_what_is_safe_is_sent_again_when_the_server_stumbles(server, call, status):
    answers = iter([(status, {}), (status, {}), (200, {"id": 1})])
    server.answer = lambda *_: next(answers)
    call(Studio(server.url, LEGACY))
    assert len(server.asked) == 3


def test_a_locked_database_is_retried_other_errors_are_not(server):
    answers = iter([(500, {"detail": "database is locked"}), (200, {})])
    server.answer = lambda *_: next(answers)
    Studio(server.url, LEGACY).me()
    server.asked.clear()
    server.answer = lambda *_: (500, {"detail": "KeyError"})
    with pytest.raises(StudioRefused, match="500 KeyError"):
        Studio(server.url, LEGACY).me()
    assert len(server.asked) == 1


def test_a_post_is_never_sent_twice(server):
    server.answer = lambda *_: (503, {"detail": "busy"})
    with pytest.raises(StudioRefused, match="503 busy"):
        Studio(server.url, LEGACY).import_tasks(1, [{"image": "a"}])
    assert len(server.asked) == 1


def test_retry_after_is_obeyed(server):
    with stamina.set_testing(False):
        answers = iter([(429, {}, {"Retry-After": "1"}), (200, {})])
        server.answer = lambda *_: next(answers)
        started = time.monotonic()
        Studio(server.url, LEGACY).me()
    assert time.monotonic() - started >= 1


def test_a_delete_whose_answer_was_lost_is_done(server):
    answers = iter([(504, {}), (404, {"detail": "Not found."})])
    server.answer = lambda *_: next(answers)
    Studio(server.url, LEGACY).delete_webhook(1)
    server.answer = lambda *_: (404, {"detail": "Not found."})
    with pytest.raises(StudioNotFound):
        Studio(server.url, LEGACY).delete_webhook(1)


def test_nobody_there_is_said_plainly():
    with pytest.raises(StudioUnreachable, match="LABELLOOP_LABEL_STUDIO_URL") as caught:
        Studio("http://127.0.0.1:9", LEGACY).me()
    assert "http://127.0.0.1:9" in str(caught.value)


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://host", "http://"])
def test_what_is_no_address_is_refused_at_once(url):
    with pytest.raises(StudioUnreachable, match="http://"):
        Studio(url, LEGACY)


@pytest.mark.parametrize(
    ("status", "body", "headers", "says"),
    [
        (200, b"<html>Log in</html>", {}, "is not Label Studio's JSON"),
        (404, b"<html><title>404 | nginx</title>", {}, "a web page: 404 | nginx"),
        (301, b"", {"Location": "https://label.example.com/?next=secret"}, "https://label.example.com/"),
        (
            400,
            {"detail": "Validation error", "validation_errors": {"url": ["Enter a valid URL."]}},
            {},
            "without a dot",
        ),
        (403, {"detail": "URL resolves to a reserved network address (block: 10/8)"}, {}, "USER_ADDITIONAL_BANNED"),
    ],
)
def test_refusals_say_what_label_studio_said_and_the_fix(server, status, body, headers, says):
    server.answer = lambda *_: (status, body, headers)
    with pytest.raises(StudioError) as caught:
        Studio(server.url, LEGACY).create_project(title="project")
    assert says in str(caught.value)
    assert "next=secret" not in str(caught.value)


def test_predictions_that_label_studio_dropped_are_an_error(server):
    server.answer = lambda *_: (201, {"created": 1})
    with pytest.raises(PredictionsDropped, match="stored 1 of 2") as caught:
        Studio(server.url, LEGACY).import_predictions(7, [{"task": 1}, {"task": 2}])
    assert (caught.value.project, caught.value.sent, caught.value.created) == (7, 2, 1)


@pytest.mark.parametrize(
    ("url", "ours"),
    [
        ("https://label.example.com/ls/data/upload/1/a.png", True),
        ("https://LABEL.example.com:443/ls/data/upload/1/a.png", True),
        ("https://label.example.com/ls", True),
        ("http://label.example.com/ls/data/upload/1/a.png", False),
        ("https://label.example.com:8443/ls/data/a.png", False),
        ("https://label.example.com/lsx/data/a.png", False),
        ("https://label.example.com/data/a.png", False),
        ("https://label.example.com/ls/../data/a.png", False),
        ("https://label.example.com/ls/%2e%2e/data/a.png", False),
        ("https://label.example.com.evil.com/ls/a.png", False),
        ("https://label.example.com@evil.com/ls/a.png", False),
        ("https://user:pass@label.example.com/ls/a.png", False),
        ("https://evil.com/https://label.example.com/ls/", False),
        ("//label.example.com/ls/a.png", False),
        ("https://[bad", False),
    ],
)
def test_only_its_own_addresses_are_label_studios(url, ours):
    assert Studio("https://label.example.com/ls/", LEGACY).owns(url) is ours


def test_neither_repr_nor_log_shows_the_token(server, caplog, capsys):
    server.answer = lambda *_: (503, {})
    studio = Studio(server.url, PAT)
    with pytest.raises(StudioRefused):
        studio.me()
    output = f"{studio!r} {vars(studio)['url']} {caplog.text} {capsys.readouterr()}"
    assert PAT not in output
    assert server.current not in output
    assert studio.cache_key not in PAT


def test_data_resolved_for_a_browser_is_not_written_back(server):
    studio = Studio(server.url, LEGACY)
    with pytest.raises(StudioError, match="resolved for a browser"):
        studio.update_task(5, data={"image": "/tasks/5/resolve/?fileuri=czM6Ly9i", "qc_status": "disputed"})
    assert server.asked == []
    studio.update_task(5, data={"image": "s3://b/a.png"}, overlap=3, is_labeled=False)
    assert len(server.asked) == 1


def test_the_content_of_an_updated_task_is_not_decoded(server):
    """Of a dense task it takes hundreds of MB, and no caller reads it."""
    content = {"annotations": [{"id": 1, "result": []}], "predictions": [], "drafts": []}
    server.answer = lambda *_: (200, {"id": 5, "data": {"a": 1}, "overlap": 3, **content})
    assert Studio(server.url, LEGACY).update_task(5, overlap=3) == {"id": 5, "data": {"a": 1}, "overlap": 3}


def test_an_updated_task_that_is_no_json_is_reported(server):
    server.answer = lambda *_: (200, "a proxy's page")
    with pytest.raises(StudioUnreachable, match="PATCH /api/tasks/5/ is not Label Studio's JSON"):
        Studio(server.url, LEGACY).update_task(5, overlap=3)
