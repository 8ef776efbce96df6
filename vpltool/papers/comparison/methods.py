"""Methods of the comparison: read from a recipe, each heading of which begins one; then run, cut,
scored and timed."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from vpltool import api
from vpltool.errors import VplError
from vpltool.formats import KINDS, open_input, read_json
from vpltool.formats.kinds import result_name, result_path
from vpltool.formats.workspace import relative_to
from vpltool.recipes.parse import Recipe, Rounds, Step, Value, commands_of, read_recipe
from vpltool.recipes.runner import checked_steps, run_line
from vpltool.state import State

BUNDLED = Path(__file__).with_name("methods.recipe")

Steps = Sequence[Step | Rounds]


@dataclass(frozen=True)
class Method:
    """A method, or several together."""

    name: str  # what the table calls it
    source: str  # paper and venue
    published: str  # the paper's numbers, in words; empty if it has none that compare
    # seed to its steps, of seed 0 alone where nothing is random; rounds over the splits make its
    # CAMs, or its masks
    steps: Mapping[int, Steps]


def read_methods(path: Path, values: Mapping[str, str], seeds: Sequence[int], work: Path
                 ) -> tuple[Steps, list[Method]]:
    """Read what is compared from a recipe, and check every line.

    Each `say NAME | SOURCE | PUBLISHED` begins a method. The recipe need not declare the values;
    methods with anything random have a run for each of the seeds.

    Returns:
        the steps that all methods build on, of the bundled recipe if it has none; the methods.

    Raises:
        VplError: the file is not a recipe, a line is not a command, or a method makes nothing.
    """
    recipe = read_recipe(path)
    known = {value.name for value in recipe.values}
    recipe = replace(recipe, values=(*recipe.values, *(
        Value(name, "", "") for name in (*values, "seed") if name not in known)))
    of_seeds = {seed: _sections(recipe, {**values, "seed": str(seed)}, work)
                for seed in dict.fromkeys((0, *seeds))}
    begin: Steps = of_seeds[0].pop("")
    if not begin and path != BUNDLED:
        begin = read_methods(BUNDLED, values, (), work)[0]
    methods = []
    for heading, steps in of_seeds[0].items():
        name, source, published = (part.strip() for part in f"{heading}||".split("|")[:3])
        if not any(isinstance(step, Rounds) for step in steps):
            raise VplError(f"{path}: `{name}` makes no CAMs and no masks",
                           "lines between `each split in $learn $score` and `end` make them")
        seeded = any(found[heading] != steps for found in of_seeds.values())
        methods.append(Method(name, source, published, {
            seed: of_seeds[seed][heading] for seed in seeds} if seeded else {0: steps}))
    return begin, methods


def _sections(recipe: Recipe, values: Mapping[str, str], work: Path
              ) -> dict[str, list[Step | Rounds]]:
    """Heading to the steps below it; those before the first heading are below an empty one."""
    found: dict[str, list[Step | Rounds]] = {"": []}
    heading = ""
    for step in checked_steps(recipe, values, work)[0]:
        if isinstance(step, Step) and step.heading:
            heading = step.heading
            found[heading] = []
        else:
            found[heading].append(step)
    return found


MASKS = {"kernels": "weclip", "confidence": 0.0}
"""How masks are made of maps; `alpha` follows from where the maps are cut."""

_COLUMNS = {"cams": "CAM", "masks": "mask", "predictions": "mask"}
"""Kind of a result to its column of the table; of `refine`, it is another."""


@dataclass
class Setup:
    """The workspace, splits and seeds of a comparison."""

    work: api.Workspace  # the workspace of the comparison
    learn: str  # split that prototypes are learned from
    score: str  # another split, that nothing is learned from
    cut: str  # split on which the threshold of each method is chosen
    seeds: Sequence[int]  # a run each, for methods with anything random
    masked: Sequence[str]  # splits of which masks are made by the CRF; they take most of the time
    # lines that were run, so that none is run twice, and what they returned
    results: dict[str, list[Path]] = field(default_factory=dict)
    # seconds a photo of each line that was really worked on
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, step: Step) -> str:
        """Run a line unless it was run; what is there from an earlier comparison is kept.

        Returns:
            the line.
        """
        line = shlex.join(step.words)
        if line in self.results:
            return line
        before = time.time()
        _, result, _ = run_line(step.words, self.work.path)
        paths = result if isinstance(result, list) else [result]
        self.results[line] = [path for path in paths if isinstance(path, Path)]
        made = sum(file.stat().st_mtime >= before for path in self.results[line][:1]
                   for file in path.rglob("*.safetensors"))
        if made > 1:
            self.seconds[line] = (time.time() - before) / made
        return line


@dataclass(frozen=True)
class Measured:
    """What a method came to."""

    published: str  # the paper's numbers, in words
    miou: Mapping[str, list[float]]  # column to percent, a number a seed
    # seconds a photo, of the lines that make and refine maps; None: not measured in this run, since
    # maps of a line were there
    seconds: float | None
    size: int  # bytes a photo, of what is stored of its maps
    cams: str  # name of the CAMs that are its result, by its first seed; empty if it makes masks
    # identity of each folder that was scored, by its path from the workspace
    made_from: Mapping[str, str]


def measure(setup: Setup, method: Method) -> Measured:
    """Run a method, and score it on both splits.

    Raises:
        VplError: a line failed, or it makes both CAMs and masks.
    """
    miou: dict[str, list[float]] = {}
    timed: dict[int, list[float]] = {}
    first: dict[str, dict[str, Path]] = {}
    made_from: dict[str, str] = {}
    for steps in method.steps.values():
        for step in commands_of(steps):
            setup.run(step)
        made = _results(setup, steps, timed)
        if "mask" in made and len(made) > 1:
            raise VplError(f"`{method.name}` makes CAMs and masks",
                           "between `each split` and `end` it makes one of them")
        first = first or made
        made_from |= {relative_to(path, setup.work.path): open_input(path, tuple(KINDS)).identity
                      for folders in made.values() for path in folders.values()}
        for column, value in _scores(setup, made):
            miou.setdefault(column, []).append(value)
    column = list(first)[-1]
    # Without the time of a line whose maps were there already, the sum would be too small.
    return Measured(method.published, miou,
                    sum(map(fmean, timed.values())) if all(timed.values()) else None,
                    _bytes_a_photo(first[column][setup.score]),
                    "" if column == "mask" else first[column][setup.score].parent.name, made_from)


def why_changed(state: State, measured: Measured) -> str:
    """Why a method's folders are others than were scored, or would be made anew; empty: neither."""
    for name, identity in measured.made_from.items():
        try:
            now = open_input(state.workspace.path / name, tuple(KINDS)).identity
        except VplError as error:
            return error.message
        artifact = state.artifacts.get(name)
        reasons = ([f"{name} has changed"] if now != identity
                   else state.stale(artifact) if artifact else [])
        if reasons:
            return reasons[0]
    return ""


def _results(setup: Setup, steps: Steps, timed: dict[int, list[float]]
             ) -> dict[str, dict[str, Path]]:
    """Column to split to the folder that a method has made; adds the seconds of each line."""
    found: dict[str, dict[str, Path]] = {}
    for rounds in steps:
        for split, part in (zip(rounds.words, rounds.rounds, strict=True)
                            if isinstance(rounds, Rounds) else ()):
            for number, step in enumerate(commands_of(part)):
                line = shlex.join(step.words)
                kinds = [open_input(path, tuple(KINDS)).kind for path in setup.results[line]]
                for kind, path in zip(kinds, setup.results[line], strict=True):
                    if kind in _COLUMNS:
                        column = "refined" if step.words[0] == "refine" else _COLUMNS[kind]
                        found.setdefault(column, {})[split] = path
                        timed.setdefault(number, []).extend(
                            [setup.seconds[line]] if line in setup.seconds else [])
    return found


def _scores(setup: Setup, made: Mapping[str, Mapping[str, Path]]) -> Iterator[tuple[str, float]]:
    """Yield column and percent mIoU of a seed's maps and masks."""
    final = ""
    for column, folders in made.items():
        name = folders[setup.learn].parent.name
        cutting = {}
        if column != "mask":
            final, cut = name, _score_path(setup, f"{name}-cut")
            setup.work.eval(what=str(folders[setup.learn]), split=setup.cut, out=cut)
            cutting = {"threshold_from": cut}
        for split, folder in folders.items():
            report = setup.work.eval(
                what=str(folder), split=split, **cutting, out=_score_path(setup, f"{name}-{split}"))
            yield f"{column}, {split}", 100 * float(report["miou"])
    for split in setup.masked if final else ():
        setup.work.crf(what=final, split=split, update=True, **MASKS,
                       alpha=background_power(threshold_of(setup, final)))
        report = setup.work.eval(what=result_name("masks", f"{final}-full"), split=split,
                                 out=_score_path(setup, f"{final}-masks-{split}"))
        yield f"mask, {split}", 100 * float(report["miou"])


def background_power(threshold: float) -> float:
    """Return the α in [0.05, 64] for which the background score (1 − m)^α is m at the threshold.

    So the CRF begins with the labels that the threshold gives to a photo of one class.
    """
    inside = min(max(threshold, 1e-3), 1 - 1e-3)
    return round(min(max(math.log(inside) / math.log(1 - inside), 0.05), 64), 2)


def threshold_of(setup: Setup, cams: str) -> float:
    """Threshold at which CAMs score best on the split `cut`."""
    return float(read_json(_score_path(setup, f"{cams}-cut"), "")["threshold"])


def _score_path(setup: Setup, name: str) -> Path:
    return result_path(setup.work.path, "scores", name)


def _bytes_a_photo(folder: Path) -> int:
    sizes = [path.stat().st_size for path in folder.rglob("*.*")
             if path.suffix in (".safetensors", ".png")]
    return sum(sizes) // max(len(sizes), 1)
