"""Twins are found through what people do to images; images that differ are not twins."""

import numpy as np
import pytest

from exporters.look import twins as twins_module
from exporters.look.candidates import close_pairs
from exporters.look.fingerprint import SIDE, fingerprint, hashes_of, mirrored
from exporters.look.twins import find_twins
from tests.exporters.look.look_images import CHANGES, drawn, encoded

ORIGINALS = 40


@pytest.fixture(scope="module")
def thumbnails() -> np.ndarray:
    return np.stack([fingerprint(encoded(drawn(seed), quality=95)).thumbnail for seed in range(ORIGINALS)])


@pytest.mark.parametrize("change", CHANGES)
def test_changed_images_are_twins(thumbnails, change):
    changed = [fingerprint(CHANGES[change](drawn(seed))).thumbnail for seed in range(8)]
    twins = find_twins(np.concatenate([thumbnails, changed]))
    assert {tuple(pair) for pair in twins.pairs[twins.twin].tolist()} == {(n, ORIGINALS + n) for n in range(8)}


def test_images_that_differ_are_no_twins(thumbnails):
    assert len(find_twins(thumbnails).pairs) == 0


def test_mirrored_images_are_twins_on_request(thumbnails):
    flipped = np.concatenate([thumbnails, thumbnails[:5, :, ::-1]])
    assert len(find_twins(flipped).pairs) == 0
    twins = find_twins(flipped, mirror=True)
    assert sorted(twins.pairs.tolist()) == [[n, ORIGINALS + n] for n in range(5)]
    assert twins.mirrored.all()


def test_another_object_in_one_scene_is_no_twin():
    scene = np.asarray(drawn(1)).copy()
    other = scene.copy()
    scene[60:130, 40:110] = 250
    other[120:190, 180:250] = 250
    looks = [fingerprint(encoded(drawn_image(pixels), "PNG")).thumbnail for pixels in (scene, other)]
    twins = find_twins(np.stack(looks))
    assert not twins.twin.any()


def drawn_image(pixels):
    from PIL import Image

    return Image.fromarray(pixels)


def test_blank_images_are_counted_and_not_compared(thumbnails):
    blank = np.full((3, SIDE, SIDE), 128, np.uint8)
    twins = find_twins(np.concatenate([thumbnails[:2], blank]))
    assert twins.blank.tolist() == [2, 3, 4]
    assert len(twins.pairs) == 0


def test_groups_are_transitive_and_named_by_their_first_image(thumbnails):
    copies = np.concatenate([thumbnails[:3], thumbnails[:1], thumbnails[:1], thumbnails[2:3]])
    assert find_twins(copies).groups(6).tolist() == [0, 1, 2, 0, 0, 2]


def test_many_copies_of_one_image_stay_one_group(thumbnails, monkeypatch):
    monkeypatch.setattr(twins_module, "MAX_PER_IMAGE", 4)
    twins = find_twins(np.repeat(thumbnails[:1], 30, axis=0))
    assert set(twins.groups(30).tolist()) == {0}
    assert len(twins.pairs) < 30 * 8
    assert twins.limited


def test_hash_of_the_mirror_image_follows_from_the_hash(thumbnails):
    hashes, _ = hashes_of(thumbnails)
    flipped, _ = hashes_of(thumbnails[:, :, ::-1])
    assert np.bitwise_count(mirrored(hashes) ^ flipped).max() <= 2  # coefficients near zero


@pytest.mark.parametrize("distance", [0, 3, 9, 14])
def test_multi_index_finds_the_pairs_of_a_full_comparison(distance):
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 300, dtype=np.uint64)
    near = hashes[:150].copy()
    for row in range(150):  # 0 to 20 bits flipped
        for bit in rng.choice(64, row % 21, replace=False):
            near[row] ^= np.uint64(1) << np.uint64(bit)
    hashes = np.concatenate([hashes, near])
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    wanted = {(int(i), int(j)) for i, j in np.argwhere(np.triu(distances <= distance, 1))}
    assert wanted
    found = {
        (int(i), int(j))
        for first, second in close_pairs(hashes, max_distance=distance)
        for i, j in zip(first, second, strict=True)
    }
    assert found == wanted
