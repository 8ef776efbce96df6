"""Power loss: a name never comes before its bytes are on the disk, unless a person says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vpltool.formats import atomic
from vpltool.formats.atomic import FSYNC, PendingFiles, atomic_path


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("setting", ["1", "0"])
def test_bytes_are_on_the_disk_before_their_name(setting: str, together: bool, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FSYNC, setting)
    paths = [tmp_path / f"{number}.bin" for number in range(3)]
    synced: list[int] = []
    whole = os.fsync

    def watched(file: int) -> None:
        assert os.fstat(file).st_size == 5
        synced.append(os.fstat(file).st_ino)
        whole(file)

    monkeypatch.setattr(atomic.os, "fsync", watched)
    batch = PendingFiles() if together else None
    for path in paths:
        with atomic_path(path, batch) as temporary:
            temporary.write_bytes(b"bytes")
        assert path.exists() == (not together or setting == "0")
        assert not path.exists() or setting == "0" or path.stat().st_ino in synced
    if batch is not None:
        batch.name_all()
    assert all(path.read_bytes() == b"bytes" for path in paths)
    assert set(synced) == ({path.stat().st_ino for path in paths} if setting == "1" else set())
