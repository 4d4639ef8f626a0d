"""One running stock Label Studio: started headless on a port that is free, waited for, stopped whole."""

import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from labelloop.stack.accounts import Account
from labelloop.stack.errors import StartFailed
from labelloop.stack.label_studio import LabelStudio, server_env
from labelloop.stack.ports import require_free
from labelloop.stack.process import POLL_S, Child, Part
from labelloop.stack.progress import Step

BOOT_S = 180.0
LOOPBACK = "127.0.0.1"


def label_studio_part(
    studio: LabelStudio,
    *,
    data: Path,
    port: int,
    log: Path,
    admin: Account,
    env: Mapping[str, str] | None = None,
) -> Part:
    """How Label Studio is started on `data`, with `admin` as its first user.

    Label Studio moves to the next port in silence when its own is taken, so the port is checked first.

    Args:
        studio: The installation.
        data: Its data folder; copied from the migrated one when absent.
        port: Where it listens, on loopback only.
        log: Its log file.
        admin: Made at the first start; later starts leave the account alone.
        env: More environment, e.g. LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN.

    Raises:
        PortTaken: Something listens on `port`.
    """
    require_free(port, "Label Studio", option="--port")
    if not data.exists():
        studio.fresh_data(data)
    login = {"LABEL_STUDIO_USERNAME": admin.email, "LABEL_STUDIO_PASSWORD": admin.password}
    options = f"--internal-host {LOOPBACK} -p {port} --no-browser"
    url = f"http://localhost:{port}"
    return Part(
        name="Label Studio",
        key="label-studio",
        command=[str(studio.python), "-m", "label_studio.server", "start", "--data-dir", str(data), *options.split()],
        env=server_env(data, {**login, **(env or {})}),
        log=log,
        url=url,
        health=f"{url}/health",
        bad_sign="* Trying to start at",  # its port was taken after all, and it moved to the next one
    )


def wait_until_up(child: Child, step: Step | None = None, *, timeout_s: float = BOOT_S) -> None:
    """Wait until the part answers its health address.

    Args:
        child: The running part.
        step: Told about the wait.
        timeout_s: How long a part may take.

    Raises:
        StartFailed: It ended (with the last lines of its log) or did not answer in time.
    """
    part, until = child.part, time.monotonic() + timeout_s
    with httpx.Client(timeout=5, trust_env=False) as client:
        while True:
            code = child.ended()
            if code is not None:
                raise StartFailed(
                    f"{part.name} ended while starting ({how_it_ended(code)}):\n  " + "\n  ".join(child.tail()),
                    fix="Read its log.",
                    log=part.log,
                )
            if child.shows_bad_sign():
                raise StartFailed(
                    f"{part.name} does not run as it was told to:\n  " + "\n  ".join(child.tail()),
                    fix="Most likely another program has just taken its port; start again, or choose another port.",
                    log=part.log,
                )
            if not part.health or _answers(client, part.health):
                return
            if time.monotonic() > until:
                raise StartFailed(
                    f"{part.name} did not answer at {part.health} within {timeout_s:.0f} s.",
                    fix="Read its log; on a busy machine just start again.",
                    log=part.log,
                )
            if step is not None:
                step.say(f"waiting for {part.health}")
            time.sleep(POLL_S)


def _answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).is_success
    except httpx.HTTPError:
        return False


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
