"""What a later run finds: the finished project again, half a project removed, a deleted one made anew; tokens kept."""

import io

import pytest
from rich.console import Console

from labelloop.service.settings import settings_file
from labelloop.service.studio import NotFound
from labelloop.stack.demo_project import Source
from labelloop.stack.environment import read_env
from labelloop.stack.layout import Plan
from labelloop.stack.progress import Steps
from labelloop.stack.state import DemoProject, State, read_state, write_state
from labelloop.stack.up import DASHBOARD, HOOK, TOKEN, Ready, _Run
from labelloop.stack.welcome import welcome

SOURCE = Source("demo", "Photos", list)


class Projects:
    def __init__(self, *ids):
        self.ids = set(ids)

    def project(self, project):
        if project not in self.ids:
            raise NotFound(f"project {project}", 404, "Not found.")
        return {"id": project}

    def request(self, method, path):
        assert method == "DELETE"
        self.ids.remove(int(path.rstrip("/").rpartition("/")[2]))


@pytest.fixture
def run(tmp_path):
    return _Run(Plan.make(tmp_path), Steps(Console(file=io.StringIO())), None)


@pytest.mark.parametrize(
    ("remembered", "there", "found", "left"),
    [
        (None, {7}, DemoProject(0), {7}),
        (DemoProject(7, 25, complete=True), {7}, DemoProject(7, 25, complete=True), {7}),
        (DemoProject(7, 25), {6, 7}, DemoProject(0), {6}),
        (DemoProject(7, 25, complete=True), {6}, DemoProject(0), {6}),
    ],
    ids=["first run", "finished", "interrupted", "deleted by somebody"],
)
def test_the_project_of_an_earlier_run(run, tmp_path, remembered, there, found, left):
    write_state(tmp_path, State(projects={"demo": remembered} if remembered else {}))
    studio = Projects(*there)
    assert run._existing(studio, SOURCE) == found
    assert studio.ids == left


def test_secrets_stay_and_the_token_goes_with_its_label_studio(run, tmp_path):
    run._write_settings()
    first = read_env(tmp_path)
    assert len(first[HOOK]) >= 20
    assert len(first[DASHBOARD]) >= 20
    settings_file(tmp_path).write_text(settings_file(tmp_path).read_text().replace(f"{TOKEN}=", f"{TOKEN}=a-token"))
    (tmp_path / "data").mkdir()
    write_state(tmp_path, State(people=("anna@example.com",)))
    run._write_settings()
    assert read_env(tmp_path) == first | {TOKEN: "a-token"}
    assert read_state(tmp_path).people == ("anna@example.com",)
    (tmp_path / "data").rmdir()
    run._write_settings()
    assert read_env(tmp_path) == first
    assert read_state(tmp_path) == State()


def test_the_welcome_tells_where_the_dashboard_is_and_its_password(run, tmp_path):
    run._write_settings()
    out = io.StringIO()
    welcome(Ready(Plan.make(tmp_path), 7, "Photos", 25), console=Console(file=out, width=200))
    assert f"http://localhost:9091/dashboard/    password {read_env(tmp_path)[DASHBOARD]}" in out.getvalue()
