"""What is no export of tasks is named by its beginning; what is one, or is broken further on, is let through."""

import pytest

from labelloop.labeling.studio.sniff import sniff_file_type
from tests.wrong_files import WRONG_FILES


@pytest.mark.parametrize("name", WRONG_FILES)
def test_file_that_is_no_export_is_named_with_what_to_do(name):
    head, said = WRONG_FILES[name]
    found = sniff_file_type(head)
    assert found
    assert said in f"{found.what} {found.fix}"
    assert found.fix.endswith(".")


@pytest.mark.parametrize(
    "head",
    [
        b"[]",
        b"\xef\xbb\xbf []",
        b'[{"id": 1, "data": {}}]',
        b'{"data": {}}\n{"data": {}}',
        b'[{"id": 1, "data": {"image": "s3',  # cut by the look alone, or really: reading says so
        b'[{"annotation_id": 3, "data": {}}]',
    ],
)
def test_tasks_are_let_through(head):
    assert sniff_file_type(head) is None
