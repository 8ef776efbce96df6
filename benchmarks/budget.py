"""What a whole run over VOC 2012 would take, from the rates that a table measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from measure import Row

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
