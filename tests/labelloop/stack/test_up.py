"""Later runs reuse a complete project, delete an incomplete one, replace a deleted one, and keep the token."""

import io

import pytest
from rich.console import Console

from labelloop.service.settings import settings_file
from labelloop.stack.demo_project import DemoSource
from labelloop.stack.environment import read_env
from labelloop.stack.layout import StackLayout
from labelloop.stack.progress import Steps
from labelloop.stack.state import DemoProject, StackState, read_state, write_state
from labelloop.stack.up import DASHBOARD, HOOK, TOKEN, Ready, _Run
from labelloop.stack.welcome import welcome

SOURCE = DemoSource("demo", "Photos", list)


@pytest.fixture
def run(tmp_path):
    return _Run(StackLayout.for_home(tmp_path), Steps(Console(file=io.StringIO())), None)


@pytest.mark.parametrize(
    ("stored", "existing", "expected", "remaining"),
    [
        (None, {7}, DemoProject(0), {7}),
        (DemoProject(7, 25, complete=True), {7}, DemoProject(7, 25, complete=True), {7}),
        (DemoProject(7, 25), {6, 7}, DemoProject(0), {6}),
        (DemoProject(7, 25, complete=True), {6}, DemoProject(0), {6}),
    ],
    ids=["first run", "finished", "interrupted", "deleted in Label Studio"],
)
def test_the_project_of_an_earlier_run(run, fake_label_studio, tmp_path, stored, existing, expected, remaining):
    write_state(tmp_path, StackState(projects={"demo": stored} if stored else {}))
    for project in existing:
        fake_label_studio.put_project(project)
    assert run._existing(fake_label_studio, SOURCE) == expected
    assert fake_label_studio.projects_by_id.keys() == remaining


def test_secrets_are_kept_and_the_token_is_dropped_with_its_server(run, tmp_path):
    run._write_settings()
    first = read_env(tmp_path)
    assert len(first[HOOK]) >= 20
    assert len(first[DASHBOARD]) >= 20
    settings_file(tmp_path).write_text(settings_file(tmp_path).read_text().replace(f"{TOKEN}=", f"{TOKEN}=a-token"))
    (tmp_path / "data").mkdir()
    write_state(tmp_path, StackState(people=("anna@example.com",)))
    run._write_settings()
    assert read_env(tmp_path) == first | {TOKEN: "a-token"}
    assert read_state(tmp_path).people == ("anna@example.com",)
    (tmp_path / "data").rmdir()
    run._write_settings()
    assert read_env(tmp_path) == first
    assert read_state(tmp_path) == StackState()


def test_a_run_remembers_where_label_studio_is_installed(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    home = tmp_path / "home"
    home.mkdir()
    for given in (shared, None):
        plan = StackLayout.for_home(home, label_studio=given)
        _Run(plan, Steps(Console(file=io.StringIO())), None)._write_settings()
        assert plan.label_studio.folder == shared
        assert read_state(home).label_studio == str(shared)


def test_the_welcome_text_has_the_dashboard_address_and_password(run, tmp_path):
    run._write_settings()
    out = io.StringIO()
    ready = Ready(StackLayout.for_home(tmp_path), 7, "Photos", 25, others=((8, "Outlines"),))
    welcome(ready, console=Console(file=out, width=200))
    assert "Photos    http://localhost:8080/projects/7/data" in out.getvalue()
    assert "Outlines  http://localhost:8080/projects/8/data" in out.getvalue()
    assert f"http://localhost:9091/dashboard/    password {read_env(tmp_path)[DASHBOARD]}" in out.getvalue()
