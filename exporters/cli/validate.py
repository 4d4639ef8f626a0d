"""The commands that look for faults: dataset validate (any data set) and dataset verify (a version of ours)."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from exporters.console import Json, checked, counted, write_json
from exporters.dataset.pull import pull
from exporters.validate.folder import CHECKED, validate
from exporters.validate.issues import FLAWS, Problems
from exporters.validate.version import verify
from labelloop.service.scratch import scratch_folder
from labelloop.service.settings import Settings
from labelloop.service.store import Store, open_store

SHOWN = 20


def dataset_validate(place: str, *, version: str = "latest", json: Json = None) -> int:
    """Look for what no loader notices: double ids, boxes outside their image, mixed rows, images without labels.

    Takes every layout that `labelloop import` takes, in a folder, a zip or a bucket: COCO, Pascal VOC, YOLO (detect,
    segment, OBB, pose; also as Darknet and Label Studio lay it out) and Ultralytics NDJSON. Versions that
    `labelloop export` makes are compared with their manifest too: checksums, sizes and numbers.

    ```
    labelloop dataset validate ./somebody-elses-yolo
    labelloop dataset validate annotations/instances_train.json
    labelloop dataset validate s3://bucket/cars
    ```

    Args:
        place: a folder, a zip, a COCO or NDJSON file, or s3://BUCKET/PREFIX; also where a data set of ours lives.
        version: which version of a data set of ours: "latest", or a number: 3 or v000003.
        json: where to write the findings as JSON ("-": to the standard output).

    Returns:
        0, or 1 where something is wrong.
    """
    store, report_to = _store(place), checked(json)
    if store is None:
        path = unquote(urlsplit(place).path) if place.startswith("file://") else place
        return _say(place, validate(path), json=report_to)
    manifest, problems = verify(store, version)
    if manifest is not None and not problems:
        known = [name for name in manifest.formats if name in CHECKED]
        with scratch_folder() as scratch:
            if known:
                folder = scratch / "dataset"  # without the lock of the scratch folder
                to = folder / known[0] if len(known) == 1 else folder
                pull(store, manifest, to=to, formats=known, copies=False)
                validate(folder, problems)
    return _say(f"{place} {manifest.version if manifest else version}", problems, json=report_to)


def dataset_verify(url: str, *, version: str = "latest", json: Json = None) -> int:
    """Compare a version with its manifest: every file's size and SHA-256, and the numbers of images and labels.

    Args:
        url: where the data set lives: file:///DIR or s3://BUCKET/PREFIX.
        version: "latest", or a number: 3 or v000003.
        json: where to write the findings as JSON ("-": to the standard output).

    Returns:
        0, or 1 where something is wrong.
    """
    manifest, problems = verify(open_store(url, Settings()), version)
    return _say(f"{url} {manifest.version if manifest else version}", problems, json=json)


def _store(place: str) -> Store | None:
    """The store of a data set of ours; ``None`` for one of somebody else's, or one that was pulled."""
    if place.startswith("s3://"):
        store = open_store(place, Settings())
        names = ("HEAD.json", "versions/") if not place.endswith((".json", ".ndjson", ".jsonl", ".zip")) else ()
        return store if any(next(iter(store.list(name)), "") for name in names) else None
    path = Path(unquote(urlsplit(place).path)) if place.startswith("file://") else Path(place).absolute()
    ours = (path / "HEAD.json").is_file() or any(path.glob("versions/v*/manifest.json"))
    return open_store(path.as_uri(), Settings()) if ours else None


def _say(place: str, problems: Problems, *, json: Path | None) -> int:
    status = 1 if problems else 0
    report = {
        "place": place,
        "looked_at": dict(problems.looked_at),
        "counts": dict(problems.counts),
        "problems": problems.kept,
    }
    if write_json(json, report):
        return status
    looked = ", ".join(f"{number:,} {what}" for what, number in problems.looked_at.items())
    print(f"{place}: {looked or 'nothing'} looked at")
    for name, number in problems.counts.items():
        flaw = FLAWS[name]
        print(f"\n{number:,} x {name}: {flaw.title}\n  harm: {flaw.harm}\n  fix:  {flaw.fix}")
        kept = [each for each in problems.kept if each.flaw == name]
        for each in kept[:SHOWN]:
            print("  - " + ": ".join(filter(None, (each.file, each.where, each.detail))))
        if number > SHOWN:
            print(f"    and {number - SHOWN:,} more")
    print("\nnothing wrong" if not problems else f"\n{counted(problems.counts.total(), 'fault')}")
    return status
