import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_studio_sdk.converter import brush as sdk

from labelloop.labeling.errors import MalformedValue
from labelloop.labeling.geometry.brush_codec import decode_intervals, decode_mask, decode_rle, encode_rle
from labelloop.labeling.geometry.shapes import Mask

runs = st.lists(
    st.tuples(st.integers(0, 255), st.integers(1, 40) | st.sampled_from([8, 9, 16, 17, 256, 257])), min_size=1
)


def flat(pairs):
    return np.repeat(np.array([value for value, _ in pairs], dtype=np.uint8), [count for _, count in pairs])


def rle_pack(words):
    """The code as Label Studio's editor writes it: neighbours that differ are gathered into literal blocks."""
    bits = f"{len(words):032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}"

    def block(run, values, count):
        size = next(index for index, width in enumerate((3, 4, 8, 16)) if count <= 1 << width)
        width = (3, 4, 8, 16)[size]
        return f"{run}{size:02b}{count - 1:0{width}b}" + "".join(f"{value:08b}" for value in values)

    position, literals = 0, []
    while position < len(words):
        count = 1
        while position + count < len(words) and words[position + count] == words[position] and count < 1 << 16:
            count += 1
        if count > 1:
            if literals:
                bits, literals = bits + block(0, literals, len(literals)), []
            bits += block(1, [words[position]], count)
        else:
            literals.append(words[position])
        position += count
    if literals:
        bits += block(0, literals, len(literals))
    bits += "0" * (-len(bits) % 8)
    return [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]


@given(runs)
def test_encoding_is_byte_for_byte_that_of_the_sdk(pairs):
    words = flat(pairs)
    assert encode_rle(words) == sdk.encode_rle(words.astype(int))


@given(runs)
def test_decoding_gives_the_words_that_the_sdk_gives(pairs):
    words = flat(pairs)
    for code in (sdk.encode_rle(words.astype(int)), rle_pack(words.tolist())):
        assert (decode_rle(code) == words).all()
        assert (decode_rle(code) == sdk.decode_rle(code)).all()


@pytest.mark.parametrize("count", [65535, 65536, 65537, 131072, 131073, 300000])
def test_runs_longer_than_one_count_can_say(count):
    words = np.repeat(np.array([0, 255, 7], dtype=np.uint8), [count, 3, count])
    assert (decode_rle(encode_rle(words)) == words).all()
    assert (sdk.decode_rle(encode_rle(words)) == words).all()


def test_literal_blocks_longer_than_eight_bits_of_count():
    words = np.random.default_rng(0).permutation(np.arange(5000) % 251).astype(np.uint8)
    assert (decode_rle(rle_pack(words.tolist())) == words).all()


@pytest.mark.parametrize("alpha", ["binary", "soft"])
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 0, 128)])
def test_masks_have_the_pixels_that_the_sdk_sees(alpha, colour):
    rows, columns = np.mgrid[:90, :160]
    distance = np.hypot(columns - 80, (rows - 45) * 2)
    opacity = np.where(distance < 60, 255, 0) if alpha == "binary" else np.clip(300 - 4 * distance, 0, 255)
    image = np.zeros((90, 160, 4), dtype=np.uint8)
    image[..., :3], image[..., 3] = colour, opacity
    code = rle_pack(image.ravel().tolist())
    expected = np.reshape(sdk.decode_rle(code), [90, 160, 4])[:, :, 3] > 0
    assert (decode_mask(code, 160, 90) == expected).all()


def test_long_even_stretches_and_their_breaks_are_walked_right():
    # Blocks of one length for longer than a stride, broken off in every way a stride can end.
    rng = np.random.default_rng(1)
    for stretch in (1, 7, 8, 9, 63, 64, 65, 300, 5000, 40000):
        words = np.tile(np.array([0, 255], dtype=np.uint8), stretch)
        words = np.concatenate(
            [words, np.repeat(rng.integers(0, 9, 20), rng.integers(1, 300, 20)).astype(np.uint8)] * 3
        )
        assert (decode_rle(encode_rle(words)) == words).all()


def test_mask_is_written_into_all_four_channels():
    mask = np.zeros((4, 6), dtype=bool)
    mask[1:3, 2:5] = True
    assert encode_rle(mask) == sdk.mask2rle(mask.astype(np.uint8) * 255)
    assert (decode_mask(encode_rle(mask), 6, 4) == mask).all()


@pytest.mark.parametrize(
    ("rle", "reason"),
    [
        ([], "too few"),
        ([0, 0, 1, 64], "too few"),
        ([1, 2, "x"], "whole numbers"),
        ([300] * 20, "whole numbers"),
        ([-1] * 20, "whole numbers"),
        ([0.5] * 20, "whole numbers"),
        ([0, 0, 1, 64, 73, 235, 7, 1], "bits"),
        ([255, 255, 255, 255, 57, 27, 252, 0], "asks for"),
    ],
)
def test_broken_codes_say_what_is_wrong(rle, reason):
    with pytest.raises(MalformedValue, match=reason):
        decode_rle(rle)


@given(runs, st.integers(1, 200))
def test_a_code_that_ends_early_is_never_taken_for_whole(pairs, cut):
    words = flat([*pairs, (3, 50), (1, 1), (2, 1), (9, 70)])
    code = encode_rle(words)[:-2]
    with pytest.raises(MalformedValue):
        decode_rle(code[: max(0, len(code) - cut)])


@given(st.binary(min_size=7, max_size=200))
def test_noise_is_decoded_or_refused_but_never_crashes(noise):
    # The header of a 100-word code, so that the blocks are what is broken.
    code = (100).to_bytes(4, "big") + bytes([0b00111001, 0b00011011, 0b11111000 | noise[0] & 7]) + noise[1:]
    with contextlib.suppress(MalformedValue):
        assert decode_rle(code).size == 100


def test_stroke_of_another_size_is_rejected_before_decoding():
    with pytest.raises(MalformedValue, match="do not fill 5 x 5"):
        decode_mask(encode_rle(np.ones((4, 6), dtype=bool)), 5, 5)


@pytest.mark.parametrize("seed", range(8))
def test_masks_of_intervals_are_those_of_pixels(seed):
    rng = np.random.default_rng(seed)
    width, height = rng.integers(1, 40, 2).tolist()
    noise = rng.random((height, width)) < rng.choice([0, 0.02, 0.5, 1])
    noise[:, -1:] |= rng.random((height, 1)) < 0.5  # intervals that reach, and go beyond, the end of a row
    noise[:, :1] |= rng.random((height, 1)) < 0.5
    colours = rng.integers(0, 3, (height, width, 4), dtype=np.uint8)
    colours[..., 3] = noise * rng.integers(1, 256, (height, width))
    for code in (encode_rle(noise), rle_pack(colours.ravel().tolist())):
        intervals = decode_intervals(code, width, height)
        assert Mask.from_intervals(*intervals, width, height) == Mask.from_array(noise)
        assert (decode_mask(code, width, height) == noise).all()
