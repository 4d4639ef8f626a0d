"""The Label Studio in memory answers as stock Label Studio does: the same calls of `Studio`, the same answers.

Compared are the fields that the fake has, without ids and times; that times grow, and which ids appear, are answers of
their own.
"""

import contextlib
import json
from pathlib import Path

import pytest

from labelloop.service.studio import Studio, StudioError
from tests.fake_label_studio import CALLS, FakeLabelStudio
from tests.web_server import WebServer

pytestmark = pytest.mark.system

CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="Car"/><Label value="Person"/></RectangleLabels></View>"""
UUID = "6f1f2e5c-3f2b-4d0e-9a51-000000000001"
# Ids, times, and the names of accounts.
VOLATILE = {
    "id", "task", "project", "user", "completed_by", "parent_prediction", "created_at", "updated_at", "username", "url",
    "last_name", "first_name",
}  # fmt: skip


def box(label="Car", x=10.0):
    value = {"x": x, "y": 20.0, "width": 30.0, "height": 40.0, "rotation": 0, "rectanglelabels": [label]}
    place = {"from_name": "label", "to_name": "image", "type": "rectanglelabels"}
    return {"id": "r1", **place, "original_width": 100, "original_height": 80, "value": value}


def condition(column, operator, value, kind="Number"):
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


def where(*items, conjunction="and"):
    return {"conjunction": conjunction, "items": list(items)}


class Client:
    """The fake as one of its users."""

    def __init__(self, studio, user):
        self._studio, self._user = studio, user

    def __getattr__(self, name):
        self._studio.user = self._user
        return getattr(self._studio, name)


class Side:
    """One Label Studio with two users, and what it answered.

    Attributes:
        answers: `(name of the step, answer)`.
    """

    def __init__(self, as_user, backend, folder):
        self.as_user, self.backend, self.folder, self.answers = as_user, backend, folder, []

    @property
    def admin(self):
        return self.as_user(0)

    @property
    def annotator(self):
        return self.as_user(1)

    def see(self, step, answer):
        self.answers.append((step, answer))

    def attempt(self, step, call):
        """Record the answer, or the error."""
        try:
            answer = call()
        except StudioError as error:
            status = getattr(error, "http_status", None)
            answer = type(error).__name__, status, error.detail if status == 404 else ""
        self.see(step, answer)

    def create_project(self, **fields):
        return self.admin.create_project(**{"title": "contract", "label_config": CONFIG} | fields)["id"]

    def watch(self, step, project, task, call):
        """Record the error of a call, and what it changed of the task."""
        before = self.admin.task(project, task)
        self.attempt(f"{step}: answer", call)
        after = self.admin.task_json(project, task)
        annotations = [
            (item["was_cancelled"], item["ground_truth"], bool(item["parent_prediction"]), len(item["result"]))
            for item in after["annotations"]
        ]
        versions = [item["model_version"] for item in after["predictions"]]
        counts = {name: value for name, value in after.items() if name.endswith(("annotations", "predictions"))}
        grew = after["updated_at"] > before.updated_at
        self.see(step, (grew, after["is_labeled"], after["overlap"], annotations, versions, counts))


def projects(side):
    studio = side.admin
    side.see("user", studio.me())
    side.see("one of the users", studio.me()["email"] in [user["email"] for user in studio.users()])
    side.see("release", studio.version())
    side.attempt("title too short", lambda: studio.create_project(title="x"))
    created = studio.create_project(title="first", label_config=CONFIG)
    project = created["id"]
    side.see("project", studio.project(project))
    side.see("in the list", project in [row["id"] for row in studio.projects()])
    side.see("is there", [studio.has_project(number) for number in (project, 999_999)])
    side.see("label config", studio.label_config(project))
    side.see("updated", studio.update_project(project, title="second", annotator_evaluation_enabled=True))
    for step, call in {
        "get": lambda: studio.project(10**6),
        "update": lambda: studio.update_project(10**6, title="third"),
        "delete": lambda: studio.delete_project(10**6),
        "tasks": lambda: list(studio.tasks(10**6)),
        "count": lambda: studio.count_tasks(10**6),
        "stamps": lambda: list(studio.stamps(10**6)),
        "backends": lambda: studio.ml_backends(10**6),
        "webhooks": lambda: studio.webhooks(10**6),
        "import": lambda: studio.import_tasks(10**6, [{"image": "a.jpg"}]),
        "versions": lambda: studio.model_versions(10**6),
    }.items():
        side.attempt(f"{step} of a missing project", call)
    studio.delete_project(project)
    side.attempt("deleted", lambda: studio.project(project))
    side.see("an id is new", studio.create_project(title="third")["id"] > project)


def tasks(side):
    studio, project = side.admin, side.create_project(maximum_annotations=2)
    rows = [{"image": f"s3://bucket/a {n}.jpg", "k": f"{n % 2} 100%", "n": n / 2} for n in range(5)]
    complete = {
        "data": {"image": "5.jpg"},
        "meta": {"source": "import"},
        "annotations": [{"result": [box()]}, {"result": [], "ground_truth": False}],
        "predictions": [{"result": [box("Person")], "model_version": "imported", "score": 0.5}],
    }
    ids = studio.import_tasks(project, [*rows, complete])
    side.see("ids grow", sorted(ids) == ids)
    side.see("tasks", [studio.task_json(project, task) for task in ids])
    side.see("project", studio.project(project))

    def order(**options):
        return [ids.index(task.id) for task in studio.tasks(project, page_size=2, **options)]

    side.annotator.add_annotation(ids[1], [], was_cancelled=True)
    studio.update_task(ids[2], overlap=4)
    newest = studio.task(project, ids[0]).updated_at
    for item in (
        condition("total_annotations", "greater", 0),
        condition("total_annotations", "equal", 0),
        condition("cancelled_annotations", "greater", 0),
        condition("cancelled_annotations", "equal", 0),
        condition("overlap", "less", 3),
        condition("id", "greater", ids[2]),
        condition("is_labeled", "equal", True, "Boolean"),
        condition("updated_at", "greater", newest, "Datetime"),
        condition("data.k", "equal", "1 100%", "String"),
        condition("data.k", "not_equal", "1 100%", "String"),
        condition("data.k", "contains", "100%", "String"),
        condition("data.k", "empty", True, "String"),
        condition("data.n", "greater", 0.7),
        condition("data.n", "less", 0.7),
        condition("data.none", "equal", "x", "String"),
    ):
        step = f"{item['filter']} {item['operator']}"
        side.see(step, order(filters=where(item)))
        side.see(f"count {step}", studio.count_tasks(project, filters=where(item)))
        side.see(f"stamps {step}", [ids.index(stamp.id) for stamp in studio.stamps(project, filters=where(item))])
    either = condition("overlap", "greater", 3), condition("cancelled_annotations", "greater", 0)
    side.see("or", order(filters=where(*either, conjunction="or")))
    side.see("no filter", order(filters=where()))
    side.see("by id, reversed", order(ordering=["-tasks:id"]))
    side.see("by time, reversed", order(ordering=["-tasks:updated_at"])[:2])
    odd = where(condition("data.k", "contains", "1", "String"))
    side.see("by a key", order(ordering=["-tasks:data.n"], filters=odd))
    side.see("picked", order(only_ids=[ids[4], ids[1], 10**7]))
    side.see("sample", len(studio.sample(project, 4)))
    side.see("stamps", [(item.total_annotations, item.cancelled_annotations) for item in studio.stamps(project)])
    side.see("raw", [json.loads(raw)["data"] for raw in studio.raw_tasks(project)])
    side.see("missing", studio.task(project, 10**7))
    side.attempt("resolved URL", lambda: studio.update_task(ids[0], data={"image": "/tasks/1/resolve/?fileuri=czM"}))
    for step, fields in {
        "overlap": {"overlap": 3},
        "data": {"data": {"image": "s3://x/y", "qc_status": "disputed"}},
        "meta": {"meta": {"a": 1}},
        "labeled": {"is_labeled": True},
        "reopened": {"overlap": 5, "is_labeled": False},
    }.items():
        side.watch(step, project, ids[0], lambda fields=fields: studio.update_task(ids[0], **fields))
    for step, call in {
        "update": lambda: studio.update_task(10**7, overlap=2),
        "annotate": lambda: studio.add_annotation(10**7, []),
        "predict": lambda: studio.add_prediction(10**7, [], 0.5, "x"),
        "delete": lambda: studio.delete_task(10**7),
    }.items():
        side.attempt(f"{step} a missing task", call)
    studio.delete_task(ids[5])
    side.see("left", order())
    side.see("the last id is used again", studio.import_tasks(project, [{"image": "6.jpg"}]) == [ids[5]])
    side.see("project after changes", studio.project(project))


def annotations(side):
    studio, project = side.admin, side.create_project(maximum_annotations=2)
    task, other = studio.import_tasks(project, [{"image": "0.jpg"}, {"image": "1.jpg"}])
    prediction = studio.add_prediction(task, [box()], 0.3, "v1")["id"]
    first = studio.add_annotation(task, [box()], lead_time=2.0, parent_prediction=prediction, unique_id=UUID)
    side.see("created", first)
    side.attempt("unique id twice", lambda: studio.add_annotation(other, [box()], unique_id=UUID))
    side.watch("same user again", project, task, lambda: studio.add_annotation(task, [box(x=5.0)])["lead_time"])
    side.watch("second user", project, task, lambda: side.annotator.add_annotation(task, [box(), box()])["result"])
    ids = [item["id"] for item in studio.task_json(project, task)["annotations"]]
    side.see("oldest first", ids == sorted(ids))
    for step, index, fields in (
        ("ground truth", 0, {"ground_truth": True}),
        ("another ground truth", 2, {"ground_truth": True}),
        ("no ground truth", 2, {"ground_truth": False}),
        ("changed", 1, {"result": []}),
        ("skipped", 2, {"was_cancelled": True}),
        ("not skipped", 2, {"was_cancelled": False}),
    ):
        side.watch(step, project, task, lambda i=index, f=fields: studio.update_annotation(ids[i], **f)["ground_truth"])
    side.watch("prediction removed", project, task, lambda: studio.delete_prediction(prediction))
    remove = f"api/annotations/{ids[2]}/"
    side.watch("annotation removed", project, task, lambda: studio.request("DELETE", remove))
    side.attempt("missing", lambda: studio.update_annotation(10**7, ground_truth=True))
    chosen = side.annotator.me()["id"]
    side.watch("for another user", project, task, lambda: bool(studio.add_annotation(task, [], completed_by=chosen)))
    side.see("project", studio.project(project))


def stream(side):
    studio, project = side.admin, side.create_project(maximum_annotations=1)
    ids = studio.import_tasks(project, [{"image": f"{n}.jpg"} for n in range(3)])

    def following():
        task = side.annotator.next_task(project)
        return None if task is None else ids.index(task["id"])

    side.see("first", following())
    side.annotator.add_annotation(ids[0], [box()])
    side.see("second", following())
    side.annotator.add_annotation(ids[1], [], was_cancelled=True)
    side.see("third", following())
    side.annotator.add_annotation(ids[2], [box()])
    side.see("none left", following())
    studio.add_annotation(ids[1], [box()])
    studio.update_task(ids[0], overlap=2)
    side.see("states", [(task.overlap, task.is_labeled) for task in studio.tasks(project)])
    for annotators in (3, 2, 1, 2):
        studio.update_project(project, maximum_annotations=annotators)
        side.see(f"{annotators} annotators", [(task.overlap, task.is_labeled) for task in studio.tasks(project)])
    studio.update_task(ids[0], overlap=1)
    studio.update_project(project, maximum_annotations=3)
    side.see("an overlap of 1 stays", [task.overlap for task in studio.tasks(project)])
    side.attempt("missing project", lambda: side.annotator.next_task(10**6))


def predictions(side):
    studio, project = side.admin, side.create_project()
    ids = studio.import_tasks(project, [{"image": f"{n}.jpg"} for n in range(3)])

    def rows(*results, version="v1", tasks=ids):
        return [
            {"task": task, "result": result, "score": 0.5, "model_version": version}
            for task, result in zip(tasks, results, strict=False)
        ]

    def watch(step, call):
        side.watch(step, project, ids[0], call)
        side.see(f"versions after {step}", studio.model_versions(project))

    side.see("created", studio.add_prediction(ids[0], [box()], 0.25, "single"))
    watch("added", lambda: studio.add_prediction(ids[0], [], None, "single")["score"])
    created = studio.task_json(project, ids[0])["predictions"]
    side.see("oldest first", [item["id"] for item in created] == sorted(item["id"] for item in created))
    watch("updated", lambda: studio.update_prediction(created[0]["id"], score=0.75)["score"])
    watch("imported", lambda: studio.import_predictions(project, rows([box()], [], [box("Person")])))
    watch("unknown label", lambda: studio.import_predictions(project, rows([box()], [box("Dog")])))
    watch("unknown control", lambda: studio.import_predictions(project, rows([box() | {"from_name": "x"}])))
    watch("missing task", lambda: studio.import_predictions(project, rows([box()], [box()], tasks=[ids[0], 10**7])))
    watch("deleted", lambda: studio.delete_prediction(created[0]["id"]))
    side.attempt("missing", lambda: studio.delete_prediction(created[0]["id"]))
    side.attempt("unknown version", lambda: studio.update_project(project, model_version="none"))
    studio.import_predictions(project, rows([box()], version="v2"))
    side.see("named", studio.update_project(project, model_version="v1")["model_version"])
    studio.delete_model_version(project, "v2")
    side.see("another version is deleted", studio.project(project)["model_version"])
    watch("its version is deleted", lambda: studio.delete_model_version(project, "v1"))
    side.see("project", studio.project(project))


def backends(side):
    studio, project = side.admin, side.create_project()
    [task] = studio.import_tasks(project, [{"image": "0.jpg"}])
    studio.import_predictions(project, [{"task": task, "result": [], "score": 0.5, "model_version": "v1"}])
    added = studio.add_ml_backend(project, side.backend, "first")
    side.see("added", added)
    side.see("version", studio.project(project)["model_version"])
    side.see("webhook", [(row["url"] == f"{side.backend}/webhook", row) for row in studio.webhooks(project)])
    side.see("renamed", studio.update_ml_backend(added["id"], title="second", is_interactive=True))
    side.see("version after renaming", studio.project(project)["model_version"])
    side.see("with auth", studio.update_ml_backend(added["id"], current=added, basic_auth=("user", "secret")))
    side.attempt("auth is not returned", lambda: studio.update_ml_backend(added["id"], title="third"))
    side.see("without auth", studio.update_ml_backend(added["id"], auth_method="NONE"))
    side.see("list", studio.ml_backends(project))
    studio.delete_model_version(project, "v1")
    side.see("version of a backend after a deletion", studio.project(project)["model_version"])
    fields = {"show_collab_predictions": True, "sampling": "Uncertainty sampling"}
    side.see("named", studio.update_project(project, model_version="second", **fields))
    side.see("no predictions", studio.update_project(project, show_collab_predictions=False)["model_version"])
    studio.delete_ml_backend(added["id"])
    side.see("deleted", studio.ml_backends(project))
    side.see("webhooks after deletion", len(studio.webhooks(project)))
    side.attempt("missing", lambda: studio.delete_ml_backend(added["id"]))


def webhooks(side):
    studio, project = side.admin, side.create_project()
    options = {"actions": ["ANNOTATION_CREATED"], "headers": {"X-Secret": "s"}, "is_active": False}
    added = studio.add_webhook(project, "http://127.0.0.1:9/hook", **options)
    side.see("added", added)
    side.see("updated", studio.update_webhook(added["id"], headers={"X-Secret": "t"}))
    side.see("actions", studio.request("PATCH", f"api/webhooks/{added['id']}/", json={"send_payload": False}))
    side.see("for all actions", studio.add_webhook(project, "http://localhost:9/all", is_active=False))
    side.attempt("unknown action", lambda: studio.add_webhook(project, "http://localhost:9/x", actions=["NONE"]))
    side.attempt("single label", lambda: studio.add_webhook(project, "http://qc:9/hook"))
    side.see("list", sorted(row["url"] for row in studio.webhooks(project)))
    studio.delete_webhook(added["id"])
    side.see("left", len(studio.webhooks(project)))
    side.attempt("missing", lambda: studio.delete_webhook(added["id"]))


def views(side):
    studio, project = side.admin, side.create_project()
    disputed = where(condition("data.qc_status", "equal", "disputed", "String"))
    added = studio.add_view(project, {"title": "A", "filters": disputed, "ordering": ["tasks:id"], "gridWidth": 3})
    side.see("added", added)
    side.see("renamed", studio.update_view(added["id"], project, {"title": "B"}))
    side.see("filters and ordering", studio.update_view(added["id"], project, {"filters": where(), "ordering": []}))
    studio.add_view(project, {"title": "C"})
    side.see("list", studio.views(project))
    studio.delete_view(added["id"])
    side.see("left", studio.views(project))
    side.attempt("missing", lambda: studio.delete_view(added["id"]))


def files(side):
    studio, project = side.admin, side.create_project()
    ids = studio.import_tasks(project, [{"image": f"{n}.jpg"} for n in range(3)])
    studio.add_annotation(ids[1], [box()])
    studio.add_prediction(ids[2], [box()], 0.5, "v1")
    snapshot = studio.snapshot(project, "state 1")
    side.see("same title", studio.snapshot(project, "state 1") == snapshot)
    side.see("another title", studio.snapshot(project, "state 2") == snapshot)
    sizes = []
    studio.download_snapshot(project, snapshot, side.folder / "snapshot.json", progress=sizes.append)
    exported = json.loads((side.folder / "snapshot.json").read_text())
    side.see("progress", sizes[-1] == (side.folder / "snapshot.json").stat().st_size)
    side.see("order", [ids.index(task["id"]) for task in exported])
    side.see("predictions", [len(task["predictions"]) for task in exported])
    side.see("snapshot", [task | {"predictions": []} for task in exported])
    for _ in range(2):
        side.attempt("deleted", lambda: studio.delete_snapshot(project, snapshot))
    side.attempt("download", lambda: studio.download_snapshot(project, snapshot, side.folder / "none.json"))
    (side.folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    urls = studio.upload_files(project, [side.folder / "a.png"] * 2)
    side.see("files", [url.startswith(f"/data/upload/{project}/") and url.endswith("-a.png") for url in urls])
    side.see("none", studio.upload_files(project, []))
    side.see("no tasks", studio.count_tasks(project))
    [task] = studio.upload_images(project, [side.folder / "a.png"])
    data = studio.task(project, task).data
    side.see("task of an image", (list(data), data["image"].startswith(f"/data/upload/{project}/")))


SCENARIOS = [projects, tasks, annotations, stream, predictions, backends, webhooks, views, files]


def differences(path, stock, fake):
    """One line for each value that differs, in the fields that the fake has."""
    if isinstance(fake, dict) and isinstance(stock, dict):
        for name in fake.keys() - VOLATILE:
            yield from differences(f"{path}.{name}", stock.get(name, "missing"), fake[name])
    elif isinstance(fake, list | tuple) and isinstance(stock, list | tuple) and len(fake) == len(stock):
        for index, (expected, answer) in enumerate(zip(stock, fake, strict=True)):
            yield from differences(f"{path}[{index}]", expected, answer)
    elif stock != fake:
        yield f"{path}: stock {stock!r}, fake {fake!r}"


@pytest.fixture(scope="module")
def backend():
    """The URL of an ML backend that answers /health and /setup."""
    with WebServer(lambda _request: (200, {"status": "UP", "model_version": "served-1"})) as server:
        yield server.url


@pytest.fixture(scope="module")
def clients(label_studio):
    tokens = label_studio.admin_token, label_studio.user("fake@example.com")[0]
    with contextlib.ExitStack() as stack:
        studios = [Studio(label_studio.url, token) for token in tokens]
        for studio in studios:
            stack.callback(studio.close)
        yield studios


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_fake_answers_as_stock_label_studio(scenario, clients, backend, tmp_path):
    fake = FakeLabelStudio(served_version="served-1")
    fake.users_by_id[2] = fake.users_by_id[1] | {"id": 2, "email": "fake@example.com"}

    sides = []
    for name, as_user in (("stock", clients.__getitem__), ("fake", lambda number: Client(fake, number + 1))):
        (tmp_path / name).mkdir()
        sides.append(Side(as_user, backend, tmp_path / name))
        scenario(sides[-1])
    stock, imitated = (side.answers for side in sides)
    assert [step for step, _ in stock] == [step for step, _ in imitated]
    pairs = zip(stock, imitated, strict=True)
    lines = [line for (step, known), (_, answer) in pairs for line in differences(step, known, answer)]
    assert lines == []


def test_every_call_of_the_client_is_compared():
    text = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in CALLS if f".{name}(" not in text] == []
