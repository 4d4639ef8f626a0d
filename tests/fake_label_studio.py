"""`FakeLabelStudio`: the product's `Studio` client over a Label Studio Community 1.23.2 in memory.

Only HTTP is replaced, so paging, checks and errors are the client's own. `tests/system/test_fake_label_studio.py`
compares it with the stock server, call by call.
"""

import inspect
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import msgspec

from labelloop.service.studio import Studio, StudioNotFound, StudioRefused
from labelloop.service.studio.snapshots import SnapshotsApi
from labelloop.service.studio.tasks import TasksApi
from labelloop.service.studio.webhooks import WebhooksApi
from tests.label_studio_in_memory import Json, LabelStudioInMemory, Query, through_json


@dataclass(frozen=True)
class Call:
    """One call of the client: the method's name and its arguments by name, without those that are None."""

    name: str
    arguments: Json


@dataclass
class Fault:
    """A planned failure: `error` is raised before or after a call in `calls`, once `skip` such calls succeeded.

    `items`: for a call that yields, the number of items that arrive first.
    """

    error: BaseException
    calls: Collection[str]
    when: str = "before"
    skip: int = 0
    items: int = 0


class FakeLabelStudio(LabelStudioInMemory, Studio):
    """A client and its Label Studio in one object: tests call `Studio`'s methods and look at what is stored.

    Attributes:
        calls: All calls of the client so far.
        refuse: Name of a call -> the error that each such call raises.
    """

    def __init__(self, *, url: str = "http://label-studio", **options: Any) -> None:
        super().__init__(**options)  # not Studio's: there is no HTTP client to create
        self.url = url
        self.calls: list[Call] = []
        self.refuse: dict[str, BaseException] = {}
        self._faults: list[Fault] = []

    # --- faults and the record of calls ------------------------------------------------------------------------------

    def fail_next(
        self,
        when: str = "before",
        *,
        calls: Collection[str] | None = None,
        skip: int = 0,
        items: int = 0,
        error: BaseException | None = None,
    ) -> None:
        """Let one call fail, by default the next write.

        Args:
            when: `before` or `after` the call takes effect.
            calls: Names of calls; None: every write.
            skip: Number of such calls that succeed first.
            items: Number of items that a call that yields yields first.
            error: The error; by default 500 before the call, and 504 (a lost answer) after it.
        """
        status, detail = (500, "it failed") if when == "before" else (504, "the answer was lost")
        error = error or StudioRefused("request", status, detail)
        self._faults.append(Fault(error, WRITES if calls is None else calls, when, skip, items))

    def clear_faults(self) -> None:
        """Forget faults that have not happened, and `refuse`."""
        self._faults.clear()
        self.refuse.clear()

    @property
    def writes(self) -> list[Call]:
        """The calls so far that change something."""
        return [call for call in self.calls if call.name in WRITES]

    def calls_of(self, *names: str) -> list[Json]:
        """The arguments of all calls of these methods so far."""
        return [call.arguments for call in self.calls if call.name in names]

    def before_call(self, call: Call) -> None:
        """Runs before every call; may raise. Override it for faults of a test's own."""
        if call.name in self.refuse:
            raise self.refuse[call.name]
        self._raise_fault(call, "before")

    def after_call(self, call: Call) -> None:
        """Runs after every call that took effect; may raise."""
        self._raise_fault(call, "after")

    def _raise_fault(self, call: Call, when: str) -> None:
        for fault in [fault for fault in self._faults if fault.when == when and not fault.items]:
            if call.name in fault.calls:
                if fault.skip:
                    fault.skip -= 1
                else:
                    self._faults.remove(fault)
                    raise fault.error

    def _break_off(self, call: Call, items: Iterator[Any]) -> Iterator[Any]:
        for count, item in enumerate(items):
            for fault in self._faults:
                if call.name in fault.calls and fault.items and count >= fault.items:
                    self._faults.remove(fault)
                    raise fault.error
            yield item

    # --- HTTP --------------------------------------------------------------------------------------------------------

    @property
    def cache_key(self) -> str:
        return f"fake {self.url}"

    def close(self) -> None:
        """There is nothing to close."""

    def authorization(self, *, refused: str | None = None) -> str:
        return "Token fake"

    def content(
        self,
        method: str,
        path: str,
        *,
        params: Query | None = None,
        json: Any = None,
        files: Any = None,
        retry: bool | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        with self._lock:
            status, answer = self.answer(method, path, dict(params or {}), through_json(json), files)
            body = b"" if answer is None else msgspec.json.encode(answer)
        if status >= 400:
            raise (StudioNotFound if status == 404 else StudioRefused)(f"{method} /{path.lstrip('/')}", status, answer)
        return body

    def download(self, path: str, to: Path, **options: Any) -> None:
        body = self.content("GET", path)
        to.write_bytes(body)
        if progress := options.get("progress"):
            progress(len(body))


def _observed(name: str) -> Callable[..., Any]:
    """The client's method, with faults and a record of the call."""
    method = getattr(Studio, name)
    signature = inspect.signature(method)

    def begin(studio: FakeLabelStudio, args: tuple[Any, ...], kwargs: Json) -> Call:
        arguments = signature.bind(studio, *args, **kwargs).arguments
        arguments |= arguments.pop("fields", {})
        call = Call(name, {key: value for key, value in arguments.items() if key != "self" and value is not None})
        studio.calls.append(call)
        studio.before_call(call)
        return call

    @wraps(method)
    def call_once(self: FakeLabelStudio, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            call = begin(self, args, kwargs)
            answer = method(self, *args, **kwargs)
            self.after_call(call)
            return answer

    @wraps(method)
    def iterate(self: FakeLabelStudio, *args: Any, **kwargs: Any) -> Iterator[Any]:
        call = begin(self, args, kwargs)
        yield from self._break_off(call, method(self, *args, **kwargs))
        self.after_call(call)

    return iterate if inspect.isgeneratorfunction(method) else call_once


CALLS = [
    name
    for owner in (Studio, TasksApi, WebhooksApi, SnapshotsApi)
    for name, member in vars(owner).items()
    if inspect.isfunction(member) and not name.startswith("_")
]
WRITES = frozenset(
    name for name in CALLS if name.partition("_")[0] in {"add", "create", "delete", "import", "update", "upload"}
)
for _name in CALLS:
    setattr(FakeLabelStudio, _name, _observed(_name))
