"""What `labelloop up` says once everything runs: where to click, who to be, what to try first."""

from rich.console import Console
from rich.markup import escape

from labelloop.stack.environment import read_env
from labelloop.stack.layout import URLS
from labelloop.stack.people import ADMIN, ANNOTATORS, Person
from labelloop.stack.up import DASHBOARD, KEY, KEY_USER, Ready

_TEXT = """
[bold]The loop is up.[/] Project [bold]{title}[/], {tasks} photographs, pre-labelled: [bold]{studio}/projects/{project}/data[/]

  Label Studio     {studio}
{people}
  ML backend       {ml}    user {user}    password {key}
  Quality control  {qc}
    dashboard      {qc}/dashboard/    password {dashboard}
  Logs and data    {home}

[bold]Try first[/]
  1. Log in as {anna} and open the project, press [bold]Label All Tasks[/]: boxes are drawn already. Submit.
  2. In a private window log in as {ben}: the same photograph comes. Delete or relabel a box, Submit.
  3. Within seconds it is in the tab [bold]QC: disputed[/], with the reason in words, and is served to a third person:
     be the admin and press Label All Tasks.
  4. The model learns from every Submit, and serves next what teaches most: [bold]{command} learn {project} --watch[/]
     in another terminal shows each fit and the gate's verdict.
  5. There too: [bold]{command} export {project}[/] writes a data set, [bold]{command} doctor[/] looks at every part.

Ctrl-C ends everything.
"""  # noqa: E501 - lines as they are shown; markup takes the rest


def welcome(ready: Ready, *, command: str = "labelloop", console: Console | None = None) -> None:
    """Print it to standard output.

    Args:
        ready: What runs.
        command: How labelloop was called.
        console: Where to print.
    """
    plan, urls = ready.plan, ready.plan.urls
    ours = read_env(plan.home)

    def log_in(role: str, person: Person) -> str:
        return f"    {role:<14} {person.email:<18} password {person.account(plan.home).password}"

    text = _TEXT.format(
        title=escape(ready.title),
        tasks=ready.tasks,
        project=ready.project,
        studio=urls[URLS["port"]],
        ml=urls[URLS["ml_port"]],
        qc=urls[URLS["qc_port"]],
        user=escape(ours.get(KEY_USER, "")),
        key=escape(ours.get(KEY, "")),
        dashboard=escape(ours.get(DASHBOARD, "")),
        home=escape(str(plan.home)),
        people=escape("\n".join([log_in("admin", ADMIN), *(log_in("annotator", person) for person in ANNOTATORS)])),
        anna=ANNOTATORS[0].email,
        ben=ANNOTATORS[1].email,
        command=escape(command),
    )
    (console or Console(highlight=False)).print(text, soft_wrap=True)
