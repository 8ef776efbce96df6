"""The campaigns in short: hostile files to each reader, and commands that are killed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random

import pytest
from launching import Forked, environment

pytest.importorskip("hypothesis")
pytest.importorskip("webdataset")

from campaigns import chaos, documents, fuzz, readers  # noqa: E402
from campaigns.mutations import FORMS  # noqa: E402
from campaigns.readers import READERS, Reader  # noqa: E402

MUTATIONS = 12


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return readers.make_world(tmp_path_factory.mktemp("fuzz") / "world")


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_mutated_file_is_read_or_refused_in_a_line(reader: Reader, work: Path) -> None:
    """No other error, no hang, no more than a GiB, nothing outside, no code."""
    path = work / reader.place
    before = path.read_bytes() if path.exists() else None
    seeds = readers.begin(reader, work)
    chance = Random(reader.name)
    try:
        for _ in range(MUTATIONS):
            content = FORMS[reader.form](chance.choice(seeds), chance)
            path.write_bytes(content)
            found, trace = fuzz.find_in(reader.read, work)
            assert not found, f"{content[:300]!r}\n{trace}"
    finally:
        path.unlink() if before is None else path.write_bytes(before)


def test_what_counts_as_a_find(tmp_path: Path) -> None:
    """Each kind of find is one, and an error that a user is told is none."""
    from vpltool.errors import VplError

    def told(_: Path) -> None:
        raise VplError("a line")

    def lacks_memory(_: Path) -> None:
        try:
            bytearray(1 << 62)
        except MemoryError as error:
            raise VplError("damaged") from error

    def escapes(base: Path) -> None:
        (base.parent / "outside").write_text("x")

    def hangs(_: Path) -> None:
        while True:
            pass

    inside = tmp_path / "base"
    inside.mkdir()
    assert fuzz.find_in(told, inside) == ("", "")
    assert fuzz.find_in(lambda base: base / 3, inside)[0].startswith("TypeError")  # type: ignore[operator]
    assert fuzz.find_in(lacks_memory, inside)[0].startswith("VplError")
    assert fuzz.find_in(escapes, inside)[0].startswith("Escape")
    assert not (tmp_path / "outside").exists()
    (inside / "file").touch()
    assert fuzz.find_in(lambda base: (base / "file").rename(base.parent / "outside"), inside)[0]
    assert fuzz.find_in(lambda base: (base / "link").symlink_to("/etc"), inside) == ("", "")
    (inside / "folder").mkdir()
    (inside / "folder/file").touch()
    # By open folders, not by paths.
    assert fuzz.find_in(lambda base: shutil.rmtree(base / "folder"), inside) == ("", "")
    assert fuzz.find_in(lambda _: os.system("true"), inside)[0].startswith("Escape")
    fuzz.SECONDS, before = 1, fuzz.SECONDS
    try:
        assert fuzz.find_in(hangs, inside)[0].startswith("Hang")
    finally:
        fuzz.SECONDS = before


def test_parts_of_a_campaign_add_up(tmp_path: Path) -> None:
    for seed, count in ((0, 30), (1, 12)):
        fuzz.note(tmp_path, "done", {"seed": seed, "reader": "tar", "engine": "atheris",
                                     "executions": count})
    fuzz.note_find(tmp_path, "tar", "Hang in x.y", "", b"content")
    table = fuzz.as_markdown(fuzz.executions_in(fuzz.notes(tmp_path, "done")),
                             fuzz.notes(tmp_path, "finds"))
    assert "| tar | 42 | 1 |" in table
    assert "| **all: 42** | 42 | 1 |" in table


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
@pytest.mark.parametrize("form", ["json", "json lines", "lines", "safetensors", "png"])
def test_an_example_is_several_documents(form: str, work: Path) -> None:
    from hypothesis import find, settings

    reader = next(reader for reader in READERS if reader.form == form)
    made = find(documents.documents(form, readers.begin(reader, work)), lambda _: True,
                settings=settings(database=None, max_examples=1))
    assert len(made) == documents.PLACES
    assert all(isinstance(content, bytes) for content in made)


KILLS = """
import sys
from pathlib import Path
from campaigns import chaos
chaos.preload()
figures, skipped = chaos.campaign(Path(sys.argv[1]), 4, 1, 0, [
    words for words in chaos.COMMANDS if words[:3] == ("extract", "--split", "train")])
print(chaos.as_markdown(figures, skipped))
assert not figures.damage, figures.damage
assert figures.counts["extract", "kills"] == 4 and not figures.twice
assert figures.counts["extract", "two at once"] == 1
"""


def test_a_command_that_is_killed_or_disturbed(tmp_path: Path) -> None:
    """In a process of its own, which forks."""
    done = Forked(["-c", KILLS, tmp_path], environment())
    said = done.communicate(timeout=600)
    assert done.returncode == 0, said


def test_the_figures_of_a_campaign() -> None:
    figures = chaos.Figures()
    figures.counts["cam", "kills"] += 3
    figures.twice, figures.kept = ["cam, kill 1: a"], 9
    table = chaos.as_markdown(figures, ["full disk: no disk can be mounted"])
    assert "| cam | 3 |" in table
    assert "Of 10 files" in table and "1 were written again" in table
    assert "Skipped: full disk" in table

