"""The commands `labelloop backup` and `labelloop restore`."""

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from labelloop.service.settings import Settings


def backup(file: Path, *, database: bool = True, label_studio: bool = True, datasets: bool = False) -> None:
    """Write the home folder into one file, while everything runs.

    Inside: the database, policies, settings with their secrets, models, and the projects, annotations and uploads of
    the Label Studio that `labelloop up` runs. Caches and logs are left out. Keep the file as you keep a password.

    Args:
        file: The file to write, such as labelloop.tar.gz; it must not be there.
        database: The database as well. `--no-database` where it is on Postgres.
        label_studio: Label Studio's own data as well. `--no-label-studio` leaves it out.
        datasets: The data sets in the home's store as well, which may be large.
    """
    from labelloop.stack.backup import write_backup

    settings = Settings()
    file = file.expanduser().absolute()
    written = write_backup(settings, file, database=database, label_studio=label_studio, datasets=datasets)
    files = written.manifest.files
    print(f"{len(files)} files of {settings.home} are in {file} ({file.stat().st_size / 1e6:.1f} MB).")
    print("It holds secrets: keep it where only you can read it.")
    for what in written.missing:
        print(f"Not inside: {what}")
    print("To make a home folder of it: labelloop restore FILE")


def restore(file: Path, *, force: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Make a home folder of a backup. Every file is checked before the first is put in its place.

    Args:
        file: What `labelloop backup` wrote.
        force: Replace a home folder that is not empty; what is there is moved aside, beside the home folder.
    """
    from labelloop.stack.backup import restore_backup

    settings = Settings()
    restored = restore_backup(settings, file.expanduser().absolute(), force=force)
    manifest = restored.manifest
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.created_at))
    print(
        f"{settings.home} is as it was on {when}: {len(manifest.files)} files, written by labelloop {manifest.version}."
    )
    if restored.moved:
        print(f"What was there before is in {restored.moved}")
    for what in restored.missing:
        print(f"Not restored: {what}")
    print("Start it: labelloop up, or the services one by one. `labelloop doctor` says whether anything is wrong.")
