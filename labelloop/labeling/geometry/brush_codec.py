"""Encode and decode Label Studio's brush strokes: run-length encoded RGBA pixels, vectorised with numpy.

The encoding is rle-pack of thi.ng/umbrella (https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack), a
stream of bits, most significant first:

    32 bits  number of decoded words (4 per pixel: red, green, blue, alpha; row by row)
     5 bits  bits per word - 1 (Label Studio: 8)
   4x4 bits  four sizes - 1, in bits, of the counts below (Label Studio: 3, 4, 8, 16)

then blocks until all words are decoded: 1 bit (run or literals), 2 bits (index of the size), the count - 1, and one
word for a run, or ``count`` words.

The length of a block is only known from its head, so block starts depend on each other. Here the length of a block that
*would* start is looked up for every bit at once; then a short loop visits the actual starts, in strides.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.errors import MalformedValue

_HEADER_BITS = 53
_WORD = 8
_SIZES = (3, 4, 8, 16)
_WINDOW = 1 << 16  # bytes per iteration: the table of block lengths fits into the processor's cache
_TABLE_BITS = 11  # run or literals, index of the size, and counts of up to 8 bits
_PATIENCE = 8
_MAX_WORDS = 1 << 30  # 268 million pixels; a broken header must not allocate gigabytes
_CHANNELS = 4


def decode_rle(rle: Sequence[int] | bytes) -> NDArray[np.uint8]:
    """Decode the words of a brush stroke: red, green, blue, alpha of each pixel, row by row.

    Args:
        rle: The bytes of ``value.rle``.

    Returns:
        A flat array; ``decode_rle(rle).reshape(height, width, 4)[..., 3]`` is the mask.

    Raises:
        MalformedValue: The bytes are not such an encoding, or end before the last pixel.
    """
    data = _bytes(rle)
    num, _ = _header(data)
    return _spread(*_runs(data), num)


def decode_mask(rle: Sequence[int] | bytes, width: int, height: int) -> NDArray[np.bool_]:
    """Decode the mask of a brush stroke: the pixels whose alpha is not zero.

    Returns:
        A boolean array of shape ``(height, width)``.

    Raises:
        MalformedValue: As `decode_rle`; or the stroke belongs to an image of another size.
    """
    pixels = np.zeros(width * height, dtype=np.bool_)
    starts, ends = decode_intervals(rle, width, height)
    if starts.size > pixels.size >> 8:
        return fill_intervals(starts, ends, pixels.size).reshape(height, width)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):  # few, long intervals
        pixels[start:end] = True
    return pixels.reshape(height, width)


def decode_intervals(
    rle: Sequence[int] | bytes, width: int, height: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Decode the mask of a brush stroke as intervals of pixels, counted row by row, without any array of pixels.

    Returns:
        The first pixel of each interval whose alpha is not zero, and the first one after it. They ascend, and a row may
        end within an interval.

    Raises:
        MalformedValue: As `decode_mask`.
    """
    data = _bytes(rle)
    num, _ = _header(data)  # before decoding: a few broken bytes can demand gigabytes
    if num != width * height * _CHANNELS:
        raise MalformedValue("rle", f"{num} words do not fill {width} x {height} pixels of {_CHANNELS}")
    values, counts = _runs(data)
    # Word 4 p + 3 is the alpha of pixel p: there are w // 4 of them before word w.
    ends = np.minimum(np.cumsum(counts), num) // _CHANNELS
    starts = np.concatenate(([0], ends[:-1])) if ends.size else ends
    lit = (values != 0) & (ends > starts)
    starts, ends = starts[lit], ends[lit]
    apart = starts[1:] != ends[:-1]  # runs of different values that touch are one interval
    return starts[np.concatenate(([True], apart))[: starts.size]], ends[np.concatenate((apart, [True]))[: ends.size]]


def fill_intervals(starts: NDArray[np.int64], ends: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """Return a flat array of ``size`` pixels that is set in some disjoint intervals."""
    steps = np.zeros(size + 1, dtype=np.int8)
    steps[starts] += 1
    steps[ends] -= 1  # where another one starts, too
    return np.cumsum(steps[:-1], dtype=np.int8).view(np.bool_)


def encode_rle(pixels: NDArray[Any]) -> list[int]:
    """Encode as the bytes of ``value.rle``, identical to those of label-studio-sdk.

    Args:
        pixels: A mask of shape ``(height, width)``, boolean (255 where set) or alpha from 0 to 255, written into all
            four channels as Label Studio's importers do; or the flat words: red, green, blue, alpha.
    """
    words = np.asarray(pixels)
    words = words.astype(np.uint8) * np.uint8(255) if words.dtype == np.bool_ else words.astype(np.uint8)
    repeat = 1
    if words.ndim == 2:
        words, repeat = words.ravel(), _CHANNELS
    ends = np.append(np.flatnonzero(words[1:] != words[:-1]), words.size - 1) if words.size else np.empty(0, np.int64)
    lengths, values = np.diff(ends, prepend=-1) * repeat, words[ends].astype(np.uint64)
    lengths, values = _split(lengths, values)
    size = np.searchsorted([8, 16, 256], lengths)
    bits = np.array(_SIZES, dtype=np.uint64)[size]
    run = (lengths > 1).astype(np.uint64)
    code = run << np.uint64(2) | size.astype(np.uint64)
    code = (code << bits | (lengths - 1).astype(np.uint64)) << np.uint64(_WORD) | values
    widths = (bits + np.uint64(3 + _WORD)).astype(np.int64)
    header = words.size * repeat << 21 | (_WORD - 1) << 16
    for index, bits_of_count in enumerate(_SIZES):
        header |= (bits_of_count - 1) << 4 * (3 - index)
    return _pack(header, code, widths)


def _split(lengths: NDArray[np.int64], values: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Split runs longer than the largest count."""
    longest = 1 << _SIZES[-1]
    pieces = -(-lengths // longest)
    if not (pieces > 1).any():
        return lengths, values
    cut = np.full(int(pieces.sum()), longest, dtype=np.int64)
    cut[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * longest
    return cut, np.repeat(values, pieces)


def _pack(header: int, code: NDArray[np.uint64], widths: NDArray[np.int64]) -> list[int]:
    starts = np.cumsum(widths) - widths + _HEADER_BITS
    total = int(starts[-1] + widths[-1]) if widths.size else _HEADER_BITS
    # Pads with 1 to 8 zero bits, as label-studio-sdk does.
    size = total // 8 + 1
    shifted = code << (40 - widths - (starts & 7)).astype(np.uint64)
    sums = np.zeros(size + 5)
    for byte in range(5):  # a block spans at most 5 bytes and blocks share no bits: adding equals or-ing
        share = shifted >> np.uint64(8 * (4 - byte)) & np.uint64(255)
        sums += np.bincount((starts >> 3) + byte, weights=share.astype(np.float64), minlength=size + 5)
    packed = sums[:size].astype(np.uint8)
    packed[:7] |= np.frombuffer((header << 3).to_bytes(7, "big"), dtype=np.uint8)
    return packed.tolist()  # type: ignore[no-any-return]


def _bytes(rle: Sequence[int] | bytes) -> NDArray[np.uint8]:
    try:
        return np.frombuffer(bytes(rle), dtype=np.uint8)
    except (TypeError, ValueError):
        raise MalformedValue("rle", "expected an array of bytes (whole numbers from 0 to 255)") from None


def _runs(data: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The words of a brush stroke as runs: the value and the length of each."""
    num, sizes = _header(data)
    words = _words(data)
    starts, counts, runs = _blocks(words, data.size * 8, num, np.array(sizes, dtype=np.uint32))
    first = starts + 3 + np.array(sizes)[_window(words, starts) >> 29 & 3]
    # A literal block of n words is n runs of length 1.
    parts = np.where(runs, 1, counts)
    offsets = np.arange(int(parts.sum())) - np.repeat(np.cumsum(parts) - parts, parts)
    positions = np.repeat(first, parts) + offsets * _WORD
    values = (_window(words, positions) >> (32 - _WORD)).astype(np.uint8)
    return values, np.repeat(np.where(runs, counts, 1), parts)


def _spread(values: NDArray[np.uint8], counts: NDArray[np.int64], num: int) -> NDArray[np.uint8]:
    """Repeat each value by its count."""
    if values.size > num >> 8:
        return np.repeat(values, counts)[:num]
    # Few, long runs: filling slices is faster than np.repeat, and the background is 0 already.
    words = np.zeros(num, dtype=np.uint8)
    ends = np.cumsum(counts)
    lit = np.flatnonzero(values)
    for value, start, end in zip(values[lit].tolist(), (ends - counts)[lit].tolist(), ends[lit].tolist(), strict=True):
        words[start:end] = value
    return words


def _header(data: NDArray[np.uint8]) -> tuple[int, tuple[int, ...]]:
    """The number of words, and the four sizes."""
    if data.size * 8 < _HEADER_BITS:
        raise MalformedValue("rle", f"{data.size} bytes are too few for a header")
    header = int.from_bytes(data[:7].tobytes(), "big") >> 3
    num, word = header >> 21, (header >> 16 & 31) + 1
    if word != _WORD:
        raise MalformedValue("rle", f"its words have {word} bits, Label Studio writes {_WORD}")
    if num > _MAX_WORDS:
        raise MalformedValue("rle", f"its header asks for {num} words")
    return num, tuple((header >> shift & 15) + 1 for shift in (12, 8, 4, 0))


def _words(data: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """The 32 bits that start at each byte."""
    padded = np.concatenate((data, np.zeros(8, dtype=np.uint8)))
    wide = padded.astype(np.uint32)
    words: NDArray[Any] = wide[:-3] << 24 | wide[1:-2] << 16 | wide[2:-1] << 8 | wide[3:]
    return words


def _window(words: NDArray[np.uint32], positions: NDArray[Any]) -> NDArray[np.uint32]:
    """The bits that start at each bit position, left-aligned in 32; at least the first 25 are valid."""
    shifted: NDArray[np.uint32] = words[positions >> 3] << (positions & 7).astype(np.uint32)
    return shifted


def _blocks(
    words: NDArray[np.uint32], bits: int, num: int, sizes: NDArray[np.uint32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """The start of each block, its number of words, and whether it is a run."""
    position, decoded = _HEADER_BITS, 0
    table = _length_table(tuple(sizes.tolist()))
    blocks: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]] = []
    while decoded < num:
        if position >= bits:
            raise MalformedValue("rle", f"ends after {decoded} of {num} words")
        begin = position >> 3
        starts = _walk(words[begin : begin + _WINDOW], position - begin * 8, table, sizes) + begin * 8
        counts, runs = _counts(_window(words, starts), sizes)
        through = np.cumsum(counts)
        last = min(int(np.searchsorted(through, num - decoded)), starts.size - 1)
        blocks.append((starts[: last + 1], counts[: last + 1], runs[: last + 1]))
        decoded += int(through[last])
        position = int(starts[last]) + _length(int(_window(words, starts[last : last + 1])[0]), sizes)
    if position > bits:
        raise MalformedValue("rle", f"its last block ends {position - bits} bits past the end")
    if not blocks:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.bool_)
    return tuple(np.concatenate(column) for column in zip(*blocks, strict=True))


def _walk(
    window: NDArray[np.uint32], position: int, table: NDArray[np.uint16], sizes: NDArray[np.uint32]
) -> NDArray[np.int64]:
    """The bit positions in a window at which blocks start, given the first one.

    Consecutive blocks of equal length, as in the rows of a mask, are skipped in one stride. The number of equal blocks
    before a stride is tried grows with every unprofitable try.
    """
    by_byte = np.empty((window.size, 8), dtype=np.uint16)
    for phase in range(8):
        by_byte[:, phase] = table[(window << np.uint32(phase)) >> np.uint32(32 - _TABLE_BITS)]
    lengths = by_byte.ravel()
    lookup, limit = lengths.data, lengths.size
    pieces: list[NDArray[np.int64]] = []
    single: list[int] = []
    previous, equal, patience = 0, 0, _PATIENCE
    while position < limit:
        length = lookup[position]
        if length != previous:
            previous, equal = length, 0
            single.append(position)
            position += length or _length(int(window[position >> 3]) << (position & 7) & 0xFFFFFFFF, sizes)
            continue
        equal += 1
        if equal < patience or not length:
            single.append(position)
            position += length or _length(int(window[position >> 3]) << (position & 7) & 0xFFFFFFFF, sizes)
            continue
        stride = _equal_blocks(lengths, position, length)
        patience = _PATIENCE if stride > 4 * patience else 2 * patience
        pieces += (
            np.array(single, dtype=np.int64),
            np.arange(position, position + stride * length, length, dtype=np.int64),
        )
        single = []
        position += stride * length
        previous = 0
    return np.concatenate((*pieces, np.array(single, dtype=np.int64)))


def _equal_blocks(lengths: NDArray[np.uint16], start: int, length: int) -> int:
    """Number of consecutive blocks of this length from ``start`` on, at least 1."""
    reach, done = 64, 0
    while True:
        ahead = lengths[start + done * length : start + (done + reach) * length : length] != length
        different = int(ahead.argmax()) if ahead.size else 0
        if ahead.size == 0 or ahead[different]:
            return done + different
        done += ahead.size
        reach *= 4


def _counts(heads: NDArray[np.uint32], sizes: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    size = sizes[heads >> 29 & 3]
    counts = ((heads << 3) >> (32 - size)).astype(np.int64) + 1
    return counts, (heads >> 31).astype(np.bool_)


def _length(head: int, sizes: NDArray[np.uint32]) -> int:
    """Number of bits of the block that starts with these 32 bits."""
    size = int(sizes[head >> 29 & 3])
    words = 1 if head >> 31 else ((head << 3 & 0xFFFFFFFF) >> (32 - size)) + 1
    return 3 + size + words * _WORD


@lru_cache(4)
def _length_table(sizes: tuple[int, ...]) -> NDArray[np.uint16]:
    """Number of bits of a block by its first bits; 0 where those do not contain its whole count."""
    by_index = np.array(sizes, dtype=np.uint32)
    heads = np.arange(1 << _TABLE_BITS, dtype=np.uint32) << np.uint32(32 - _TABLE_BITS)
    counts, runs = _counts(heads, by_index)
    size = by_index[heads >> 29 & 3].astype(np.int64)
    lengths = 3 + size + np.where(runs, 1, counts) * _WORD
    return np.where(runs | (size <= _TABLE_BITS - 3), lengths, 0).astype(np.uint16)
