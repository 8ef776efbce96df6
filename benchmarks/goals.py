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
        bare: part of the time that a bare loop of the same products may take, at least; 0: none
            is named.
    """

    line: str
    before: str
    least: float
    bare: float = 0


GOALS = (
    Goal("extract + cam + refine", "2.0x, 60% of the machine's peak", 2.5, 0.75),
    Goal("learn-prototypes, the paper's descent", "1x", 5),
    Goal("crf, CLIP-ES's preset, against the classes present", "0.88x", 2),
    Goal("train-decoder (step", "5.4x", 8),
    Goal("predict", "1.9x", 2.5),
)
"""On two cores with bf16 instructions, in the pipeline's order."""

ELSEWHERE = (
    ("extract + cam + refine against CLIP-ES's own code, float32",
     "1.14x a photo, 1.0x as commands", "≥ 1.5x, ≥ 1.4x",
     "1.34x and 1.35x, 1.46x (`make peers CLIP_ES=dir`)",
     "both spend nearly all of a photo in the same products, ours by oneDNN on AMD's CPUs"),
    ("predict, one scale, ViT-S/14 at 364 px (photo)", "", "≥ 4 a second",
     "5.9 to 6.3 a second in bf16, 3.7 in float32 (benchmarks/README.md)", ""),
    ("own-photos, 1,270 photos of 364 px, 406 predicted, ViT-S/14",
     "10 min 45 s in float32, on an Intel Xeon with AMX", "≤ 5 min",
     "6 min 1 s in bf16, its default here",
     "extract takes 2 min 32 s, at 1.74 times its rate in float32, and predict 52 s"),
    ("exponent of the seconds in photos", "", "≤ 1", "1.0 to 1.1 (`make growth`)",
     "nothing is done for pairs of photos; caches and lists cost more as they grow"),
    ("a command's start: extract on one photo, cam", "9.0 s, 3.5 s (on AVX2)", "≤ 4.5 s, ≤ 2.6 s",
     "3.4 to 4.4 s, 2.2 to 2.8 s (benchmarks/README.md)",
     "of which importing torch takes 1.8 to 2.2 s"),
    ("inspect, --help", "", "≤ 0.3 s", "0.13 s, 0.26 s", ""),
    ("the demo, after set-up", "4 min 20 s to 6 min 30 s", "≤ 3 min",
     "2 min 24 s to 3 min 40 s (`make demo`)",
     "neighbours of this machine change its speed; half of it is the steps of six decoders"),
    ("the tests", "6 min 44 s", "≤ 4 min", "5 min 48 s to 8 min 20 s (`make test`)",
     "4,620 tests take 700 s of a core, so 5 min 50 s of two at least; formulas of the peers in "
     "double precision 65 s, benchmarks 58, processes of torchrun 39, the papers' tables 36, the "
     "site 27, ONNX 23"),
    ("one GPU", "", "see docs/performance.md", "`make bench-gpu`", "no GPU was to be had"))
"""Goals measured by other means: what, before, goal, measured and where, why it is short."""

ELSEWHERE_ON = (f"The last {len(ELSEWHERE)} lines are not of this run: two cores of an AMD EPYC "
                "with AVX-512 and bf16 instructions, unless they say otherwise.")


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
        if goal.bare:
            wanted = f"{wanted}, ≥ {goal.bare:.0%} of its bare products"
            found = f"{found}, {row.bare:.0%} (of the machine's peak {row.share:.0%})"
        short = row.value < goal.least or row.bare < goal.bare
        lines.append(f"| {row.stage} | {goal.before} | {wanted} | {found} | "
                     f"{(row.reason or 'not known why') if short else ''} |")
    if len(lines) == 2:
        return ""
    lines += [f"| {what} | {before} | {wanted} | {found} | {why} |"
              for what, before, wanted, found, why in ELSEWHERE]
    return "\n".join([*lines, "", ELSEWHERE_ON])
