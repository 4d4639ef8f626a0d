"""``labelloop dataset pull``: a version laid out as plain folders."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from exporters.console import counted, progress_bar
from exporters.dataset.pull import pull
from exporters.dataset.versions import read_version
from exporters.formats import format_names
from labelloop.service.logging import setup_logging
from labelloop.service.media import Media
from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from labelloop.service.studio import Studio

_SHOWN = 3


def dataset_pull(
    url: str,
    *,
    to: Path,
    version: str = "latest",
    formats: Annotated[str | None, Parameter(name=["--format"])] = None,
    images: bool = True,
    link: Annotated[bool, Parameter(negative=())] = False,
    upright: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Lay a version of a data set out as plain folders that a trainer reads.

    Nothing is half there: the folder changes when everything has come. A later version takes the place of an earlier
    one in it, and photos that were there are not fetched again; what else is in the folder stays.

    ```
    labelloop dataset pull s3://bucket/cars --format yolo-detect --to ./cars
    yolo detect train data=./cars/data.yaml
    labelloop dataset pull /data/cars --version 3 --format coco,voc --to ./v3
    ```

    Args:
        url: where the data set lives: file:///DIR or s3://BUCKET/PREFIX.
        to: the folder to write; one sub-folder for each format when there are several.
        version: "latest", or a version's number: 3 or v000003.
        formats: the formats wanted, by commas; all of the version by default.
        images: lay the photos beside the labels too: the version's copies, or from their source.
        link: link photos that lie on this machine instead of copying them. Some trainers mend damaged photos in place.
        upright: turn the pixels of photos that lie on their side and say so in their EXIF, as phones write them: for
            trainers that open photos by Pillow alone, such as RF-DETR, DETR and all others of torchvision.

    Returns:
        0, or 1 where photos could not be had.
    """
    settings = Settings()
    setup_logging(settings)
    store = open_store(url, settings)
    with ExitStack() as opened:
        media = None
        if images:
            studio = Studio.from_settings(settings) if settings.label_studio_api_key.get_secret_value() else None
            media = opened.enter_context(closing(Media(settings, studio)))
            if studio is not None:
                opened.callback(studio.close)
        progress = opened.enter_context(progress_bar("images"))
        pulled = pull(
            store,
            read_version(store, version),
            to=to,
            formats=format_names(formats) if formats else (),
            media=media,
            link=link,
            upright=upright,
            progress=progress,
        )
    for name, folder in pulled.folders.items():
        print(f"{pulled.version} {name}: {folder}")
    print(f"{pulled.files} files, {counted(pulled.photos, 'photo')}{_lying(pulled.lying, upright=upright)}")
    if pulled.missing:
        print(_missing(pulled.missing), file=sys.stderr)
    return 1 if pulled.missing else 0


def _lying(photos: int, *, upright: bool) -> str:
    if not photos:
        return ""
    if upright:
        return f", {photos} of them turned upright"
    return (
        f"\n{counted(photos, 'photo')} to be turned by EXIF: OpenCV (Ultralytics, detectron2) does so, Pillow alone"
        " (torchvision, RF-DETR) does not. With --upright the pixels are turned."
    )


def _missing(missing: Sequence[tuple[str, str]]) -> str:
    """The photos that could not be had, by reason."""
    by_reason: dict[str, list[str]] = {}
    for address, reason in missing:
        by_reason.setdefault(reason, []).append(address)
    lines = [f"{counted(len(missing), 'photo')} could not be had; the labels are there."]
    for reason, addresses in by_reason.items():
        lines.append(f"  {counted(len(addresses), 'photo')}: {reason}")
        lines += [f"    {address}" for address in addresses[:_SHOWN]]
        if len(addresses) > _SHOWN:
            lines.append(f"    and {len(addresses) - _SHOWN} more")
    return "\n".join(lines)
