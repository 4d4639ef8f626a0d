import io
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelloop.labeling.errors import MalformedTask, TruncatedFile
from labelloop.labeling.studio import stream
from labelloop.labeling.studio.stream import check_complete, iter_raw_tasks, iter_tasks
from labelloop.labeling.studio.task import read_task

text = st.text(alphabet=st.sampled_from('ab{}[]",:\\ \n\u4e2d'), max_size=12)
tasks = st.lists(
    st.fixed_dictionaries({"id": st.integers(0, 99), "data": st.dictionaries(text, text, max_size=3)}), max_size=8
)


def forms(tasks):
    yield json.dumps(tasks)
    yield json.dumps(tasks, indent=1, ensure_ascii=False)
    yield "\ufeff" + json.dumps(tasks) + "\n"
    yield "\n".join(json.dumps(task) for task in tasks)
    yield "\r\n\r\n".join(json.dumps(task) for task in tasks) + "\r\n"


@given(tasks)
def test_every_form_gives_the_same_tasks(tasks):
    for form in forms(tasks):
        read = list(iter_tasks(io.BytesIO(form.encode())))
        assert [(task.id, task.data) for task in read] == [(task["id"], task["data"]) for task in tasks]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 1000])
def test_tasks_are_whole_wherever_the_blocks_end(block, monkeypatch):
    monkeypatch.setattr(stream, "BLOCK_BYTES", block)
    tasks = [{"id": n, "data": {"image": 'a"}]{\\', "text": "x" * n}} for n in range(40)]
    for form in list(forms(tasks))[:2]:
        assert [task.id for task in iter_tasks(io.BytesIO(form.encode()))] == list(range(40))


def test_a_single_task_written_over_several_lines():
    file = io.BytesIO(json.dumps({"id": 3, "data": {"a": {"b": 1}}}, indent=2).encode())
    assert [task.id for task in iter_tasks(file)] == [3]


def test_an_empty_file_and_an_empty_array_hold_no_tasks():
    assert list(iter_tasks(io.BytesIO(b""))) == []
    assert list(iter_tasks(io.BytesIO(b" [ ] \n"))) == []


@pytest.mark.parametrize(
    "content",
    [
        b'[{"id": 1, "data": {}}',  # the array never ends
        b'[{"id": 1, "data": {}}, {"id": 2, "da',  # a task never ends
        b'[{"id": 1, "data": {}}] trailing',
        b"null",
        b"id,image\n1,a.jpg",
        b'[{"id": 1, "data": {}, "x": "\\"}]',  # a string never ends
    ],
)
def test_a_broken_file_is_said_to_be_one(content):
    with pytest.raises(MalformedTask):
        list(iter_tasks(io.BytesIO(content)))


@pytest.mark.parametrize(
    "content",
    [
        b'[{"id": 1, "data": {}}, null, "te{xt", 5,{"id": 2, "data": {}}]',
        b'[null, "te{xt", {"id": 1, "data": {}}, 5, {"id": 2, "data": {}}]',
        b'[{"id": 1, "data": {}}, {"id": 2, "data": {}}, null, "te{xt", 5 ]\n',
        b'[{"id": 1, "data": {}},\n{"id": 2, "data": {}} , null, ["te{xt", 1], []]',
    ],
    ids=["between", "first", "last", "an array"],
)
def test_what_is_no_task_costs_itself_alone(content):
    tasks = list(iter_raw_tasks(io.BytesIO(content)))
    assert len(tasks) == 5
    good, bad = [], []
    for raw in tasks:
        try:
            good.append(read_task(raw).id)
        except MalformedTask as error:
            bad.append(error.reason)
    assert good == [1, 2]
    assert len(bad) == 3


def test_lone_surrogates_become_replacement_characters():
    data = {
        r"\ud83d": "\ufffd",
        r"\uDE00 \ud83d\ude00": "\ufffd 😀",
        r"\\ud83d": r"\ud83d",
        r"\ud83d\ud83d\ude00": "\ufffd😀",
    }
    for text, read in data.items():
        for form in (b'[{"id": 1, "data": {"image": "%b"}}]', b'{"id": 1, "data": {"image": "%b"}}\n{"data": {}}'):
            first = next(iter_tasks(io.BytesIO(form % text.encode())))
            assert first.data["image"] == read
            first.data["image"].encode()


def test_a_broken_line_costs_itself_alone():
    file = io.BytesIO(b'{"id": 1, "data": {}}\n{"id": 2, "da\n{"id": 3, "data": {}}\n')
    assert len(list(iter_raw_tasks(file))) == 3


class Endless(io.RawIOBase):
    """An array of tasks made while it is read."""

    def __init__(self, count):
        self.count, self.made, self.rest = count, 0, b"["

    def readable(self):
        return True

    def readinto(self, buffer):
        while len(self.rest) < len(buffer) and self.made < self.count:
            task = {"id": self.made, "data": {"image": "s3://a"}, "annotations": [{"result": [{"value": "x" * 3000}]}]}
            self.rest += (b"," if self.made else b"") + json.dumps(task).encode()
            self.made += 1
            if self.made == self.count:
                self.rest += b"]"
        size = min(len(buffer), len(self.rest))
        buffer[:size], self.rest = self.rest[:size], self.rest[size:]
        return size


def peak(count):
    tracemalloc.start()
    assert sum(1 for _ in iter_tasks(Endless(count))) == count
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_memory_does_not_grow_with_the_file():
    few, many = peak(300), peak(3000)
    assert many < few * 1.5 + 1_000_000


def at_the_end(content):
    """What reading all of a file raises."""
    with pytest.raises(TruncatedFile) as caught:
        list(iter_raw_tasks(io.BytesIO(content)))
    return caught.value


@pytest.mark.parametrize("block", [7, 64, 1 << 18])
def test_file_that_ends_early_names_the_bytes(block, monkeypatch):
    monkeypatch.setattr(stream, "BLOCK_BYTES", block)
    tasks = [{"id": n, "data": {"image": "a.jpg", "more": ["b", {"c": "d"}]}} for n in range(9)]
    for form in forms(tasks):
        data = form.encode()
        last = data.rindex(b'"id": 8') - 1 if b'"id": 8' in data else 0
        start = data.rindex(b"{", 0, last + 1)
        error = at_the_end(data[: start + 30])
        assert (error.item_start, error.file_size) == (start, start + 30)
        assert f"ends at byte {start + 30}" in error.reason
        assert f"begins at byte {start}" in error.reason


@pytest.mark.parametrize("form", range(5))
def test_no_cut_of_a_file_passes_for_a_whole_one(form):
    tasks = [{"id": n, "data": {"image": "a]}.jpg", "more": [["b"], {"c": 'd"'}]}} for n in range(3)]
    whole = list(forms(tasks))[form].encode()
    lines = form > 2
    for end in range(len(whole.rstrip())):
        data = whole[:end]
        if lines and (not data.strip(b"\r\n") or data.rstrip().endswith(b'"c": "d\\""}]}}')):
            continue  # whole lines
        if not data.removeprefix("\ufeff".encode()):
            continue
        with pytest.raises(MalformedTask):
            list(iter_raw_tasks(io.BytesIO(data)))


def test_end_of_a_file_is_looked_at_without_reading_it():
    for form in forms([{"id": n, "data": {"image": "x" * 200}} for n in range(2000)]):
        data = form.encode()
        check_complete(io.BytesIO(data))
        with pytest.raises(TruncatedFile):
            check_complete(io.BytesIO(data.rstrip()[:-90]))


def test_last_line_with_a_number_that_is_none_is_whole():
    data = b'{"id": 1, "data": {}}\n{"id": 2, "data": {"score": NaN}}'
    check_complete(io.BytesIO(data))
    assert [task.id for task in iter_tasks(io.BytesIO(data))] == [1, 2]


def test_broken_first_line_costs_itself_alone():
    file = io.BytesIO(b'{"id": 1, "da\n{"id": 2, "data": {}}\n{"id": 3, "data": {}}\n')
    assert len(list(iter_raw_tasks(file))) == 3


@pytest.mark.parametrize("block", [3, 40, 1 << 18])
@pytest.mark.parametrize("rest", ["", ', "total": 3', ', "total": 3, "more": {"a": [{"b": "]"}]}'])
def test_tasks_of_an_object_are_read(block, rest, monkeypatch):
    tasks = [{"id": n, "data": {"image": "a.jpg"}} for n in range(3)]
    data = f'{{"page": 1, "next": null, "tasks": {json.dumps(tasks)}{rest}}}\n'.encode()
    monkeypatch.setattr(stream, "BLOCK_BYTES", max(block, 60))
    assert [task.id for task in iter_tasks(io.BytesIO(data))] == [0, 1, 2]
    for end in (len(data) - 2, len(data) - 3 - len(rest), len(data) - 20 - len(rest)):
        with pytest.raises(MalformedTask):
            list(iter_raw_tasks(io.BytesIO(data[:end])))


def test_page_of_several_is_refused():
    data = json.dumps({"tasks": [{"id": 1, "data": {}}], "total": 2}).encode()
    with pytest.raises(MalformedTask, match="1 of 2 tasks"):
        list(iter_raw_tasks(io.BytesIO(data)))


DEEP = b"[" * 3000 + b"]" * 3000


@pytest.mark.parametrize("form", [b"%b\n%b\n", b"[%b,%b]", b'{"tasks": [%b, %b], "total": 2}'])
def test_a_task_nested_too_deeply_costs_itself_alone(form):
    text = form % (b'{"id": 1, "data": {"a": %b}}' % DEEP, b'{"id": 2, "data": {"a": 1}}')
    deep, sound = iter_raw_tasks(io.BytesIO(text))
    with pytest.raises(MalformedTask, match="nested too deeply"):
        read_task(deep)
    assert read_task(sound).id == 2


@pytest.mark.parametrize("block", [3, 64, 1000])
@pytest.mark.parametrize("ending", ["", "cut off"])
def test_huge_tasks_are_scanned_before_they_are_read(monkeypatch, block, ending):
    monkeypatch.setattr(stream, "_HUGE", 40)
    monkeypatch.setattr(stream, "BLOCK_BYTES", block)
    tricky = ["\\", '\\"', "}{", '"}', "\\\\", "é", "\ud83d\ude00"]
    tasks = [{"id": n, "data": {"text": tricky[n % 7] * n, "more": [{"a": tricky}] * (n % 5)}} for n in range(30)]
    text = json.dumps(tasks).encode()
    expected = [json.dumps(task).encode() for task in tasks]
    if not ending:
        assert list(iter_raw_tasks(io.BytesIO(text))) == expected
        return
    with pytest.raises(TruncatedFile):
        list(iter_raw_tasks(io.BytesIO(text[:-9])))


@pytest.mark.parametrize("block", [3, 64, 1000])
@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n\n", b"cut off"])
def test_huge_lines_are_scanned_before_they_are_read(monkeypatch, block, ending):
    monkeypatch.setattr(stream, "_HUGE", 40)
    monkeypatch.setattr(stream, "BLOCK_BYTES", block)
    lines = [json.dumps({"id": n, "data": {"text": "é\n" * n}}).encode() for n in range(30)]
    text = b"\r\n".join(lines)
    if ending != b"cut off":
        assert list(iter_raw_tasks(io.BytesIO(text + ending))) == lines
        return
    with pytest.raises(TruncatedFile):
        list(iter_raw_tasks(io.BytesIO(text[:-9])))
