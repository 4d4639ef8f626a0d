"""`labelloop qc adopt`: show what the newest defaults dispute, and let a project use them."""

from typing import Annotated

from cyclopts import Parameter

from labelloop.service.charts import pluralize
from labelloop.service.logging import setup_logging
from labelloop.service.readiness import open_existing_database
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from qc_webhooks.cli.qc import recheck_project
from qc_webhooks.policy import policy_files
from qc_webhooks.store.previews import DefaultsPreview, PreviewStore
from qc_webhooks.store.projects import NEWEST_DEFAULTS, ConnectedProject, ProjectStore
from qc_webhooks.verdict.note import CONFLICT_NAMES

_MOST_TASKS = 20


def adopt(project: int, *, back: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Let a project use the newest defaults: a missing, extra or mislabelled object disputes a task.

    Its tasks are judged again. What changes is shown first; `labelloop qc what-if PROJECT` shows it without a change.

    ```
    labelloop qc adopt 7
    labelloop qc adopt 7 --back
    ```

    Args:
        project: The project's number, as in its address: /projects/NUMBER/.
        back: Return to the defaults before: the mean agreement decides alone.
    """
    settings = Settings()
    setup_logging(settings)
    engine, studio = open_existing_database(settings), Studio.from_settings(settings)
    projects = ProjectStore(engine)
    connected = projects.require(project)
    if not back:
        print("\n".join(preview_lines(connected, PreviewStore(engine).summary(project))))
    version = 1 if back else NEWEST_DEFAULTS
    if connected.defaults == version:
        print("Nothing to change: the project uses these defaults.")
        return
    projects.adopt_defaults(project, version)
    wanted = "mean" if back else "objects"
    try:
        if projects.policy(settings.home, project).conflicts.decide_by != wanted:
            files = " or ".join(str(path) for path in policy_files(settings.home, project) if path.is_file())
            print(f"Not in force: [conflicts] in {files} decides otherwise. Change or remove its `decide_by`.")
            return
        count = recheck_project(project, settings, studio, engine)
    except BaseException:  # else another run would find nothing to change, and the tasks keep their verdicts
        projects.adopt_defaults(project, connected.defaults)
        raise
    judged_again, returning = pluralize(count, "task"), "" if back else " --back"
    print(f"{judged_again} will be judged again. To return: labelloop qc adopt {project}{returning}")


def project_preview(project: int) -> list[str]:
    """What the newest defaults would change in a project, in a few lines.

    Raises:
        QualityControlError: The project is not connected.
    """
    engine = open_existing_database(Settings())
    return preview_lines(ProjectStore(engine).require(project), PreviewStore(engine).summary(project))


def preview_lines(connected: ConnectedProject, preview: DefaultsPreview) -> list[str]:
    """What the newest defaults would change, in a few lines."""
    if connected.defaults >= NEWEST_DEFAULTS:
        return ["The project uses the newest defaults: single objects decide (see [conflicts] in the policy)."]
    kinds = ", ".join(f"{CONFLICT_NAMES.get(kind, kind)} {count}" for kind, count in preview.kinds.most_common())
    named = f": {kinds}" if kinds else ""
    lines = [f"The new default would dispute {preview.disputed_count} of {pluralize(preview.tasks, 'task')}{named}."]
    if preview.agreed_count:
        lines.append(
            f"It would no longer dispute {pluralize(preview.agreed_count, 'task')}: careful drawing of small objects."
        )
    if preview.disputed:
        more = preview.disputed_count - _MOST_TASKS
        listed = ", ".join(map(str, preview.disputed[:_MOST_TASKS]))
        lines.append(f"Tasks: {listed}{f' and {more} more' if more > 0 else ''}.")
    if preview.known < preview.tasks:
        missing = pluralize(preview.tasks - preview.known, "task")
        lines.append(f"Not compared yet: {missing}; `labelloop worker` does it, 300 a minute.")
    lines.append(f"To adopt it: labelloop qc adopt {connected.project}. Until then nothing changes.")
    return lines
