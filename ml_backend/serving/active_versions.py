"""Owns the pointer: which model version is active, for every project and for single ones. One object, swapped whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from labelloop.service.store import Changed, NotThere, Store, StoreError

KEY = "models/active.json"
EVERYWHERE = ""
"""Name of the place that holds for every project without an activation of its own."""

GIVEN = ""
"""In place of a version: none is active here, so that the next wider place decides, and last the model that the
backend was started with."""

KEPT = 50
"""Activations of a place that can be taken back."""

TRIES = 20


class Place(msgspec.Struct, frozen=True):
    """What is active in one place.

    Attributes:
        version: The version, or `GIVEN`.
        before: What was active before it, the oldest first.
        serial: Grows with every change, so that even the same version activated anew is a change.
    """

    version: str = GIVEN
    before: tuple[str, ...] = ()
    serial: int = 0

    def activated(self, version: str) -> Place:
        """With another version active."""
        before = self.before if version == self.version else (*self.before, self.version)[-KEPT:]
        return Place(version, before, self.serial + 1)

    def rolled_back(self) -> Place:
        """With the one before active again."""
        return Place(self.before[-1], self.before[:-1], self.serial + 1)


class Pointer(msgspec.Struct, frozen=True):
    """The places by name: `EVERYWHERE`, or a project's id."""

    places: Mapping[str, Place] = {}

    def place(self, project: str = EVERYWHERE) -> Place:
        """One place; empty where nothing was ever activated there."""
        return self.places.get(project, Place())

    def active(self, project: str = EVERYWHERE) -> str:
        """The version for a project: its own, else everybody's, else `GIVEN`."""
        return self.place(project).version or self.place().version

    def choices(self, project: str = EVERYWHERE) -> tuple[str, ...]:
        """What may be served, the wanted first: then what was active before, and last `GIVEN`."""
        own, shared = self.place(project), self.place()
        places = (own, shared) if own.version else (shared,)
        said = [version for place in places for version in (place.version, *reversed(place.before))]
        return tuple(dict.fromkeys([*(version for version in said if version != GIVEN), GIVEN]))

    def used(self) -> frozenset[str]:
        """Every version that is active somewhere."""
        return frozenset(place.version for place in self.places.values()) - {GIVEN}

    def having(self, project: str, place: Place) -> Pointer:
        """With another state of one place."""
        return Pointer({**self.places, project: place})


class NothingBefore(StoreError):
    """There is no earlier activation to go back to."""

    code = "nothing_before"
    status = 409

    def __init__(self, project: str) -> None:
        where = f"for project {project}" if project else "for every project"
        super().__init__("models", "", f"nothing was active {where} before, so there is nothing to go back to")


def read_pointer(store: Store) -> tuple[Pointer, str | None]:
    """The pointer, and the etag that a swap takes: empty and None where nothing was ever activated.

    Raises:
        StoreError: The store cannot be read, or holds something else there.
    """
    try:
        data, etag = store.read(KEY)
    except NotThere:
        return Pointer(), None
    return decode(store.url, data), etag


def decode(url: str, data: bytes) -> Pointer:
    """The pointer out of its bytes."""
    try:
        return msgspec.json.decode(data, type=Pointer)
    except msgspec.MsgspecError as error:
        raise StoreError(url, KEY, f"it is not the list of active models: {error}") from None


def activate_in(store: Store, version: str, project: str = EVERYWHERE) -> Place:
    """Makes a version active in a place. Of two at once both count, one after the other.

    Returns:
        The place as it is now.
    """
    return _change(store, project, lambda place: place.activated(version))


def roll_back_in(store: Store, project: str = EVERYWHERE) -> Place:
    """Goes back to what was active before.

    Raises:
        NothingBefore: Nothing was.
    """

    def back(place: Place) -> Place:
        if not place.before:
            raise NothingBefore(project)
        return place.rolled_back()

    return _change(store, project, back)


def forget_in(store: Store, versions: frozenset[str], project: str = EVERYWHERE) -> Place:
    """Takes versions out of what a place can go back to: they are about to be removed.

    Returns:
        The place as it is now.
    """

    def without(place: Place) -> Place:
        before = tuple(version for version in place.before if version not in versions)
        return Place(place.version, before, place.serial)

    return _change(store, project, without)


def _change(store: Store, project: str, change: Callable[[Place], Place]) -> Place:
    for left in reversed(range(TRIES)):
        pointer, etag = read_pointer(store)
        place = change(pointer.place(project))
        try:
            store.swap(KEY, msgspec.json.encode(pointer.having(project, place)), etag=etag)
        except Changed:
            if not left:
                raise
        else:
            return place
    raise AssertionError  # pragma: no cover - the loop returns or raises
