"""The frame of work on single photos."""

from __future__ import annotations

import pytest

from vpltool import console
from vpltool.formats.shards import WHOLE, Shard
from vpltool.stages import _photo_work


def test_sizes_of_many_photos_are_counted(monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_photo_work, "_MANY", 3)
    with console.heard_by(console.Terminal()):
        few = _photo_work.count_sizes(2)
        few()
        few()
        assert capsys.readouterr().err == ""
        many = _photo_work.count_sizes(3)
        for _ in range(3):
            many()
    assert capsys.readouterr().err.startswith("read sizes: 3 in ")


def test_each_photo_is_one_shard_s() -> None:
    """`assigned` is where it is decided, for ids and for what has one."""
    ids = [f"photo{number}" for number in range(9)]
    assert _photo_work.assigned(ids, WHOLE) == ids
    parts = [_photo_work.assigned(ids, Shard(index, 2)) for index in range(2)]
    assert sorted(sum(parts, [])) == ids
    assert all(parts)
    numbered = list(enumerate(ids))
    assert _photo_work.assigned(numbered, Shard(1, 2), lambda pair: pair[1]) == [
        pair for pair in numbered if pair[1] in parts[1]]
