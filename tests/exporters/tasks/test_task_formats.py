"""Each format of tasks by its own rules, and read by others: pyarrow, the csv module, nervaluate."""

import csv
import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.formats.base import FormatContext
from exporters.tasks.documents import documents
from exporters.tasks.flat import PlainAnswers, flatten
from exporters.tasks.formats.base import SIGNED_INSIDE
from exporters.tasks.formats.conll import MISALIGNED, OVERLAPPING
from exporters.tasks.formats.preferences import MANY, MAX_PAIRS, NO_RESPONSE
from exporters.tasks.formats.spacy_jsonl import LOOSE_RELATION
from exporters.tasks.hypertext import parse_hypertext
from exporters.tasks.line import TaskLine
from exporters.tasks.table import TASK_FORMATS
from exporters.tasks.tokens import aligned, tokenize
from labelloop.labeling.studio.config import LabelConfig
from tests.exporters.tasks.configs import CONFIGS
from tests.simulated_answers import simulate

TEXT = "Ada Lovelace met Charles in London.\nShe wrote."


def line(xml, data, results, **fields):
    config = LabelConfig.parse(xml) if xml else None
    flat = flatten(results, PlainAnswers(config))
    return TaskLine(task=1, split="train", data=data, flat=flat, annotation={"id": 1, "by": 2}, **fields), config


def encode(name, xml, data, results):
    made, config = line(xml, data, results)
    return TASK_FORMATS[name](FormatContext(("train",), config=config)).encode_line(made)


def span(number, start, end, *labels, text=TEXT, **fields):
    value = {"start": start, "end": end, "text": text[start:end], "labels": list(labels)}
    return {"id": number, "from_name": "label", "to_name": "text", "type": "labels", "value": value | fields}


def tags(record):
    rows = [row.split(" ") for row in json.loads(record).splitlines()[2:]]
    return [(row[0], row[3]) for row in rows if row != [""]]


def test_conll_has_a_tag_for_each_token():
    made = encode("conll", CONFIGS["spans"], {"text": TEXT}, [span("a", 0, 12, "PER"), span("b", 28, 34, "LOC")])
    assert tags(made.record) == [
        ("Ada", "B-PER"), ("Lovelace", "I-PER"), ("met", "O"), ("Charles", "O"), ("in", "O"), ("London", "B-LOC"),
        (".", "O"), ("She", "O"), ("wrote", "O"), (".", "O"),
    ]  # fmt: skip
    assert json.loads(made.record).splitlines()[0] == "-DOCSTART- -X- -X- O"
    assert "\n.\n".replace("\n", " ") not in json.loads(made.record)
    assert made.entries == 2
    assert made.losses == []


def test_spans_that_tags_cannot_hold_are_named():
    results = [
        span("long", 0, 12, "PER"),
        span("inside", 4, 12, "PER"),
        span("cut", 17, 20, "PER"),
        span("bare", 28, 34),
        span("shifted", 28, 34, "LOC") | {"value": {"start": 27, "end": 33, "text": "London", "labels": ["LOC"]}},
    ]
    made = encode("conll", CONFIGS["spans"], {"text": TEXT}, results)
    assert sorted(made.losses) == [
        ("bare", "a span without a label"),
        ("cut", MISALIGNED),
        ("inside", OVERLAPPING),
        ("shifted", "a span whose text is not at its offsets"),
    ]
    assert made.entries == 1


def test_offsets_of_a_browser_become_characters():
    text = "😀 Zoë 😀 met Bo"
    units = [len(text[:index].encode("utf-16-le")) // 2 for index in (text.index("Bo"), len(text))]
    found = span("a", *units, "PER", text="") | {
        "value": {"start": units[0], "end": units[1], "text": "Bo", "labels": ["PER"]}
    }
    made, config = line(CONFIGS["spans"], {"text": text}, [found])
    (document,), _ = documents(made, config)
    (one,) = document.spans
    assert text[one.start : one.end] == "Bo"
    assert sum(document.notes.values()) == 1


def test_paragraphs_and_html_are_one_text_each():
    talk = [{"author": "a", "text": "Hi there."}, {"author": "b", "text": "Who is it?"}]
    value = {"start": "1", "end": "1", "startOffset": 0, "endOffset": 3, "text": "Who", "paragraphlabels": ["ask"]}
    said = {"id": "p", "from_name": "label", "to_name": "talk", "type": "paragraphlabels", "value": value}
    made, config = line(CONFIGS["dialogue"], {"talk": talk}, [said])
    (document,), _ = documents(made, config)
    assert document.text == "Hi there.\nWho is it?"
    assert [document.text[one.start : one.end] for one in document.spans] == ["Who"]
    page = "<style>p {}</style><p>Dear &amp; <b>Ada</b></p>"
    value = {"start": "/p[1]/b[1]/text()[1]", "end": "/p[1]/b[1]/text()[1]", "startOffset": 0, "endOffset": 3,
             "globalOffsets": {"start": 7, "end": 10}, "text": "Ada", "hypertextlabels": ["PER"]}  # fmt: skip
    marked = {"id": "h", "from_name": "label", "to_name": "page", "type": "hypertextlabels", "value": value}
    made, config = line(CONFIGS["html"], {"page": page}, [marked])
    (document,), _ = documents(made, config)
    assert [document.text[one.start : one.end] for one in document.spans] == ["Ada"]


def test_html_spans_are_found_by_their_paths():
    page = "<h1>Mutual <a>Agreement</a></h1><p>One.<br>Two</p><p>Three <i>four</i> five</p>"
    paths = [
        ("/h1[1]/text()[1]", 0, "/h1[1]/a[1]/text()[1]", 9, "Mutual Agreement"),
        ("/p[1]/text()[2]", 0, "/p[1]/text()[2]", 3, "Two"),
        ("/p[2]/text()[2]", 1, "/p[2]/text()[2]", 5, "five"),
    ]
    results = [
        {"id": text, "from_name": "label", "to_name": "page", "type": "hypertextlabels", "value": {
            "start": start, "startOffset": first, "end": end, "endOffset": last, "text": text, "htmllabels": ["X"]}}
        for start, first, end, last, text in paths
    ]  # fmt: skip
    made, config = line(CONFIGS["html"], {"page": page}, results)
    assert not made.flat.other
    for known in (config, None):
        (document,), _ = documents(made, known)
        assert [document.text[one.start : one.end] for one in document.spans] == [path[4] for path in paths]
        assert {one.labels for one in document.spans} == {("X",)}


def test_an_address_is_no_text(run):
    for value in ("/data/upload/1/a.jpg", "https://example.com/a b.wav", "word"):
        made, _ = line(None, {"audio": value}, [])
        assert documents(made, None)[0] == []


def test_prodigy_lines_hold_overlaps_and_relations():
    results = [
        span("a", 0, 12, "PER"), span("b", 4, 12, "PER", "NAME"), span("c", 17, 24, "PER"),
        {"from_id": "a", "to_id": "c", "type": "relation", "direction": "left", "labels": ["met"]},
    ]  # fmt: skip
    made = encode("spacy-jsonl", CONFIGS["spans"], {"text": TEXT}, results)
    (one,) = json.loads(made.record)
    assert [(TEXT[s["start"] : s["end"]], s["label"]) for s in one["spans"]] == [
        ("Ada Lovelace", "PER"), ("Lovelace", "PER"), ("Lovelace", "NAME"), ("Charles", "PER"),
    ]  # fmt: skip
    assert [(r["head"], r["child"], r["label"]) for r in one["relations"]] == [(3, 1, "met")]
    assert all(TEXT[token["start"] : token["end"]] == token["text"] for token in one["tokens"])


def test_a_relation_of_odd_ends_is_counted():
    odd = {"from_id": ["a"], "to_id": "b", "type": "relation"}
    made = encode("spacy-jsonl", CONFIGS["spans"], {"text": TEXT}, [span("a", 0, 3, "PER"), odd])
    assert made.notes[LOOSE_RELATION] == 1


def test_line_ends_of_html_are_those_of_a_browser():
    assert parse_hypertext("<p>a\r\nb</p>\r<p>c</p>").text == "a\nb\nc"


def test_text_without_spans_is_a_document_of_its_own():
    made = encode("conll", CONFIGS["spans"], {"text": "Nothing here"}, [])
    assert tags(made.record) == [("Nothing", "O"), ("here", "O")]
    assert encode("conll", CONFIGS["spans"], {}, []).dropped


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, U.S.!", ["Don", "'", "t", "stop", ",", "U", ".", "S", ".", "!"]),
        ("東京へ行く", ["東", "京", "へ", "行", "く"]),
        ("ABC東京 12", ["ABC", "東", "京", "12"]),
        ("किताब है", ["किताब", "है"]),
        ("e\u0301tude naïve_1", ["e\u0301tude", "naïve_1"]),
        ("서울은 큰", ["서울은", "큰"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("a\u00a0b\tc", ["a", "b", "c"]),
        ("👍🏽ok ✌️", ["👍", "🏽", "ok", "✌️"]),
    ],
)  # fmt: skip
def test_tokens_of_any_language(text, words):
    assert [text[token.start : token.end] for token in tokenize(text)] == words


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30))
def test_tokens_hold_all_but_spaces(text):
    tokens = tokenize(text)
    covered = {index for token in tokens for index in range(token.start, token.end)}
    assert covered == {index for index, letter in enumerate(text) if not letter.isspace()}
    assert all(before.end <= after.start for before, after in pairwise(tokens))


def test_nervaluate_reads_the_same_entities():
    evaluator = pytest.importorskip("nervaluate")
    from nervaluate.loaders import ConllLoader

    del evaluator
    made, config = line(CONFIGS["spans"], {"text": TEXT}, [span("a", 0, 12, "PER"), span("b", 28, 34, "LOC")])
    (document,), _ = documents(made, config)
    record = TASK_FORMATS["conll"](FormatContext(("train",), config=config)).encode_line(made).record
    rows = [row.split(" ") for row in json.loads(record).splitlines()[2:] if row]
    (entities,) = ConllLoader().load("\n".join(f"{row[0]}\t{row[3]}" for row in rows))
    tokens = tokenize(TEXT)
    found = [(entity.label, tokens[entity.start].start, tokens[entity.end].end) for entity in entities]
    assert found == [(one.labels[0], one.start, one.end) for one in document.spans]
    assert [aligned(tokens, one.start, one.end) for one in document.spans] == [(0, 1), (5, 5)]


def pairs(name, data, *results):
    record = encode("preference-jsonl", CONFIGS[name], data, results).record
    return [(one["prompt"], one["chosen"], one["rejected"]) for one in json.loads(record or b"[]")]


def chosen(control, kind, **value):
    return {"id": "x", "from_name": control, "to_name": control, "type": kind, "value": value}


def test_preferences_are_pairs():
    data = {"prompt": "Why?", "one": "A", "two": "B"}
    assert pairs("pairwise", data, chosen("pw", "pairwise", selected="right")) == [("Why?", "B", "A")]
    assert pairs("pairwise", data, chosen("pw", "pairwise", selected="none")) == []
    items = [{"id": name, "title": name, "body": name.upper()} for name in "abc"]
    data = {"prompt": "Why?", "items": items}
    ranked = pairs("ranking", data, chosen("rank", "ranker", ranker={"rank": ["b", "a", "c"]}))
    assert ranked == [("Why?", "B", "A"), ("Why?", "B", "C"), ("Why?", "A", "C")]
    buckets = {"_": ["c"], "best": ["b"], "rest": ["a"]}
    assert pairs("buckets", data, chosen("rank", "ranker", ranker=buckets)) == [("Why?", "B", "A")]


def test_pairs_of_a_long_ranking_are_bounded():
    names = [str(number) for number in range(200)]
    data = {"prompt": "Why?", "items": [{"id": name, "body": f"text {name}"} for name in names]}
    made = encode("preference-jsonl", CONFIGS["ranking"], data, [chosen("rank", "ranker", ranker={"rank": names})])
    assert (made.entries, made.notes[MANY]) == (MAX_PAIRS, 1)


def test_a_pair_without_a_response_is_left_out():
    made = encode("preference-jsonl", CONFIGS["pairwise"], {"one": "A"}, [chosen("pw", "pairwise", selected="right")])
    assert made.record is None
    assert made.notes[NO_RESPONSE] == 1


def test_a_choice_that_names_a_response_is_a_preference():
    xml = (
        '<View><Text name="q" value="$question"/><Text name="a" value="$first"/><Text name="b" value="$second"/>'
        '<Choices name="best" toName="q"><Choice value="a"/><Choice value="b"/></Choices></View>'
    )
    data = {"question": "?", "first": "1", "second": "2"}
    record = encode("preference-jsonl", xml, data, [chosen("best", "choices", choices=["b"])]).record
    assert [(one["prompt"], one["chosen"], one["rejected"]) for one in json.loads(record)] == [("?", "2", "1")]


def tasks_of(xml, number=6):
    simulated = simulate(xml)
    return [simulated.task(index) | {"data": {**simulated.data, "n": index}} for index in range(1, number + 1)]


def test_csv_has_the_same_columns_in_each_split(run):
    xml = CONFIGS["choices"]
    tasks = [task | {"data": {"text": f"text {task['id']}", "n": 1}} for task in tasks_of(xml, 30)]
    out = run(tasks, label_config=xml, formats=("csv",), split="train=.5,val=.5")
    rows = {}
    for split in ("train", "val"):
        with (out.root / f"latest/csv/{split}.csv").open(newline="", encoding="utf-8") as file:
            rows[split] = list(csv.DictReader(file))
    assert rows["train"][0].keys() == rows["val"][0].keys()
    assert list(rows["train"][0])[8:] == ["text", "n", "mood", "topics"]
    assert {row["mood"] for row in rows["train"]} == {"bad"}
    assert {row["topics"] for row in rows["train"]} == {'["b"]'}
    assert len(rows["train"]) + len(rows["val"]) == 30


def test_csv_names_clashing_columns(run):
    xml = CONFIGS["choices"].replace('name="mood"', 'name="split"')
    tasks = [task | {"data": {**task["data"], "topics": "x"}} for task in tasks_of(xml, 2)]
    out = run(tasks, label_config=xml, formats=("csv",))
    header = (out.root / "latest/csv/train.csv").read_text().splitlines()[0].split(",")
    assert header[8:] == ["text", "n", "data.topics", "answer.split", "topics"]
    assert len(set(header)) == len(header)


def test_csv_quotes_every_line_end(run):
    xml = CONFIGS["choices"]
    texts = ["a\rb", "a\nb", "a\r\nb"]
    tasks = [task | {"data": {"text": text}} for task, text in zip(tasks_of(xml, 3), texts, strict=True)]
    out = run(tasks, label_config=xml, formats=("csv",))
    with (out.root / "latest/csv/train.csv").open(newline="", encoding="utf-8") as file:
        assert [row["text"] for row in csv.DictReader(file)] == texts


def test_csv_has_no_two_columns_of_one_name(run):
    xml = CONFIGS["choices"]
    tasks = [task | {"data": {"text": "x", "topics": "y", "data.topics": "z"}} for task in tasks_of(xml, 2)]
    out = run(tasks, label_config=xml, formats=("csv",))
    with (out.root / "latest/csv/train.csv").open(newline="", encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    assert (row["data.topics"], row["data.data.topics"]) == ("y", "z")


def test_a_signed_address_inside_a_text_is_said(run):
    signed = "https://b.example/k.png?X-Amz-Date=1&X-Amz-Signature=s"
    tasks = [task | {"data": {"text": f"<img src='{signed}'>"}} for task in tasks_of(CONFIGS["choices"], 2)]
    tasks[0] |= {"data": {"text": "plain"}, "meta": {"source": signed}}
    out = run(tasks, label_config=CONFIGS["choices"], formats=("tasks-jsonl",))
    first, second = map(json.loads, (out.root / "latest/tasks-jsonl/train.jsonl").read_text().splitlines())
    assert first["meta"] == {"source": "https://b.example/k.png"}
    assert signed in second["data"]["text"]
    assert out.manifest["accounts"]["formats"]["tasks-jsonl"]["converted"][SIGNED_INSIDE] == 1


def test_parquet_holds_numbers_of_any_size(run):
    parquet = pytest.importorskip("pyarrow.parquet")
    xml = CONFIGS["spans"]
    tasks = tasks_of(xml, 3)
    for task, number in zip(tasks, (2**60 + 1, 0.5, 3), strict=True):
        task["data"] |= {"n": number, "of": 2**60 + 1}
    start = 1_700_000_000_000_000_001
    value = {"start": start, "end": 10**400, "timeserieslabels": ["A"]}
    result = {"id": "t", "from_name": "ts", "type": "timeserieslabels", "value": value, "item_index": 2**70}
    tasks[0]["annotations"] = [tasks[0]["annotations"][0] | {"result": [result]}]
    out = run(tasks, label_config=xml, formats=("tasks-parquet",))
    rows = parquet.read_table(out.root / "latest/tasks-parquet/train.parquet").to_pylist()
    assert [row["data.n"] for row in rows] == [str(2**60 + 1), "0.5", "3"]
    assert rows[0]["data.of"] == 2**60 + 1
    (region,) = rows[0]["regions"]
    assert json.loads(region["shape"]) == {"start": start, "end": 10**400}
    assert json.loads(region["fields"]) == {"item": 2**70}


def test_parquet_holds_every_line(run):
    parquet = pytest.importorskip("pyarrow.parquet")
    xml = CONFIGS["spans"]
    tasks = tasks_of(xml)
    tasks[0]["data"]["n"] = 0.5
    tasks[1]["data"]["more"] = {"a": [1]}
    out = run(tasks, label_config=xml, formats=("tasks-parquet", "tasks-jsonl"))
    rows = parquet.read_table(out.root / "latest/tasks-parquet/train.parquet").to_pylist()
    lines = [json.loads(text) for text in (out.root / "latest/tasks-jsonl/train.jsonl").read_text().splitlines()]
    assert [row["task"] for row in rows] == [made["task"] for made in lines] == [1, 2, 3, 4, 5, 6]
    assert [row["data.n"] for row in rows] == [0.5, 2, 3, 4, 5, 6]
    assert json.loads(rows[1]["data.more"]) == {"a": [1]}
    for row, made in zip(rows, lines, strict=True):
        assert [json.loads(region["shape"]) for region in row["regions"]] == [one["shape"] for one in made["regions"]]
        assert [region["labels"] for region in row["regions"]] == [one["labels"] for one in made["regions"]]
        assert [json.loads(one["answers"] or "{}") for one in row["regions"]] == [
            one["answers"] for one in made["regions"]
        ]
        assert json.loads(row["controls"]) == made["controls"]
        assert row["annotation.id"] == made["annotation"]["id"]
    tables = out.manifest["generations"][0]["tables"]
    assert tables["tasks-parquet"] == tables["tasks-jsonl"], "the records of both are stored once"
