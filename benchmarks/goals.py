"""What is aimed at: each stage's goal with what was measured, and the time for all of VOC 2012."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from measure import Row


@dataclass(frozen=True)
class Goal:
    """A goal.

    Args:
        line: how the line of the table begins that measures it.
        before: what was measured before the goal was set.
        wanted: times as fast as the plain way that ours is to be; or what it may take at most, in
            the line's unit; 0: nothing is aimed at.
        bare: part of the time that a bare loop of the same products may take, at least; 0: none
            is named.
        by: how it is measured where it is no part of every run.
    """

    line: str
    before: str
    wanted: float = 0
    bare: float = 0
    by: str = ""


_JOB = "`make bench OPTIONS='--only {}'`, or `OPTIONS=--whole`"

GOALS = (
    Goal("extract + cam + refine", "2.28x, 36% of its bare products", 2.5, 0.6),
    Goal("learn-prototypes, the paper's descent", "1x on AMD", 5),
    Goal("crf, CLIP-ES's preset, against the classes present on", "0.66x, quick", 2),
    Goal("crf, CLIP-ES's preset, against the classes present, without", "0.93x", 2),
    Goal("train-decoder (step", "5.4x on AMD", 8),
    Goal("predict", "1.55x, 23% of its bare products", 2.5, 0.55),
    Goal("attention, bf16", "3.2 ms, 570 GFLOP/s"),
    Goal("start: vpltool extract", "9.0 s on AVX2", 4.5),
    Goal("start: vpltool cam", "3.5 s on AVX2", 2.6),
    Goal("start: vpltool inspect", "", 0.3),
    Goal("start: vpltool --help", "", 0.3),
    Goal("own-photos, ", "645 s in float32", 300, by=_JOB.format("own-photos")),
    Goal("own-photos: predict", "", 0.25, by=_JOB.format("own-photos")),
    Goal("make demo", "303 s", 240, by=_JOB.format("demo")),
    Goal("make test", "463 s", 300, by=_JOB.format("tests")),
    Goal("extract + cam + refine against CLIP-ES's own code: float32, bf16, as commands",
         "1.10x, 2.3x, 1.11x", by="`make peers CLIP_ES=dir`; the goals are 1.4x, 5x and 1.4x"),
    Goal("exponent of the seconds in photos", "1.0 to 1.1",
         by="`make growth`; the goal is 1 at most"),
    Goal("one GPU", "never", by="`make bench-gpu`, see docs/performance.md"))
"""In the pipeline's order, then those that only other runs measure."""

BEFORE = ("Before: on an Intel Xeon with AMX, two cores, unless it says otherwise; every other "
          "number is of this run.")


def goals(rows: Sequence[Row]) -> str:
    """Markdown: stage, before, goal, measured, and the reason where it is short.

    Args:
        rows: the table's lines; a goal whose line is missing is left out, unless other runs
            measure it: then it says how.
    """
    lines = ["| stage | before | goal | measured | why it is short |",
             "| --- | ---: | ---: | ---: | --- |"]
    known = 0
    for goal in GOALS:
        row = next((row for row in rows if row.stage.startswith(goal.line)), None)
        if row is not None:
            lines.append(_line(goal, row))
            known += 1
        elif goal.by:
            lines.append(f"| {goal.line.rstrip(', ')} | {goal.before} | {_wanted(goal)} | "
                         f"not in this run | {goal.by} |")
    return "\n".join([*lines, "", BEFORE]) if known else ""


def _wanted(goal: Goal, unit: str = "s") -> str:
    """What is aimed at; nothing if nothing is."""
    most = unit != "x"
    bare = f", ≥ {goal.bare:.0%} of its bare products" if goal.bare else ""
    return f"{'≤' if most else '≥'} {goal.wanted:g}{unit}{bare}" if goal.wanted else ""


def _line(goal: Goal, row: Row) -> str:
    if row.error:
        return f"| {row.stage} | {goal.before} | {_wanted(goal)} | **failed** | {row.error} |"
    found = f"{row.value:.3g}{row.unit}"
    if goal.bare:
        found = f"{found}, {row.bare:.0%} (of the machine's peak {row.share:.0%})"
    missed = bool(goal.wanted) and (row.value < goal.wanted if row.unit == "x"
                                    else row.value > goal.wanted)
    why = (row.reason or "not known why") if missed or row.bare < goal.bare else (
        "" if goal.wanted else row.check)
    return f"| {row.stage} | {goal.before} | {_wanted(goal, row.unit)} | {found} | {why} |"


PHOTOS, VAL, STEPS = 10582, 1449, 30000
"""Of `train_aug` and `val`; of the decoder's training, WeCLIP's."""

PASSES, PATCHES = 100, 500_000
"""Of phase 1 with L-BFGS; what `learn-prototypes` takes at most unless told otherwise."""

AIM = 900
"""Seconds for all of it on a GPU."""

STEP = "train-decoder (step"


@dataclass(frozen=True)
class Part:
    """A part of the run: what it is, the line of the table that measured it, pieces of work."""

    name: str
    line: str
    pieces: float


def parts(product_pixels: int) -> list[Part]:
    """All of it; a step of phase 1 was measured over `product_pixels`."""
    return [
        Part("extract, cam, refine", "extract + cam + refine", PHOTOS),
        Part(f"phase 1: {PASSES} passes over {PATCHES:,} patches, as steps; reading them is left "
             "out", "learn-prototypes, step", PASSES * PATCHES / product_pixels),
        Part("cam, refine again, learned prototypes", "cam + refine again", PHOTOS),
        Part("crf", "crf, ", PHOTOS),
        Part("train-decoder", STEP, STEPS),
        Part("predict", "predict", VAL),
        Part("eval", "eval", VAL),
    ]


def budget(rows: Sequence[Row], kind: str, product_pixels: int) -> str:
    """Markdown: each part's pieces, rate and time, the sum, and what time a step may take.

    Args:
        rows: the table's lines; a part whose line is missing is named, not guessed.
        kind: `cpu`, in hours, or `cuda`, in seconds against the aim.
        product_pixels: see `parts`.
    """
    unit, size = ("s", 1) if kind == "cuda" else ("h", 3600)
    lines = ["| all of VOC 2012, extended from fewer | pieces | a second | time |",
             "| --- | ---: | ---: | ---: |"]
    seconds: dict[str, float] = {}
    for part in parts(product_pixels):
        row = next((row for row in rows if row.stage.startswith(part.line) and not row.error), None)
        rate = "" if row is None else f"{row.rates[1]:.3g}"
        if row is not None:
            seconds[part.line] = part.pieces / row.rates[1]
        told = f"{seconds[part.line] / size:.3g} {unit}" if row else "not measured"
        lines.append(f"| {part.name} | {part.pieces:,.0f} | {rate} | {told} |")
    whole = len(seconds) == len(parts(product_pixels))
    total = sum(seconds.values())
    lines.append(f"| {'all' if whole else 'what is measured'} | | | {total / size:.3g} {unit} |")
    notes = ["Measured over few photos, with the start of each command: rather too long."]
    if kind == "cuda":
        left = AIM - total + seconds.get(STEP, 0)
        notes.append(
            f"The aim is {AIM} s" + (f": {'met' if total <= AIM else '**short**'}." if whole
                                     else ".")
            + (f" It leaves {1000 * left / STEPS:.0f} ms for a step of the decoder." if left > 0
               else " It leaves no time for the decoder."))
    return "\n".join([*lines, "", *notes])
