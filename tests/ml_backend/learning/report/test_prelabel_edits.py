"""What annotators did to pre-labels: every kind of edit, by class, one to one."""

import pytest

from ml_backend.learning.annotations import LabelledImage
from ml_backend.learning.report.prelabel_edits import PrelabelEdits, edits_by_class, edits_of, merged_by_class

A, B, C = (0, 0, 100, 100), (200, 0, 300, 100), (400, 400, 420, 420)
NEAR_A, FAR_A = (8, 0, 108, 100), (80, 0, 180, 100)


def on(url, *drawn):
    """A photo with (label, box) on it."""
    return LabelledImage(url, 640, 480, tuple(box for _, box in drawn), tuple(label for label, _ in drawn))


CASES = {
    "as it was": ([("cat", A)], [("cat", A)], PrelabelEdits(accepted=1)),
    "through percent and back": ([("cat", A)], [("cat", (0.01, 0, 100.02, 100))], PrelabelEdits(accepted=1)),
    "moved": ([("cat", A)], [("cat", NEAR_A)], PrelabelEdits(moved=1)),
    "so far that it is another object": ([("cat", A)], [("cat", FAR_A)], PrelabelEdits(added=1, deleted=1)),
    "another class": ([("cat", A)], [("dog", A)], PrelabelEdits(relabelled=1)),
    "another class, moved": ([("cat", A)], [("dog", NEAR_A)], PrelabelEdits(relabelled=1)),
    "deleted": ([("cat", A), ("cat", B)], [("cat", A)], PrelabelEdits(accepted=1, deleted=1)),
    "added": ([("cat", A)], [("cat", A), ("dog", C)], PrelabelEdits(accepted=1, added=1)),
    "two boxes on one object": ([("cat", A), ("cat", NEAR_A)], [("cat", A)], PrelabelEdits(accepted=1, deleted=1)),
    "all removed": ([("cat", A)], [], PrelabelEdits(deleted=1)),
    "nothing on either side": ([], [], PrelabelEdits()),
    "a box of no size": ([("cat", (5, 5, 5, 5))], [("cat", A)], PrelabelEdits(added=1, deleted=1)),
}


@pytest.mark.parametrize(("shown", "drawn", "wanted"), CASES.values(), ids=CASES.keys())
def test_each_edit_is_told_apart(shown, drawn, wanted):
    result = edits_of([on("a.jpg", *shown)], [on("a.jpg", *drawn)])
    assert result == wanted
    assert result.prelabels == len(shown)
    assert result.submitted == len(drawn)
    assert result.total == wanted.moved + wanted.relabelled + wanted.added + wanted.deleted


def test_images_match_by_url_and_edits_by_class():
    prelabels = [on("a.jpg", ("cat", A)), on("b.jpg", ("dog", B))]
    drawn = [on("b.jpg", ("cat", B)), on("a.jpg", ("cat", A), ("dog", C))]
    result = edits_by_class(prelabels, drawn)
    assert result == {"cat": PrelabelEdits(accepted=1, relabelled=1), "dog": PrelabelEdits(added=1)}
    assert merged_by_class([result, result])["cat"] == PrelabelEdits(accepted=2, relabelled=2)
