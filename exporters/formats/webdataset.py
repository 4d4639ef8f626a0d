"""WebDataset: numbered tar files per split with the image and labels of each sample next to each other.

Format: https://github.com/webdataset/webdataset: files of one sample share their name up to the first dot. Here
``000000000012.jpg`` and ``000000000012.json`` are image 12. The same data set gives the same bytes.
"""

import io
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from exporters.formats.base import ImageReader, OutputTree, Record
from exporters.formats.coco import Coco
from exporters.model.manifest import ImageCopy

SAMPLES = 1000
# A shard is full at `SAMPLES` samples or at this many bytes.
SHARD_BYTES = 1 << 30

_WAITING = "samples-{split}.jsonl"


class _Sample(msgspec.Struct):
    image: dict[str, Any]
    annotations: msgspec.Raw
    source: dict[str, Any] = {}


class WebDataset(Coco):
    """A sample's ``json`` is the COCO image object with its ``annotations``.

    Line n of ``classes.txt`` names the class of ``category_id`` n, which is always the class map's. The ``license`` and
    ``info`` of an imported image are in its sample. Shards also hold the images: they are packed after ``dataset
    pull`` has laid them out. Without images (``--no-images``) they hold the labels alone.
    """

    name: ClassVar[str] = "webdataset"
    original_ids: ClassVar[bool] = False
    image_folder: ClassVar[str] = ".photos/{split}"

    def write_files(self, records: Iterable[Record], output: OutputTree) -> None:
        """Write the classes, and the samples that wait for their images."""
        with ExitStack() as stack:
            waiting = {
                split: stack.enter_context(output.open(_WAITING.format(split=split))) for split in self.context.splits
            }
            for record in records:
                waiting[record.split].write(bytes(record.body) + b"\n")
        lists = {
            "classes.txt": self.context.classes,
            "keypoints.txt": self.context.skeleton.names if self.context.skeleton else (),
        }
        for name, words in lists.items():
            if words:
                output.write(name, "".join(f"{' '.join(word.split())}\n" for word in words).encode())

    def image_paths(
        self, records: Iterable[Record], copies: Iterable[tuple[str, ImageCopy]]
    ) -> Iterator[tuple[str, ImageCopy]]:
        """See `Format.image_paths`. Images are packed in the shards."""
        del records, copies
        return iter(())

    def finish(self, root: Path, images: ImageReader | None = None) -> None:
        """Pack images and labels into shards, and remove the intermediate files."""
        for split in self.context.splits:
            waiting = root / _WAITING.format(split=split)
            if images is None:
                read = _folder_reader(root / self.image_folder.format(split=split))
            else:
                read = images.split(split)
            with waiting.open("rb") as lines:
                _pack(_samples(lines, read), root, split)
            waiting.unlink()
        shutil.rmtree(root / ".photos", ignore_errors=True)


def _folder_reader(folder: Path) -> Callable[[str], bytes | None] | None:
    """Return a reader of the images in a folder; None if there are none."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return (lambda name: (folder / name).read_bytes() if name in names else None) if names else None


def _samples(lines: Iterable[bytes], read: Callable[[str], bytes | None] | None) -> Iterator[list[tuple[str, bytes]]]:
    """Yield the files of each sample. If there are images, samples without one are left out: pull reports them."""
    for line in lines:
        sample = msgspec.json.decode(line, type=_Sample)
        name = sample.image["file_name"]
        image = read(name) if read else None
        if read and image is None:
            continue
        key = f"{sample.image['id']:012d}"
        label = msgspec.json.encode(sample.image | sample.source | {"annotations": sample.annotations})
        files = [(f"{key}.json", label)]
        if image is not None:
            files.insert(0, (f"{key}.{name.rpartition('.')[2]}", image))
        yield files


def _pack(samples: Iterable[list[tuple[str, bytes]]], root: Path, split: str) -> None:
    with ExitStack() as stack:
        import tarfile

        tar: tarfile.TarFile | None = None
        number = samples_in_shard = size = 0
        for files in samples:
            if tar is None or samples_in_shard == SAMPLES or size >= SHARD_BYTES:
                stack.close()  # the full shard
                path = root / f"{split}-{number:06d}.tar"
                tar = stack.enter_context(tarfile.open(path, "w", format=tarfile.USTAR_FORMAT))
                number, samples_in_shard, size = number + 1, 0, 0
            for name, data in files:
                info = tarfile.TarInfo(name)  # no time, no owner: the same bytes from the same data set
                info.size = len(data)
                info.mode = 0o644
                tar.addfile(info, io.BytesIO(data))
                size += len(data)
            samples_in_shard += 1
