"""A block of tasks on its way through an export: the images it gave, with their objects, in the order of the tasks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from exporters.columnar.columns import Columns
from exporters.model.records import Image, Item


class Block(msgspec.Struct, frozen=True):
    """Images with their objects.

    Iterating gives each image as an `Item`; that is all that most formats need. One that writes boxes and polygons by
    the million takes those of ``columns`` together and asks ``items`` only for the others.

    Attributes:
        images: The images.
        tasks: For each image the place, in the block, of the task that it belongs to.
        items: The images, by their places, whose objects are not in columns.
        columns: The objects of the others, which are usual: boxes and polygons with an area, without attributes.
        usual: For each image of ``columns`` its place in ``images``.
        about: `Item.about` of those images that have any, by their places.
    """

    images: Sequence[Image]
    tasks: Sequence[int]
    items: Mapping[int, Item]
    columns: Columns | None = None
    usual: Sequence[int] = ()
    sources: Sequence[str] = ()
    about: Mapping[int, Mapping[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Item]:
        places = {place: number for number, place in enumerate(self.usual)}
        for place, image in enumerate(self.images):
            if place in self.items:
                yield self.items[place]
            else:
                assert self.columns is not None
                yield Item(
                    image,
                    self.columns.objects(places[place]),
                    source=self.sources[places[place]],
                    about=self.about.get(place, {}),
                )
