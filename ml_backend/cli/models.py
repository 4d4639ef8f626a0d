"""Commands `labelloop models list | add | activate | rollback | pull`."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from labelloop.service.errors import LabelloopError
from labelloop.service.logging import setup_logging
from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from ml_backend.catalogue import pull as pulling
from ml_backend.learning.base_models import is_learned
from ml_backend.serving import activation
from ml_backend.serving.activation import Activation
from ml_backend.serving.active_versions import ALL_PROJECTS, Pointer, read_pointer
from ml_backend.serving.registry import Registry, VersionManifest
from ml_backend.serving.smoke_test import check_model


def models_list() -> None:
    """List the model versions on the store, newest last, with where each is active and load failures."""
    settings = _settings()
    store = open_store(settings.store_url, settings)
    registry = Registry(store)
    pointer, _ = read_pointer(store)
    default = activation.default_version(settings)
    where = [] if pointer.active() else ["served"]
    print(f"{default or 'missing'}  the default model of the backend{_in_brackets(where)}")
    for manifest in registry.versions():
        print(_version_line(manifest, pointer, registry.refusal_reason(manifest.version)))


def models_add(
    model: Path,
    *,
    names: Path | None = None,
    layout: str = "",
    project: int | None = None,
    activate: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Add an ONNX detector to the store as a version, after loading and running it once.

    With --project it is evaluated against the served version, on the project's held-out tasks or, while these are too
    few, on all labelled ones. If it is worse it is kept on the store, but --activate does not activate it.

    ```
    labelloop models add best.onnx
    labelloop models add best.onnx --project 7 --activate
    ```

    Args:
        model: The ONNX file; external weights next to it are added too.
        names: File of its class names, one per line, if the model has none.
        layout: Output layout of the model, if it is not detected.
        project: Project that the model is for; default any.
        activate: Serve it at once, to the project or to all.
    """
    settings = _settings()
    if project is not None:
        _require_project(project, settings)
    registry = Registry(open_store(settings.store_url, settings))
    path, named = model.expanduser().absolute(), names.expanduser() if names else None
    summary = check_model(path, layout=layout, names=named)
    manifest = registry.add(
        path,
        names=named,
        layout=layout,
        summary=summary,
        project="" if project is None else str(project),
        note=f"added from {model.name}",
    )
    print(f"{manifest.version} added to {registry.store.url}: {len(manifest.classes)} classes")
    print(f"Layout {summary.layout}: {summary.why}.")
    passed = _evaluate(manifest.version, project, settings, activate=activate) if project is not None else True
    if activate:
        done = activation.activate(manifest.version, settings=settings, project=project, tried=True)
        _print_activation(done, project, settings, base=True)
    else:
        for_project = "" if project is None else f" --project {project}"
        how = "To serve it" if passed else "It is kept. To serve it anyway"
        print(f"{how}: labelloop models activate {manifest.version}{for_project}")


def models_activate(version: str, *, project: int | None = None) -> None:
    """Serve a version: every worker loads it within about half a second, without dropping a request.

    The connection in Label Studio is renamed to the version, so that Label Studio requests new pre-labels.

    ```
    labelloop models activate best-1f2e3d4c5b6a
    labelloop models activate best-1f2e3d4c5b6a --project 7
    ```

    Args:
        version: Name from `labelloop models list`.
        project: Only for this project; a project's own version takes precedence over that of all projects.
    """
    settings = _settings()
    _refuse_missing_project(project, settings)
    done = activation.activate(version, settings=settings, project=project)
    manifest = Registry(open_store(settings.store_url, settings)).manifest(version)
    _print_activation(done, project, settings, base=not is_learned(manifest))


def models_rollback(*, project: int | None = None) -> None:
    """Roll back to the previously active version; each call goes one version further back.

    ```
    labelloop models rollback --project 7
    ```

    Args:
        project: Only for this project; default all projects.
    """
    settings = _settings()
    _print_activation(activation.roll_back(settings=settings, project=project), project, settings)


def _require_project(project: int, settings: Settings) -> None:
    """Raise `StudioNotFound` if Label Studio has no such project; not checked without an API key."""
    from labelloop.service.studio import Studio

    if settings.label_studio_api_key.get_secret_value():
        with contextlib.closing(Studio.from_settings(settings)) as studio:
            studio.project(project)


def _refuse_missing_project(project: int | None, settings: Settings) -> None:
    """Raise `StudioNotFound` if Label Studio answers that it has no such project; nothing if it does not answer."""
    if project is None:
        return
    from labelloop.service.studio import StudioNotFound

    try:
        _require_project(project, settings)
    except StudioNotFound:
        raise
    except LabelloopError:  # activation says what could not be done in Label Studio
        return


def _evaluate(version: str, project: int, settings: Settings, *, activate: bool) -> bool:
    """Print the evaluation of a version on a project's labelled images; returns whether it passed.

    Raises:
        LabelloopError: It did not pass and was to be activated.
    """
    if not settings.label_studio_api_key.get_secret_value():
        print("  not evaluated  LABELLOOP_LABEL_STUDIO_API_KEY is empty")
        return True
    from labelloop.service.db.engine import open_database
    from labelloop.service.studio import Studio
    from ml_backend.learning.context import LearningContext
    from ml_backend.learning.evaluation.external_models import admit

    with contextlib.closing(Studio.from_settings(settings)) as studio:
        done = admit(LearningContext.of(settings, studio, open_database(settings)), project, version)
    verdict = done.verdict
    print(f"  {'passes' if verdict.passed else 'refused':13}  {verdict.reason}")
    if done.thresholds and verdict.passed:
        thresholds = json.dumps({name: round(value, 2) for name, value in done.thresholds.items()})
        print(
            f"  {'thresholds':13}  best score thresholds on the same images; until a version is trained on it, set them"
        )
        print("                 in the connection's extra params:")
        print(f'                 {{"score_thresholds": {thresholds}}}')
    if activate and not verdict.passed:
        raise LabelloopError(
            f"{version} is kept, and not served to project {project}: {verdict.reason}.",
            fix=f"To serve it anyway: labelloop models activate {version} --project {project}. To accept a larger "
            "drop, raise `tolerance` in the project's learn.toml.",
            code="model_not_admitted",
            status=409,
        )
    return verdict.passed


def models_pull(
    name: str = "",
    *,
    folder: Path | None = None,
    source: Annotated[str, Parameter(name="--from")] = "",
) -> None:
    """Download a model from the catalogue, show its licence and verify its checksums (resumable).

    ```
    labelloop models pull
    labelloop models pull yolox-nano
    ```

    Args:
        name: Name of the model; without it the catalogue is listed.
        folder: Target folder; default models/NAME in labelloop's home folder.
        source: Address of a folder with the same files, such as your own mirror; default the publisher's.
    """
    settings = _settings()
    if not name:
        for line in pulling.catalogue_lines():
            print(line)
        return
    folder = (folder or settings.home / "models" / name).expanduser().absolute()
    entry = pulling.catalogue_entry(name)
    print(f"{name}: {entry.purpose}. Licence: {entry.licence}, {entry.terms}", flush=True)
    files = pulling.pull(entry, folder, source=source)
    for file in files:
        print(f"  {file}")
    for line in pulling.usage_lines(entry, files):
        print(line)


def _settings() -> Settings:
    settings = Settings()
    setup_logging(settings)
    return settings


def _print_activation(done: Activation, project: int | None, settings: Settings, *, base: bool = False) -> None:
    scope = "every project without its own version" if project is None else f"project {project}"
    print(f"{done.version} is served to {scope} (before: {done.before or 'nothing'})")
    for change in done.changes:
        print(f"  {'done         ' if change.done else 'already right'}  {change.what}")
    for note in done.notes:
        print(f"  not done       {note}")
    queued = _enqueue_ranking(done.projects, settings, base=base)
    if queued:
        print("`labelloop worker` now pre-labels and ranks the open tasks with it.")
    elif done.changes:
        print(f"To pre-label all tasks with it: labelloop prelabel {project or 'PROJECT'}")


def _enqueue_ranking(projects: Sequence[int], settings: Settings, *, base: bool) -> int:
    """Enqueue the ranking of open tasks, with new pre-labels, for the projects that learn.

    Args:
        projects: Project numbers.
        settings: Locate the database.
        base: Whether the version is a base model, not a learned one: a training run is enqueued too.

    Returns:
        Number of these projects that learn.
    """
    if not projects:
        return 0
    from labelloop.service.db.engine import open_database
    from labelloop.service.jobs.inbox import Inbox
    from ml_backend.learning.events import activation_events
    from ml_backend.learning.store.annotations import TrainingDataStore
    from ml_backend.policy import read_learning_policy

    engine = open_database(settings)
    inbox = Inbox.from_settings(settings, engine)
    connected = {state.project for state in TrainingDataStore(engine).projects()}
    learning = [
        project for project in projects if project in connected and read_learning_policy(settings.home, project).learn
    ]
    for event in (event for project in learning for event in activation_events(project, base=base)):
        inbox.put(event.topic, str(event.project), event.key, event.payload)
    return len(learning)


def _version_line(manifest: VersionManifest, pointer: Pointer, refused: str) -> str:
    where = ["served"] if pointer.state().version == manifest.version else []
    where += [
        f"served to project {project}"
        for project, state in sorted(pointer.places.items())
        if project != ALL_PROJECTS and state.version == manifest.version
    ]
    where += [f"could not be loaded: {refused}"] if refused else []
    parts = [manifest.version, manifest.created_at[:16].replace("T", " "), f"{len(manifest.classes)} classes"]
    parts += [f"for project {manifest.project}"] if manifest.project else []
    parts += [f"from {manifest.parent}"] if manifest.parent else []
    parts += [f"with {', '.join(manifest.heads)}"] if manifest.heads else []
    parts += [f"{name} {value:.3f}" for name, value in manifest.metrics.items() if isinstance(value, float)]
    return "  ".join(parts) + _in_brackets(where)


def _in_brackets(notes: list[str]) -> str:
    return f"  [{'; '.join(notes)}]" if notes else ""
