"""Data sets of tasks: memory and rate by the number of tasks, and their files read by foreign readers.

Readers that are installed are asked: pyarrow, seqeval, spaCy; LABELLOOP_REFEREES is the Python of an environment that
has more of them.
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from labelloop.service.settings import Settings

TASKS = (2_000, 20_000, 100_000)
FORMATS = ("tasks-jsonl", "conll", "spacy-jsonl", "csv")
CONFIG = (
    '<View><Text name="text" value="$text"/><Labels name="label" toName="text"><Label value="PER"/>'
    '<Label value="LOC"/></Labels><Choices name="mood" toName="text"><Choice value="good"/><Choice value="bad"/>'
    "</Choices>"
    '<TextArea name="note" toName="text" maxSubmissions="1"/></View>'
)
_WORDS = ("Ada", "Lovelace", "wrote", "to", "Charles", "in", "London", "about", "the", "engine", "Zoë", "東京", "😀")


def write_export(path: Path, tasks: int) -> None:
    """A Label Studio JSON export of texts: 60 words, about 8 spans, a choice and a note each, its whole envelope."""
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(1, tasks + 1):
            file.write("[" if number == 1 else ",\n")
            json.dump(_task(rng, number), file)
        file.write("]")


def _task(rng: random.Random, number: int) -> dict:
    words = [rng.choice(_WORDS) for _ in range(60)] + [str(number)]
    text = " ".join(words)
    results = []
    at = 0
    for index, word in enumerate(words):
        if rng.random() < 0.13:
            start, end = (len(text[:edge].encode("utf-16-le")) // 2 for edge in (at, at + len(word)))
            value = {"start": start, "end": end, "text": word, "labels": [rng.choice(("PER", "LOC"))]}
            results.append(_result(f"s{index}", "label", "labels", value))
        at += len(word) + 1
    results.append(_result("c", "mood", "choices", {"choices": [rng.choice(("good", "bad"))]}))
    results.append(_result("n", "note", "textarea", {"text": [f"note {number}"]}))
    day = "2026-01-01T10:00:00.000000Z"
    annotation = {
        "id": number, "completed_by": number % 5 + 1, "result": results, "was_cancelled": False, "ground_truth": False,
        "created_at": day, "updated_at": day, "lead_time": 12.5, "prediction": {}, "result_count": len(results),
        "unique_id": f"{number:032x}", "task": number, "project": 1,
    }  # fmt: skip
    return {
        "id": number,
        "annotations": [annotation],
        "drafts": [],
        "predictions": [],
        "data": {"text": text},
        "meta": {},
    }


def _result(number: str, control: str, kind: str, value: dict) -> dict:
    return {"id": number, "from_name": control, "to_name": "text", "type": kind, "value": value, "origin": "manual"}


def measure(tasks: int, folder: Path) -> dict:
    """Export a file twice, the second time with one changed task in a hundred, in this process."""
    from exporters.pipeline.export import export

    source = folder / f"{tasks}.json"
    write_export(source, tasks)
    settings = Settings(home=folder / "home", label_studio_api_key="")
    options = {"settings": settings, "label_config": CONFIG, "formats": FORMATS, "workers": 1}
    options["to"] = f"file://{folder}/set{tasks}"
    began = time.process_time()
    report = export(source, **options)
    cpu = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    text = source.read_text().replace('{"choices": ["bad"]}', '{"choices": ["good"]}', tasks // 100)
    source.write_text(text)
    again = export(source, **options)
    left_out = {name: dict(counts.converted) for name, counts in report.accounts.formats.items()}
    return {
        "tasks": tasks, "cpu": round(cpu, 1), "peak": peak, "converted": again.written.tasks,
        "published": report.published, "balanced": report.accounts.balanced, "notes": left_out,
    }  # fmt: skip


REFEREES = r"""
import json, sys
from pathlib import Path
folder, found = Path(sys.argv[1]), {}
lines = [json.loads(text) for text in open(folder / "spacy-jsonl/train.jsonl", encoding="utf-8")]
documents, document, sentence = [], None, None
for row in open(folder / "conll/train.conll", encoding="utf-8"):
    row = row.rstrip("\n")
    if row.startswith("-DOCSTART-"):
        document = []
        documents.append(document)
    elif row:
        document.append(row.split(" "))
try:
    from seqeval.metrics.sequence_labeling import get_entities
    same = total = 0
    for line, rows in zip(lines, documents, strict=True):
        tokens = line["tokens"]
        assert [token["text"] for token in tokens] == [row[0] for row in rows]
        read = {(kind, tokens[first]["start"], tokens[last]["end"])
                for kind, first, last in get_entities([row[3] for row in rows])}
        written = {(span["label"], span["start"], span["end"]) for span in line["spans"] if "token_start" in span}
        same, total = same + len(read & written), total + len(read | written)
    found["seqeval"] = f"{same:,} of {total:,} entities of conll are the spans of spacy-jsonl"
except ImportError:
    found["seqeval"] = "not installed"
try:
    import spacy
    from spacy.tokens import Doc
    nlp = spacy.blank("xx")
    kept = total = 0
    for line in lines:
        words = [token["text"] for token in line["tokens"]]
        document = Doc(nlp.vocab, words=words, spaces=[token["ws"] for token in line["tokens"]])
        assert document.text.strip() == line["text"].strip()
        for span in line["spans"]:
            made = document.char_span(span["start"], span["end"], label=span["label"])
            kept += made is not None and made.text == line["text"][span["start"]:span["end"]]
            total += 1
    found["spaCy"] = f"{kept:,} of {total:,} spans by Doc.char_span, same text"
except ImportError:
    found["spaCy"] = "not installed"
try:
    import pyarrow.parquet as parquet
    found["pyarrow"] = f"{parquet.read_table(folder / 'tasks-parquet/train.parquet').num_rows:,} rows"
except (ImportError, FileNotFoundError) as error:
    found["pyarrow"] = f"not read: {error}"
print(json.dumps(found))
"""


def read_by_others(folder: Path) -> dict:
    """What foreign readers find in the files of 2,000 texts."""
    from exporters.pipeline.export import export

    source = folder / "few.json"
    write_export(source, 2_000)
    settings = Settings(home=folder / "home", label_studio_api_key="")
    formats = ("tasks-jsonl", "tasks-parquet", "conll", "spacy-jsonl")
    export(source, settings=settings, to=f"file://{folder}/few", label_config=CONFIG, formats=formats, split="train=1")
    python = os.environ.get("LABELLOOP_REFEREES") or sys.executable
    command = [python, "-c", REFEREES, str(folder / "few/latest")]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def templates() -> str:
    """How many results of the templates of an installed Label Studio return from the flat form."""
    import yaml

    from exporters.tasks.flat import PlainAnswers, flatten, rebuild
    from labelloop.labeling.studio.config import LabelConfig
    from tests.simulated_answers import simulate

    files = sorted(
        Path(__file__).parents[1].glob(".labelloop/label-studio/venv/lib/python*/site-packages/label_studio")
    )
    configs = [file for folder in files for file in sorted(folder.rglob("annotation_templates/**/config.yml"))]
    results = same = other = 0
    for file in configs:
        xml = yaml.safe_load(file.read_text())["config"]
        for answers in simulate(xml).results.values():
            flat = flatten(answers, PlainAnswers(LabelConfig.parse(xml)))
            again = rebuild(flat)
            results, other = results + len(answers), other + len(flat.other)
            same += sum(result in again for result in answers)
    return f"{same} of {results} results of {len(configs)} templates are rebuilt exactly, {other} of them from `other`"


def run() -> str:
    """Measure each size in a process of its own; return the page."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for tasks in TASKS:
            command = [sys.executable, "-m", "bench.tasks", str(tasks), name]
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        others = read_by_others(Path(name))
    return page(rows, others)


def page(rows: list[dict], others: dict) -> str:
    """The figures as a page."""
    lines = [
        f"Texts of 60 words with about 8 spans, a choice and a note, as {', '.join(FORMATS)}:",
        "one process, to a disk; each size in a process of its own. Then one task in a hundred changes,",
        "and the export runs again.",
        "",
        "| tasks | CPU s | tasks/CPU s | peak MB | converted again |",
        "|---|---|---|---|---|",
        *(
            f"| {row['tasks']:,} | {row['cpu']} | {row['tasks'] / row['cpu']:,.0f} | {row['peak']} "
            f"| {row['converted']:,} |"
            for row in rows
        ),
        "",
        "Readers of others, 2,000 texts (run by the Python of an environment that has them):",
        "",
        *(f"- {reader}: {what}" for reader, what in others.items()),
        "",
        f"The flat form: {templates()}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), Path(sys.argv[2]))))
