"""The table of quality control by control says what the code does."""

import pytest

from tests.qc_controls import PAGE, ROWS, cells, page


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
def test_control_is_compared_and_merged_as_the_page_says(row):
    assert cells(row).line(row.title) in PAGE.read_text(encoding="utf-8").splitlines()


def test_page_is_the_one_that_the_code_writes():
    assert PAGE.read_text(encoding="utf-8") == page()
