"""Options that were given and do nothing: each is told, and does nothing indeed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import TRAIN, Run

from vpltool.formats import read_tensors
from vpltool.options import NoEffect
from vpltool.stages import cam, crf, learn_prototypes, predict, refine, train_decoder

SEEDED = ("--pixels", "seeds", "--phi", "0.6", "--phi-background", "0.3")

GIVEN: dict[str, tuple[str, ...]] = {
    "tau_t": ("--tau-t", "0.5"), "tau_i": ("--tau-i", "0.5"), "lr": ("--lr", "3.0"),
    "harden": ("--harden", "0.4"), "solver": ("--solver", "lbfgs"), "classes": ("--classes", "all"),
    "student": ("--student", "present"), "targets": ("--targets", "text"),
    "rounds": ("--rounds", "2"), "balance": ("--balance",), "phi": ("--phi", "0.9"),
    "phi_background": ("--phi-background", "0.1"), "cams": ("--cams", "text"),
    "clusters": ("--clusters", "3")}
"""Each option of learn-prototypes that may do nothing, with a value that is not its default."""


def conditions(row: NoEffect) -> list[tuple[str, ...]]:
    """The options under which a row holds; one entry for each value of the first."""
    where = {name: values for name, values in row.where.items() if name != row.option}
    first, *rest = where
    later = [word for name in rest for word in (f"--{name}", str(next(iter(where[name]))))]
    return [(f"--{first}", str(value), *later) for value in where[first]]


ROWS = [(row, words) for row in learn_prototypes.NO_EFFECT for words in conditions(row)]


@pytest.mark.parametrize(("row", "words"), ROWS, ids=[
    f"{row.option} {' '.join(words)}" for row, words in ROWS])
def test_learn_prototypes(row: NoEffect, words: tuple[str, ...], run: Run, ready: Path,
                          tmp_path: Path) -> None:
    """One line with the reason; and the rows are those without the option."""
    base = SEEDED if "targets" in row.where else ()
    found = []
    for number, options in enumerate(((), GIVEN[row.option])):
        out = tmp_path / f"{number}.safetensors"
        result = run("learn-prototypes", "--iters", 6, *base, *words, *options, "--out", out,
                     work=ready / "work")
        assert result.code == 0, result.err
        assert result.lines("warning:") == ([
            f"{' '.join(options)} has no effect with {' '.join(words)}: {row.why}"]
            if options else [])
        found.append(read_tensors(out, "prototypes")[1]["prototypes"])
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [
    (), ("--classes", "all", "--tau-t", "0.02"), ("--solver", "lbfgs"), ("--rounds", 2),
    ("--rounds", 1, "--student", "present"), ("--rounds", 2, "--student", "present", "--harden",
                                              "0.4"),
    (*SEEDED, "--cams", "text", "--balance", "--lr", 3), ("--pixels", "regions", "--balance"),
    (*SEEDED, "--targets", "text", "--harden", "0.4", "--tau-t", "0.5", "--classes", "all"),
    (*SEEDED, "--background", "clusters", "--clusters", 2, "--seed", 3),
    (*SEEDED, "--start", "seeds", "--iters", 0)], ids=lambda options: " ".join(map(str, options)))
def test_what_has_an_effect_is_not_warned_of(options: tuple[object, ...], run: Run, ready: Path,
                                             tmp_path: Path) -> None:
    result = run("learn-prototypes", "--iters", 2, *options, "--out", tmp_path / "x.safetensors",
                 work=ready / "work")
    assert result.code == 0, result.err
    assert not any("has no effect" in line for line in result.lines("warning:"))


def test_a_preset_s_values_are_not_warned_of(run: Run, ready: Path, tmp_path: Path) -> None:
    """vpl-voc sets phi, which --pixels all does not ask for; given by hand it is told."""
    base = ("--preset", "vpl-voc", "learn-prototypes", "--iters", 1)
    result = run(*base, "--out", tmp_path / "x.safetensors", work=ready / "work")
    assert (result.code, result.lines("warning:")) == (0, [])
    result = run(*base, "--phi", "0.4", "--out", tmp_path / "y.safetensors", work=ready / "work")
    assert result.lines("warning:") == [
        "--phi 0.4 has no effect with --pixels all: it is where seeds begin"]


OTHERS: tuple[tuple[NoEffect, tuple[object, ...], str], ...] = (
    *((row, ("cam", "--method", method, *words), f"{' '.join(words)} has no effect with --method "
       f"{method}: {row.why}")
      for row, words in zip(cam.NO_EFFECT, (("--target", "softmax"), ("--precision", "bf16")),
                            strict=True)
      for method in ("dense", "salient")),
    (refine.NO_EFFECT[0], ("refine", "--mask", "none", "--cams", "text", "--lambda", "0.7"),
     "--lambda 0.7 has no effect with --mask none: it is where boxes begin"),
    *((row, ("crf", "--what", "predictions/tiny", "--split", "val", "--workers", 0, *words),
       f"{' '.join(words)} has no effect: {row.why}")
      for row, words in zip(crf.NO_EFFECT, (("--alpha", "2.0"), ("--confidence", "0.5")), strict=True)),
    *((row, ("predict", "--decoder", "tiny", "--split", "val", *words),
       f"{' '.join(words)} has no effect with --source features: {row.why}")
      for row, words in zip(predict.NO_EFFECT, (("--max-side", "24"), ("--precision", "bf16")),
                            strict=True)),
    *((row, (*TRAIN, "--precision", "bf16"),
       f"--precision bf16 has no effect with --source features: {row.why}")
      for row in train_decoder.NO_EFFECT),
)


@pytest.mark.parametrize(("row", "command", "said"), OTHERS, ids=[said for *_, said in OTHERS])
def test_others(row: NoEffect, command: tuple[object, ...], said: str, run: Run, layered: Path,
                tmp_path: Path) -> None:
    work = layered / "work"
    if command[0] == "crf":
        made = run("predict", "--decoder", "tiny", "--split", "val", work=work)
        assert (made.code, made.lines("warning:")) == (0, [])
    result = run(*command, "--out", tmp_path / "x", work=work)
    assert result.code == 0, result.err
    assert result.lines("warning:") == [said]


def test_photos_are_seen_as_asked(run: Run, layered: Path, tmp_path: Path) -> None:
    """Where predict reads photos, --max-side and --precision do count."""
    result = run("predict", "--decoder", "tiny", "--source", "photos", "--workers", 0,
                 "--max-side", 24, "--precision", "bf16", "--out", tmp_path / "x",
                 work=layered / "work")
    assert (result.code, result.lines("warning:")) == (0, [])
