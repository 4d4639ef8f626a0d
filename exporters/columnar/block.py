"""A block of converted tasks: its images with their objects, in the order of the tasks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from exporters.columnar.columns import Columns
from exporters.model.records import Image, Item


class Block(msgspec.Struct, frozen=True):
    """Images with their objects.

    Iterating yields each image as an `Item`, which is all that most formats need. A format that writes millions of
    boxes and polygons encodes ``columns`` at once and takes only the other images from ``items``.

    Attributes:
        images: The images.
        tasks: For each image, the index of its task in the block.
        items: The images whose objects are not in columns, by index in ``images``.
        columns: The objects of the other images: boxes and polygons with an area, without attributes.
        columnar: For each image of ``columns``, its index in ``images``.
        sources: For each image of ``columns``, its address.
        coco_fields: `Item.coco_fields` of the images that have any, by index in ``images``.
        answers: `Item.choices` and `Item.texts` of the images of ``columns`` that have any, by index in ``images``.
    """

    images: Sequence[Image]
    tasks: Sequence[int]
    items: Mapping[int, Item]
    columns: Columns | None = None
    columnar: Sequence[int] = ()
    sources: Sequence[str] = ()
    coco_fields: Mapping[int, Mapping[str, Any]] = {}
    answers: Mapping[int, tuple[tuple[str, ...], tuple[str, ...]]] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Item]:
        columnar_index = {index: number for number, index in enumerate(self.columnar)}
        for index, image in enumerate(self.images):
            if index in self.items:
                yield self.items[index]
            else:
                assert self.columns is not None
                choices, texts = self.answers.get(index, ((), ()))
                yield Item(
                    image,
                    self.columns.objects(columnar_index[index]),
                    source=self.sources[columnar_index[index]],
                    choices=choices,
                    texts=texts,
                    coco_fields=self.coco_fields.get(index, {}),
                )
