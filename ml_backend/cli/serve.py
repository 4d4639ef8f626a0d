"""Commands `labelloop ml serve` and `labelloop models inspect`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from cyclopts import Parameter

from labelloop.service.errors import DatabaseError, SchemaTooNew, SettingsError
from labelloop.service.logging import setup_logging
from labelloop.service.readiness import require_home, require_known_database
from labelloop.service.settings import Settings
from labelloop.service.store import StoreError, open_store
from labelloop.service.system import restrict_to_owner
from labelloop.service.web.gunicorn import require_authentication, run_gunicorn
from ml_backend.inference.detector import embedded_model
from ml_backend.segmentation.check import check_segmenter
from ml_backend.server.concurrency_limit import threads_for
from ml_backend.serving.active_versions import read_pointer
from ml_backend.serving.smoke_test import check_model


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

    The model is loaded once before the port opens, so that a missing or unknown model is reported here. Basic auth is
    required if LABELLOOP_BASIC_AUTH_USER is set.

    ```
    labelloop ml serve
    labelloop ml serve best.onnx --host 0.0.0.0
    ```

    Args:
        model: ONNX detector to serve; default LABELLOOP_MODEL, else the embedded model.
        port: Port to listen on.
        host: Address to listen on; 0.0.0.0 for other machines and for containers.
        workers: Processes; default LABELLOOP_WEB_WORKERS.
        threads: Concurrent predictions per process; further requests wait. Default LABELLOOP_WEB_THREADS.
        layout: Output layout of the model, if it is not detected; default LABELLOOP_MODEL_LAYOUT.
        settings: None: read from the environment.

    Raises:
        ModelError: The model cannot be served.
        SettingsError: The port is invalid, or it would listen beyond this machine without Basic auth.
        PortTaken: The port is in use.
        HomeUnusable: The home folder cannot be written.
        SchemaTooNew: A newer labelloop wrote the database.
    """
    settings = settings or Settings()
    if model is not None:
        settings = settings.replace(model=model.expanduser().absolute())
    if layout:
        settings = settings.replace(model_layout=layout)
    if not 0 < port < 65536:
        raise SettingsError(f"{port} is not a valid port.", fix="Give a port from 1 to 65535.")
    require_authentication(
        host,
        authenticated=bool(settings.basic_auth_user),
        service="The ML backend",
        settings_names=(
            "LABELLOOP_BASIC_AUTH_USER and LABELLOOP_BASIC_AUTH_PASSWORD (and run `labelloop connect PROJECT` again)"
        ),
    )
    require_home(settings)
    restrict_to_owner(settings.home)
    setup_logging(settings)
    try:
        require_known_database(settings)
    except SchemaTooNew:
        raise
    except DatabaseError as error:  # pre-labels need no database
        print(f"  Learning is off: {error}", flush=True)
    summary = check_model(settings.model or embedded_model(), layout=settings.model_layout)
    print(f"ML backend: http://{host}:{port} serves {summary.version} (layout {summary.layout}: {summary.why})")
    print(f"  {len(summary.names)} classes (from {summary.source}): {', '.join(summary.names)}", flush=True)
    if settings.smart_encoder is not None:
        print(f"  Smart tools: {check_segmenter(settings)}", flush=True)
    if (active := _active(settings)) not in {"", summary.version}:
        print(f"  The active version {active} takes precedence; undo it with `labelloop models rollback`.", flush=True)
    settings = settings.replace(web_threads=threads or settings.web_threads)
    run_gunicorn(
        "ml_backend.server.app:create_app",
        bind=f"{host}:{port}",
        settings=settings,
        workers=workers,
        threads=threads_for(settings.web_threads),
    )


def _active(settings: Settings) -> str:
    """Return the version active for all projects; empty if the store is remote or cannot be read."""
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
    suggest: Annotated[bool, Parameter(negative="")] = False,
    write: Annotated[bool, Parameter(negative="")] = False,
    choose: int = 1,
    size: tuple[int, int] | None = None,
) -> None:
    """Print the detected layout of a model file and why, and its detections on an image.

    With --suggest, propose a layout file for a graph that no known layout matches, from its detections on the image.

    ```
    labelloop models inspect best.onnx --image photo.jpg --out drawn.png
    labelloop models inspect best.onnx --suggest --image photo.jpg
    ```

    Args:
        model: ONNX file; default the embedded model.
        image: Image to run it on; detections are listed, and drawn on a copy.
        names: File of the class names: one per line, YAML or JSON; default from the model's metadata or the file next
            to it.
        layout: Output layout of the model, if it is not detected.
        out: File of the drawn copy; default NAME-drawn.png in this folder.
        threshold: Lowest score of a detection.
        slice_side: Side in pixels of the slices of a larger image; 0: no slicing.
        suggest: Propose layout files, most plausible first, and draw the best ones side by side.
        write: Write the chosen proposal as NAME.layout.toml next to the model.
        choose: Rank of the proposal to write.
        size: Height and width of the input in pixels for --suggest, if the graph leaves them open; default 640 x 640.

    Raises:
        ModelError: The model cannot be served.
        MediaError: The image cannot be read.
    """
    from labelloop.service.media import load_image
    from ml_backend.cli.suggest import print_suggestions
    from ml_backend.inference.detector import load_detector
    from ml_backend.inference.slicing import Slices
    from ml_backend.predict.inspect import describe, detect_on_image, detection_lines, draw_detections

    if suggest or write:
        print_suggestions(model, image, out=out, size=size, rank=choose if write else 0)
        return
    with TemporaryDirectory() as folder:  # opened as the ML backend does: its padding cut off where the graph allows it
        detector = load_detector(
            (model or embedded_model()).expanduser(), layout=layout, names=names, allow_numbered=True,
            cache_folder=Path(folder),
        )  # fmt: skip
    for line in describe(detector):
        print(line)
    if image is None:
        return
    detections = detect_on_image(
        detector, load_image(image.expanduser()).pixels, threshold=threshold, slices=Slices(slice_side)
    )
    for line in detection_lines(detections):
        print(line)
    out = out or Path(f"{image.stem}-drawn.png")
    draw_detections(detections).save(out)
    print(f"Drawn: {out}")
