"""Integer sets: every added number is contained once, in memory or on the disk."""

import random
from collections.abc import Callable, Sequence

import pytest

from exporters.structures import integer_sets
from exporters.structures.integer_sets import IntervalSet, SpillingSet

RANDOM = random.Random(5)
ORDERS: dict[str, Callable[[], Sequence[int]]] = {
    "ascending": lambda: range(1, 3000),
    "descending": lambda: range(3000, 0, -1),
    "with gaps": lambda: range(7, 30_000, 11),
    "shuffled": lambda: RANDOM.sample(range(1, 3001), 3000),
    "hashes": lambda: [RANDOM.getrandbits(63) for _ in range(3000)],
    "of which the bytes of two hold a third": lambda: [0x0202020202020202, 0x0102020202020202, 0x0202020202020203],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", [SpillingSet, IntervalSet])
def test_each_number_is_new_once(
    kind: type[SpillingSet] | type[IntervalSet], order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integer_sets, "MEMORY_KEYS", 512)  # so that most of them are on the disk
    monkeypatch.setattr(integer_sets, "MERGE_KEYS", 256)
    numbers, numbers_set, expected = ORDERS[order](), kind(), set[int]()
    for number in numbers:
        assert number not in numbers_set
        assert numbers_set.add(number)
        assert number in numbers_set
        assert not numbers_set.add(number)
        expected.add(number)
    assert sorted(numbers_set.keys()) == sorted(expected)
    others = [RANDOM.choice(numbers) + RANDOM.randrange(-3, 4) for _ in range(2000)]
    assert [max(other, 1) in numbers_set for other in others] == [max(other, 1) in expected for other in others]
    assert all(number in numbers_set for number in numbers)
    assert not any(numbers_set.add(number) for number in numbers)


def test_memory_stays_bounded() -> None:
    numbers_set = SpillingSet()
    for _ in range(200_000):
        numbers_set.add(RANDOM.getrandbits(64))
    assert len(numbers_set._slots) <= 2 * integer_sets.MEMORY_KEYS
    assert len(numbers_set.keys()) == 200_000
