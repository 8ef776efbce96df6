"""Presets: what the files say, what they do, and what is told of them afterwards."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
from conftest import Run, draw_scenes, prepare, run_in_process, write_scenes

from vpltool.formats import Header, describe
from vpltool.formats.header import under_preset
from vpltool.preset import read_preset, tomllib
from vpltool.presets import preset_files
from vpltool.shell import all_settings
from vpltool.stages import find_stages

FILES = preset_files()
OF_GROUPS = {"pgseg-voc", "pgseg-coco", "pgseg-context"}
"""Presets of what trains no decoder: see test_group_predict.py."""

SOURCES = ("CLIP-ES", "PGSeg", "VPL", "WeCLIP", "InMaP", "TCL", "vpltool")

QUICK: dict[str, tuple[object, ...]] = {
    "text-prototypes": (), "extract": ("--workers", 0), "cam": (), "refine": (),
    "learn-prototypes": ("--iters", 3), "crf": ("--workers", 0),
    "train-decoder": ("--iters", 2, "--batch-size", 1, "--crop", 3, "--width", 16,
                      "--prototypes", "text"),
    "predict": ("--workers", 0), "eval": ("--split", "train", "--what", "cams/text-refined")}
"""The pipeline, with what a tiny CLIP needs otherwise: an option that is given wins."""


def by_hand(name: str, command: str, given: tuple[object, ...]) -> list[str]:
    """What a user types who reads the file and knows no preset."""
    options = {entry.flag: entry for entry in all_settings(find_stages()[command])}
    words = []
    for key, value in tomllib.loads(FILES[name].read_text()).get(command, {}).items():
        if f"--{key}" in given:
            continue
        if isinstance(value, bool):
            words.append(f"--{key}" if value else options[f"--{key}"].off)
        else:
            words += [f"--{key}", str(value)]
    return words


@pytest.fixture
def fresh(tmp_path: Path, tiny_clip: Path) -> Path:
    (tmp_path / "clip").symlink_to(tiny_clip)
    write_scenes(tmp_path, draw_scenes())
    assert prepare(tmp_path, "--masks", tmp_path / "masks").code == 0
    return tmp_path


def test_the_promised_presets_are_there() -> None:
    assert set(FILES) == {*(f"{paper}-{data}" for paper in ("clip-es", "vpl", "weclip")
                            for data in ("voc", "coco")), *OF_GROUPS}


@pytest.mark.parametrize("name", FILES)
def test_a_preset_sets_what_the_commands_take(name: str) -> None:
    preset = read_preset(name)
    assert preset.name == name
    assert ({"predict"} if name in OF_GROUPS
            else {"cam", "refine", "crf", "eval"}) <= set(preset.defaults)


@pytest.mark.parametrize("name", FILES)
def test_every_value_names_its_source(name: str) -> None:
    lines = FILES[name].read_text().splitlines()
    values = [line for line in lines if re.match(r"[a-z0-9-]+ *=", line)]
    tables = tomllib.loads("\n".join(lines))
    parts = [part for key, table in tables.items()
             for part in (table.values() if key == "prepare" else [table])]
    assert len(values) == sum(map(len, parts))
    for line in values:
        assert line.partition("  # ")[2].startswith(SOURCES), line
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize("name", sorted(set(FILES) - OF_GROUPS))
def test_with_a_preset_as_by_hand(name: str, fresh: Path, run: Run,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command gives the same bytes, but for the record of the preset, which is muted here."""
    monkeypatch.setattr("vpltool.run.under_preset", lambda _record: contextlib.nullcontext())
    for command, given in QUICK.items():
        one = run("--preset", name, command, *given, work=fresh / "work")
        assert one.code == 0, one.err
        files = {path: path.read_bytes() for path in (fresh / "work").rglob("*")
                 if path.is_file()}
        again = "" if command == "eval" else "--overwrite"
        two = run(command, *by_hand(name, command, given), *given, *again.split(),
                  work=fresh / "work")
        assert two.code == 0, two.err
        assert two.out == one.out
        for path, content in files.items():
            assert path.read_bytes() == content, f"{command}: {path}"


def test_the_preset_changes_the_result(fresh: Path, run: Run) -> None:
    work = fresh / "work"
    for command in ("text-prototypes", "extract", "cam"):
        assert run(command, *QUICK[command], work=work).code == 0
    assert run("--preset", "clip-es-voc", "refine", work=work).code == 0
    refused = run("--preset", "clip-es-coco", "refine", work=work)
    assert refused.code == 1
    assert "lambda was 0.4, now 0.7" in refused.lines("error:")[0]


@pytest.fixture
def refined(copied: Path, run: Run) -> Path:
    """cams/text-refined made under vpl-coco, with another mask given."""
    result = run("--preset", "vpl-coco", "refine", "--cams", "text", "--mask", "none",
                 "--overwrite", work=copied / "work")
    assert result.code == 0
    assert result.lines("preset vpl-coco:") == [
        "vpltool refine --method attention --lambda 0.7 --min-max"]
    return copied / "work"


def test_what_is_given_wins_and_is_recorded(refined: Path, run: Run) -> None:
    header = describe(refined / "cams/text-refined/train/scene0.safetensors").header
    assert header is not None
    assert header.options["mask"] == "none"
    identity = read_preset("vpl-coco").identity
    assert header.preset == {"name": "vpl-coco", "hash": identity, "given": {"mask": "none"}}
    told = run("inspect", refined / "cams/text-refined/train").out
    assert f"preset:\n  name: vpl-coco\n  hash: {identity}\n  given: {{\"mask\": \"none\"}}" in told


def test_the_record_does_not_undo_earlier_work(refined: Path, run: Run) -> None:
    same = run("refine", "--cams", "text", "--mask", "none", work=refined)
    assert same.code == 0
    assert "done already" in same.err
    assert "preset" not in same.err


def test_a_command_that_the_preset_does_not_set_has_no_record(copied: Path, run: Run) -> None:
    """CLIP-ES says nothing of vision prototypes: these are not to pass as its own."""
    result = run("--preset", "clip-es-voc", "learn-prototypes", "--iters", 0, work=copied / "work")
    assert result.code == 0
    header = describe(copied / "work/prototypes/vision.safetensors").header
    assert header is not None
    assert header.preset == {}


def test_a_header_without_a_preset_has_none(refined: Path, run: Run) -> None:
    """Read while a preset is at work, whose record is not to slip into it."""
    with under_preset({"name": "vpl-voc", "hash": "0", "given": {}}):
        header = Header.from_json('{"kind": "cams", "command": "cam"}', refined)
    assert header.preset == {}


def test_eval_states_the_protocol(refined: Path, run: Run) -> None:
    arguments = ("eval", "--split", "train", "--what", "cams/text-refined")
    result = run("--preset", "clip-es-voc", *arguments, work=refined)
    vpl, clip_es = (read_preset(name).identity for name in ("vpl-coco", "clip-es-voc"))
    assert (f"protocol: made by refine under vpl-coco ({vpl}), but mask none; "
            f"scored under clip-es-voc ({clip_es})") in result.out
    report = json.loads((refined / "scores/cams-text-refined-train.json").read_text())
    assert report["made_under"]["given"] == {"mask": "none"}
    assert report["scored_under"] == {"name": "clip-es-voc", "hash": clip_es, "given": {}}
    assert report["threshold"] == 0.5
    assert "scored under no preset" in run(*arguments, work=refined).out


def test_by_the_environment(refined: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPLTOOL_PRESET", "weclip-voc")
    assert "preset weclip-voc: vpltool refine --method" in run(
        "refine", "--cams", "text", "--overwrite", work=refined).err
    assert run("refine", "--cams", "text", "--quiet", work=refined).err == ""
    # One on the command line is meant more.
    assert run("--preset", "vpl-voc", "refine", "--cams", "text", work=refined).lines(
        "preset vpl-voc:")


def test_help_shows_the_preset_s_values(run: Run) -> None:
    shown = " ".join(run("--preset", "vpl-coco", "refine", "--method", "attention",
                         "--help").out.split())
    assert "[0.7]" in shown
    assert "[0.4]" in run("refine", "--method", "attention", "--help").out


def test_list_and_print(run: Run, tmp_path: Path) -> None:
    listed = run("presets").out.splitlines()
    assert [line.split()[0] for line in listed] == list(FILES)
    identity = read_preset("vpl-voc").identity
    assert f"vpl-voc       {identity}  VPL (Xu et al., AAAI 2025) on VOC 2012" in "\n".join(listed)
    mine = tmp_path / "mine.toml"
    mine.write_text(run("presets", "vpl-voc").out)
    assert mine.read_text() == FILES["vpl-voc"].read_text()
    mine.write_text("# only words\n" + mine.read_text())
    assert read_preset(str(mine)).identity == identity
    mine.write_text(mine.read_text().replace("tau-i = 0.03", "tau-i = 0.04"))
    changed = read_preset(str(mine))
    assert changed.identity != identity
    assert changed.name == "mine"
    assert changed.defaults["learn-prototypes"]["tau_i"] == 0.04


@pytest.mark.parametrize(("text", "message", "hint"), [
    ("[camm]\ntau = 1.0", "`camm` is not a command", "`cam`"),
    ("[train_decoder]\niters = 1", "`train_decoder` is not a command", "`train-decoder`"),
    ("[cam]\nmetod = 'dense'", "[cam]: `metod` is not an option of vpltool cam", "`method`"),
    ("[learn-prototypes]\ntau_i = 0.03", "`tau_i` is not an option", "`tau-i`"),
    ("[prepare]\nmodel = 'x'", "[prepare]: `model` is not a command", "folder, labelled, voc"),
    ("[prepare.voc]\nmodle = 'x'", "[prepare]: [voc]: `modle` is not an option", "`model`"),
    ("cam = 3", "cam = 3 is a command", "[cam]"),
    ("work = 'x'", "`work` is not a command", ""),
    ("[predict]\nimages = 'x'", "`images` is not an option", ""),
    ("[refine]\nlambda = '0.4'", "lambda = '0.4': expected a number", "Threshold of the boxes"),
    ("[refine]\nlambda = true", "lambda = True: expected a number", ""),
    ("[refine]\nlambda = 4", "lambda = 4: at least 0 and at most 1", "Threshold of the boxes"),
    ("[refine]\nmin-max = 1", "min-max = 1: expected true or false", ""),
    ("[crf]\nkernels = 3", "kernels = 3: expected a string", "weclip"),
    ("[predict]\nscales = [1, 0.75]", "expected a string", "WeCLIP"),
    ("[learn-prototypes]\niters = 3000.0", "iters = 3000.0: expected a whole number", ""),
    ("[cam]\ntau = 2020-01-01", "expected a number", ""),
    ("[cam]\ntau =\n", "is not TOML", "(at line 2"),
    ("[cam]\ntau = 1.0\ntau = 1.0\n", "is not TOML", "line 3"),
])
def test_a_wrong_preset_is_refused_before_any_work(text: str, message: str, hint: str, run: Run,
                                                copied: Path) -> None:
    """Whichever command is run, in one line that names the file; and nothing is changed."""
    (copied / "mine.toml").write_text(text)
    before = {path: path.stat().st_mtime_ns for path in (copied / "work").rglob("*")}
    result = run("--preset", copied / "mine.toml", "text-prototypes", "--overwrite",
                 work=copied / "work")
    assert result.code == 1
    (error,), (hinted,) = result.lines("error:"), result.lines("hint:")
    assert str(copied / "mine.toml") in error
    assert message in error
    assert hint in hinted + error
    assert before == {path: path.stat().st_mtime_ns for path in (copied / "work").rglob("*")}


def test_no_such_preset(run: Run) -> None:
    result = run("--preset", "vpl-vos", "presets")
    assert (result.code, result.lines("hint:")) == (1, ["did you mean `vpl-voc`?"])


@pytest.mark.parametrize("words", [("cam", "--preset", "vpl-voc"), ("cam", "--preset=vpl-voc"),
                                   ("prepare", "voc", "x", "-C", "y")])
def test_behind_the_command_it_is_a_usage_error_that_says_where(words: tuple[str, ...]) -> None:
    result = run_in_process(*words)
    assert result.code == 2
    shown = " ".join(result.err.replace("│", " ").split())
    option = "--preset NAME-OR-FILE cam" if words[0] == "cam" else "-C DIR prepare voc"
    assert f"goes before the command: vpltool {option}" in shown


def test_a_protocol_is_no_kernels(copied: Path, run: Run) -> None:
    work = copied / "work"
    result = run("crf", "--preset", "vpl-voc", work=work)
    assert result.code == 1
    assert result.lines("hint:") == [
        "`vpl-voc` is a protocol, which is given before the command"]
    result = run("--preset", "clip-es-voc", "crf", "--kernels", "weclip", "--workers", 0,
                 "--overwrite", work=work)
    assert result.code == 0
    header = describe(work / "masks/text-refined/train/scene0.png").header
    assert header is not None
    assert header.options["crf"]["bilateral_sxy"] == 64
    assert header.options["wrap_image"]
    assert header.preset["given"] == {"kernels": "weclip"}


def test_weclip_trains_on_par_and_ends_with_the_crf(copied: Path, run: Run) -> None:
    work = copied / "work"
    for words, wanted in (((), "par"), (("--method", "densecrf", "--kernels", "weclip"),
                                        "densecrf")):
        result = run("--preset", "weclip-voc", "crf", *words, "--workers", 0, "--overwrite",
                     work=work)
        assert result.code == 0, result.err
        header = describe(work / "masks/text-refined/train/scene0.png").header
        assert header is not None
        assert (header.options["method"], header.options["confidence"]) == (wanted, 0)
    assert header.options["crf"]["bilateral_sxy"] == 64
    assert "iterations" not in header.options
