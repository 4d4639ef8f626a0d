"""WebDataset: numbered tar files a split, photo and labels of an image side by side, read from end to end.

Format: https://github.com/webdataset/webdataset: files of one sample share their name up to the first dot. Here
``000000000012.jpg`` and ``000000000012.json`` are image 12. The same data set gives the same bytes.
"""

import io
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from exporters.formats.base import Place, Record
from exporters.formats.coco import Coco

SAMPLES = 1000
SHARD_BYTES = 1 << 30
"""A shard is full at so many samples or bytes, whichever comes first."""

_WAITING = "samples-{split}.jsonl"


class _Sample(msgspec.Struct):
    image: dict[str, Any]
    annotations: msgspec.Raw
    source: dict[str, Any] = {}


class WebDataset(Coco):
    """A sample's ``json`` is the image as COCO has it, with its ``annotations``.

    Line n of ``classes.txt`` names the class of ``category_id`` n, which is always the class map's. The ``license`` and
    the ``info`` that an image came with are in its sample. Shards hold the photos too: they are packed when
    ``dataset pull`` has laid them out. Without photos (``--no-images``) they hold the labels alone.
    """

    name: ClassVar[str] = "webdataset"
    own_ids: ClassVar[bool] = False
    image_folder: ClassVar[str] = ".photos/{split}"

    def write_files(self, records: Iterable[Record], place: Place) -> None:
        """Write the classes, and the samples as they wait for their photos."""
        with ExitStack() as opened:
            waiting = {
                split: opened.enter_context(place.open(_WAITING.format(split=split))) for split in self.job.splits
            }
            for record in records:
                waiting[record.split].write(bytes(record.body) + b"\n")
        lists = {"classes.txt": self.job.classes, "keypoints.txt": self.job.skeleton.names if self.job.skeleton else ()}
        for name, words in lists.items():
            if words:
                place.write(name, "".join(f"{' '.join(word.split())}\n" for word in words).encode())

    def finish(self, root: Path) -> None:
        """Pack photos and labels; what was laid out for it goes."""
        for split in self.job.splits:
            waiting = root / _WAITING.format(split=split)
            folder = root / self.image_folder.format(split=split)
            photos = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
            with waiting.open("rb") as lines:
                _pack(_samples(lines, folder, photos), root, split)
            waiting.unlink()
        shutil.rmtree(root / ".photos", ignore_errors=True)


def _samples(lines: Iterable[bytes], folder: Path, photos: set[str]) -> Iterator[list[tuple[str, bytes]]]:
    """The files of each sample. Where there are photos, an image without one is left out: pull has told it."""
    for line in lines:
        sample = msgspec.json.decode(line, type=_Sample)
        name = sample.image["file_name"]
        if photos and name not in photos:
            continue
        key = f"{sample.image['id']:012d}"
        label = msgspec.json.encode(sample.image | sample.source | {"annotations": sample.annotations})
        files = [(f"{key}.json", label)]
        if photos:
            files.insert(0, (f"{key}.{name.rpartition('.')[2]}", (folder / name).read_bytes()))
        yield files


def _pack(samples: Iterable[list[tuple[str, bytes]]], root: Path, split: str) -> None:
    with ExitStack() as opened:
        import tarfile

        tar: tarfile.TarFile | None = None
        number = held = size = 0
        for files in samples:
            if tar is None or held == SAMPLES or size >= SHARD_BYTES:
                opened.close()  # the full shard
                path = root / f"{split}-{number:06d}.tar"
                tar = opened.enter_context(tarfile.open(path, "w", format=tarfile.USTAR_FORMAT))
                number, held, size = number + 1, 0, 0
            for name, data in files:
                info = tarfile.TarInfo(name)  # no time, no owner: the same bytes from the same data set
                info.size = len(data)
                info.mode = 0o644
                tar.addfile(info, io.BytesIO(data))
                size += len(data)
            held += 1
