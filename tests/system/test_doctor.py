"""connect and doctor against a stock Label Studio: each fault is made in it, named by the doctor, and put right."""

import contextlib
import threading
from types import SimpleNamespace

import pytest
from werkzeug.serving import make_server

from labelloop.connect import IncompleteConnection, connect
from labelloop.doctor.checks import CHECKS
from labelloop.doctor.context import DoctorContext
from labelloop.doctor.run import diagnose
from labelloop.service.db.engine import open_database
from labelloop.service.jobs.heartbeats import HEARTBEAT_INTERVAL_S, WorkerHeartbeats
from labelloop.service.settings import SecretStr, Settings
from labelloop.service.studio import Studio
from labelloop.service.web.webhook_secret import SECRET_HEADER
from labelloop.stack.accounts import Account, log_in, personal_access_token
from labelloop.stack.demo_images import packaged_images
from labelloop.stack.demo_project import LABEL_CONFIG, prelabel
from labelloop.stack.label_studio_server import label_studio_service, wait_until_healthy
from labelloop.stack.ports import free_port
from labelloop.stack.process import Child
from ml_backend.server.app import create_app as create_ml
from qc_webhooks.server.app import create_app as create_qc

pytestmark = pytest.mark.system

# What this machine or the demo's label config may rightly be warned of.
MAY_WARN = {"disk", "labels", "store-conditions"}


class Served:
    """A web app on a fixed port of loopback that can be stopped and started again."""

    def __init__(self, make_app, port):
        self.make_app, self.port = make_app, port
        self.server = self.thread = None

    def start(self):
        self.server = make_server("127.0.0.1", self.port, self.make_app(), threaded=True)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def stop(self):
        if self.server is not None:
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()
            self.server = None


def make_loop(url, token, home):
    """Our two services in this process, and the settings that they, Label Studio and the doctor share."""
    ml_port, qc_port = free_port(), free_port()
    settings = Settings(
        home=home,
        label_studio_url=url,
        label_studio_api_key=SecretStr(token),
        webhook_secret=SecretStr("secret-of-the-hooks"),
        basic_auth_user="labelloop",
        basic_auth_password=SecretStr("password-of-the-backend"),
        ml_url=f"http://localhost:{ml_port}",
        qc_url=f"http://localhost:{qc_port}",
    )
    ml = Served(lambda: create_ml(settings), ml_port)
    qc = Served(lambda: create_qc(settings), qc_port)
    ml.start()
    qc.start()
    engine, ended = open_database(settings), threading.Event()

    def beat():
        """No worker runs: its heartbeat is all that the services and the doctor see of one."""
        while not ended.is_set():
            WorkerHeartbeats(engine).record("a worker")
            ended.wait(HEARTBEAT_INTERVAL_S)
        engine.dispose()

    threading.Thread(target=beat, daemon=True).start()
    return SimpleNamespace(settings=settings, studio=Studio.from_settings(settings), ml=ml, qc=qc, ended=ended)


@pytest.fixture(scope="module")
def loop(label_studio, tmp_path_factory):
    made = make_loop(label_studio.url, label_studio.admin_token, tmp_path_factory.mktemp("home"))
    yield made
    made.ended.set()
    made.ml.stop()
    made.qc.stop()
    made.studio.close()


@pytest.fixture(scope="module")
def project(loop, tmp_path_factory):
    """A project with two photographs, connected."""
    made = loop.studio.create_project(title="doctor", label_config=LABEL_CONFIG)["id"]
    photos = packaged_images(tmp_path_factory.mktemp("photos"))[:2]
    loop.studio.upload_images(made, photos)
    connect(made, loop.settings)
    assert "No pre-label of base-" in look(loop.settings, made, "sampling")["sampling"].what
    prelabel(loop.studio, made, SimpleNamespace(say=lambda *_, **__: None), settings=loop.settings, log=None)
    return made


def look(settings, project_id=None, *names):
    """What the doctor finds; with `names`, only those checks and what they need."""
    chosen = dict(CHECKS)
    if names:
        wanted = set(names)
        while grown := {need for name in wanted for need in CHECKS[name].needs} - wanted:
            wanted |= grown
        chosen = {name: check for name, check in CHECKS.items() if name in wanted}
    with contextlib.closing(DoctorContext(settings, project_id)) as context:
        return diagnose(context, chosen, timeout_s=30).findings


def changed(settings, **values):
    return settings.replace(**values)


def test_a_connected_loop_has_nothing_wrong_and_connecting_twice_changes_nothing(loop, project):
    again = connect(project, loop.settings)
    assert again
    assert [change.what for change in again if change.done] == []
    found = look(loop.settings, project)
    assert set(found) == set(CHECKS)
    wrong = {name: finding for name, finding in found.items() if finding.level != "ok" and name not in MAY_WARN}
    assert wrong == {}
    assert all(found[name].level in ("ok", "warning") for name in MAY_WARN)


def test_looking_writes_nothing_into_label_studio(loop, project):
    def state():
        fields = loop.studio.project(project)
        return (
            loop.studio.webhooks(project),
            [{**row, "updated_at": ""} for row in loop.studio.ml_backends(project)],
            loop.studio.views(project),
            {name: fields[name] for name in ("model_version", "sampling", "maximum_annotations", "label_config")},
            len(loop.studio.projects()),
        )

    before = state()
    look(loop.settings, project)
    assert state() == before


def hook(loop, project, url):
    return next(one for one in loop.studio.webhooks(project) if one["url"] == f"{url}/webhook")


def qc_hook(loop, project):
    return hook(loop, project, loop.settings.qc_url)


def backend(loop, project):
    return loop.studio.ml_backends(project)[0]


LOGIN = ("labelloop", "password-of-the-backend")

FAULTS = {
    "the hook is gone": (
        lambda at, p: at.studio.delete_webhook(qc_hook(at, p)["id"]),
        "qc-hook", "problem", "has no webhook to",
    ),
    "the hook has no header": (
        lambda at, p: at.studio.update_webhook(qc_hook(at, p)["id"], headers={}),
        "qc-hook", "problem", f"has no header {SECRET_HEADER}",
    ),
    "the hook has another secret": (
        lambda at, p: at.studio.update_webhook(qc_hook(at, p)["id"], headers={SECRET_HEADER: "old"}),
        "qc-hook", "problem", "differs from our settings",
    ),
    "the hook misses an action": (
        lambda at, p: at.studio.update_webhook(qc_hook(at, p)["id"], actions=["TASKS_CREATED"]),
        "qc-hook", "problem", "is not sent for",
    ),
    "the hook is switched off": (
        lambda at, p: at.studio.update_webhook(qc_hook(at, p)["id"], is_active=False),
        "qc-hook", "problem", "is disabled",
    ),
    "the hook sends no payload": (
        lambda at, p: at.studio.update_webhook(qc_hook(at, p)["id"], send_payload=False),
        "qc-hook", "problem", "without its payload",
    ),
    "the backend's own hook has no log-in": (
        lambda at, p: at.studio.update_webhook(hook(at, p, at.settings.ml_url)["id"], headers={}),
        "backend-hook", "problem", "has no header Authorization",
    ),
    "the backend was removed": (
        lambda at, p: at.studio.delete_ml_backend(backend(at, p)["id"]),
        "backend", "problem", "no ML backend at",
    ),
    "the backend got another title": (
        lambda at, p: at.studio.update_ml_backend(backend(at, p)["id"], basic_auth=LOGIN, title="My model"),
        "model-version", "problem", "'My model'",
    ),
    "pre-labels were switched off": (
        lambda at, p: at.studio.update_project(p, show_collab_predictions=False),
        "model-version", "problem", "follows no model version",
    ),
    "sampling was reset": (
        lambda at, p: at.studio.update_project(p, sampling="Sequential sampling"),
        "sampling", "warning", "sequential sampling",
    ),
    "a tab was deleted": (
        lambda at, p: at.studio.delete_view(
            next(view["id"] for view in at.studio.views(p) if view["data"]["title"] == "QC: disputed")
        ),
        "tabs", "problem", "QC: disputed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_project_is_named_and_connecting_puts_it_right(loop, project, fault):
    make, check, level, words = FAULTS[fault]
    assert look(loop.settings, project, check)[check].level == "ok"
    make(loop, project)
    found = look(loop.settings, project, check)[check]
    assert found.level == level
    assert words in found.what
    assert f"labelloop connect {project}" in found.fix
    for secret in ("secret-of-the-hooks", "password-of-the-backend"):
        assert secret not in found.what + found.fix
    assert any(change.done for change in connect(project, loop.settings))
    assert look(loop.settings, project, check)[check].level == "ok"


def test_services_that_moved_to_other_addresses_take_a_projects_connections_along(loop):
    before = changed(
        loop.settings,
        ml_url=loop.settings.ml_url.replace("localhost", "127.0.0.1"),
        qc_url=loop.settings.qc_url.replace("localhost", "127.0.0.1"),
    )
    moved = loop.studio.create_project(title="moved", label_config=LABEL_CONFIG)["id"]
    connect(moved, before)
    backend_before = backend(loop, moved)
    foreign = loop.studio.add_webhook(moved, "http://localhost:9/hook")
    connect(moved, loop.settings)
    assert [(row["id"], row["url"]) for row in loop.studio.ml_backends(moved)] == [
        (backend_before["id"], loop.settings.ml_url)
    ]
    assert sorted(one["url"] for one in loop.studio.webhooks(moved)) == sorted(
        [foreign["url"], f"{loop.settings.ml_url}/webhook", f"{loop.settings.qc_url}/webhook"]
    )
    assert not any(change.done for change in connect(moved, loop.settings))


def test_a_backend_that_is_down_is_told_from_both_sides(loop, project):
    loop.ml.stop()
    try:
        found = look(loop.settings, project, "ml-backend", "ml-login", "backend")
        with pytest.raises(IncompleteConnection) as caught:
            connect(project, loop.settings)
    finally:
        loop.ml.start()
    assert found["ml-backend"].level == "problem"
    assert "labelloop ml serve" in found["ml-backend"].fix
    assert found["ml-login"].level == "skipped"
    assert found["backend"].level == "problem"
    assert "does not reach the ML backend" in found["backend"].what
    assert [failure.part for failure in caught.value.failures] == ["ml-backend"]
    assert any("tab" in change.what for change in caught.value.changes)  # quality control was connected all the same
    connect(project, loop.settings)
    assert look(loop.settings, project, "backend")["backend"].level == "ok"


def test_a_quality_control_that_is_down(loop):
    loop.qc.stop()
    try:
        found = look(loop.settings, None, "qc", "qc-secret")
    finally:
        loop.qc.start()
    assert found["qc"].level == "problem"
    assert found["qc-secret"].level == "skipped"


def test_another_secret_and_another_password_than_the_services_have(loop):
    other = changed(loop.settings, webhook_secret=SecretStr("other"), basic_auth_password=SecretStr("other"))
    found = look(other, None, "qc-secret", "ml-login")
    assert found["qc-secret"].level == found["ml-login"].level == "problem"


@pytest.mark.parametrize(
    ("token", "words"),
    [("0" * 40, "wrong"), ("", "missing"), ("eyJhbGciOiJIUzI1NiJ9.eyJhIjoxfQ.c2ln", "does not accept")],
)
def test_a_token_that_label_studio_does_not_take(loop, project, token, words):
    found = look(changed(loop.settings, label_studio_api_key=SecretStr(token)), project, "token", "project")
    assert found["token"].level == "problem"
    assert words in found["token"].what
    assert found["token"].fix
    assert found["project"].level == "skipped"


def test_a_legacy_token_is_taken_where_they_are_on(loop, label_studio):
    found = look(
        changed(loop.settings, label_studio_api_key=SecretStr(label_studio.legacy_token)), None, "legacy-tokens"
    )
    assert found["token"].level == found["legacy-tokens"].level == "ok"


def test_a_project_that_is_not_there(loop, project):
    found = look(loop.settings, 999_999, "project", "tabs")
    assert found["project"].level == "problem"
    assert f"{project} (doctor)" in found["project"].fix
    assert found["tabs"].level == "skipped"


def test_an_address_that_label_studio_cannot_resolve(loop):
    settings = changed(loop.settings, qc_url="http://nowhere.invalid:9", ml_url="http://nowhere.invalid:9")
    found = look(settings, None, "qc-address", "ml-address")
    for name, setting in (("qc-address", "LABELLOOP_QC_URL"), ("ml-address", "LABELLOOP_ML_URL")):
        assert found[name].level == "problem"
        assert "cannot resolve the host" in found[name].what
        assert setting in found[name].fix


def test_an_image_that_cannot_be_read(loop):
    broken = loop.studio.create_project(title="no image", label_config=LABEL_CONFIG)["id"]
    assert look(loop.settings, broken, "media")["media"].level == "skipped"
    loop.studio.import_tasks(broken, [{"data": {"image": "/data/upload/1/gone.jpg", "qc_note": ""}}])
    found = look(loop.settings, broken, "media")["media"]
    assert found.level == "problem"
    assert "cannot be read" in found.what


# --- the store --------------------------------------------------------------------------------------------------------


def store_findings(tmp_path, s3_server, **values):
    settings = s3_server.settings(tmp_path, **{"store_url": "s3://nowhere/prefix", **values})
    return look(settings, None, "store", "store-conditions")


def test_a_bucket_that_works_and_what_its_server_cannot_do(tmp_path, s3_server):
    found = store_findings(tmp_path, s3_server, store_url=f"s3://{s3_server.make_bucket()}/prefix")
    assert found["store"].level == "ok"
    assert found["store-conditions"].level == "warning"  # Swift answers If-Match with 501
    assert "If-Match" in found["store-conditions"].what


def test_a_bucket_that_is_missing_and_a_secret_that_is_wrong(tmp_path, s3_server):
    found = store_findings(tmp_path, s3_server)
    assert found["store"].level == "problem"
    assert "bucket does not exist" in found["store"].what
    assert "LABELLOOP_STORE_URL" in found["store"].fix
    assert found["store-conditions"].level == "skipped"
    bucket = s3_server.make_bucket()
    found = store_findings(tmp_path, s3_server, store_url=f"s3://{bucket}", s3_secret_access_key=SecretStr("hunter2"))
    assert found["store"].level == "problem"
    assert "the secret does not match the access key" in found["store"].what
    assert "LABELLOOP_S3_SECRET_ACCESS_KEY" in found["store"].fix
    assert "hunter2" not in found["store"].what + found["store"].fix


# --- a Label Studio as it comes: no private addresses, no legacy tokens ----


@pytest.fixture(scope="module")
def guarded(label_studio_installation, tmp_path_factory):
    """Started with ML_BLOCK_LOCAL_IP=false alone, as half the instructions on the web say."""
    folder = tmp_path_factory.mktemp("guarded")
    admin = Account("admin@example.com", "a-long-password")
    legacy = "0123456789abcdef0123456789abcdef01234567"
    part = label_studio_service(
        label_studio_installation,
        data=folder / "data",
        port=free_port(),
        log=folder / "log",
        admin=admin,
        env={
            "LABEL_STUDIO_USER_TOKEN": legacy,
            "ML_BLOCK_LOCAL_IP": "false",
            "USE_DEFAULT_BANNED_SUBNETS": "true",
            "USER_ADDITIONAL_BANNED_SUBNETS": "",
        },
    )
    child = Child(part, folder)
    made = None
    try:
        wait_until_healthy(child)
        with log_in(part.url, admin) as session:
            token = personal_access_token(session)
        made = make_loop(part.url, token, folder / "home")
        made.legacy = legacy
        yield made
    finally:
        if made is not None:
            made.ml.stop()
            made.qc.stop()
            made.studio.close()
        child.stop()


def test_the_ban_of_private_addresses_is_named_with_the_settings_that_lift_it(guarded):
    found = look(guarded.settings, None, "ml-address", "qc-address", "metadata-address")
    for name in ("ml-address", "qc-address"):
        assert found[name].level == "problem"
        assert "private address" in found[name].what
        assert "USE_DEFAULT_BANNED_SUBNETS=false" in found[name].fix
        assert "USER_ADDITIONAL_BANNED_SUBNETS=169.254.0.0/16" in found[name].fix
    assert found["metadata-address"].level == "ok"


def test_a_backend_that_was_saved_and_then_refused_is_called_half_made(guarded):
    project = guarded.studio.create_project(title="half", label_config=LABEL_CONFIG)["id"]
    body = {"url": guarded.settings.ml_url, "title": "mine", "project": project, "auth_method": "BASIC_AUTH",
            "basic_auth_user": LOGIN[0], "basic_auth_pass": LOGIN[1]}  # fmt: skip
    with pytest.raises(Exception, match="403"):
        guarded.studio.request("POST", "/api/ml/", json=body)
    found = look(guarded.settings, project, "backend", "model-version")
    assert found["backend"].level == "problem"
    assert "incomplete" in found["backend"].what
    assert "USE_DEFAULT_BANNED_SUBNETS=false" in found["backend"].fix
    assert found["model-version"].level == "skipped"


def test_connecting_where_addresses_are_banned_says_so_for_both_parts_and_still_makes_the_tabs(guarded):
    project = guarded.studio.create_project(title="banned", label_config=LABEL_CONFIG)["id"]
    with pytest.raises(IncompleteConnection) as caught:
        connect(project, guarded.settings)
    assert {failure.part for failure in caught.value.failures} == {"ml-backend", "qc"}
    assert caught.value.fix.count("USE_DEFAULT_BANNED_SUBNETS=false") >= 1
    assert "QC: disputed" in {view["data"]["title"] for view in guarded.studio.views(project)}


def test_a_legacy_token_where_they_are_off(guarded):
    settings = changed(guarded.settings, label_studio_api_key=SecretStr(guarded.legacy))
    found = look(settings, None, "token", "legacy-tokens")
    assert found["token"].level == "problem"
    assert "legacy" in found["token"].what.lower()
    assert "personal access token" in found["token"].fix.lower()
    assert "legacy tokens are disabled" in look(guarded.settings, None, "legacy-tokens")["legacy-tokens"].what
