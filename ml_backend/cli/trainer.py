"""Command `labelloop trainer`: fine-tune on this machine for an ML backend elsewhere."""

from __future__ import annotations

import socket
import sys
from typing import Annotated, Literal
from urllib.parse import urlsplit

from cyclopts import Parameter

from labelloop.service.errors import SettingsError
from labelloop.service.logging import setup_logging
from labelloop.service.settings import Settings
from labelloop.service.signals import graceful_stop
from labelloop.service.system import available_cores
from ml_backend.finetune.torch_parts import choose_device, require_torch
from ml_backend.studio.connect import basic_auth
from ml_backend.trainer.agent import AgentOptions, run_agent
from ml_backend.trainer.client import TrainerClient


def trainer(
    *,
    url: str,
    token: str = "",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    name: str = "",
    threads: int = 0,
    once: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Fine-tune on this machine, such as one with a GPU, for an ML backend elsewhere.

    It asks the ML backend for work over HTTP and needs no open port. Fine-tunings that are due there (the table [train]
    of learn.toml) are trained here; the model goes back, is evaluated there, and is served if it passes. Needs the
    extra [train] here: pip install 'labelloop[train]'.

    ```
    export LABELLOOP_TRAINER_TOKEN=TOKEN
    labelloop trainer --url https://labels.example.org/ml
    ```

    Basic auth of the ML backend: LABELLOOP_BASIC_AUTH_USER and LABELLOOP_BASIC_AUTH_PASSWORD, as there.

    Ctrl-C writes a checkpoint and gives the job back; a trainer that dies loses its job after 90 seconds. A trained
    model that the ML backend cannot take now is kept in LABELLOOP_HOME, and offered until it is taken, also after a
    restart.

    Args:
        url: Address of the ML backend. Basic auth in it (https://USER:PASSWORD@HOST) is used, but every user of this
            machine can read it.
        token: LABELLOOP_TRAINER_TOKEN of the ML backend; default: this variable here, which other users cannot read.
        device: Where to train; auto: on a GPU that torch finds, else on the CPU.
        name: Name of this trainer, on the learning page; default: that of the machine.
        threads: CPU threads; 0: one per core.
        once: End after one job.

    Raises:
        TorchMissing: The extra is not installed.
        GpuMissing: --device is cuda, and torch finds no GPU.
        BackendRefused: The token is wrong, or the ML backend has none.
    """
    settings = Settings()
    setup_logging(settings)
    if not _is_web_address(url):  # which may have a password
        raise SettingsError("--url is not the address of an ML backend.", fix="Give --url http://HOST:9090.")
    _warn_of_secrets(url, token)
    token = (token or settings.trainer_token.get_secret_value()).strip()
    if not token:
        raise SettingsError(
            "There is no token.", fix="Give --token or LABELLOOP_TRAINER_TOKEN the value that the ML backend has."
        )
    if not (token.isascii() and token.isprintable()):
        raise SettingsError("The token cannot be sent in a header.", fix="Use letters, digits and punctuation only.")
    require_torch()
    import torch

    torch.set_num_threads(threads or available_cores())
    selected = choose_device(device)
    options = AgentOptions(name or socket.gethostname(), selected, settings.home, once=once)
    with TrainerClient(url, token, auth=basic_auth(settings)) as client, graceful_stop("the step") as stopping:
        print(f"Trainer {options.name} ({selected}) asks {client.url} for work. Ctrl-C ends it.", flush=True)
        run_agent(client, options, stopping=stopping, say=lambda line: print(line, flush=True))
    if stopping():
        raise SystemExit(stopping.exit_status)


def _warn_of_secrets(url: str, token: str) -> None:
    """Say which secrets of the command line other users can read, as in `ps`."""
    for option, given, variables in (
        ("--url", urlsplit(url).password, "LABELLOOP_BASIC_AUTH_USER and LABELLOOP_BASIC_AUTH_PASSWORD"),
        ("--token", token, "LABELLOOP_TRAINER_TOKEN"),
    ):
        if given:
            message = f"Every user of this machine can read the secret in {option}. Set {variables} instead."
            print(f"Warning: {message}", file=sys.stderr, flush=True)


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the host in brackets, or of the port
        return False
