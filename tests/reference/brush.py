"""Label Studio's run lengths, written out bit by bit (rle-pack of thi.ng/umbrella)."""

from __future__ import annotations

from collections.abc import Iterator


def bits_of(content: list[int]) -> Iterator[int]:
    for byte in content:
        for place in range(7, -1, -1):
            yield byte >> place & 1


def read(bits: Iterator[int], width: int) -> int:
    number = 0
    for _ in range(width):
        number = 2 * number + next(bits)
    return number


def decode(content: list[int]) -> list[int]:
    """All values, four for each pixel."""
    bits = bits_of(content)
    total, word = read(bits, 32), read(bits, 5) + 1
    sizes = [read(bits, 4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        many = read(bits, 1)
        count = read(bits, sizes[read(bits, 2)]) + 1
        if many:
            values += [read(bits, word)] * count
        else:
            values += [read(bits, word) for _ in range(count)]
    return values


def encode_singly(values: list[int]) -> list[int]:
    """Values one by one in blocks of eight at most: what a run-length writer may do as well."""
    text = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    for first in range(0, len(values), 8):
        block = values[first : first + 8]
        text += f"000{len(block) - 1:03b}" + "".join(f"{value:08b}" for value in block)
    text += "0" * (-len(text) % 8)
    return [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]
