"""The comparison over a tiny workspace: every row is measured, and can be taken up again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import copy_workspace
from PIL import Image

from vpltool import api
from vpltool.errors import VplError
from vpltool.formats import Photo
from vpltool.methods.cams import dense
from vpltool.papers.comparison.__main__ import choose_photos, draw_methods, main
from vpltool.papers.comparison.methods import (
    BUNDLED,
    Measured,
    Setup,
    background_power,
    read_methods,
)

ROWS = """
vpltool text-prototypes --prompts single
each split in $learn $score
vpltool extract --split $split --workers 0
end

say text | a test | 70.8
each split in $learn $score
vpltool cam --split $split
vpltool refine --cams text --split $split
end

say seeds | a test
vpltool seed-prototypes --cams text --phi 0.6 --phi-background 0.3 --method kmeans --per-class 2 \\
    --seed $seed --split $learn --out $work/prototypes/k-$seed.safetensors
each split in $learn $score
vpltool cam --prototypes k-$seed --method dense --split $split
end
"""


@pytest.fixture(scope="module")
def base(ready: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    base = copy_workspace(ready, tmp_path_factory.mktemp("compared") / "base", tiny_clip)
    (base / "rows.recipe").write_text(ROWS)
    assert compare(base) == 0
    return base


def compare(base: Path, *words: str) -> int:
    return main([str(base / "work"), "--rows", str(base / "rows.recipe"), "--seeds", "0,1", *words])


def record(base: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((base / "work/tables/compare/compare.json").read_text())
    return found


def test_every_column_of_every_row_is_measured(base: Path) -> None:
    rows = record(base)["rows"]
    assert isinstance(rows, dict)
    assert set(rows) == {"text", "seeds"}
    columns = [f"{what}, {split}" for what in ("CAM", "refined", "mask")
               for split in ("train", "val")]
    assert list(rows["text"]["miou"]) == columns
    assert [len(values) for values in rows["text"]["miou"].values()] == [1] * 6
    assert list(rows["seeds"]["miou"]) == [name for name in columns if "refined" not in name]
    assert [len(values) for values in rows["seeds"]["miou"].values()] == [2] * 4
    for row in rows.values():
        assert row["seconds"] > 0 and row["size"] > 100
        assert all(0 <= value <= 100 for values in row["miou"].values() for value in values)


def test_the_picture_shows_each_method_cut_as_it_was_scored(base: Path) -> None:
    work = base / "work/tables/compare"
    picture = np.asarray(Image.open(work / "compare.png").convert("RGB")).astype(int)
    setup = Setup(api.Workspace(work), "train", "val", "train", (0, 1), ())
    made = {name: Measured(**row) for name, row in json.loads(
        (work / "compare.json").read_text())["rows"].items()}
    again = np.asarray(draw_methods(setup, made)).astype(int)
    assert np.array_equal(picture, again)
    cut = work / "scores/text-refined-cut.json"
    before = cut.read_text()
    try:
        cut.write_text('{"threshold": 1.1}')
        without = np.asarray(draw_methods(setup, made)).astype(int)
    finally:
        cut.write_text(before)
    # Photos, then text, then seeds: two blocks of three side by side.
    left, right = np.array_split((again != without).any(axis=(0, 2)), 2)
    assert right.any() and not left.any()


def test_photos_of_the_picture_are_chosen() -> None:
    photos = [Photo(str(number), "", ("cat", "dog")[:1 + number % 2], ("val",))
              for number in range(12)]
    assert [photo.id for photo in choose_photos(photos, ())] == ["1", "5", "9"]
    assert [photo.id for photo in choose_photos(photos, ("4", "2"))] == ["4", "2"]
    with pytest.raises(VplError, match="no photo `goat`"):
        choose_photos(photos, ("goat",))


def test_scores_are_evals(base: Path) -> None:
    """What the table says of a row is what `eval` says of its maps, cut on the split given."""
    scores = base / "work/tables/compare/scores"
    cut = json.loads((scores / "text-cut.json").read_text())
    val = json.loads((scores / "text-val.json").read_text())
    assert cut["split"] == "train"
    assert val["threshold"] == cut["threshold"]
    rows = record(base)["rows"]
    assert isinstance(rows, dict)
    assert rows["text"]["miou"]["CAM, val"] == [100 * val["miou"]]


IMPORTED = ROWS.partition("say")[0] + """
say imported | another tool
each split in $learn $score
vpltool propose --method files --path $work/../../../masks --format labels --paint \\
    --split $split --workers 0
end
"""


def test_masks_of_another_tool_are_scored_as_they_are(base: Path) -> None:
    (base / "imported.recipe").write_text(IMPORTED)
    assert compare(base, "--rows", str(base / "imported.recipe")) == 0
    rows = record(base)["rows"]
    assert isinstance(rows, dict)
    # The other tool is the one that drew the scenes.
    assert rows["imported"]["miou"] == {"mask, train": [100], "mask, val": [100]}
    assert rows["imported"]["size"] > 0
    table = (base / "work/tables/compare/compare.md").read_text()
    assert "| imported |" in table and "| text |" in table


@pytest.mark.parametrize(("lines", "said"), [
    ("", "`both` makes no CAMs and no masks"),
    ("each split in $learn $score\nvpltool cam --split $split\n"
     "vpltool crf --what text --split $split --workers 0\nend", "`both` makes CAMs and masks")])
def test_a_method_makes_cams_or_masks(base: Path, tmp_path: Path, lines: str, said: str,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.recipe"
    path.write_text(f"{ROWS.partition('say')[0]}say both | x\n{lines}\n")
    assert compare(base, "--rows", str(path)) == 1
    assert said in capsys.readouterr().err


def test_again_it_measures_nothing_twice(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cams = base / "work/tables/compare/cams/text/train"
    before = {path: path.stat().st_mtime_ns for path in cams.iterdir()}
    seconds = record(base)["rows"]
    assert compare(base, "--only", "text") == 0
    assert {path: path.stat().st_mtime_ns for path in cams.iterdir()} == before
    after = record(base)["rows"]
    assert isinstance(seconds, dict) and isinstance(after, dict)
    # Nothing was worked on, so the time of the first run stays; rows that were not asked for, too.
    assert after["text"]["seconds"] == seconds["text"]["seconds"]
    assert after["seeds"] == seconds["seeds"]
    table = capsys.readouterr().out
    assert "| text |" in table and "| seeds |" in table and "70.8" in table


MINE = ROWS.partition("say")[0] + """
say mine | me | 99.9
each split in $learn $score
vpltool cam --method dense --split $split
end
"""


def test_rows_of_another_list_join_the_table(base: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.recipe").write_text(MINE)
    work = base / "work/tables/compare"
    before = (work / "compare.md").read_text()
    assert compare(base, "--rows", str(tmp_path / "mine.recipe")) == 0
    after = (work / "compare.md").read_text()
    rows = [line for line in before.splitlines() if line.startswith(("| text", "| seeds"))]
    assert len(rows) == 2 and all(line in after for line in rows)
    assert after.index("| seeds |") < after.index("| mine |") and "99.9" in after
    # And the other way round.
    assert compare(base, "--only", "text") == 0
    assert "| mine |" in (work / "compare.md").read_text()


def test_rows_of_another_protocol_are_not_taken_over(base: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(base, "--only", "text", "--masks", "none") == 0
    assert "compare.md begins anew: another choice of masked" in capsys.readouterr().err
    rows = record(base)["rows"]
    assert isinstance(rows, dict) and set(rows) == {"text"}
    assert not any(name.startswith("mask") for name in rows["text"]["miou"])


OWN = """
say edited | me
each split in $learn $score
vpltool cam --method own --split $split
vpltool refine --cams text-own --method patches --mask none --split $split
end

say left | me
each split in $learn $score
vpltool cam --method own --name left --split $split
end
"""


def test_rows_of_other_features_or_code_are_marked(copied: Path, monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    rows, own, method = (copied / name for name in ("rows.recipe", "own.recipe", "cams/own.py"))
    method.parent.mkdir()
    shutil.copy(dense.__file__, method)
    monkeypatch.setenv("VPLTOOL_METHODS", str(copied))
    begin, _, text = ROWS.partition("\n\n")
    rows.write_text(f"{begin}\n{text.partition('say seeds')[0]}")
    own.write_text(begin + OWN)

    def table(*words: str) -> str:
        assert compare(copied, "--masks", "none", *words) == 0
        lines = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
        return ", ".join(f"{line[1].strip()}{' untimed' * (not line[-4].strip())}"
                         for line in lines if line[1:])

    assert table() == "text"
    assert table("--rows", str(own)) == "text, edited, left"
    with method.open("a") as file:
        file.write("# edited\n")
    assert table("--rows", str(own), "--only", "edited") == "text, edited, left (changed since)"
    assert "measured before" in (copied / "work/tables/compare/compare.md").read_text()
    # The maps are there already, and what is measured of them is of another temperature.
    own.write_text(own.read_text().replace("--mask none", "--mask none --steps 2"))
    assert table("--rows", str(own)) == "text, edited untimed, left"
    rows.write_text(rows.read_text().replace("--workers 0", "--workers 0 --max-side 40"))
    assert table() == "edited (changed since) untimed, left (changed since), text"


def test_the_bundled_rows_can_be_parsed() -> None:
    begin, methods = read_methods(BUNDLED, {"encoder": "FILE"}, (0, 1), Path())
    assert len(begin) == 3 and len({method.name for method in methods}) == len(methods) == 25
    assert all(method.source for method in methods)
    seeded = {method.name for method in methods if len(method.steps) == 2}
    assert {"seeds", "VPL, phase 1"} < seeded and not {"CLIP-ES", "discriminant"} & seeded


def test_the_crf_begins_where_the_threshold_cuts() -> None:
    for threshold in (0.05, 0.3, 0.5, 0.8):
        alpha = background_power(threshold)
        assert (1 - threshold) ** alpha == pytest.approx(threshold, abs=0.01)
    assert background_power(0) <= 64


@pytest.mark.parametrize(("text", "said"), [
    ("[[row]]", "not a line of a recipe"),
    (ROWS + "say x | y\neach split in a\nvpltool cam --methd a\nend", "line 21: vpltool cam")])
def test_a_list_that_is_none(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "rows.recipe").write_text(text)
    with pytest.raises(VplError, match=said):
        read_methods(tmp_path / "rows.recipe", {"learn": "train", "score": "val"}, (0,), tmp_path)


@pytest.mark.parametrize(("option", "said"), [
    ("", "starts a program"), (" --allow-pipe", "only taken from a command line")])
def test_rows_start_no_program(option: str, said: str, base: Path, tmp_path: Path,
                               capsys: pytest.CaptureFixture[str]) -> None:
    mark, rows = tmp_path / "mark", tmp_path / "rows.recipe"
    rows.write_text(ROWS.replace("extract --split $split", f"train-groups --pairs 'pipe:touch "
                                 f"{mark}'{option}").replace(" --workers 0", ""))
    told = ""
    try:
        assert main([str(base / "work"), "--rows", str(rows), "--seeds", "7"]) == 1
    except VplError as error:
        told = error.message
    assert said in told + capsys.readouterr().err
    assert not mark.exists()


def test_what_cannot_be_compared(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(base, "--only", "txt") == 1
    assert "did you mean `text`?" in capsys.readouterr().err
    assert compare(base, "--score", "test") == 1
    assert "test" in capsys.readouterr().err


def test_hints_name_the_workspace_of_the_comparison(copied: Path,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    """Features of WORK are not read, so a command that makes some there would not help."""
    begin, _, rows = ROWS.partition("\n\n")
    (copied / "rows.recipe").write_text(f"{begin.splitlines()[1]}\n\n{rows}")
    assert compare(copied) == 1
    assert f"-C {copied / 'work/tables/compare'} extract" in capsys.readouterr().err


SECOND = """
if encoder
each split in $learn $score
vpltool extract --split $split --workers 0 --max-side 40 --encoder $encoder
end
say both | a test
each split in $learn $score
vpltool cam --split $split
vpltool refine --cams text --method transport --second $work/features-second/$split \\
    --split $split --out $work/cams/both/$split
end
end
"""


def test_rows_that_read_a_second_encoder(base: Path, tiny_clip: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    """They are left out without one; with one it sees the photos as its line says."""
    rows = base / "second.recipe"
    rows.write_text(ROWS.replace("\n\nsay", SECOND + "\nsay", 1))
    words = ("--rows", str(rows), "--only", "both", "--masks", "none")
    assert compare(base, *words) == 0
    assert ("left out, since they need a second encoder (--second FILE): both"
            in capsys.readouterr().err)
    assert compare(base, *words, "--second", str(tiny_clip)) == 0
    assert "| both |" in capsys.readouterr().out
    features = base / "work/tables/compare/features-second/val"
    header = json.loads((features / "artifact.json").read_text())["header"]
    assert header["options"]["max_side"] == 40
