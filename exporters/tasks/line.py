"""One task of a data set of tasks: its data, the chosen annotation in the flat form, and where both come from."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from exporters.model.file_names import public_url
from exporters.tasks.flat import FlatAnnotation, Json

# Prefix of the keys of a task's data that quality control writes.
QC_PREFIX = "qc_"
SIGNED = "addresses without the signature or password that they had"


class TaskLine(msgspec.Struct, frozen=True, kw_only=True):
    """A task with one annotation.

    Attributes:
        task: The task's id; without one, its position in the source.
        split: The split.
        data: The task's data, without what quality control wrote. Addresses have no signatures.
        meta: The task's ``meta``; empty if it has none.
        flat: The annotation.
        annotation: Who made it and when: see `annotation_json`.
        consensus: The consensus of the annotators with its provenance; None if none was formed.
        qc: What quality control wrote to the task's data, without the prefix ``qc_``.
        signed: The number of addresses from which a signature was removed.
    """

    task: int
    split: str
    data: Mapping[str, Any]
    meta: Mapping[str, Any] = {}
    flat: FlatAnnotation
    annotation: Mapping[str, Any]
    consensus: Mapping[str, Any] | None = None
    qc: Mapping[str, Any] = {}
    signed: int = 0

    def json(self) -> Json:
        """Return the line as JSON: docs/reference/flat-form.md."""
        line: Json = {"task": self.task, "split": self.split, "data": self.data}
        if self.meta:
            line["meta"] = self.meta
        line |= flat_json(self.flat)
        line |= {"annotation": self.annotation, "consensus": self.consensus}
        return line | ({"qc": self.qc} if self.qc else {})


def flat_json(flat: FlatAnnotation) -> Json:
    """Return the flat form as JSON; rare keys are there only if they hold something."""
    line: Json = {"answers": flat.answers, "regions": flat.regions, "relations": flat.relations}
    if flat.item_answers:
        line["item_answers"] = flat.item_answers
    line["controls"] = flat.controls
    if flat.other:
        line["other"] = flat.other
    if flat.replaced:
        line["replaced"] = flat.replaced
    return line


def flat_of(line: Mapping[str, Any]) -> FlatAnnotation:
    """Return the flat form of which ``line`` is the JSON; raises ``msgspec.ValidationError``."""
    fields = {name: line[name] for name in FlatAnnotation.__struct_fields__ if name in line}
    return msgspec.convert(fields, FlatAnnotation)


def split_qc(data: Mapping[str, Any]) -> tuple[Json, Json]:
    """Return the data of a task without what quality control wrote to it, and that."""
    own = {key: value for key, value in data.items() if not key.startswith(QC_PREFIX)}
    return own, {key.removeprefix(QC_PREFIX): value for key, value in data.items() if key.startswith(QC_PREFIX)}


def without_signatures(value: Any) -> tuple[Any, int]:
    """Return a value whose addresses have no signatures or passwords, and the number of changed addresses.

    A signature gives every reader of the data set access to a bucket, and differs in each export.
    """
    if isinstance(value, str):
        public = _public(value)
        return public, int(public is not value)
    if isinstance(value, dict):
        items = {key: without_signatures(item) for key, item in value.items()}
        number = sum(count for _, count in items.values())
        return ({key: item for key, (item, _) in items.items()} if number else value), number
    if isinstance(value, list):
        listed = [without_signatures(item) for item in value]
        number = sum(count for _, count in listed)
        return ([item for item, _ in listed] if number else value), number
    return value, 0


def _public(text: str) -> str:
    if (
        not text[:8].lower().startswith(("http://", "https://"))
        or not ("?" in text or "@" in text)
        or any(map(str.isspace, text))
    ):
        return text
    address, mark, fragment = text.partition("#")
    try:
        has_query = bool(urlsplit(address).query) or "@" in urlsplit(address).netloc
    except ValueError:
        return text
    public = public_url(address) if has_query else address
    return text if public == address else public + mark + fragment
