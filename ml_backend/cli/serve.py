"""Owns the ML backend's commands: plain functions that the command line mounts."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from labelloop.service.disk import keep_private
from labelloop.service.errors import DatabaseError, SchemaTooNew, SettingsError
from labelloop.service.logging import setup_logging
from labelloop.service.readiness import require_home, require_known_database
from labelloop.service.settings import Settings
from labelloop.service.store import StoreError, open_store
from labelloop.service.web.gunicorn import require_key, run_gunicorn
from ml_backend.inference.detector import embedded_model
from ml_backend.server.concurrency_limit import threads_for
from ml_backend.serving.active_versions import read_pointer
from ml_backend.serving.smoke_test import check_model
from ml_backend.smart.check import check_segmenter


def serve(
    model: Path | None = None,
    *,
    port: int = 9090,
    host: str = "127.0.0.1",
    workers: int | None = None,
    threads: int | None = None,
    layout: str = "",
    settings: Annotated[Settings | None, Parameter(parse=False)] = None,
) -> None:
    """Serve pre-labels to Label Studio, until Ctrl-C.

    The model is opened once before anything listens, so that a missing or unknown one is said here and not by a red
    mark in Label Studio. Basic auth is asked for where LABELLOOP_BASIC_AUTH_USER is set.

    Args:
        model: ONNX detector to serve; default LABELLOOP_MODEL, else the model that comes with labelloop.
        port: Port to listen on.
        host: Address to listen on; 0.0.0.0 for other machines and for containers.
        workers: Processes; default LABELLOOP_WEB_WORKERS.
        threads: Requests that each process predicts at once; default LABELLOOP_WEB_THREADS. More may wait.
        layout: What the model's outputs are, where it is not recognised; default LABELLOOP_MODEL_LAYOUT.
        settings: Read from the environment where None.

    Raises:
        ModelError: The model cannot be served; the message says why and what to do.
        SettingsError: It would listen beyond this machine without Basic auth.
        PortTaken: Something listens there already.
        HomeUnusable: The home folder cannot be written.
        SchemaTooNew: A newer labelloop wrote the database.
    """
    settings = settings or Settings()
    if model is not None:
        settings = settings.but(model=model.expanduser().absolute())
    if layout:
        settings = settings.but(model_layout=layout)
    if not 0 < port < 65536:
        raise SettingsError(f"There is no port {port}.", fix="Give a port from 1 to 65535.")
    require_key(
        host,
        closed=bool(settings.basic_auth_user),
        service="The ML backend",
        keys="LABELLOOP_BASIC_AUTH_USER and LABELLOOP_BASIC_AUTH_PASSWORD (and run `labelloop connect PROJECT` again)",
    )
    require_home(settings)
    keep_private(settings.home)
    setup_logging(settings)
    try:
        require_known_database(settings)
    except SchemaTooNew:
        raise
    except DatabaseError as error:  # pre-labels need none
        print(f"  Nothing is learned for now. {error}", flush=True)
    found = check_model(settings.model or embedded_model(), layout=settings.model_layout)
    print(f"ML backend: http://{host}:{port} serves {found.version} (layout {found.layout}: {found.why})")
    print(f"  {len(found.names)} classes (from {found.source}): {', '.join(found.names)}", flush=True)
    if settings.smart_encoder is not None:
        print(f"  Smart tools: {check_segmenter(settings)}", flush=True)
    if (active := _active(settings)) not in {"", found.version}:
        print(f"  The active version {active} goes before it; `labelloop models rollback` ends that.", flush=True)
    settings = settings.but(web_threads=threads or settings.web_threads)
    run_gunicorn(
        "ml_backend.server.app:create_app",
        bind=f"{host}:{port}",
        settings=settings,
        workers=workers,
        threads=threads_for(settings.web_threads),
    )


def _active(settings: Settings) -> str:
    """The version that is active for every project; a store that is away is no reason not to serve."""
    if not settings.store_url.startswith("file:"):
        return ""
    try:
        return read_pointer(open_store(settings.store_url, settings))[0].active()
    except StoreError:
        return ""


def models_inspect(
    model: Path | None = None,
    *,
    image: Path | None = None,
    names: Path | None = None,
    layout: str = "",
    out: Path | None = None,
    threshold: float = 0.3,
    slice_side: Annotated[int, Parameter(name="--slice")] = 0,
) -> None:
    """Say what a model file is recognised as and why, and show what it sees on a photo.

    Args:
        model: ONNX file; default the model that comes with labelloop.
        image: Photo to try it on; what is seen is listed, and drawn on a copy of the photo.
        names: File of the class names: one a line, or YAML or JSON; default those in the model or beside it.
        layout: What its outputs are, where it is not recognised.
        out: File of the drawn photo; default NAME-drawn.png in this folder.
        threshold: Lowest score that is shown.
        slice_side: Pixels a side of the parts that a larger photo is cut into; 0: it is not.

    Raises:
        ModelError: The model cannot be served; the message says why and what to do.
        MediaError: The photo cannot be read.
    """
    from labelloop.service.media import load_photo
    from ml_backend.inference.detector import load_detector
    from ml_backend.inference.slicing import Slices
    from ml_backend.predict.inspect import describe, draw, listed, look

    detector = load_detector((model or embedded_model()).expanduser(), layout=layout, names=names, numbered=True)
    for line in describe(detector):
        print(line)
    if image is None:
        return
    sight = look(detector, load_photo(image.expanduser()).image, threshold=threshold, slices=Slices(slice_side))
    for line in listed(sight):
        print(line)
    out = out or Path(f"{image.stem}-drawn.png")
    draw(sight).save(out)
    print(f"Drawn: {out}")
