# ruff: noqa: INP001 - a script that the container runs, not a module of a package
"""The compose file's one-shot `setup`: the bucket, a demo project where there is no project yet, and its connection.

Runs at every start, changes only what is missing, and tells what it did. Everything is labelloop's own code.
"""

import sys
from pathlib import Path
from urllib.parse import urlsplit

from labelloop.connect import connect, show
from labelloop.service.connect_report import Change
from labelloop.service.errors import LabelloopError
from labelloop.service.settings import Settings
from labelloop.service.studio import NotFound, Studio
from labelloop.stack import demo_project as demo
from labelloop.stack.progress import Steps

MARKER = "setup-project"  # in the home folder: the id of the project that we made


def ensure_bucket(settings: Settings) -> Change | None:
    """Make the store's bucket where it is missing; None for a store that is no bucket of a server we were told of."""
    if not settings.store_url.startswith("s3://") or not settings.s3_endpoint_url:
        return None
    from botocore.exceptions import ClientError

    from labelloop.service.store.s3_client import s3_client

    client = s3_client(settings)
    bucket = urlsplit(settings.store_url).netloc
    try:
        client.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise LabelloopError(
                f"The bucket {bucket} at {settings.s3_endpoint_url} cannot be looked at: {error}.",
                fix="Check LABELLOOP_S3_ACCESS_KEY_ID and LABELLOOP_S3_SECRET_ACCESS_KEY.",
            ) from error
        client.create_bucket(Bucket=bucket)
        return Change(f"bucket {bucket}", done=True)
    return Change(f"bucket {bucket}", done=False)


def ensure_project(studio: Studio, settings: Settings, steps: Steps) -> tuple[int | None, bool]:
    """The demo project's id, and whether this run made it; None where people have projects of their own and no demo."""
    marker = settings.home / MARKER
    if marker.exists():
        try:
            return int(studio.project(int(marker.read_text()))["id"]), False
        except NotFound:
            return None, False  # they deleted it: it is not forced on them again
    if studio.projects():
        return None, False
    source = demo.packaged_source(settings.home / "photos", None)
    photos = source.files()
    with steps.step(f"making the project {source.title!r} with {len(photos)} photographs") as step:
        project = demo.create_project(studio, source.title)
        demo.upload(studio, project, photos, step)
    marker.write_text(str(project))
    return project, True


def main() -> int:
    """Set up what is missing; 1 when something could not be."""
    settings, steps = Settings(), Steps()
    try:
        if change := ensure_bucket(settings):
            show(change)
        studio = Studio.from_settings(settings)
        project, new = ensure_project(studio, settings, steps)
        if project is None:
            print("No demo project. Connect one of yours: docker compose exec worker labelloop connect PROJECT")
            return 0
        connect(project, settings, studio=studio)
        if new:
            with steps.step("pre-labelling every photograph") as step:
                demo.prelabel(studio, project, step, settings=settings, log=Path("docker compose logs ml-backend"))
    except LabelloopError as error:
        print(error.message, f"  {error.fix}" if error.fix else "", sep="\n", file=sys.stderr)
        return 1
    print(f"Project {project} is connected. Look it over: docker compose exec worker labelloop doctor {project}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
