"""Run stock Label Studio headless on a given port and wait until it is healthy."""

import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from labelloop.stack.accounts import Account
from labelloop.stack.errors import StackError
from labelloop.stack.label_studio import LabelStudioInstallation, server_env
from labelloop.stack.ports import require_free
from labelloop.stack.process import POLL_S, Child, ServiceSpec
from labelloop.stack.progress import Step

BOOT_S = 180.0
LOOPBACK = "127.0.0.1"


def label_studio_service(
    studio: LabelStudioInstallation,
    *,
    data: Path,
    port: int,
    log: Path,
    admin: Account,
    env: Mapping[str, str] | None = None,
) -> ServiceSpec:
    """The command line and environment that start Label Studio on `data`, with `admin` as its first user.

    If its port is in use, Label Studio silently moves to the next one, so the port is checked first.

    Args:
        studio: The installation.
        data: Its data folder; copied from the template if it does not exist.
        port: Port on loopback.
        log: Its log file.
        admin: Created at the first start; later starts do not change the account.
        env: Additional environment variables, e.g. LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN.

    Raises:
        StackError: Another program listens on `port`.
    """
    require_free(port, "Label Studio", option="--port")
    if not data.exists():
        studio.copy_template_data(data)
    login = {"LABEL_STUDIO_USERNAME": admin.email, "LABEL_STUDIO_PASSWORD": admin.password}
    options = f"--internal-host {LOOPBACK} -p {port} --no-browser"
    url = f"http://localhost:{port}"
    return ServiceSpec(
        name="Label Studio",
        key="label-studio",
        command=[str(studio.python), "-m", "label_studio.server", "start", "--data-dir", str(data), *options.split()],
        env=server_env(data, {**login, **(env or {})}),
        log=log,
        url=url,
        health=f"{url}/health",
        failure_marker="* Trying to start at",  # its port was taken in the meantime, so it moved to the next one
    )


def wait_until_healthy(child: Child, step: Step | None = None, *, timeout_s: float = BOOT_S) -> None:
    """Wait until the health address of a part answers 2xx.

    Args:
        child: The running part.
        step: Shows the wait.
        timeout_s: Maximum wait in seconds.

    Raises:
        StackError: The part exited (the message has the last lines of its log) or did not answer in time.
    """
    part, deadline = child.part, time.monotonic() + timeout_s
    with httpx.Client(timeout=5, trust_env=False) as client:
        while True:
            code = child.exit_code()
            if code is not None:
                raise StackError(
                    f"{part.name} exited while starting ({describe_exit(code)}):\n  " + "\n  ".join(child.tail()),
                    fix="Read its log.",
                    log=part.log,
                    code="start_failed",
                )
            if child.logged_failure():
                raise StackError(
                    f"{part.name} does not run as configured:\n  " + "\n  ".join(child.tail()),
                    fix="Most likely another program has just taken its port; start again, or choose another port.",
                    log=part.log,
                    code="start_failed",
                )
            if not part.health or _answers(client, part.health):
                return
            if time.monotonic() > deadline:
                raise StackError(
                    f"{part.name} did not answer at {part.health} within {timeout_s:.0f} s.",
                    fix="Read its log; on a busy machine just start again.",
                    log=part.log,
                    code="start_failed",
                )
            if step is not None:
                step.say(f"waiting for {part.health}")
            time.sleep(POLL_S)


def _answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).is_success
    except httpx.HTTPError:
        return False


def describe_exit(code: int) -> str:
    """An exit code as text: `exit code 1` or `signal 9`."""
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
