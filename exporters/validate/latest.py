"""Compare ``latest/`` with the version that its ``VERSION.json`` names."""

import hashlib
from contextlib import closing

from exporters.dataset.latest import FOLDER, VERSION_FILE, add_plain_files, read_latest
from exporters.dataset.mirror import open_mirror
from exporters.dataset.plain_files import PlainVersion
from exporters.dataset.versions import manifest_key, read_head, read_version
from exporters.errors import DatasetDamaged, VersionNotFound
from exporters.validate.issues import IssueReport
from labelloop.service.store import Store

_PLACE = FOLDER + VERSION_FILE


def check_latest(store: Store, report: IssueReport) -> None:
    """Report files that are missing, differ or are not of the version, an unfinished update, and an old version.

    A data set without the folder has no issue.
    """
    if next(iter(store.list(FOLDER)), None) is None:
        return
    state, (head, _) = read_latest(store), read_head(store)
    if state is None:
        report.add("latest-state", _PLACE, detail="missing or not readable")
        return
    if not state.is_complete:
        report.add("latest-state", _PLACE, detail=f"an update to {state.version} has not finished")
        return
    if head is not None and head.version != state.version:
        report.add("latest-old", _PLACE, detail=f"{state.version}, the published version is {head.version}")
    try:
        manifest = read_version(store, state.version)
        if hashlib.sha256(store.get(manifest_key(state.version))).hexdigest() != state.manifest_sha256:
            report.add("latest-state", _PLACE, detail=f"the manifest of {state.version} has another checksum")
        with store.scratch() as scratch, PlainVersion(store, manifest, scratch) as plain:
            plain.pack_images(archives=False)
            mirror = open_mirror(
                store,
                FOLDER,
                keep=VERSION_FILE,
                on_files=lambda _: None,
                on_difference=lambda path, how: report.add("latest-file", FOLDER + path, detail=how),
            )
            with closing(mirror):
                add_plain_files(mirror, store, plain)
                mirror.finish()
            report.checked["files of latest/"] += mirror.counts.same + mirror.counts.written
    except (DatasetDamaged, VersionNotFound) as error:
        report.add("latest-state", _PLACE, detail=error.message)
