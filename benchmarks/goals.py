"""What each stage is to reach, as one list: `make bench` prints it with what it measured."""

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
        least: times as fast as the plain way that ours is to be.
        share: part of the machine's peak that is to be reached; 0: none is named.
    """

    line: str
    before: str
    least: float
    share: float = 0


GOALS = (
    Goal("extract + cam + refine", "2.0x, 60% of the peak", 2.5, 0.75),
    Goal("learn-prototypes, the paper's descent", "1x", 5),
    Goal("crf, CLIP-ES's preset, against the classes present", "0.88x", 2),
    Goal("train-decoder (step", "5.4x", 8),
    Goal("predict", "1.9x", 2.5),
)
"""On two cores with bf16 instructions, in the pipeline's order."""

ELSEWHERE = (
    ("extract + cam + refine against CLIP-ES's own code", "1.14x a photo, 1.0x as commands",
     "≥ 1.5x, ≥ 1.4x", "`make peers CLIP_ES=dir`",
     "in float32 both spend nearly all of a photo in the same products"),
    ("exponent of the seconds in photos", "", "≤ 1", "`make growth`",
     "1.0 to 1.1: nothing is done for pairs of photos; caches and lists cost more as they grow"),
    ("a command's start: extract on one photo, cam", "9.0 s, 3.5 s", "≤ 4.5 s, ≤ 2.6 s",
     "benchmarks/README.md", "importing torch takes 1.4 s of a core, open_clip 2.3 more "
     "(torchvision, timm, torch._dynamo, which timm's towers need); weights and the photo take the "
     "rest"),
    ("the demo, after set-up", "4 min 20 s to 6 min 30 s", "≤ 3 min", "`make demo`",
     "2 min 40 s on two quiet cores of an EPYC with bf16 instructions"),
    ("the tests", "6 min 44 s", "≤ 4 min", "`make test`",
     "7 min 49 s for 4,560 tests on the same machine; many run whole commands"),
    ("one GPU", "", "see docs/performance.md", "`make bench-gpu`", "no GPU was to be had"))
"""Goals that are measured by other means: what, before, goal, where, and why it may be short."""


def goals(rows: Sequence[Row]) -> str:
    """Markdown: stage, before, goal, measured, and the reason where it is short.

    Args:
        rows: the table's lines; a goal whose line is missing or failed is left out.
    """
    lines = ["| stage | before | goal | measured | why it is short |",
             "| --- | ---: | ---: | ---: | --- |"]
    for goal in GOALS:
        row = next((row for row in rows if row.stage.startswith(goal.line) and not row.error), None)
        if row is None:
            continue
        wanted, found = f"≥ {goal.least:g}x", f"{row.value:.3g}x"
        if goal.share:
            wanted, found = f"{wanted}, ≥ {goal.share:.0%}", f"{found}, {row.share:.0%}"
        short = row.value < goal.least or row.share < goal.share
        lines.append(f"| {row.stage} | {goal.before} | {wanted} | {found} | "
                     f"{(row.reason or 'not known why') if short else ''} |")
    if len(lines) == 2:
        return ""
    lines += [f"| {what} | {before} | {wanted} | {where} | {why} |"
              for what, before, wanted, where, why in ELSEWHERE]
    return "\n".join(lines)
