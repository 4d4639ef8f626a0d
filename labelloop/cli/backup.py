"""The commands `labelloop backup` and `labelloop restore`."""

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from labelloop.service.settings import Settings


def backup(
    file: Path,
    *,
    database: bool = True,
    label_studio: bool = True,
    datasets: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write the home folder into one file; the services may keep running.

    It contains the database, policies, settings with their secrets, models, and the projects, annotations and uploads
    of the Label Studio that `labelloop up` runs, without caches and logs. Keep the file as secret as a password.

    ```
    labelloop backup labelloop-2026-11-30.tar.gz
    ```

    Args:
        file: The file to write, such as labelloop.tar.gz; it must not exist.
        database: Include the database. `--no-database` if it is on Postgres.
        label_studio: Include Label Studio's own data. `--no-label-studio` leaves it out.
        datasets: Include the data sets in the home folder's store, which may be large.
    """
    from labelloop.stack.backup import write_backup

    settings = Settings()
    file = file.expanduser().absolute()
    written = write_backup(settings, file, database=database, label_studio=label_studio, datasets=datasets)
    files = written.manifest.files
    print(f"{len(files)} files of {settings.home} are in {file} ({file.stat().st_size / 1e6:.1f} MB).")
    print("It contains secrets: keep it where only you can read it.")
    for what in written.missing:
        print(f"Not included: {what}")
    print("To restore it: labelloop restore FILE")


def restore(file: Path, *, force: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Restore a home folder from a backup. All files are checked before the first is written.

    ```
    LABELLOOP_HOME=/srv/new labelloop restore labelloop-2026-11-30.tar.gz
    ```

    Args:
        file: The file that `labelloop backup` wrote.
        force: Replace a home folder that is not empty; its content is moved to a folder next to it.
    """
    from labelloop.stack.backup import restore_backup

    settings = Settings()
    restored = restore_backup(settings, file.expanduser().absolute(), force=force)
    manifest = restored.manifest
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.created_at))
    print(
        f"{settings.home} is restored to {when}: {len(manifest.files)} files, written by labelloop {manifest.version}."
    )
    if restored.moved:
        print(f"The previous content is in {restored.moved}")
    for what in restored.missing:
        print(f"Not restored: {what}")
    print("Start it: labelloop up, or the services one by one. Check it: `labelloop doctor`.")
