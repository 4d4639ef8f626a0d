"""Owns `labelloop models list | add | activate | rollback | pull`: plain functions that the command line mounts."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from labelloop.service.logging import setup_logging
from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from ml_backend.catalogue import pull as pulling
from ml_backend.learning.base_models import is_learned
from ml_backend.serving import activation
from ml_backend.serving.activation import Activation
from ml_backend.serving.active_versions import EVERYWHERE, Pointer, read_pointer
from ml_backend.serving.registry import Manifest, Registry


def models_list() -> None:
    """List the model versions on the store, the newest last: what is active where, and what could not be loaded."""
    settings = _settings()
    store = open_store(settings.store_url, settings)
    registry = Registry(store)
    pointer, _ = read_pointer(store)
    given = activation.given_version(settings)
    where = [] if pointer.active() else ["served"]
    print(f"{given or 'missing'}  the model that the backend is started with{_in_brackets(where)}")
    for manifest in registry.versions():
        print(_line(manifest, pointer, registry.refused(manifest.version)))


def models_add(
    model: Path,
    *,
    names: Path | None = None,
    layout: str = "",
    project: int | None = None,
    activate: bool = False,
) -> None:
    """Put an ONNX detector on the store as a version. It is opened and tried first.

    With a project it passes the gate of learning: it must not find less than what is served there on the tasks that are
    held out, or on all that are labelled while these are too few. Else it is kept, and --activate does not activate it.

    Args:
        model: The ONNX file; weights beside it come along.
        names: File of its class names, one a line, where the model has none.
        layout: What its outputs are, where that is not recognised.
        project: The project that it is for; without it any.
        activate: Serve it at once, to the project or to all.
    """
    settings = _settings()
    if project is not None:
        _require_project(project, settings)
    registry = Registry(open_store(settings.store_url, settings))
    manifest = registry.add(
        model.expanduser().absolute(),
        names=names.expanduser() if names else None,
        layout=layout,
        project="" if project is None else str(project),
        note=f"added from {model.name}",
    )
    print(f"{manifest.version} is on {registry.store.url}: {len(manifest.classes)} classes")
    passed = _judge(manifest.version, project, settings, activate=activate) if project is not None else True
    if activate:
        done = activation.activate(manifest.version, settings=settings, project=project, tried=True)
        _tell(done, project, settings, base=True)
    else:
        for_project = "" if project is None else f" --project {project}"
        how = "Serve it with" if passed else "It is kept. Serve it all the same with"
        print(f"{how}: labelloop models activate {manifest.version}{for_project}")


def models_activate(version: str, *, project: int | None = None) -> None:
    """Serve a version: every worker takes it over within about half a second, and no request is lost.

    Label Studio follows: its connection is named after the version, so that it asks for new pre-labels.

    Args:
        version: As `labelloop models list` shows it.
        project: Only for this project; a project's own version goes before everybody's.
    """
    settings = _settings()
    done = activation.activate(version, settings=settings, project=project)
    manifest = Registry(open_store(settings.store_url, settings)).manifest(version)
    _tell(done, project, settings, base=not is_learned(manifest))


def models_rollback(*, project: int | None = None) -> None:
    """Go back to what was active before; once more, and it is the one before that.

    Args:
        project: What is active for this project; without it what is active for all.
    """
    settings = _settings()
    _tell(activation.roll_back(settings=settings, project=project), project, settings)


def _require_project(project: int, settings: Settings) -> None:
    """Raises `NotFound` where Label Studio has no such project; without a token nobody can say."""
    from labelloop.service.studio import Studio

    if settings.label_studio_api_key.get_secret_value():
        with contextlib.closing(Studio.from_settings(settings)) as studio:
            studio.project(project)


def _judge(version: str, project: int, settings: Settings, *, activate: bool) -> bool:
    """Says what a version finds on a project's labelled photos; raises where it is worse and was to be activated."""
    if not settings.label_studio_api_key.get_secret_value():
        print("  not judged     LABELLOOP_LABEL_STUDIO_API_KEY is empty")
        return True
    from labelloop.service.db.engine import open_database
    from labelloop.service.studio import Studio
    from ml_backend.learning.context import LearningContext
    from ml_backend.learning.evaluation.external_models import NotAdmitted, admit

    with contextlib.closing(Studio.from_settings(settings)) as studio:
        done = admit(LearningContext.of(settings, studio, open_database(settings)), project, version)
    verdict = done.verdict
    print(f"  {'passes' if verdict.passed else 'refused':13}  {verdict.reason}")
    if done.thresholds and verdict.passed:
        told = json.dumps({name: round(value, 2) for name, value in done.thresholds.items()})
        print(
            f"  {'shown from':13}  these scores on it is best, by the same photos; put them into the connection's extra"
        )
        print("                 params, until it is learned on:")
        print(f'                 {{"score_thresholds": {told}}}')
    if activate and not verdict.passed:
        raise NotAdmitted(version, project, verdict)
    return verdict.passed


def models_pull(
    name: str = "",
    *,
    folder: Path | None = None,
    source: Annotated[str, Parameter(name="--from")] = "",
) -> None:
    """Download a model of the catalogue: its licence is shown, its checksum checked. Ctrl-C loses nothing.

    Args:
        name: Its name; without it the catalogue is listed.
        folder: Where its files shall lie; default models/NAME in labelloop's home folder.
        source: Address of a folder with the same files, such as a mirror of your own; default their publisher's.
    """
    settings = _settings()
    if not name:
        for line in pulling.listed():
            print(line)
        return
    folder = (folder or settings.home / "models" / name).expanduser().absolute()
    entry = pulling.entry_of(name)
    print(f"{name}: {entry.purpose}. Licence: {entry.licence}, {entry.terms}", flush=True)
    files = pulling.pull(entry, folder, source=source)
    for file in files:
        print(f"  {file}")
    for line in pulling.used(entry, files):
        print(line)


def _settings() -> Settings:
    settings = Settings()
    setup_logging(settings)
    return settings


def _tell(done: Activation, project: int | None, settings: Settings, *, base: bool = False) -> None:
    whom = "every project without a version of its own" if project is None else f"project {project}"
    print(f"{done.version} is served to {whom} (before: {done.before or 'nothing'})")
    for change in done.changes:
        print(f"  {'done         ' if change.done else 'already right'}  {change.what}")
    for note in done.notes:
        print(f"  not done       {note}")
    asked = _have_arranged(done.projects, settings, base=base)
    if asked:
        print("`labelloop worker` gives the open tasks pre-labels of it, and puts them in order.")
    elif done.changes:
        print(f"Pre-labels of it for all tasks: labelloop prelabel {project or 'PROJECT'}")


def _have_arranged(projects: Sequence[int], settings: Settings, *, base: bool) -> int:
    """Has a worker give the open tasks of those projects that learn pre-labels of what is served now.

    Args:
        projects: Their numbers.
        settings: Where the database is.
        base: Whether that is a model to be learned on, not one that was learned: a fit on it is asked for too.

    Returns:
        How many projects these are.
    """
    if not projects:
        return 0
    from labelloop.service.db.engine import open_database
    from labelloop.service.jobs.inbox import Inbox
    from ml_backend.learning.events import activated_hints
    from ml_backend.learning.store.annotations import TrainingDataStore
    from ml_backend.policy import read_learning_policy

    engine = open_database(settings)
    inbox = Inbox.from_settings(settings, engine)
    known = {one.project for one in TrainingDataStore(engine).projects()}
    learning = [one for one in projects if one in known and read_learning_policy(settings.home, one).learn]
    for hint in (hint for one in learning for hint in activated_hints(one, base=base)):
        inbox.put(hint.topic, str(hint.project), hint.key, hint.payload)
    return len(learning)


def _line(manifest: Manifest, pointer: Pointer, refused: str) -> str:
    where = ["served"] if pointer.place().version == manifest.version else []
    where += [
        f"served to project {project}"
        for project, place in sorted(pointer.places.items())
        if project != EVERYWHERE and place.version == manifest.version
    ]
    where += [f"could not be loaded: {refused}"] if refused else []
    parts = [manifest.version, manifest.created_at[:16].replace("T", " "), f"{len(manifest.classes)} classes"]
    parts += [f"for project {manifest.project}"] if manifest.project else []
    parts += [f"from {manifest.parent}"] if manifest.parent else []
    parts += [f"{name} {value:.3f}" for name, value in manifest.metrics.items() if isinstance(value, float)]
    return "  ".join(parts) + _in_brackets(where)


def _in_brackets(said: list[str]) -> str:
    return f"  [{'; '.join(said)}]" if said else ""
