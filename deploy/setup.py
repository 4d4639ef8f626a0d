# ruff: noqa: INP001 - a script that the container runs, not a module of a package
"""Create the bucket and a connected demo project: the compose file's one-shot service `setup`.

It runs at every start, changes only what is missing and prints each step. It uses labelloop's own functions.
"""

import sys
from pathlib import Path
from urllib.parse import urlsplit

from labelloop.connect import connect, print_change
from labelloop.service.connect_report import ConnectionChange
from labelloop.service.errors import LabelloopError
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioNotFound
from labelloop.stack import demo_project as demo
from labelloop.stack.progress import Steps

# File in the home folder that holds the id of the project created by `setup`.
MARKER = "setup-project"


def ensure_bucket(settings: Settings) -> ConnectionChange | None:
    """Create the store's bucket if it is missing; None if the store is not S3 or has no endpoint URL of its own."""
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
                f"The bucket {bucket} at {settings.s3_endpoint_url} cannot be checked: {error}.",
                fix="Check LABELLOOP_S3_ACCESS_KEY_ID and LABELLOOP_S3_SECRET_ACCESS_KEY.",
            ) from error
        client.create_bucket(Bucket=bucket)
        return ConnectionChange(f"bucket {bucket}", done=True)
    return ConnectionChange(f"bucket {bucket}", done=False)


def ensure_project(studio: Studio, settings: Settings, steps: Steps) -> tuple[int | None, bool]:
    """The demo project's id, and whether this run created it; None if there are other projects and no demo project."""
    marker = settings.home / MARKER
    if marker.exists():
        try:
            return int(studio.project(int(marker.read_text()))["id"]), False
        except StudioNotFound:
            return None, False  # deleted by a user: it is not created again
    if studio.projects():
        return None, False
    source = demo.packaged_sources(settings.home / "photos", None)[0]
    images = source.files()
    with steps.step(f"creating the project {source.title!r} with {len(images)} images") as step:
        project = demo.create_project(studio, source)
        demo.upload_images(studio, project, images, step)
    marker.write_text(str(project))
    return project, True


def main() -> int:
    """Set up what is missing; return the exit status: 1 after an error."""
    settings, steps = Settings(), Steps()
    try:
        if change := ensure_bucket(settings):
            print_change(change)
        studio = Studio.from_settings(settings)
        project, new = ensure_project(studio, settings, steps)
        if project is None:
            print("No demo project. Connect one of yours: docker compose exec worker labelloop connect PROJECT")
            return 0
        connect(project, settings, studio=studio)
        if new:
            with steps.step("pre-labelling every image") as step:
                demo.prelabel(studio, project, step, settings=settings, log=Path("docker compose logs ml-backend"))
    except LabelloopError as error:
        print(error.message, f"  {error.fix}" if error.fix else "", sep="\n", file=sys.stderr)
        return 1
    print(f"Project {project} is connected. Check it: docker compose exec worker labelloop doctor {project}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
