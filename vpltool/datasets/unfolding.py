"""Streaming decompression with a limit on the size."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from typing import IO, Any

_EMPTY_READS = 100
"""After so many reads of nothing there will be nothing more."""
_RATIO = 100
"""Most bytes that a byte of a compressed tar may stand for, beyond the largest file; texts: 10."""
_COMPRESSED: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda raw: gzip.GzipFile(fileobj=raw)), (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile))
"""First bytes, and what unfolds them; tarfile itself would hold all that a part unfolds to."""


class _Raw:
    """A stream, with its first bytes read already; counts what it gives."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.head, self.taken = stream, b"", 0
        while len(self.head) < 6 and (more := stream.read(6 - len(self.head))):
            self.head += more

    def read(self, size: int) -> bytes:
        """Read some bytes."""
        content, self.head = self.head[:size], self.head[len(self.head[:size]):]
        content = content or self.stream.read(size)
        self.taken += len(content)
        return content


class Unfolded:
    """The bytes of a tar, compressed or not; ends with an error where a tar was made to be endless.

    A header may say that a file has exabytes: to skip them, tarfile reads at the end of the stream
    as often as that takes. And a megabyte may unfold to gigabytes.

    Args:
        stream: the tar.
        largest: bytes of the largest file in it, which may be as good as empty.
    """

    def __init__(self, stream: IO[bytes], largest: int) -> None:
        self.largest = largest
        self.raw: Any = _Raw(stream)
        unfold = next((unfold for magic, unfold in _COMPRESSED if self.raw.head.startswith(magic)),
                      None)
        self.stream = unfold(self.raw) if unfold else self.raw
        self.given = self.empty = 0

    def read(self, size: int) -> bytes:
        """Read some bytes.

        Raises:
            EOFError: there were none a hundred times, or far too many.
        """
        content: bytes = self.stream.read(size)
        self.given += len(content)
        self.empty += not content
        if self.empty > _EMPTY_READS:
            raise EOFError("it ends within a file")
        if self.given > _RATIO * self.raw.taken + self.largest:
            raise EOFError(f"it unfolds to more than {_RATIO} times its size")
        return content
