"""The text that `labelloop up` prints once everything runs: addresses, log-ins and first steps."""

import os

from rich.console import Console
from rich.markup import escape

from labelloop.stack.accounts import ADMIN, ANNOTATORS, StackUser
from labelloop.stack.environment import read_env
from labelloop.stack.layout import URLS
from labelloop.stack.up import DASHBOARD, KEY, KEY_USER, Ready
from ml_backend.catalogue.offer import OFFER
from ml_backend.finetune.torch_parts import torch_missing
from ml_backend.policy import FinetunePolicy

_TEXT = """
[bold]The loop is up.[/] {title}: {tasks} images.

{projects}

  Label Studio     {studio}
{people}
  ML backend       {ml}    user {user}    password {key}
  Quality control  {qc}
    dashboard      {qc}/dashboard/    password {dashboard}
  Logs and data    {home}

[bold]Try first[/]
  1. Log in as {anna} and open the project, press [bold]Label All Tasks[/]: the model has drawn boxes. Submit.
  2. In a private window log in as {ben}: the same image comes. Delete or relabel a box, Submit.
  3. Within seconds it is in the tab [bold]QC: disputed[/], with the reason, and goes to a third annotator:
     log in as the admin and press Label All Tasks.
  4. The model learns from every Submit, and serves the most informative tasks next: [bold]{command} learn {project} --watch[/]
     in another terminal shows each training run and the gate's verdict.{finetuning}
  5. There too: [bold]{command} export {project}[/] writes a data set, [bold]{command} doctor[/] checks every part.

{offer}Ctrl-C stops everything.
"""  # noqa: E501 - markup makes source lines longer than printed ones


def _finetuning() -> str:
    """Whether minutes of fine-tuning follow the refits, or how to have that."""
    labels = FinetunePolicy().labels
    if torch_missing():
        return f"\n     With torch installed (docs/how-to/train.md) it is fine-tuned too, from {labels} labels on."
    return f"\n     From {labels} labelled images on it is fine-tuned too, in the background."


def welcome(ready: Ready, *, command: str = "labelloop", console: Console | None = None) -> None:
    """Print the welcome text.

    Args:
        ready: The running stack.
        command: The command line name that labelloop was called by.
        console: Default: standard output.
    """
    plan, urls = ready.plan, ready.plan.urls
    settings = read_env(plan.home)

    width = max(len(title) for _, title in ((ready.project, ready.title), *ready.others))

    def project_line(project: int, title: str) -> str:
        return f"  [bold]{escape(f'{title:<{width}}')}[/]  {urls[URLS['port']]}/projects/{project}/data"

    def log_in(role: str, user: StackUser) -> str:
        return f"    {role:<14} {user.email:<18} password {user.account(plan.home).password}"

    text = _TEXT.format(
        title=escape(ready.title),
        tasks=ready.tasks,
        project=ready.project,
        projects="\n".join(project_line(*item) for item in ((ready.project, ready.title), *ready.others)),
        studio=urls[URLS["port"]],
        ml=urls[URLS["ml_port"]],
        qc=urls[URLS["qc_port"]],
        user=escape(settings.get(KEY_USER, "")),
        key=escape(settings.get(KEY, "")),
        dashboard=escape(settings.get(DASHBOARD, "")),
        home=escape(str(plan.home)),
        people=escape(
            "\n".join([log_in("admin", ADMIN), *(log_in("annotator", annotator) for annotator in ANNOTATORS)])
        ),
        anna=ANNOTATORS[0].email,
        ben=ANNOTATORS[1].email,
        command=escape(command),
        finetuning=_finetuning(),
        offer="" if settings.get("LABELLOOP_MODEL") or os.environ.get("LABELLOOP_MODEL") else f"{escape(OFFER)}.\n\n",
    )
    (console or Console(highlight=False)).print(text, soft_wrap=True)
