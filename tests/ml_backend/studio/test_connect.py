"""What `connect` makes of Label Studio's refusals. tests/system asks the real server; here are its rarer moods."""

import pytest

from labelloop.service.errors import LabelloopError
from labelloop.service.studio import StudioRefused
from ml_backend.studio.connect import CONNECTED, SSRF_FIX, ConnectionRefused, connect
from tests.fake_label_studio import FakeLabelStudio

URL = "http://ml.internal:9090"
VERSION = "base-0123456789ab"


class ConnectedStudio(FakeLabelStudio):
    """Project 1 with these ML backends.

    Attributes:
        fields: The project's fields.
        half_made: Whether a refused backend is stored all the same, as after a refusal by the SSRF protection.
    """

    def __init__(self, *rows, refuses=None, half_made=False):
        super().__init__(served_version=VERSION)
        self.put_project(1)
        self.fields, self.half_made = self.projects_by_id[1], half_made
        for backend in rows:
            self.put_backend(1, **backend)
        if refuses:
            self.refuse |= {"add_ml_backend": refuses, "update_ml_backend": refuses}

    def before_call(self, call):
        if call.name == "add_ml_backend" and self.half_made:
            self.put_backend(1, call.arguments["url"], call.arguments["title"], state="DI")
        super().before_call(call)

    @property
    def backends(self):
        return list(self.backends_by_id.values())

    @property
    def written(self):
        """The names of the writing calls so far."""
        return [call.name for call in self.writes]


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
    studio = ConnectedStudio(refuses=refusal(answer, detail), half_made=half_made)
    with pytest.raises(ConnectionRefused) as error:
        connect(studio, 1, ours)
    assert fix in error.value.fix
    assert URL in str(error.value)
    assert studio.backends == []
    assert "update_project" not in studio.written


def test_working_connection_is_kept_while_its_backend_is_down(ours):
    studio = ConnectedStudio(row(state="DI"), refuses=refusal(400, "health check failed"))
    with pytest.raises(ConnectionRefused):
        connect(studio, 1, ours)
    assert [item["id"] for item in studio.backends] == [3]


def test_a_half_made_connection_of_before_is_completed(ours):
    studio = ConnectedStudio(row(state="DI", title="labelloop", model_version=""))
    assert [change.done for change in connect(studio, 1, ours)] == [True, True, True]
    assert [(item["title"], item["state"]) for item in studio.backends] == [(VERSION, CONNECTED)]
    assert studio.fields["model_version"] == VERSION
    assert [change.done for change in connect(studio, 1, ours)] == [False, False, False]


def test_of_several_connections_to_us_one_is_left(ours):
    studio = ConnectedStudio(row(id=3, state="DI", model_version=""), row(id=4))
    connect(studio, 1, ours)
    assert [item["id"] for item in studio.backends] == [4]


def test_new_version_updates_the_title_and_the_project(ours):
    studio = ConnectedStudio(row(title="base-old"))
    studio.fields.update(model_version="base-old", sampling="Uncertainty sampling")
    done = [change.done for change in connect(studio, 1, ours)]
    assert (done[0], done[2]) == (True, False)  # Label Studio moves the project's version with the title
    assert (studio.backends[0]["title"], studio.fields["model_version"]) == (VERSION, VERSION)


@pytest.mark.parametrize(
    ("tag", "on", "sampling"),
    [("Labels", "Text", "Sequential sampling"), ("RectangleLabels", "Image", "Uncertainty sampling")],
)
def test_tasks_are_ordered_by_predictions_only_where_some_can_come(tag, on, sampling, ours):
    studio = ConnectedStudio()
    label = f'<{tag} name="c" toName="o"><Label value="a"/></{tag}>'
    studio.fields["label_config"] = f'<View><{on} name="o" value="$x"/>{label}</View>'
    connect(studio, 1, ours)
    assert studio.fields["sampling"] == sampling


def test_another_backend_before_ours_is_named_after_ours_is_connected(ours):
    studio = ConnectedStudio(row(id=1, url="http://other:1", title="theirs"))
    with pytest.raises(LabelloopError, match="theirs"):
        connect(studio, 1, ours)
    assert studio.fields["model_version"] == VERSION


def test_another_backend_after_ours_is_left_alone(ours):
    studio = ConnectedStudio(row(id=1), row(id=2, url="http://other:1", title="theirs"))
    assert len(connect(studio, 1, ours)) == 3
    assert len(studio.backends) == 2


def test_host_without_a_dot_gets_the_fix_for_webhooks(ours):
    with pytest.raises(ConnectionRefused, match="dotted alias"):
        connect(ConnectedStudio(), 1, ours.replace(ml_url="http://ml:9090"))


def test_webhook_gets_our_headers_and_keeps_others(ours):
    settings = ours.replace(basic_auth_user="u", basic_auth_password=_secret("p"), webhook_secret=_secret("s"))
    studio = ConnectedStudio()
    studio.add_webhook(1, f"{URL}/webhook", headers={"X-Own": "1"})
    changes = connect(studio, 1, settings)
    headers = studio.webhooks_by_id[1]["headers"]
    assert headers == {"X-Own": "1", "Authorization": "Basic dTpw", "X-Labelloop-Secret": "s"}
    assert not any("dTpw" in change.what for change in changes)  # names of headers, never their values
    assert [change.done for change in connect(studio, 1, settings)] == [False, False, False]


def test_a_changed_key_reaches_connection_and_hook(ours):
    studio = ConnectedStudio(row(auth_method="BASIC_AUTH"))
    for password in ("p", "q"):
        settings = ours.replace(basic_auth_user="u", basic_auth_password=_secret(password))
        studio.calls.clear()
        connect(studio, 1, settings)
        assert "update_ml_backend" in studio.written
        assert [change.done for change in connect(studio, 1, settings)] == [False, False, False]


def _secret(text):
    from labelloop.service.settings import SecretStr

    return SecretStr(text)
