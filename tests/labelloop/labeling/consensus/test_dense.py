"""Tasks of thousands of regions: the same results as from all pairs, in bounded memory, or "too large to judge"."""

import tracemalloc

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from labelloop.labeling.consensus import clustering as clusters
from labelloop.labeling.consensus.clustering import DUPLICATE_IOU, Member, check_size, cluster_regions
from labelloop.labeling.errors import TooLargeToJudge
from labelloop.labeling.geometry import outlines, overlap
from labelloop.labeling.geometry.overlap import iou, match, overlaps
from labelloop.labeling.geometry.shapes import Ellipse, Mask, Polygon, Rectangle
from labelloop.labeling.region import Region


def region(shape, label="a", control="label"):
    return Region(shape, (label,), "r", control, "image", "rectanglelabels", None, 0, 1000, 1000)


def mask(x, y, width, height):
    pixels = np.zeros((40, 40), dtype=bool)
    pixels[y : y + height, x : x + width] = True
    return Mask.of(pixels)


place, side = st.integers(0, 20), st.integers(1, 15)
sides = st.tuples(place, place, side, side)
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


def plain_clusters(stances, least):
    """Average linkage over the matrix of all pairs, as its definition says."""
    members = [Member(who, at) for who, drawn in enumerate(stances) for at in range(len(drawn))]
    drawn = [stances[each.annotator][each.region] for each in members]
    if not drawn:
        return ()
    who = np.array([each.annotator for each in members])
    same = np.array([[one.labels == other.labels for other in drawn] for one in drawn]).reshape(len(drawn), -1)
    links = overlap.iou_matrix([each.geometry for each in drawn], [each.geometry for each in drawn])
    links = links * (1 + 1e-6 * same)
    own = who[:, None] == who[None]
    twice = [tuple(pair) for pair in np.argwhere(np.triu(own & same & (links >= DUPLICATE_IOU), 1)).tolist()]
    twins = []
    for one, other in twice:
        firsts = [pair[0] for pair in twice if who[pair[0]] != who[one]]
        if one in twins or other in twins or any(links[one, first] >= DUPLICATE_IOU / 2 for first in firsts):
            continue
        fits = np.where(own[one], 0.0, links)
        twins.append(one if fits[one].sum() < fits[other].sum() else other)
    links[own] = links[twins] = links[:, twins] = -1
    groups = [[at] for at in range(len(drawn))]
    while len(drawn) > 1 and links.max() >= least:
        one, other = divmod(int(links.argmax()), len(drawn))
        sizes = len(groups[one]), len(groups[other])
        joined = (sizes[0] * links[one] + sizes[1] * links[other]) / sum(sizes)
        joined[(links[one] < 0) | (links[other] < 0)] = -1
        links[one] = links[:, one] = joined
        links[one, one] = links[other] = links[:, other] = -1
        groups[one] += groups[other]
        groups[other] = []
    return tuple(sorted(tuple(sorted(members[at] for at in group)) for group in groups if group))


@given(regions, st.sampled_from([0.1, 0.2]))
@settings(deadline=None)
def test_clusters_are_those_of_all_pairs(stances, least):
    assert cluster_regions(stances, least=least) == plain_clusters(stances, least)


@given(regions)
@settings(deadline=None)
def test_clusters_of_many_regions_are_those_of_few(stances):
    expected = cluster_regions(stances)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "_FEW", 0)
        patch.setattr(overlap, "_FEW", 0)
        patch.setattr(overlap, "_BLOCK", 3)
        patch.setattr(overlap, "_RUNS", 40)
        assert cluster_regions(stances) == expected


@given(regions, st.sampled_from([0.0, 0.3]))
@settings(deadline=None)
def test_overlaps_found_by_tree_are_those_of_each_pair(stances, least):
    one, other = ([each.geometry for each in drawn] for drawn in stances[:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "_FEW", 0)
        patch.setattr(overlap, "_BLOCK", 3)
        patch.setattr(overlap, "_RUNS", 40)
        found = overlaps(one, other, least=least)
    expected = {
        (row, column): value
        for row, a in enumerate(one)
        for column, b in enumerate(other)
        if (value := iou(a, b)) > 0 and value >= least - 1e-9
    }
    pairs = list(zip(found.rows.tolist(), found.columns.tolist(), strict=True))
    assert pairs == sorted(expected)
    assert found.values.tolist() == pytest.approx([expected[pair] for pair in pairs])


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_many_pairs_are_matched_as_well_as_few(n, m, seed):
    rng = np.random.default_rng(seed)
    matrix = rng.random((n, m)) * (rng.random((n, m)) < 0.5)
    allowed = np.where(matrix >= 0.3, matrix, 0.0)
    best = allowed[linear_sum_assignment(allowed, maximize=True)].sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "_MATRIX", 0)
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
    found = cluster_regions(people)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {len(cluster) for cluster in found} == {3}
    assert peak < 60e6  # all pairs would be 81 million numbers


@pytest.mark.parametrize(
    "people",
    [[[region(Rectangle(0, 0, 10, 10))] * 1100] * 2, [[region(Rectangle(0, 0, 10, 10))] * 40_000] * 2],
    ids=["overlapping", "many"],
)
def test_what_cannot_be_compared_in_bounds_is_too_large(people):
    for refused in (check_size, cluster_regions):
        with pytest.raises(TooLargeToJudge, match="too large to judge"):
            refused(people)


def test_what_is_small_enough_to_compare_can_be_grouped(monkeypatch):
    monkeypatch.setattr(clusters, "_FEW", 0)
    people = [[region(Rectangle(shift, 10.0 * at, 9, 9)) for at in range(4)] for shift in (0, 1)]
    monkeypatch.setattr(overlap, "MOST_PAIRS", 4)
    check_size(people)
    assert {len(cluster) for cluster in cluster_regions(people)} == {2}
    two = [[*held, *(msgspec.structs.replace(each, control="other") for each in held)] for held in people]
    with pytest.raises(TooLargeToJudge):
        check_size(two)


def test_outlines_of_too_many_corners_are_too_large(monkeypatch):
    monkeypatch.setattr(outlines, "_MOST_WORK", 100)
    monkeypatch.setattr(outlines, "_MANY_PAIRS", 0)
    one = Polygon(((0, 0), (9, 0), (9, 9), (0, 8)))
    with pytest.raises(TooLargeToJudge, match="corners"):
        overlaps([one] * 9, [one] * 9)


def test_one_outline_of_many_corners_does_not_fill_memory():
    turns = np.linspace(0, 2 * np.pi, 3000, endpoint=False)
    large = Polygon(tuple(zip((50 + 50 * np.cos(turns)).tolist(), (50 + 50 * np.sin(turns)).tolist(), strict=True)))
    small = [Polygon(((9.0 * at, 0), (9.0 * at + 5, 0), (9.0 * at, 5))) for at in range(2000)]
    tracemalloc.start()
    overlaps([large, *small], [large, *small])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # as wide as the large one, the edges of all would be 240 MB
