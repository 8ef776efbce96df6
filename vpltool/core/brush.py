"""Label Studio's run lengths of brush strokes: the rle-pack of thi.ng/umbrella, over RGBA.

A stream of bits, the highest first: the number of values (32), the bits of a value less one (5),
four sizes of counts less one (4 each); then blocks. A block is a bit (1: one value many times; 0:
values one by one), the number of a size (2), a count less one in that size, and the values.
"""

from __future__ import annotations

from vpltool.lazy import np, npt

_SIZES = (3, 4, 8, 16)
_HEAD = 32 + 5 + 4 * 4
_CHANNELS = 4
_LONGEST = 1 << _SIZES[-1]


def brush_lengths(inside: npt.NDArray[np.bool_]) -> list[int]:
    """Return Label Studio's run lengths of a region (H, W), as bytes."""
    flat = inside.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = np.diff(starts, append=flat.size) * _CHANNELS
    # Longer runs are cut into pieces of the longest that a count can say.
    pieces = -(-lengths // _LONGEST)
    owners = np.repeat(np.arange(len(starts)), pieces)
    counts = np.full(len(owners), _LONGEST)
    last = pieces.cumsum() - 1
    counts[last] = lengths - (pieces - 1) * _LONGEST
    sizes = np.searchsorted(2 ** np.array(_SIZES), counts)
    bits = np.array(_SIZES)[sizes]
    values = np.where(flat[starts[owners]], 255, 0)
    codes = ((4 + sizes) << bits | (counts - 1)) << 8 | values
    head = [(flat.size * _CHANNELS, 32), (7, 5), *((size - 1, 4) for size in _SIZES)]
    return _pack(np.array([code for code, _ in head] + codes.tolist(), np.int64),
                 np.array([width for _, width in head] + (bits + 11).tolist(), np.int64))


def _pack(codes: npt.NDArray[np.int64], widths: npt.NDArray[np.int64]) -> list[int]:
    """Write numbers in so many bits each, one after the other."""
    ends = widths.cumsum()
    place = np.arange(ends[-1]) - np.repeat(ends - widths, widths)
    bits = np.repeat(codes, widths) >> (np.repeat(widths, widths) - 1 - place) & 1
    packed: list[int] = np.packbits(bits.astype(np.uint8)).tolist()
    return packed


def from_brush_lengths(content: list[int], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the region (H, W) of Label Studio's run lengths: where it is not transparent.

    Raises:
        ValueError: they end too early, or are of another size.
    """
    bits = np.unpackbits(np.array(content, np.uint8))
    text = bits.tobytes().translate(bytes([48, 49]) + bytes(254)).decode("ascii")
    if len(text) < _HEAD:
        raise ValueError("the run lengths are too short")
    total, word = int(text[:32], 2), int(text[32:37], 2) + 1
    if total != size[0] * size[1] * _CHANNELS:
        raise ValueError(f"the run lengths hold {total // _CHANNELS} pixels, not "
                         f"{size[0]}×{size[1]} (height×width)")
    sizes = [int(text[at : at + 4], 2) + 1 for at in range(37, _HEAD, 4)]
    values, at, done = np.zeros(total, bool), _HEAD, 0
    while done < total:
        if at + 3 > len(text):
            raise ValueError("the run lengths end too early")
        width = sizes[int(text[at + 1 : at + 3], 2)]
        count = int(text[at + 3 : at + 3 + width] or "0", 2) + 1
        first, at = at + 3 + width, at + 3 + width
        at += word if text[first - 3 - width] == "1" else word * count
        if at > len(text) or done + count > total:
            raise ValueError("the run lengths end too early" if at > len(text) else
                             "the run lengths hold more pixels than they say")
        values[done : done + count] = bits[first:at].reshape(-1, word).any(axis=1)
        done += count
    inside: npt.NDArray[np.bool_] = values.reshape(*size, _CHANNELS)[..., 3]
    return inside
