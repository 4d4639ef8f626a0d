"""What is written to the shards of a table is read back from it, whatever the records contain."""

import hashlib
from types import SimpleNamespace

import msgspec
import pytest

from exporters.dataset.shards import ObjectUploader, TableWriter, line_heads, read_rows, read_table
from exporters.errors import DatasetDamaged
from exporters.model.manifest import Generation, Shard, object_key
from labelloop.service.store import open_store

RECORDS = [
    {"a": ',"record":{"seq":7,"split":"val","record":null}}'},
    {"record": {"seq": 1, "split": "test", "record": 'a"}'}},
    '"\\}\n\r\u2028\u2029\x85\x1f\U0001f697é',
    {"seq": 3, 'x","split":"': ["\\", "}"]},
    [],
    "",
    None,
    -1.5,
    {"é" * 99: "}" * 99},
]


@pytest.fixture
def store(tmp_path, settings):
    return open_store((tmp_path / "set").as_uri(), settings)


def test_any_record_is_read_as_it_was_written(store, tmp_path):
    rows, splits = [0, 0, 3, 4, 5, 10, 11, 12, 10**12], ["train", "val", "test", "", "train", "disputed", "", "val", ""]
    with ObjectUploader(store) as objects:
        writer = TableWriter("coco", tmp_path, objects)
        writer.add(line_heads(rows, splits), [msgspec.json.encode(record) for record in RECORDS])
        generation = Generation(Shard("", 0, 0), {"coco": writer.finish()})
        objects.flush()
    found = list(read_table(store, SimpleNamespace(generations=[generation]), "coco"))
    assert [record.split for record in found] == splits
    assert [msgspec.json.decode(record.body) for record in found] == RECORDS
    kept = list(read_rows(store, generation, "coco", {0, 10**12}))
    assert [msgspec.json.decode(body) for body in kept] == [RECORDS[0], RECORDS[1], RECORDS[-1]]


@pytest.mark.parametrize("line", ["", "{}", "no JSON", '{"seq":"1","split":"","record":1}', '{"split":"","record":1}'])
def test_another_line_is_reported_with_its_object(store, line):
    data = f"{line}\n".encode()
    digest = hashlib.sha256(data).hexdigest()
    store.put(object_key(digest), data)
    generation = Generation(Shard("", 0, 0), {"coco": (Shard(digest, len(data), 1),)})
    with pytest.raises(DatasetDamaged, match=f"{digest}.*a line is not as an export writes it"):
        list(read_rows(store, generation, "coco", {1}))
