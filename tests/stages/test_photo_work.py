"""The frame of work on single photos."""

from __future__ import annotations

import pytest

from vpltool import console
from vpltool.engine import photo_work
from vpltool.engine.photo_work import count_sizes
from vpltool.engine.photos import assigned
from vpltool.formats.shards import WHOLE, Shard


def test_sizes_of_many_photos_are_counted(monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(photo_work, "_MANY", 3)
    with console.heard_by(console.Terminal()):
        few = count_sizes(2)
        few()
        few()
        assert capsys.readouterr().err == ""
        many = count_sizes(3)
        for _ in range(3):
            many()
    assert capsys.readouterr().err.startswith("read sizes: 3 in ")


def test_each_photo_is_one_shard_s() -> None:
    """`assigned` is where it is decided, for ids and for what has one."""
    ids = [f"photo{number}" for number in range(9)]
    assert assigned(ids, WHOLE) == ids
    parts = [assigned(ids, Shard(index, 2)) for index in range(2)]
    assert sorted(sum(parts, [])) == ids
    assert all(parts)
    numbered = list(enumerate(ids))
    assert assigned(numbered, Shard(1, 2), lambda pair: pair[1]) == [
        pair for pair in numbered if pair[1] in parts[1]]
