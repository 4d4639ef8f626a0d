"""Files that are no export of tasks are identified by their first bytes; tasks are accepted."""

import pytest

from labelloop.labeling.studio.sniff import sniff_file_type
from tests.wrong_files import WRONG_FILES


@pytest.mark.parametrize("name", WRONG_FILES)
def test_wrong_file_is_named_with_a_fix(name):
    head, description = WRONG_FILES[name]
    match = sniff_file_type(head)
    assert match
    assert description in f"{match.what} {match.fix}"
    assert match.fix.endswith(".")


@pytest.mark.parametrize(
    "head",
    [
        b"[]",
        b"\xef\xbb\xbf []",
        b'[{"id": 1, "data": {}}]',
        b'{"data": {}}\n{"data": {}}',
        b'[{"id": 1, "data": {"image": "s3',  # truncated, by the head or really: reading reports it
        b'[{"annotation_id": 3, "data": {}}]',
    ],
)
def test_tasks_are_accepted(head):
    assert sniff_file_type(head) is None
