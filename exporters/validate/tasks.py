"""Check the files of tasks: lines that cannot be read back, dangling relations, and the same content in two splits."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from exporters.dataset.staging import TABLES
from exporters.model.splits import DISPUTED_SPLIT
from exporters.tasks.documents import SPAN_TYPES
from exporters.tasks.flat import rebuild
from exporters.tasks.line import flat_of
from exporters.validate.issues import IssueReport

Json = dict[str, Any]


def task_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of formats of tasks: those of their names in a folder, else the folder of one format."""
    found = {name: folder / name for name in _CHECKS if (folder / name).is_dir()}
    if not found and folder.is_dir() and (name := _format_of(folder)):
        found = {name: folder}
    return found


def check_task_files(folder: Path, report: IssueReport) -> None:
    """Check the formats of tasks in a folder, as `labelloop dataset pull` writes them."""
    for name, place in task_folders(folder).items():
        for file in _task_files(place):
            _CHECKS[name](file, str(file.relative_to(folder)), report)


def _task_files(place: Path) -> list[Path]:
    files = (path for path in place.iterdir() if path.suffix in {".jsonl", ".conll"} and path.name not in TABLES)
    return sorted(files)


def _format_of(folder: Path) -> str:
    """Return the format of the files of a folder by the first line of one; empty if it is of none."""
    for file in _task_files(folder):
        with file.open("rb") as lines:
            first = lines.readline()
        if first and file.suffix == ".conll":
            return "conll"
        try:
            line = msgspec.json.decode(first)
        except (msgspec.DecodeError, RecursionError):
            continue
        keys = line.keys() if isinstance(line, dict) else set[str]()
        if name := next((name for name, wanted in _KEYS.items() if wanted <= keys), ""):
            return name
    return ""


# Keys by which a line of a format is recognised.
_KEYS: Mapping[str, frozenset[str]] = {
    "tasks-jsonl": frozenset({"task", "split", "data", "answers", "regions"}),
    "spacy-jsonl": frozenset({"text", "tokens", "spans"}),
    "preference-jsonl": frozenset({"prompt", "chosen", "rejected"}),
}


def check_lines(file: Path, name: str, report: IssueReport) -> None:
    """Check a file of tasks-jsonl."""
    seen: set[bytes] = set()
    for where, line in _json_lines(file, name, report):
        try:
            flat = flat_of(line)
            results = rebuild(flat)
        except (msgspec.ValidationError, KeyError, TypeError, AttributeError) as error:
            report.add("tasks-line", name, where, f"it is not in the flat form: {error}")
            continue
        if line.get("split") != file.stem:
            report.add("tasks-line", name, where, f"its split is {line.get('split')!r}")
        annotation = line.get("annotation")
        who = annotation.get("id") if isinstance(annotation, dict) else None
        key = hashlib.blake2b(msgspec.json.encode([line.get("task"), who]), digest_size=8).digest()
        if key in seen:
            report.add("tasks-twice", name, where, f"task {line.get('task')}, annotation {who}")
        seen.add(key)
        # repr: an id of a damaged line may be a list
        ids = {repr(item.get("id")) for items in (flat.regions, results) for item in items}
        for relation in flat.relations:
            if lost := [end for end in (relation.get("from"), relation.get("to")) if repr(end) not in ids]:
                report.add("tasks-dangling", name, where, f"a relation to {lost[0]!r}")
        for region in flat.regions:
            if str(region.get("type")).lower() in SPAN_TYPES and _is_reversed(region["shape"]):
                report.add("tasks-span", name, where, f"region {region.get('id')}: {region['shape']!r:.80}")


def check_spans(file: Path, name: str, report: IssueReport) -> None:
    """Check a file of spacy-jsonl: every span is in its text, and tokens and spans fit each other."""
    for where, line in _json_lines(file, name, report):
        text, spans, tokens = line.get("text"), line.get("spans"), line.get("tokens", [])
        if not isinstance(text, str) or not isinstance(spans, list) or not isinstance(tokens, list):
            report.add("tasks-line", name, where, "expected text, spans and tokens")
            continue
        for token in tokens:
            if not isinstance(token, dict) or _slice(text, token) != token.get("text"):
                report.add("tasks-span", name, where, f"token {token!r:.80}")
                break
        for span in spans:
            if not isinstance(span, dict) or not _fits(span, text, tokens):
                report.add("tasks-span", name, where, f"span {span!r:.80}")


def check_conll(file: Path, name: str, report: IssueReport) -> None:
    """Check a file of conll: four columns, and no tag that continues another entity."""
    before = "O"
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            try:
                line = raw.decode()
            except UnicodeDecodeError as error:
                report.add("tasks-line", name, f"line {number}", f"it is not UTF-8: {error.reason}")
                before = "O"
                continue
            columns = line.rstrip("\r\n").split(" ")
            if columns == [""]:
                before = "O"
                continue
            tag = columns[-1]
            if len(columns) != 4 or not (tag == "O" or tag[:2] in {"B-", "I-"}):
                report.add("tasks-line", name, f"line {number}", f"{line.strip()!r:.60}: expected TOKEN -X- _ TAG")
            elif tag.startswith("I-") and before[2:] != tag[2:]:
                report.add("tasks-span", name, f"line {number}", f"{tag} follows {before}")
            before = tag
            report.checked["tokens"] += 1


def check_preferences(file: Path, name: str, report: IssueReport) -> None:
    """Check a file of preference-jsonl: two different responses per pair."""
    for where, line in _json_lines(file, name, report):
        if not {"prompt", "chosen", "rejected"} <= line.keys():
            report.add("tasks-line", name, where, "expected prompt, chosen and rejected")
        elif line["chosen"] == line["rejected"] or line["chosen"] is None or line["rejected"] is None:
            report.add("tasks-pair", name, where, f"task {line.get('task')}: {line['chosen']!r:.60}")


def check_content(folder: Path, report: IssueReport) -> None:
    """Check that the same data is not in two splits of tasks-jsonl."""
    splits: dict[bytes, str] = {}
    place = task_folders(folder).get("tasks-jsonl")
    for file in _task_files(place) if place else ():
        if file.stem == DISPUTED_SPLIT:  # not used for training
            continue
        with file.open("rb") as lines:
            for number, text in enumerate(lines, start=1):
                try:
                    data = msgspec.json.decode(text)["data"]
                except (msgspec.DecodeError, KeyError, TypeError, RecursionError):
                    continue
                shown = msgspec.json.encode(data, order="deterministic")
                other = splits.setdefault(hashlib.blake2b(shown, digest_size=8).digest(), file.stem)
                if other != file.stem:
                    where = f"line {number}"
                    report.add("tasks-leak", str(file.relative_to(folder)), where, f"its data is in {other} too")


_CHECKS: Mapping[str, Callable[[Path, str, IssueReport], None]] = {
    "tasks-jsonl": check_lines,
    "spacy-jsonl": check_spans,
    "conll": check_conll,
    "preference-jsonl": check_preferences,
}
# The formats of tasks that are checked.
VALIDATED_TASK_FORMATS = tuple(_CHECKS)


def _json_lines(file: Path, name: str, report: IssueReport) -> Iterator[tuple[str, Json]]:
    with file.open("rb") as lines:
        for number, text in enumerate(lines, start=1):
            report.checked["lines of tasks"] += 1
            try:
                line = msgspec.json.decode(text)
            except (msgspec.DecodeError, RecursionError) as error:
                report.add("tasks-line", name, f"line {number}", f"it is not JSON: {error}")
                continue
            if isinstance(line, dict):
                yield f"line {number}", line
            else:
                report.add("tasks-line", name, f"line {number}", "it is not an object")


def _slice(text: str, token: Mapping[str, Any]) -> str | None:
    start, end = token.get("start"), token.get("end")
    return text[start:end] if type(start) is int and type(end) is int and start >= 0 else None


def _is_reversed(shape: Mapping[str, Any]) -> bool:
    start, end = shape.get("start"), shape.get("end")
    return isinstance(start, int | float) and isinstance(end, int | float) and (start < 0 or end < start)


def _fits(span: Mapping[str, Any], text: str, tokens: list[Json]) -> bool:
    start, end = span.get("start"), span.get("end")
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text) or not span.get("label"):
        return False
    if "token_start" not in span:
        return True
    try:
        return bool(tokens[span["token_start"]]["start"] == start and tokens[span["token_end"]]["end"] == end)
    except (IndexError, KeyError, TypeError):
        return False
