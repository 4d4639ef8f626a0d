"""Fixture `label_studio`: a stock Label Studio of its own for the session, installed by the product's own code."""

import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from labelloop.stack.accounts import Account, log_in, personal_access_token, sign_up
from labelloop.stack.label_studio import LabelStudioInstallation
from labelloop.stack.label_studio_server import label_studio_service, wait_until_healthy
from labelloop.stack.ports import free_port
from labelloop.stack.process import Child
from labelloop.stack.progress import Steps

ROOT = Path(__file__).parents[2]


@dataclass
class RunningStudio:
    """A live server. `admin_token` is a personal access token, `legacy_token` the admin's legacy one."""

    url: str
    admin: Account
    admin_token: str
    legacy_token: str
    log: Path
    data: Path
    child: Child
    _users: dict[str, tuple[str, int]] = field(default_factory=dict)

    def restart(self) -> None:
        """Stop it and start it again on the same data; who asks meanwhile finds nobody."""
        self.child.stop()
        self.child = Child(self.child.part, self.data.parent)
        wait_until_healthy(self.child)

    def password(self, email: str) -> str:
        """The password with which `user` signed this person up (for the browser)."""
        return self.admin.password if email == self.admin.email else f"pass-of-{email}"

    def user(self, email: str) -> tuple[str, int]:
        """The annotator's personal access token and user id; signed up at the first call."""
        if email not in self._users:
            with sign_up(self.url, Account(email, self.password(email))) as session:
                token = personal_access_token(session)
                self._users[email] = token, session.get("/api/current-user/whoami").json()["id"]
        return self._users[email]


@pytest.fixture(scope="session")
def label_studio_installation() -> LabelStudioInstallation:
    """Stock Label Studio in `.labelloop/label-studio`, where `make up` keeps it too."""
    installation = LabelStudioInstallation(ROOT / ".labelloop" / "label-studio")
    installation.prepare(Steps())
    return installation


@pytest.fixture(scope="session")
def label_studio(label_studio_installation, tmp_path_factory):
    """A running stock Label Studio with an admin, legacy tokens allowed, on a free port."""
    folder = tmp_path_factory.mktemp("label-studio")
    admin, legacy = Account("admin@example.com", secrets.token_hex(8)), secrets.token_hex(20)
    part = label_studio_service(
        label_studio_installation,
        data=folder / "data",
        port=free_port(),
        log=folder / "label-studio.log",
        admin=admin,
        env={"LABEL_STUDIO_USER_TOKEN": legacy, "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true"},
    )
    running, child = None, Child(part, folder)
    try:
        started = time.monotonic()
        wait_until_healthy(child)
        with log_in(part.url, admin) as session:
            token = personal_access_token(session)
        print(f"\nLabel Studio {part.url} up in {time.monotonic() - started:.1f} s, log {part.log}")
        running = RunningStudio(part.url, admin, token, legacy, part.log, folder / "data", child)
        yield running
    finally:
        (running.child if running else child).stop()
