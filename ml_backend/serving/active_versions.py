"""The active model version, for all projects and per project: one object on the store, replaced atomically."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from labelloop.service.store import ObjectChanged, ObjectNotFound, Store, StoreError

KEY = "models/active.json"
# Key of the state that applies to every project without its own activation.
ALL_PROJECTS = ""

# Stands for no active version: the state of all projects applies, and last the model that the backend was started with.
DEFAULT_MODEL = ""

# Longest history of a state: how many activations can be rolled back.
MAX_HISTORY = 50

MAX_ATTEMPTS = 20


class ActivationState(msgspec.Struct, frozen=True):
    """The active version of one project or of all projects.

    Attributes:
        version: The version, or `DEFAULT_MODEL`.
        before: Previously active versions, oldest first.
        serial: Incremented by every change, so that activating the same version again is a change too.
    """

    version: str = DEFAULT_MODEL
    before: tuple[str, ...] = ()
    serial: int = 0

    def activated(self, version: str) -> ActivationState:
        """Return the state with another version active."""
        before = self.before if version == self.version else (*self.before, self.version)[-MAX_HISTORY:]
        return ActivationState(version, before, self.serial + 1)

    def rolled_back(self) -> ActivationState:
        """Return the state with the previous version active."""
        return ActivationState(self.before[-1], self.before[:-1], self.serial + 1)


class Pointer(msgspec.Struct, frozen=True):
    """The activation states by key: `ALL_PROJECTS` or a project id."""

    places: Mapping[str, ActivationState] = {}

    def state(self, project: str = ALL_PROJECTS) -> ActivationState:
        """Return one state; empty if nothing was ever activated there."""
        return self.places.get(project, ActivationState())

    def active(self, project: str = ALL_PROJECTS) -> str:
        """Return the version of a project: its own, else that of all projects, else `DEFAULT_MODEL`."""
        return self.state(project).version or self.state().version

    def candidates(self, project: str = ALL_PROJECTS) -> tuple[str, ...]:
        """Return the versions to try in order: the active one, the previously active ones, and last `DEFAULT_MODEL`."""
        own, shared = self.state(project), self.state()
        states = (own, shared) if own.version else (shared,)
        candidates = [version for state in states for version in (state.version, *reversed(state.before))]
        return tuple(dict.fromkeys([*(version for version in candidates if version != DEFAULT_MODEL), DEFAULT_MODEL]))

    def used(self) -> frozenset[str]:
        """Return every version that is active for some project."""
        return frozenset(state.version for state in self.places.values()) - {DEFAULT_MODEL}

    def with_state(self, project: str, state: ActivationState) -> Pointer:
        """Return the pointer with one state replaced."""
        return Pointer({**self.places, project: state})


def read_pointer(store: Store) -> tuple[Pointer, str | None]:
    """Return the pointer and its etag for a swap; an empty pointer and None if nothing was ever activated.

    Raises:
        StoreError: The store cannot be read, or the object is not a pointer.
    """
    try:
        data, etag = store.read(KEY)
    except ObjectNotFound:
        return Pointer(), None
    return decode(store.url, data), etag


def decode(url: str, data: bytes) -> Pointer:
    """Decode the pointer; `url` names the store in errors."""
    try:
        return msgspec.json.decode(data, type=Pointer)
    except msgspec.MsgspecError as error:
        raise StoreError(url, KEY, f"it is not the list of active models: {error}") from None


def set_active(store: Store, version: str, project: str = ALL_PROJECTS) -> ActivationState:
    """Activate a version for a project or for all. Concurrent activations are applied one after the other.

    Returns:
        The new state.
    """
    return _change(store, project, lambda state: state.activated(version))


def roll_back_active(store: Store, project: str = ALL_PROJECTS) -> ActivationState:
    """Roll back to the previously active version.

    Raises:
        StoreError: There is none.
    """

    def back(state: ActivationState) -> ActivationState:
        if not state.before:
            where = f"for project {project}" if project else "for every project"
            reason = f"no version was active {where} before, so there is nothing to roll back to"
            raise StoreError("models", "", reason, code="nothing_before", status=409)
        return state.rolled_back()

    return _change(store, project, back)


def remove_from_history(store: Store, versions: frozenset[str], project: str = ALL_PROJECTS) -> ActivationState:
    """Remove versions from the history of a state, before they are deleted from the store.

    Returns:
        The new state.
    """

    def without(state: ActivationState) -> ActivationState:
        before = tuple(version for version in state.before if version not in versions)
        return ActivationState(state.version, before, state.serial)

    return _change(store, project, without)


def _change(store: Store, project: str, change: Callable[[ActivationState], ActivationState]) -> ActivationState:
    for left in reversed(range(MAX_ATTEMPTS)):
        pointer, etag = read_pointer(store)
        state = change(pointer.state(project))
        try:
            store.swap(KEY, msgspec.json.encode(pointer.with_state(project, state)), etag=etag)
        except ObjectChanged:
            if not left:
                raise
        else:
            return state
    raise AssertionError  # pragma: no cover - the loop returns or raises
