"""Measuring a row: its lines are run, its maps are cut and scored, its photos are timed."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from vpltool import api
from vpltool.formats import read_json
from vpltool.papers.comparison.rows import Row, fill
from vpltool.recipes.running import run_line

MASKS = {"preset": "weclip", "confidence": 0.0}
"""How masks are made of maps; `alpha` follows from where the maps are cut."""


@dataclass
class Setup:
    """The workspace, splits and seeds of a comparison.

    Args:
        work: the workspace of the comparison.
        learn: split that prototypes are learned from.
        score: another split, that nothing is learned from.
        cut: split on which the threshold of each method is chosen.
        seeds: a run each, for methods with anything random.
        masked: splits of which masks are made by the CRF; they take most of the time.
        encoder: the second encoder; empty: there is none.
        done: lines that were run, so that none is run twice.
        seconds: seconds a photo of each line that was really worked on.
    """

    work: api.Workspace
    learn: str
    score: str
    cut: str
    seeds: Sequence[int]
    masked: Sequence[str]
    encoder: str = ""
    done: set[str] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, line: str, split: str, seed: int = 0) -> str:
        """Run a line unless it was run; what is there from an earlier comparison is kept.

        Returns:
            the line as it was run.
        """
        words = fill(line, {"work": self.work.path, "learn": self.learn, "split": split,
                            "seed": seed, "second": self.work.path / "features-second",
                            "encoder": self.encoder})
        command = f"vpltool {shlex.join(words)}"
        if command in self.done:
            return command
        before = time.time()
        result, _ = run_line(words, self.work.path)
        self.done.add(command)
        made = _written_since(result, before)
        if made > 1:
            self.seconds[command] = (time.time() - before) / made
        return command


@dataclass(frozen=True)
class Measured:
    """What a row came to.

    Args:
        miou: column to percent, a number a seed.
        seconds: seconds a photo, of the lines that make and refine maps; None: not measured in this
            run, since maps of a line were there.
        size: bytes a photo, of what is stored of its maps.
    """

    miou: Mapping[str, list[float]]
    seconds: float | None
    size: int


def measure(setup: Setup, row: Row) -> Measured:
    """Run a row, and score it on both splits.

    Raises:
        VplError: a line failed.
    """
    for line in row.features:
        for split in (setup.learn, setup.score):
            setup.run(line, split)
    miou: dict[str, list[float]] = {}
    timed: dict[str, list[float]] = {line: [] for line in (*row.maps, *row.refine)}
    for seed in setup.seeds if row.seeded else (0,):
        for line in row.learn:
            setup.run(line, setup.learn, seed)
        for split in (setup.learn, setup.score):
            for line, seconds in timed.items():
                command = setup.run(line, split, seed)
                seconds += [setup.seconds[command]] if command in setup.seconds else []
        for column, value in _scores(setup, row, seed):
            miou.setdefault(column, []).append(value)
    result = setup.work.path / (row.masks or f"cams/{row.refined or row.cams}".format(seed=0))
    # Without the time of a line whose maps were there already, the sum would be too small.
    return Measured(miou, sum(map(fmean, timed.values())) if all(timed.values()) else None,
                    _bytes_a_photo(result / setup.score))


def _scores(setup: Setup, row: Row, seed: int) -> Iterator[tuple[str, float]]:
    """Yield column and percent mIoU of a seed's maps and masks."""
    if row.masks:
        for split in (setup.learn, setup.score):
            report = setup.work.eval(what=row.masks, split=split, out=score_path(
                setup, f"{row.masks.replace('/', '-')}-{split}"))
            yield f"mask, {split}", 100 * float(report["miou"])
        return
    names = {"CAM": row.cams, **({"refined": row.refined} if row.refined else {})}
    cut = Path()
    for column, name in names.items():
        cams = name.format(seed=seed)
        cut = score_path(setup, f"{cams}-cut")
        setup.work.eval(what=str(setup.work.path / "cams" / cams / setup.learn), split=setup.cut,
                        out=cut)
        for split in (setup.learn, setup.score):
            report = setup.work.eval(
                what=str(setup.work.path / "cams" / cams / split), split=split, threshold_from=cut,
                out=score_path(setup, f"{cams}-{split}"))
            yield f"{column}, {split}", 100 * float(report["miou"])
    final = (row.refined or row.cams).format(seed=seed)
    alpha = background_power(float(_threshold(cut)))
    for split in setup.masked:
        setup.work.crf(what=final, split=split, alpha=alpha, update=True, **MASKS)
        report = setup.work.eval(what=f"masks/{final}-full", split=split,
                                 out=score_path(setup, f"{final}-masks-{split}"))
        yield f"mask, {split}", 100 * float(report["miou"])


def background_power(threshold: float) -> float:
    """Return the α for which the background score (1 − m)^α equals m at the threshold.

    So the CRF begins with the labels that the threshold gives to a photo of one class.

    Args:
        threshold: where maps are cut, in (0, 1).

    Returns:
        log t / log(1 − t), at least 0.05 and at most 64.
    """
    inside = min(max(threshold, 1e-3), 1 - 1e-3)
    return round(min(max(math.log(inside) / math.log(1 - inside), 0.05), 64), 2)


def _threshold(scores: Path) -> float:
    found: Any = read_json(scores, "")
    return float(found["threshold"])


def score_path(setup: Setup, name: str) -> Path:
    """Path of the scores of maps or masks."""
    return setup.work.path / "scores" / f"{name}.json"


def _written_since(result: object, before: float) -> int:
    """How many files of photos a line wrote."""
    folders = [path for path in (result if isinstance(result, list) else [result])
               if isinstance(path, Path) and path.is_dir()]
    return sum(path.stat().st_mtime >= before for folder in folders[:1]
               for path in folder.rglob("*.safetensors"))


def _bytes_a_photo(folder: Path) -> int:
    sizes = [path.stat().st_size for path in folder.rglob("*.*")
             if path.suffix in (".safetensors", ".png")]
    return sum(sizes) // max(len(sizes), 1)
