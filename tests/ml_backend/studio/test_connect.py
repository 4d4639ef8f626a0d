"""What `connect` makes of Label Studio's refusals. tests/system asks the real server; here are its rarer moods."""

import pytest

from labelloop.service.studio import StudioRefused
from ml_backend.studio.connect import CONNECTED, SSRF_FIX, ConnectionRefused, OtherBackendFirst, connect

URL = "http://ml.internal:9090"
VERSION = "base-0123456789ab"


class FakeStudio:
    """Label Studio's answers about one project, with the refusal to try out."""

    def __init__(self, *, refuses=None, half_made=False, rows=(), hooks=(), hook_refuses=None):
        self.refuses, self.half_made, self.hook_refuses = refuses, half_made, hook_refuses
        self.rows = [dict(row) for row in rows]
        self.hooks = [dict(hook) for hook in hooks]
        self.fields = {"sampling": "Sequential sampling", "show_collab_predictions": True, "model_version": ""}
        self.written = []

    def ml_backends(self, project):
        return [dict(row) for row in self.rows]

    def add_ml_backend(self, project, url, title, *, basic_auth=None):
        self.written.append("add_ml_backend")
        row = {"id": 7, "url": url, "title": title, "auth_method": "BASIC_AUTH" if basic_auth else "NONE"}
        if self.refuses:
            if self.half_made:
                self.rows.append({**row, "state": "DI", "model_version": ""})
            raise self.refuses
        self.rows.append({**row, "state": CONNECTED, "model_version": VERSION})
        return dict(self.rows[-1])

    def update_ml_backend(self, backend, **fields):
        self.written.append("update_ml_backend")
        if self.refuses:
            raise self.refuses
        row = next(row for row in self.rows if row["id"] == backend)
        row.update({k: v for k, v in fields.items() if k != "basic_auth"}, state=CONNECTED, model_version=VERSION)
        return dict(row)

    def delete_ml_backend(self, backend):
        self.rows = [row for row in self.rows if row["id"] != backend]

    def webhooks(self, project):
        return self.hooks

    def add_webhook(self, project, url, *, headers):
        self.written.append("add_webhook")
        if self.hook_refuses:
            raise self.hook_refuses
        self.hooks.append({"id": 1, "url": url, "headers": headers, "is_active": True, "send_payload": True})

    def update_webhook(self, webhook, **fields):
        self.written.append("update_webhook")
        self.hooks[0].update(fields)

    def project(self, project):
        return dict(self.fields)

    def update_project(self, project, **fields):
        self.written.append("update_project")
        self.fields.update(fields)


def refusal(answer, detail):
    return StudioRefused("POST api/ml/", answer, detail)


@pytest.fixture
def ours(settings):
    return settings.replace(ml_url=URL)


def row(**fields):
    return {
        "id": 3,
        "url": URL,
        "title": VERSION,
        "state": CONNECTED,
        "auth_method": "NONE",
        "model_version": VERSION,
        **fields,
    }


REFUSALS = {
    "SSRF": (403, "URL resolves to a reserved network address (block: 127.0.0.0/8)", SSRF_FIX),
    "no such host": (500, "Can't resolve hostname ml-backend", "LABELLOOP_ML_URL"),
    "down": (
        400,
        "Can't connect to ML backend http://x, health check failed. Make sure it is up",
        "labelloop ml serve",
    ),
    "Basic auth": (
        400,
        "Able to connect to ML Server, but authentication parameters were either",
        "LABELLOOP_BASIC_AUTH_USER",
    ),
    "Basic auth, at /setup": (
        400,
        "but it doesn't look like a valid ML backend. Reason: 401 Client Error: UNAUTHORIZED",
        "LABELLOOP_BASIC_AUTH_USER",
    ),
    "a broken model": (400, "but it doesn't look like a valid ML backend. Reason: 503", "/ready"),
}


@pytest.mark.parametrize("half_made", [False, True])
@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_has_its_reason_and_leaves_no_connection(case, half_made, ours):
    answer, detail, fix = REFUSALS[case]
    studio = FakeStudio(refuses=refusal(answer, detail), half_made=half_made)
    with pytest.raises(ConnectionRefused) as error:
        connect(studio, 1, ours)
    assert fix in error.value.fix
    assert URL in str(error.value)
    assert studio.rows == []
    assert "update_project" not in studio.written


def test_working_connection_is_kept_while_its_backend_is_down(ours):
    studio = FakeStudio(refuses=refusal(400, "health check failed"), rows=[row(state="DI")])
    with pytest.raises(ConnectionRefused):
        connect(studio, 1, ours)
    assert [item["id"] for item in studio.rows] == [3]


def test_a_half_made_connection_of_before_is_completed(ours):
    studio = FakeStudio(rows=[row(state="DI", title="labelloop", model_version="")])
    assert [change.done for change in connect(studio, 1, ours)] == [True, True, True]
    assert [(item["title"], item["state"]) for item in studio.rows] == [(VERSION, CONNECTED)]
    assert studio.fields["model_version"] == VERSION
    assert [change.done for change in connect(studio, 1, ours)] == [False, False, False]


def test_of_several_connections_to_us_one_is_left(ours):
    studio = FakeStudio(rows=[row(id=3, state="DI", model_version=""), row(id=4)])
    connect(studio, 1, ours)
    assert [item["id"] for item in studio.rows] == [4]


def test_new_version_updates_the_title_and_the_project(ours):
    studio = FakeStudio(rows=[row(title="base-old")])
    studio.fields.update(model_version="base-old", sampling="Uncertainty sampling")
    done = [change.done for change in connect(studio, 1, ours)]
    assert done[0]
    assert done[2]
    assert (studio.rows[0]["title"], studio.fields["model_version"]) == (VERSION, VERSION)


@pytest.mark.parametrize(
    ("tag", "on", "sampling"),
    [("Labels", "Text", "Sequential sampling"), ("RectangleLabels", "Image", "Uncertainty sampling")],
)
def test_tasks_are_ordered_by_predictions_only_where_some_can_come(tag, on, sampling, ours):
    studio = FakeStudio()
    label = f'<{tag} name="c" toName="o"><Label value="a"/></{tag}>'
    studio.fields["label_config"] = f'<View><{on} name="o" value="$x"/>{label}</View>'
    connect(studio, 1, ours)
    assert studio.fields["sampling"] == sampling


def test_another_backend_before_ours_is_named_after_ours_is_connected(ours):
    studio = FakeStudio(rows=[row(id=1, url="http://other:1", title="theirs")])
    with pytest.raises(OtherBackendFirst, match="theirs"):
        connect(studio, 1, ours)
    assert studio.fields["model_version"] == VERSION


def test_another_backend_after_ours_is_left_alone(ours):
    studio = FakeStudio(rows=[row(id=1), row(id=2, url="http://other:1", title="theirs")])
    assert len(connect(studio, 1, ours)) == 3
    assert len(studio.rows) == 2


def test_host_without_a_dot_gets_the_fix_for_webhooks(ours):
    studio = FakeStudio(hook_refuses=refusal(400, '{"url":["Enter a valid URL."]}'))
    with pytest.raises(ConnectionRefused, match="dotted alias"):
        connect(studio, 1, ours)


def test_webhook_gets_our_headers_and_keeps_others(ours):
    settings = ours.replace(basic_auth_user="u", basic_auth_password=_secret("p"), webhook_secret=_secret("s"))
    hook = {"id": 1, "url": f"{URL}/webhook", "headers": {"X-Own": "1"}, "is_active": True, "send_payload": True}
    studio = FakeStudio(hooks=[hook])
    changes = connect(studio, 1, settings)
    headers = studio.hooks[0]["headers"]
    assert headers == {"X-Own": "1", "Authorization": "Basic dTpw", "X-Labelloop-Secret": "s"}
    assert not any("dTpw" in change.what for change in changes)  # names of headers, never their values
    assert [change.done for change in connect(studio, 1, settings)] == [False, False, False]


def test_a_changed_key_reaches_connection_and_hook(ours):
    studio = FakeStudio(rows=[row(auth_method="BASIC_AUTH")])
    for password in ("p", "q"):
        settings = ours.replace(basic_auth_user="u", basic_auth_password=_secret(password))
        studio.written.clear()
        connect(studio, 1, settings)
        assert "update_ml_backend" in studio.written
        assert [change.done for change in connect(studio, 1, settings)] == [False, False, False]


def _secret(text):
    from labelloop.service.settings import SecretStr

    return SecretStr(text)
