"""The paper's tables over a tiny workspace: every row is measured, shared work is done once."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, Scene, copy_workspace, draw_scenes
from PIL import Image

from vpltool.errors import VplError
from vpltool.formats import open_workspace
from vpltool.methods.cams import gradcam
from vpltool.papers.tables.__main__ import main
from vpltool.papers.tables.setup import first_split, own_workspace

PRESET = """
[text-prototypes]
prompts = "single"
[extract]
keep = "tokens,patches,attention,layers"
workers = 0
[refine]
lambda = 0.3
[learn-prototypes]
iters = 4
phi = 0.4
tau-i = 0.03
[crf]
alpha = 2.0
workers = 0
[train-decoder]
iters = 3
crop = 3
batch-size = 2
width = 32
[predict]
source = "features"
[eval]
alpha = 1.0
"""

OWN = "work/tables/tiny-train"
"""Where the tables work, and leave what they made."""

PAPER = {1: 4, 2: 2, 3: 6, 4: 6, 5: 5, 6: 6, 7: 6}
"""Rows of each table in the paper, as far as they are here."""


def run_tables(base: Path, *words: object) -> int:
    return main([*map(str, words), str(base / "work"), "--preset", str(base / "tiny.toml")])


@pytest.fixture(scope="module")
def tabled(ready: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    base = copy_workspace(ready, tmp_path_factory.mktemp("tabled") / "base", tiny_clip)
    (base / "tiny.toml").write_text(PRESET)
    assert run_tables(base, *PAPER, "--seeds", "0,1", "--threshold-from", "train",
                      "--set", "learn-prototypes.max-pixels=100") == 0
    return base


def content(base: Path, number: int) -> dict[str, object]:
    return dict(json.loads((base / OWN / f"table{number}.json").read_text()))


@pytest.mark.parametrize("number", PAPER)
def test_every_row_of_the_paper_has_its_number_and_ours(tabled: Path, number: int) -> None:
    rows = content(tabled, number)["rows"]
    assert isinstance(rows, list) and len(rows) == PAPER[number]
    for row in rows:
        assert row["paper"]
        for cell in row["measured"].values():
            assert len(cell) in (1, 2) and all(0 <= value <= 100 for value in cell)
    assert sum(bool(row["measured"]) for row in rows) >= {1: 2, 2: 1}.get(number, len(rows))
    text = (tabled / OWN / f"table{number}.md").read_text()
    assert text.count("\n|") == len(rows) + 2
    assert "preset tiny" in text and "threshold chosen on `train`" in text


def test_what_rows_share_is_one_command(tabled: Path) -> None:
    commands = content(tabled, 7)["stages"]
    assert isinstance(commands, list)
    assert len(commands) == len(set(commands))
    features = [command for command in commands if command.startswith("vpltool extract")]
    assert len(features) == 2
    # Tables 1, 3 and 5 meet in the protocol's own prototypes: learned once with each seed.
    assert sum("prototypes/vision-0.safetensors" in command for command in commands
               if "learn-prototypes" in command) == 1
    assert not any("vision-tau-i-0.03" in command for command in commands)
    assert all("--max-pixels 100" in command for command in commands
               if "learn-prototypes" in command)


def test_a_number_is_what_eval_says(tabled: Path, run: Run) -> None:
    rows = content(tabled, 3)["rows"]
    assert isinstance(rows, list)
    result = run("eval", "--what", "masks/vision-1-refined-full", "--split", "val", "--json",
                 "--out", tabled / "again.json", work=tabled / OWN)
    # The CRF at test sharpens probabilities, not labels.
    assert (tabled / OWN / "probabilities/decoder-1/val/artifact.json").exists()
    assert rows[2]["measured"]["mIoU"][1] == pytest.approx(100 * json.loads(result.out)["miou"])
    train = json.loads((tabled / f"{OWN}/tables/scores/text-refined-cut.json").read_text())
    val = json.loads((tabled / f"{OWN}/tables/scores/text-refined-val.json").read_text())
    assert (train["split"], val["split"]) == ("train", "val")
    assert val["threshold"] == train["threshold"]


def test_a_second_run_takes_over_what_is_there(tabled: Path) -> None:
    made = {path: path.stat().st_mtime_ns for path in (tabled / "work").rglob("*.safetensors")}
    before = (tabled / OWN / "table3.md").read_text()
    assert run_tables(tabled, 3, "--seeds", "0,1", "--threshold-from", "train",
                      "--set", "learn-prototypes.max-pixels=100") == 0
    assert (tabled / OWN / "table3.md").read_text() == before
    assert {path: path.stat().st_mtime_ns
            for path in (tabled / "work").rglob("*.safetensors")} == made


@pytest.mark.parametrize("option", ["--split", "--learn", "--threshold-from"])
def test_a_missing_split_is_one_line(tabled: Path, capsys: pytest.CaptureFixture[str],
                                     option: str) -> None:
    assert run_tables(tabled, 3, option, "vall") == 1
    assert "vall" in capsys.readouterr().err


def test_the_first_split_that_is_there_is_learned_from(tabled: Path) -> None:
    workspace = open_workspace(tabled / "work")
    assert first_split(workspace, ["train_aug", "train"]) == "train"
    with pytest.raises(VplError, match="no split train_aug or trainaug") as caught:
        first_split(workspace, ["train_aug", "trainaug"])
    assert "--list FILE" in caught.value.hint


def test_the_workspace_itself_is_left_alone(tabled: Path, ready: Path) -> None:
    """It holds features and CAMs of other settings, which would be refused, or shared unasked."""
    def files(work: Path) -> dict[str, int]:
        return {str(path.relative_to(work)): path.stat().st_mtime_ns for path in work.rglob("*")
                if path.is_file() and "tables" not in path.relative_to(work).parts
                and path.name != "workspace.json"}

    assert files(tabled / "work") == files(ready / "work")


@pytest.mark.parametrize(("encoder", "found"), [
    ("timm:vit_tiny_patch16_224,../dino.pth", "timm:vit_tiny_patch16_224,../../../dino.pth"),
    ("dino:../dino.pth", "dino:../../../dino.pth"), ("../dino.pth", "../../../dino.pth"),
    ("timm:vit_tiny_patch16_224", "timm:vit_tiny_patch16_224"), ("hf:org/name", "hf:org/name")])
def test_its_own_workspace_finds_the_encoder_s_file(encoder: str, found: str, copied: Path) -> None:
    (copied / "dino.pth").touch()
    path = copied / "work/workspace.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"encoder": encoder}))
    made = own_workspace(copied / "work", "own", "").path
    assert open_workspace(made).encoder == found


def test_what_a_row_is_about_wins_over_set(tabled: Path) -> None:
    assert run_tables(tabled, 7, "--name", "given", "--set", "learn-prototypes.iters=2",
                      "--set", "learn-prototypes.max-pixels=100") == 0
    report = json.loads((tabled / "work/tables/given/table7.json").read_text())
    lines = [command.split() for command in report["stages"] if "learn-prototypes" in command]
    last = [max(place for place, word in enumerate(line) if word == "--iters") for line in lines]
    assert [line[place + 1] for line, place in zip(lines, last, strict=True)] == [
        "1000", "1500", "2000", "2500", "3000", "3500"]


@pytest.mark.parametrize(("given", "said"), [
    ("learn-prototype.iters=5", "learn-prototypes"), ("cam.taw=1", "tau"),
    ("cam.tau=warm", "warm")])
def test_a_wrong_set_is_told_before_the_work(tabled: Path, given: str, said: str,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tables(tabled, 3, "--name", "wrong", "--set", given) in (1, 2)
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


def test_ctrl_c_ends_it_and_it_goes_on(tabled: Path, monkeypatch: pytest.MonkeyPatch,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    words = (1, "--name", "stopped", "--set", "learn-prototypes.max-pixels=100")
    with monkeypatch.context() as patch:
        patch.setattr(gradcam, "make_cams", stop)
        assert run_tables(tabled, *words) == 130
    assert "run the same command again" in capsys.readouterr().err
    folder = tabled / "work/tables/stopped"
    assert not (folder / "table1.json").exists()
    assert run_tables(tabled, *words) == 0
    assert json.loads((folder / "table1.json").read_text())["rows"][0]["measured"]


def test_a_photo_that_cannot_be_read_is_left_out_and_named(copied: Path) -> None:
    (copied / "tiny.toml").write_text(PRESET)
    (copied / "photos/scene0.png").write_bytes(b"no photo")
    words = (1, "--set", "learn-prototypes.max-pixels=100")
    assert run_tables(copied, *words) == 0
    assert "Left out by extract: 1 of " in (copied / OWN / "table1.md").read_text()


def test_a_split_without_masks_is_told_before_the_work(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "tiny.toml").write_text(PRESET)
    lines = [json.loads(line) for line in (copied / "work/images.jsonl").read_text().splitlines()]
    for line in lines:
        line["mask"] = None if "val" in line["splits"] else line["mask"]
    (copied / "work/images.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert run_tables(copied, 3) == 1
    assert "have no true mask" in capsys.readouterr().err
    assert not (copied / OWN / "features").exists()
    # Table 2 predicts all the same.
    assert run_tables(copied, 2, "--set", "learn-prototypes.max-pixels=100") == 0
    report = json.loads((copied / OWN / "table2.json").read_text())
    assert report["rows"][0]["measured"] == {"here": []}
    assert len(list((copied / OWN / "predictions/decoder-0-crf/val").glob("*.png"))) > 0


def only_maps(base: Path, *words: object, preset: str = "") -> dict[str, Any]:
    """Table 1 under a preset whose features are those that `ready` has."""
    (base / "maps.toml").write_text(PRESET.replace(",layers", "") + preset)
    assert main(["1", str(base / "work"), "--preset", str(base / "maps.toml"), "--set",
                 "learn-prototypes.max-pixels=100", *map(str, words)]) == 0
    (path,) = (base / "work/tables").glob("*/table1.json")
    return dict(json.loads(path.read_text()))


def test_features_of_the_workspace_are_used(copied: Path, tmp_path: Path, tiny_clip: Path,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    """Where they are those of the protocol; the numbers are those of features made anew."""
    other = copy_workspace(copied, tmp_path / "other", tiny_clip)
    shutil.rmtree(other / "work/features")
    used = only_maps(copied, "--set", "extract.keep=attention,tokens,patches")
    told = capsys.readouterr().err
    anew = only_maps(other, "--set", "extract.keep=attention,tokens,patches")
    assert "features of `train` are read from" in told
    assert not (copied / "work/tables/maps-train/features").exists()
    assert not any("vpltool extract" in line for line in used["stages"])
    assert any("vpltool extract" in line for line in anew["stages"])
    assert used["rows"] == anew["rows"]


@pytest.mark.parametrize(("given", "said"), [
    ("extract.scale=0.5", "scale is 1.0, not 0.5"),
    ("extract.keep=tokens,patches,attention,layers",
     "keep is tokens,patches,attention, not tokens,patches,attention,layers"),
    ("extract.max-side=32", "max_side is 1024, not 32"),
    ("extract.store=fp32", "store is fp16, not fp32")])
def test_features_of_another_protocol_are_not(given: str, said: str, copied: Path,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    report = only_maps(copied, "--set", given)
    assert f"features/train does not serve here: {said}" in capsys.readouterr().err
    assert sum("vpltool extract" in line for line in report["stages"]) == 1


def test_quick_takes_fewer_iterations_and_says_so(
    tabled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vpltool.papers.tables.setup.QUICK", {
        "learn-prototypes": {"iters": 2, "max_pixels": 60}, "train-decoder": {"iters": 2}})
    assert run_tables(tabled, 2, "--quick", "--set", "learn-prototypes.iters=3") == 0
    text = (tabled / "work/tables/tiny-train-quick/table2.md").read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    assert "Quick: fewer iterations than the protocol's" in text
    assert "learn-prototypes --iters 3 --max-pixels 60; train-decoder --iters 2" in text
    report = json.loads((tabled / "work/tables/tiny-train-quick/table2.json").read_text())
    assert report["quick"]
    assert any("train-decoder" in line and "--iters 2" in line for line in report["stages"])
    assert "Quick" not in (tabled / OWN / "table2.md").read_text()


def test_the_table_says_why_other_numbers_differ(tabled: Path) -> None:
    text = (tabled / OWN / "table3.md").read_text()
    assert "Only numbers of one protocol can be compared" in text
    assert "CAMs are made by `gradcam`, refined, and cut where the text's score best" in text


def test_progress_without_a_terminal(copied: Path, capsys: pytest.CaptureFixture[str],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call, how far it is, and each row as it comes; the table alone goes to stdout."""
    monkeypatch.setattr("vpltool.console._LINE_SECONDS", 0.0)
    shutil.rmtree(copied / "work/features")
    only_maps(copied)
    out, err = capsys.readouterr()
    assert "  vpltool extract --split train" in err.splitlines()
    assert re.search(r"^extract train: \d of 6, about \d+ s left", err, re.MULTILINE)
    assert re.search(r"^vision prototypes \(VPL\): seed [\d.]+, mask [\d.]+ \(paper: seed 76.3, "
                     r"mask 78.4\)  \(table 1, after \d+ s\)", err, re.MULTILINE)
    assert out.startswith("Table 1. ")


def test_another_protocol_wants_another_name(tabled: Path, capsys: pytest.CaptureFixture[str]
                                          ) -> None:
    assert run_tables(tabled, 1, "--set", "learn-prototypes.max-pixels=90") == 1
    err = capsys.readouterr().err
    assert ("was made under another protocol: learn-prototypes max_pixels was 100, now 90"
            in err)
    assert run_tables(tabled, 1, "--set", "extract.scale=2") == 1
    assert ("extract scale was the default, now 2.0; "
            "learn-prototypes max_pixels was 100, now the default"
            in capsys.readouterr().err)
    assert f"hint: --name tiny-train-2 starts over beside it; or take away {tabled / OWN}" in err


def test_what_has_changed_is_made_again(copied: Path) -> None:
    """One photo more has other tags: maps and prototypes follow, as `update` would have it."""
    before = only_maps(copied)
    lines = [json.loads(line) for line in (copied / "work/images.jsonl").read_text().splitlines()]
    lines[0]["labels"] = sorted({"bar", "box", "disc"} - set(lines[0]["labels"]))
    (copied / "work/images.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    after = only_maps(copied)
    assert before["stages"] == after["stages"]
    assert before["rows"] != after["rows"]


def test_prototypes_may_begin_as_seeds(copied: Path) -> None:
    """The saliency's, although the preset has settings of another method for CAMs."""
    report = only_maps(
        copied, "--set", "learn-prototypes.start=seeds", "--set", "learn-prototypes.pixels=seeds",
        "--set", "learn-prototypes.cams=text-salient", "--set", "seed-prototypes.phi=0.1",
        "--set", "learn-prototypes.phi=0.1", preset='[cam]\ntarget = "softmax"\n')
    lines = [line for line in report["stages"] if "prototypes/" in line]
    assert any("cam --prototypes text --method salient" in line for line in report["stages"])
    assert lines[1].startswith("vpltool seed-prototypes ")
    assert "--cams text-salient --phi 0.1" in lines[1]
    assert "--start prototypes/seeds-vision-0.safetensors" in lines[2]


def write_voc(root: Path, scenes: list[Scene]) -> None:
    """A tree as VOC 2012 has it: every second photo to learn from is in `trainaug` alone."""
    names = ("aeroplane", "bicycle", "bird")
    lists: dict[str, list[str]] = {"train": [], "val": [], "trainaug": [], "test": ["x"]}
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationClassAug",
                   "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number, scene in enumerate(scenes):
        Image.fromarray(scene.photo).save(root / f"JPEGImages/{scene.id}.jpg", quality=95)
        shown = sorted({int(label) for label in set(scene.mask.flatten()) if 0 < label < 255})
        tags = "".join(f"<object><name>{names[label - 1]}</name></object>" for label in shown)
        (root / f"Annotations/{scene.id}.xml").write_text(f"<annotation>{tags}</annotation>")
        augmented = scene.split == "train" and number % 2
        Image.fromarray(scene.mask).save(
            root / f"SegmentationClass{'Aug' * augmented}/{scene.id}.png")
        for name, own in (("val", scene.split == "val"), ("trainaug", scene.split == "train"),
                          ("train", scene.split == "train" and not augmented)):
            lists[name] += [scene.id] * own
    Image.fromarray(scenes[0].photo).save(root / "JPEGImages/x.jpg")
    for name, ids in lists.items():
        (root / f"ImageSets/Segmentation/{name}.txt").write_text("\n".join(ids))


@pytest.mark.skipif(shutil.which("make") is None or not (
    Path(sys.executable).parent / "vpltool").exists(), reason="needs make and an environment")
def test_make_voc12_from_a_tree_to_the_table(tmp_path: Path, tiny_clip: Path) -> None:
    """The preset vpl-voc as it is, but for the weights and the number of steps."""
    write_voc(tmp_path / "VOC2012", draw_scenes())
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    options = ("--set train-decoder.iters=2 --set train-decoder.crop=4 "
               "--set train-decoder.layers=0,1 --set learn-prototypes.max-pixels=100")
    done = subprocess.run(
        ["make", "-o", "setup", "voc12", f"VOC={tmp_path / 'VOC2012'}",
         f"VENV={Path(sys.executable).parents[1]}", f"VOC12={tmp_path / 'work'}",
         f"PREPARE=--pretrained {tiny_clip}",
         f"OPTIONS={options}"],
        cwd=Path(__file__).parents[2], env=environment, text=True, check=False,
        capture_output=True)
    assert done.returncode == 0, done.stderr
    table = tmp_path / "work/tables/vpl-voc-trainaug"
    assert "features of 8 photos take about" in done.stderr
    assert done.stdout.count("\n| ") == 7
    for name, paper in (("I text CAM", 63.3), ("VI V + CRF at test", 78.5)):
        assert f"| {name}" in done.stdout and f"{paper} |" in done.stdout
    report = json.loads((table / "table3.json").read_text())
    assert report["learn"] == "trainaug"
    assert sum("crf --what predictions" in command and "--kernels weclip" in command
               for command in report["stages"]) == 1
    assert not any("extract --split val" in command and "layers" in command
                   for command in report["stages"])
    assert main(["1", "2", str(tmp_path / "work"), "--split", "test", *options.split()]) == 0
    # What is made for the augmented list is scored on `train`, a part of it.
    assert "maps scored on `train`;" in (table / "table1.md").read_text()
    scores = json.loads((table / "tables/scores/text-refined-trainaug.json").read_text())
    assert (scores["split"], scores["photos"]) == ("train", 3)
    # VOC's test has no masks: its predictions are packed for the server, and the cell is empty.
    assert json.loads((table / "table2.json").read_text())["rows"][0]["measured"] == {"here": []}
    assert [path.suffix for path in (table / "exports").iterdir()] == [".tgz"]
