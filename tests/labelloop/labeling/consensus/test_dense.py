"""Tasks with thousands of regions: the results of all pairs, in bounded memory, or "too large to judge"."""

import tracemalloc

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from labelloop.labeling.consensus import clustering
from labelloop.labeling.consensus.clustering import DUPLICATE_IOU, Member, check_size, cluster_regions
from labelloop.labeling.errors import TooLargeToJudge
from labelloop.labeling.geometry import outlines, overlap
from labelloop.labeling.geometry.overlap import iou, iou_pairs, match
from labelloop.labeling.geometry.shapes import Ellipse, Mask, Polygon, Rectangle
from labelloop.labeling.region import Region


def region(shape, label="a", control="label"):
    return Region(shape, (label,), "r", control, "image", "rectanglelabels", None, 0, 1000, 1000)


def mask(x, y, width, height):
    pixels = np.zeros((40, 40), dtype=bool)
    pixels[y : y + height, x : x + width] = True
    return Mask.from_array(pixels)


offset, side = st.integers(0, 20), st.integers(1, 15)
sides = st.tuples(offset, offset, side, side)
SHAPES = {
    "boxes": sides.map(lambda s: Rectangle(*map(float, s))),
    "outlines": sides.map(
        lambda s: Polygon(((s[0], s[1]), (s[0] + s[2], s[1]), (s[0] + s[2], s[1] + s[3]), (s[0] + 1, s[1] + s[3])))
    ),
    "masks": sides.map(lambda s: mask(*s)),
    "mixed": st.one_of(
        sides.map(lambda s: Rectangle(*map(float, s))), sides.map(lambda s: Ellipse(*map(float, s))),
        sides.map(lambda s: mask(*s)),
    ),
}  # fmt: skip
regions = st.sampled_from(sorted(SHAPES)).flatmap(
    lambda kind: st.lists(
        st.lists(st.builds(region, SHAPES[kind], st.sampled_from("ab")), max_size=7).map(tuple), min_size=2, max_size=4
    )
)


def plain_clusters(views, min_iou):
    """Average linkage over the matrix of all pairs, by its definition."""
    members = [Member(who, at) for who, regions in enumerate(views) for at in range(len(regions))]
    drawn = [views[member.annotator][member.region] for member in members]
    if not drawn:
        return ()
    who = np.array([member.annotator for member in members])
    same = np.array([[left.labels == right.labels for right in drawn] for left in drawn]).reshape(len(drawn), -1)
    shapes = [region.geometry for region in drawn]
    links = overlap.iou_matrix(shapes, shapes)
    links = links * (1 + 1e-6 * same)
    own = who[:, None] == who[None]
    repeated = [tuple(pair) for pair in np.argwhere(np.triu(own & same & (links >= DUPLICATE_IOU), 1)).tolist()]
    duplicates = []
    for left, right in repeated:
        firsts = [pair[0] for pair in repeated if who[pair[0]] != who[left]]
        if (
            left in duplicates
            or right in duplicates
            or any(links[left, first] >= DUPLICATE_IOU / 2 for first in firsts)
        ):
            continue
        fits = np.where(own[left], 0.0, links)
        duplicates.append(left if fits[left].sum() < fits[right].sum() else right)
    links[own] = links[duplicates] = links[:, duplicates] = -1
    groups = [[at] for at in range(len(drawn))]
    while len(drawn) > 1 and links.max() >= min_iou:
        left, right = divmod(int(links.argmax()), len(drawn))
        sizes = len(groups[left]), len(groups[right])
        merged = (sizes[0] * links[left] + sizes[1] * links[right]) / sum(sizes)
        merged[(links[left] < 0) | (links[right] < 0)] = -1
        links[left] = links[:, left] = merged
        links[left, left] = links[right] = links[:, right] = -1
        groups[left] += groups[right]
        groups[right] = []
    return tuple(sorted(tuple(sorted(members[at] for at in group)) for group in groups if group))


@given(regions, st.sampled_from([0.1, 0.2]))
@settings(deadline=None)
def test_clusters_equal_those_of_all_pairs(views, min_iou):
    assert cluster_regions(views, min_iou=min_iou) == plain_clusters(views, min_iou)


@given(regions)
@settings(deadline=None)
def test_sparse_clustering_equals_dense_clustering(views):
    expected = cluster_regions(views)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clustering, "DENSE_LIMIT", 0)
        patch.setattr(overlap, "DENSE_PAIRS", 0)
        patch.setattr(overlap, "BLOCK_PAIRS", 3)
        patch.setattr(overlap, "DECODED_BYTES", 40)
        assert cluster_regions(views) == expected


@given(regions, st.sampled_from([0.0, 0.3]))
@settings(deadline=None)
def test_overlaps_from_the_index_equal_those_of_each_pair(views, min_iou):
    left, right = ([region.geometry for region in drawn] for drawn in views[:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "DENSE_PAIRS", 0)
        patch.setattr(overlap, "BLOCK_PAIRS", 3)
        patch.setattr(overlap, "DECODED_BYTES", 40)
        measured = iou_pairs(left, right, min_iou=min_iou)
    expected = {
        (row, column): value
        for row, a in enumerate(left)
        for column, b in enumerate(right)
        if (value := iou(a, b)) > 0 and value >= min_iou - 1e-9
    }
    pairs = list(zip(measured.rows.tolist(), measured.columns.tolist(), strict=True))
    assert pairs == sorted(expected)
    assert measured.values.tolist() == pytest.approx([expected[pair] for pair in pairs])


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_sparse_matching_equals_dense_matching(n, m, seed):
    rng = np.random.default_rng(seed)
    matrix = rng.random((n, m)) * (rng.random((n, m)) < 0.5)
    allowed = np.where(matrix >= 0.3, matrix, 0.0)
    best = allowed[linear_sum_assignment(allowed, maximize=True)].sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "DENSE_ASSIGNMENT", 0)
        pairs = match(matrix, threshold=0.3)
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    assert all(matrix[pair] >= 0.3 for pair in pairs)
    assert sum(matrix[pair] for pair in pairs) == pytest.approx(best)


def grid(count, shift):
    rows = int(np.ceil(np.sqrt(count)))
    return tuple(
        region(Rectangle(20.0 * (at % rows) + shift, 20.0 * (at // rows) + shift, 15.0, 15.0)) for at in range(count)
    )


def test_memory_grows_with_regions_not_with_pairs():
    people = [grid(3000, shift) for shift in (0.0, 1.0, 2.0)]
    tracemalloc.start()
    clusters = cluster_regions(people)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {len(cluster) for cluster in clusters} == {3}
    assert peak < 60e6  # all pairs would be 81 million numbers


@pytest.mark.parametrize(
    "people",
    [[[region(Rectangle(0, 0, 10, 10))] * 1100] * 2, [[region(Rectangle(0, 0, 10, 10))] * 40_000] * 2],
    ids=["overlapping", "many"],
)
def test_unbounded_comparisons_are_too_large(people):
    for refused in (check_size, cluster_regions):
        with pytest.raises(TooLargeToJudge, match="too large to judge"):
            refused(people)


def test_task_within_the_limit_can_be_clustered(monkeypatch):
    monkeypatch.setattr(clustering, "DENSE_LIMIT", 0)
    people = [[region(Rectangle(shift, 10.0 * at, 9, 9)) for at in range(4)] for shift in (0, 1)]
    monkeypatch.setattr(overlap, "MAX_PAIRS", 4)
    check_size(people)
    assert {len(cluster) for cluster in cluster_regions(people)} == {2}
    two = [[*held, *(msgspec.structs.replace(region, control="other") for region in held)] for held in people]
    with pytest.raises(TooLargeToJudge):
        check_size(two)


def test_outlines_of_too_many_corners_are_too_large(monkeypatch):
    monkeypatch.setattr(outlines, "MAX_WORK", 100)
    monkeypatch.setattr(outlines, "ALWAYS_MEASURED_PAIRS", 0)
    outline = Polygon(((0, 0), (9, 0), (9, 9), (0, 8)))
    with pytest.raises(TooLargeToJudge, match="corners"):
        iou_pairs([outline] * 9, [outline] * 9)


def test_one_outline_of_many_corners_stays_within_memory():
    turns = np.linspace(0, 2 * np.pi, 3000, endpoint=False)
    large = Polygon(tuple(zip((50 + 50 * np.cos(turns)).tolist(), (50 + 50 * np.sin(turns)).tolist(), strict=True)))
    small = [Polygon(((9.0 * at, 0), (9.0 * at + 5, 0), (9.0 * at, 5))) for at in range(2000)]
    tracemalloc.start()
    iou_pairs([large, *small], [large, *small])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # padded to the largest, the edges of all would be 240 MB
