"""Deletion has a record: whichever change of a file is the last one, the same call goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from PIL import Image

from vpltool.formats import Header, atomic, open_input, open_output
from vpltool.formats.archives import write_tree
from vpltool.formats.atomic import FSYNC
from vpltool.formats.manifest import MANIFEST
from vpltool.formats.shards import Shard

IDS = [f"photo{number}" for number in range(12)]
OLD = Header(kind="masks", command="crf", options={"split": "train", "alpha": 3})
NEW = Header(kind="masks", command="crf", options={"split": "train", "alpha": 8})
CORRECTED = "photo7.png"


class Killed(BaseException):
    """The process has ended: nothing that follows changes a file."""


class _Changes:
    """Counts what changes files in a folder; from one of them on, none happens any more."""

    folder: Path | None = None
    left = 0

    def see(self, event: str, args: tuple[object, ...]) -> None:
        if self.folder is None:
            return
        writes = (event in ("os.remove", "os.rename", "os.rmdir", "os.mkdir")
                  or (event == "open" and isinstance(args[2], int)
                      and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)))
        if not writes or not isinstance(args[0], (str, Path)):
            return
        if Path(args[0]).is_relative_to(self.folder) or not Path(args[0]).is_absolute():
            self.left -= 1
            if self.left < 0:
                raise Killed


_changes = _Changes()


@pytest.fixture(scope="module", autouse=True)
def _hook() -> None:
    # A hook cannot be taken away again: it does nothing without a folder.
    sys.addaudithook(_changes.see)


def killed_after(count: int, folder: Path, call: Callable[[], object]) -> bool:
    """Run a call that ends after so many changes; whether it did."""
    _changes.folder, _changes.left = folder, count
    try:
        call()
    except Killed:
        return True
    finally:
        _changes.folder = None
    return False


def write_all(path: Path, header: Header, *, overwrite: bool = False, update: bool = False,
              shard: Shard = Shard(0, 1), together: bool = True) -> None:
    """Do what a stage does: open, begin, write, finish."""
    ids = [key for key in IDS if shard.holds(key)]
    output = open_output(path, header, ids, overwrite=overwrite, update=update, shard=shard,
                         per_photo_inputs=dict.fromkeys(ids, str(header.options["alpha"])))
    output.begin()
    with output.together():
        for key in output.todo:
            output.write_labels(key, np.full((4, 4), int(header.options["alpha"]), np.uint8))
    output.finish()


def tree(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*")
            if file.is_file() and ".part-" not in str(file)}


def begin(path: Path, *, corrected: bool) -> None:
    """A complete folder of the old settings, perhaps with a mask that a person has corrected."""
    write_all(path, OLD)
    if corrected:
        Image.fromarray(np.full((4, 4), 1, np.uint8), "L").save(path / CORRECTED)


def is_up_to_date(path: Path) -> bool:
    """What `status` asks of a folder."""
    if not (path / MANIFEST).exists():
        return False
    folder = open_input(path, ("masks",))
    return folder.complete and not folder.replaced and all(map(folder.holds, IDS))


CALLS: dict[str, tuple[dict[str, bool], bool, Shard]] = {
    "overwrite": ({"overwrite": True}, False, Shard(0, 1)),
    "update": ({"update": True}, True, Shard(0, 1)),
    "a shard overwrites": ({"overwrite": True}, False, Shard(0, 2)),
    "a shard updates": ({"update": True}, True, Shard(1, 2)),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_same_call_goes_on_after_every_change(name: str, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them: the bytes are those of an undisturbed run, and it never looks up to date."""
    # Once with files that wait for the disk together, and have their names later.
    monkeypatch.setenv(FSYNC, "1" if name == "update" else "0")
    how, corrected, shard = CALLS[name]
    undisturbed = tmp_path / "undisturbed"
    begin(undisturbed, corrected=corrected)
    old = tree(undisturbed)
    write_all(undisturbed, NEW, shard=shard, **how)
    if shard.count > 1:
        write_all(undisturbed, NEW, shard=Shard(1 - shard.index, 2), **how)
    wanted = tree(undisturbed)
    for count in range(1000):
        path = tmp_path / str(count)
        begin(path, corrected=corrected)
        killed = killed_after(count, path, lambda: write_all(path, NEW, shard=shard, **how))  # noqa: B023
        now = tree(path)
        assert now in (old, wanted) or not is_up_to_date(path), count
        assert not corrected or now[CORRECTED] == old[CORRECTED], count
        write_all(path, NEW, shard=shard, **how)
        if shard.count > 1:
            write_all(path, NEW, shard=Shard(1 - shard.index, 2), **how)
        assert tree(path) == wanted, count
        if not killed:
            break
    # Each of the 12 files goes, is opened and is renamed.
    assert count > (30 if shard.count == 1 else 15)


@pytest.mark.parametrize("gone", [(), tuple(IDS[:3])])
def test_a_folder_that_lost_its_manifest(gone: tuple[str, ...], tmp_path: Path) -> None:
    """It is continued, and a corrected mask is kept."""
    begin(tmp_path, corrected=True)
    old = tree(tmp_path)
    (tmp_path / MANIFEST).unlink()
    for key in gone:
        (tmp_path / f"{key}.png").unlink()
    write_all(tmp_path, OLD)
    assert tree(tmp_path) == old
    (tmp_path / MANIFEST).unlink()
    write_all(tmp_path, NEW, update=True)
    assert tree(tmp_path)[CORRECTED] == old[CORRECTED]
    assert open_input(tmp_path, ("masks",)).identity == NEW.config_hash
    assert is_up_to_date(tmp_path)


def test_status_sees_a_folder_without_manifest(run: Run, copied: Path) -> None:
    work = copied / "work"
    (work / "cams/text/train/artifact.json").unlink()
    said = run("status", "--stale", work=work).out
    assert "cams/text/train" in said
    assert "a command was stopped while it replaced the files" in said
    assert run("update", work=work).code == 0
    assert "no result is stale" in run("status", "--stale", work=work).out


def test_an_exported_folder_is_replaced_at_once(tmp_path: Path) -> None:
    """After every change the folder is that of before or that of after, whole."""
    path = tmp_path / "export"

    def export(content: bytes, split: str) -> None:
        write_tree(path, [(f"images/{split}/a.png", content), (f"labels/{split}/a.png", content)],
                   "form", kept=("train",))

    export(b"old", "train")
    export(b"old", "val")
    old = tree(path)
    export(b"new", "val")
    wanted = tree(path)
    assert wanted.keys() == old.keys() and wanted != old
    for count in range(1000):
        export(b"old", "val")
        assert tree(path) == old
        killed = killed_after(count, tmp_path, lambda: export(b"new", "val"))
        assert tree(path) in (old, wanted), count
        export(b"new", "val")
        assert tree(path) == wanted
        if not killed:
            break
    assert count > 5


def test_an_exported_folder_comes_back_where_folders_cannot_be_exchanged(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    path, rename, done = tmp_path / "export", Path.rename, list[Path]()

    def export(content: bytes) -> None:
        write_tree(path, [("images/a.png", content)], "form")

    def interrupt(folder: Path, target: Path) -> Path:
        done.append(target)
        if len(done) == 2:
            raise KeyboardInterrupt
        return rename(folder, target)

    export(b"old")
    old = tree(path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", interrupt)
        export(b"new")
    assert done[1:] == [path, path] and tree(path) == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["export"]
    export(b"new")
    assert tree(path)["images/a.png"] == b"new"
