"""The frame of work on single photos."""

from __future__ import annotations

import pytest

from vpltool import console
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


def test_every_photo_is_this_process_s() -> None:
    """Until there are shards: `assigned` is where they go."""
    assert _photo_work.assigned(["a", "b"]) == ["a", "b"]
