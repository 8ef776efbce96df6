"""Options that were given and do nothing: each is told, and does nothing indeed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TRAIN, Run, copy_workspace

from vpltool.formats import read_tensors
from vpltool.methods import find_methods
from vpltool.methods.refiners.attention import Settings as BoxSettings
from vpltool.methods.refiners.superpixels import Settings as RegionSettings
from vpltool.settings import NoEffect, SettingSpec, described, names_of
from vpltool.shell import all_settings, flag_words
from vpltool.stages import find_stages
from vpltool.stages.learn_prototypes import LearnPrototypesSettings

SEEDED = ("--pixels", "seeds", "--phi", "0.6", "--phi-background", "0.3")

GIVEN: dict[str, Any] = {
    "tau_t": 0.5, "tau_i": 0.5, "lr": 3.0, "tolerance": 0.1, "harden": 0.4, "solver": "lbfgs",
    "classes": "all", "student": "present", "targets": "text", "rounds": 2, "balance": True,
    "phi": 0.9, "phi_background": 0.1, "cams": "text"}
"""Each setting of learn-prototypes that may do nothing, with a value that is not its default."""


def conditions(entry: SettingSpec, row: NoEffect, known: dict[str, SettingSpec]
               ) -> list[tuple[str, ...]]:
    """The options under which a row holds; one entry for each value of the first."""
    first, *rest = (name for name in row.where if name != entry.name)
    later = [word for name in rest for word in flag_words(known[name], _first(row, name))]
    return [(*flag_words(known[first], value), *later) for value in row.where[first]]  # type: ignore[attr-defined]


def _first(row: NoEffect, name: str) -> Any:
    return next(iter(row.where[name]))  # type: ignore[call-overload]


KNOWN = {entry.name: entry for entry in described(LearnPrototypesSettings)}
ROWS = [(entry, row, words) for entry in KNOWN.values() for row in entry.no_effect
        for words in conditions(entry, row, KNOWN)]


def test_every_row_is_walked() -> None:
    assert {entry.name for entry, *_ in ROWS} == set(GIVEN)
    assert len(ROWS) == 23


@pytest.mark.parametrize(("entry", "row", "words"), ROWS, ids=[
    f"{entry.name} {' '.join(words)}" for entry, _, words in ROWS])
def test_learn_prototypes(entry: SettingSpec, row: NoEffect, words: tuple[str, ...], run: Run,
                          ready: Path, tmp_path: Path) -> None:
    """One line with the reason; and the rows are those without the option."""
    base = SEEDED if "targets" in row.where else ()
    given = flag_words(entry, GIVEN[entry.name])
    found = []
    for number, options in enumerate(((), given)):
        out = tmp_path / f"{number}.safetensors"
        result = run("learn-prototypes", "--iters", 6, *base, *words, *options, "--out", out,
                     work=ready / "work")
        assert result.code == 0, result.err
        # Six steps at the default rate may raise the objective, which is warned of.
        assert [line for line in result.lines("warning:") if "objective rose" not in line] == ([
            f"{' '.join(options)} has no effect with {' '.join(words)}: {row.why}"]
            if options else [])
        found.append(read_tensors(out, "prototypes")[1]["prototypes"])
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def seeded(run: Run, ready: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path
           ) -> Path:
    """The workspace of `ready`, with prototypes/seeds. Read only."""
    work = copy_workspace(ready, tmp_path_factory.mktemp("seeded") / "base", tiny_clip) / "work"
    result = run("seed-prototypes", *SEEDED, "--background", "clusters", "--clusters", 2,
                 "--seed", 3, work=work)
    assert result.code == 0, result.err
    assert not any("has no effect" in line for line in result.lines("warning:"))
    return work


@pytest.mark.parametrize("options", [
    (), ("--classes", "all", "--tau-t", "0.02"), ("--solver", "lbfgs"), ("--rounds", 2),
    ("--rounds", 1, "--student", "present"), ("--rounds", 2, "--student", "present", "--harden",
                                              "0.4"),
    (*SEEDED, "--cams", "text", "--balance", "--lr", 3), ("--pixels", "regions", "--balance"),
    (*SEEDED, "--targets", "text", "--harden", "0.4", "--tau-t", "0.5", "--classes", "all"),
    (*SEEDED, "--start", "seeds"), (*SEEDED, "--start", "seeds", "--iters", 0)],
    ids=lambda options: " ".join(map(str, options)))
def test_what_has_an_effect_is_not_warned_of(options: tuple[object, ...], run: Run, seeded: Path,
                                             tmp_path: Path) -> None:
    result = run("learn-prototypes", "--iters", 2, *options, "--out", tmp_path / "x.safetensors",
                 work=seeded)
    assert result.code == 0, result.err
    assert not any("has no effect" in line for line in result.lines("warning:"))


def test_a_preset_s_values_are_not_warned_of(run: Run, ready: Path, tmp_path: Path) -> None:
    """vpl-voc sets phi, which has no effect with --pixels all; only given by hand it is told."""
    base = ("--preset", "vpl-voc", "learn-prototypes", "--iters", 1)
    result = run(*base, "--out", tmp_path / "x.safetensors", work=ready / "work")
    assert (result.code, result.lines("warning:")) == (0, [])
    result = run(*base, "--phi", "0.4", "--out", tmp_path / "y.safetensors", work=ready / "work")
    assert result.lines("warning:") == [
        "--phi 0.4 has no effect with --pixels all: there are no seeds to threshold"]


COMMANDS: dict[str, tuple[object, ...]] = {
    "extract": ("extract", "--workers", 0), "refine": ("refine", "--cams", "text"),
    "shift-gap": ("shift-gap",),
    "seed-prototypes": ("seed-prototypes", "--cams", "text"),
    "align": ("align", "--cams", "text", "--iters", 3, "--width", 8),
    "tag": ("tag", "--workers", 0),
    "export": ("export", "cvat", "--what", "masks/text-refined", "--split", "train")}
"""How each stage is called whose settings, or those of its methods, name what undoes them."""

VALUES: dict[str, Any] = {"calibrated_blocks": 2, "calibrated_heads": "mean", "threshold": 0.7,
                          "box": "exclusive", "cams": "text", "phi": 0.2, "phi_background": 0.1,
                          "clusters": 3, "superpixels": 50,
                          "compactness": 2.0, "rounds": 3, "colours": 4, "space": "rgb",
                          "confident": 0.2, "share": 0.2, "total": "region", "coverage": 0.4,
                          "detail": 2, "alpha": 0.3, "crop": 16, "small": "merge", "tolerance": 1.0,
                          "overlap": 0.5}

OF_METHOD = dict.fromkeys(set(names_of(RegionSettings)) - set(names_of(BoxSettings)),
                          ("--method", "superpixels")) | {"alpha": ("--method", "vda")}
"""Settings that not every method of their stage has, with one that does."""


def rows_of_others() -> list[tuple[str, SettingSpec, NoEffect, tuple[str, ...]]]:
    """Stage, setting, row and the options under which it holds, of every other stage.

    `prepare coco` has its own in test_coco.py, `train-groups` in test_train_groups.py; `propose`,
    proposals in `crf` and tiles in `predict` need files that no workspace here has.
    """
    found, seen = [], set()
    for name, stage in find_stages().items():
        if name in ("learn-prototypes", "prepare", "train-groups", "propose", "crf", "predict"):
            continue
        entries = all_settings(stage)
        known = {entry.name: entry for entry in entries}
        for entry in entries:
            # Methods share settings: each once.
            for row in entry.no_effect if (name, entry.name) not in seen else ():
                seen.add((name, entry.name))
                found += [(name, entry, row, words) for words in conditions(entry, row, known)]
    return found


OTHERS = rows_of_others()


@pytest.mark.parametrize(("name", "entry", "row", "words"), OTHERS, ids=[
    f"{name} {entry.name} {' '.join(words)}" for name, entry, _, words in OTHERS])
def test_others(name: str, entry: SettingSpec, row: NoEffect, words: tuple[str, ...], run: Run,
                layered: Path, tmp_path: Path) -> None:
    given = flag_words(entry, VALUES[entry.name])
    method = OF_METHOD.get(entry.name, ())
    result = run(*COMMANDS[name], *method, *words, *given, "--out", tmp_path / "x",
                 work=layered / "work")
    assert result.code == 0, result.err
    assert (f"{' '.join(given)} has no effect with {' '.join(words)}: {row.why}"
            in result.lines("warning:"))


NO_ENCODER = "no encoder is run; --source photos runs it"

BY_INPUT: tuple[tuple[tuple[object, ...], tuple[str, ...], str], ...] = (
    *((("cam", "--method", method), ("--precision", "bf16"), "no network is run")
      for method in ("dense", "salient")),
    *((("crf", "--what", "predictions/tiny", "--split", "val", "--workers", 0), words, why)
      for words, why in ((("--alpha", "2"), "predictions have a background"),
                         (("--confidence", "0.5"), "predictions keep every pixel"))),
    (("predict", "--decoder", "tiny", "--split", "val"), ("--precision", "bf16"), NO_ENCODER),
    (TRAIN, ("--precision", "fp16"), "steps are not computed in fp16; --precision bf16"),
    (TRAIN, ("--max-side", "24"), NO_ENCODER),
)
"""Command, option without effect, and why: it depends on what is read."""


@pytest.mark.parametrize(("command", "words", "why"), BY_INPUT, ids=[
    f"{command[0]} {' '.join(words)} {number}"
    for number, (command, words, _) in enumerate(BY_INPUT)])
def test_what_depends_on_the_input(command: tuple[object, ...], words: tuple[str, ...], why: str,
                                   run: Run, layered: Path, tmp_path: Path) -> None:
    work = layered / "work"
    if command[0] == "crf":
        made = run("predict", "--decoder", "tiny", "--split", "val", work=work)
        assert (made.code, made.lines("warning:")) == (0, [])
    result = run(*command, *words, "--out", tmp_path / "x", work=work)
    assert result.code == 0, result.err
    assert result.lines("warning:") == [f"{' '.join(words)} has no effect: {why}"]


@pytest.mark.parametrize(("stage", "other", "words"), [
    ("cam", "dense", ("--target", "softmax")), ("cam", "salient", ("--target", "softmax")),
    ("seed-prototypes", "means", ("--per-class", "2"))])
def test_an_option_of_another_method_is_a_usage_error(stage: str, other: str,
                                                      words: tuple[str, ...], run: Run,
                                                      ready: Path) -> None:
    kind = find_stages()[stage].stage.methods
    owner, *_ = (name for name, method in find_methods(kind).items()
                 if words[0] in {entry.flag for entry in described(method.settings)})
    result = run(stage, "--method", other, *words, work=ready / "work")
    assert result.code == 2
    said = " ".join(result.err.replace("│", " ").split())
    assert f"{words[0]} is an option of --method {owner}, not of --method {other}" in said


def test_photos_are_seen_as_asked(run: Run, layered: Path, tmp_path: Path) -> None:
    """Where predict reads photos, --max-side and --precision do count."""
    result = run("predict", "--decoder", "tiny", "--source", "photos", "--workers", 0,
                 "--max-side", 24, "--precision", "bf16", "--out", tmp_path / "x",
                 work=layered / "work")
    assert result.code == 0
    assert not [line for line in result.lines("warning:") if "no effect" in line]


@pytest.mark.parametrize(("slower", "taken"), [(0.3, "bf16"), (4.0, "fp32")])
def test_headers_say_what_auto_took(slower: float, taken: str, run: Run, copied: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """So the same files are kept by whoever names it, and are others on another machine."""
    monkeypatch.setattr("vpltool.parallel.device.slowdown_of", lambda _dtype: slower)
    work = copied / "work"
    result = run("cam", "--precision", "auto", "--device", "cpu", "--overwrite", work=work)
    assert result.code == 0, result.err
    assert f"precision: {taken}" in result.err
    header, _ = read_tensors(work / "cams/text/train/scene0.safetensors", "cams")
    assert header.options.get("precision", "fp32") == taken
    monkeypatch.setattr("vpltool.parallel.device.slowdown_of", lambda _dtype: 0.9)
    assert run("cam", "--precision", taken, "--device", "cpu", work=work).code == 0
    again = run("cam", "--precision", "auto", "--device", "cpu", work=work)
    assert again.code == (0 if taken == "bf16" else 1)


def test_machines_that_share_the_photos_take_float32(run: Run, copied: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """They may differ in what is fast, and files of one set are to be of one precision."""
    monkeypatch.setattr("vpltool.parallel.device.slowdown_of", lambda _dtype: 0.3)
    work = copied / "work"
    result = run("cam", "--precision", "auto", "--device", "cpu", "--shard", "0/2", "--overwrite",
                 work=work)
    assert result.code == 0, result.err
    assert "precision: fp32, since the machines" in result.err
    header, _ = read_tensors(work / "cams/text/train/scene0.safetensors", "cams")
    assert "precision" not in header.options
