"""Runs of a recipe: the values of the last one, pictures that are kept, and a table of all."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vpltool import console
from vpltool.engine.reports import format_table
from vpltool.formats.atomic import atomic_path
from vpltool.formats.started import PICTURES, FinishedRun, StartedRecipe
from vpltool.recipes.parse import Recipe, Rounds, Step, steps_of
from vpltool.recipes.terms import path_in, path_names

_MOST = 50
"""Runs that are remembered."""

_SCORES = {"scores": ("mIoU", lambda report: report["miou"]),
           "agreement": ("F1", lambda report: report["mean"]["f1"])}
"""Kind of a report to the title of its score in the table, and the score."""


def last_values(recipe: Recipe, started: StartedRecipe | None) -> dict[str, str]:
    """Return the values that a recipe was last given in a workspace, name to value."""
    if started is None or not _is_of(recipe, started):
        return {}
    known = {value.name for value in recipe.values}
    pairs = (word.partition("=") for word in started.words[2:])
    # An address that runs a command is only ever taken from the command line.
    return {name: value for name, equals, value in pairs
            if equals and name in known and not value.startswith("pipe:")}


def _is_of(recipe: Recipe, started: StartedRecipe) -> bool:
    name = started.words[1] if len(started.words) > 1 else ""
    return name == recipe.name or Path(name).resolve() == recipe.path.resolve()


def tell_values(recipe: Recipe, last: Mapping[str, str], given: Mapping[str, str]) -> None:
    """Say which values are those of the last run, and which ones differ from it."""
    if not last:
        return
    default = {value.name: value.default or "" for value in recipe.values}
    kept = [f"{name}={value}" for name, value in last.items()
            if name not in given and value != default[name]]
    if kept:
        console.note(f"as in the last run: {' '.join(kept)}")
    changes = [f"{name} was {old or 'not set'}, now {new or 'not set'}"
               for name, new in given.items()
               if not _same(old := last.get(name, default.get(name, "")), new)]
    if changes:
        console.note(f"since the last run: {'; '.join(changes)}")


def warn_of_unused(recipe: Recipe, steps: Sequence[Step | Rounds], given: Mapping[str, str],
                   typed: Mapping[str, str], work: Path) -> None:
    """Warn of typed values that change no step beside the others, such as those of another case."""
    default = {value.name: value.default for value in recipe.values}
    for name, value in typed.items():
        if value and default[name] is not None and value != default[name] and steps == steps_of(
                recipe, {**given, name: str(default[name])}, work):
            console.warn(f"{name}={value} has no effect with these values")


def _same(one: str, other: str) -> bool:
    return one == other or bool(one and other) and Path(one).resolve() == Path(other).resolve()


def run_of(recipe: Recipe, values: Mapping[str, str], pictures: Sequence[str]) -> FinishedRun:
    """Describe a run by its values; of paths only the names, since workspaces are passed on."""
    paths = path_names(recipe)
    named = {}
    for value in recipe.values:
        text, found = path_in(values.get(value.name, ""), is_path=value.name in paths)
        named[value.name] = text + Path(found).name
    return FinishedRun(recipe.path.name, named, {}, tuple(pictures))


def sheets_of(steps: Sequence[Step | Rounds], work: Path) -> list[str]:
    """Return the sheets that a recipe draws under names of its own, relative to the workspace."""
    found = []
    for step in steps:
        if isinstance(step, Step) and step.words[:1] == ("show",) and "--out" in step.words[:-1]:
            path = Path(step.words[step.words.index("--out") + 1])
            if path.is_relative_to(work / PICTURES):
                found.append(path.relative_to(work).as_posix())
    return found


def keep_sheets(work: Path, runs: Sequence[FinishedRun], now: FinishedRun
                ) -> tuple[FinishedRun, ...]:
    """Keep the sheets of the last run, if it had other values, under names that tell these.

    Returns:
        the runs, where the last one has the sheets under their new names.
    """
    before = next((run for run in reversed(runs) if run.recipe == now.recipe), None)
    if before is None or before.values == now.values or before.pictures != now.pictures:
        return tuple(runs)
    varied = varied_values([*runs, now])
    words = "-".join(f"{name}-{before.values.get(name) or 'none'}" for name in varied)
    label = re.sub(r"[^\w.+-]+", "-", words)
    kept = []
    for name in before.pictures:
        path = work / name
        if path.is_file():
            kept.append(path.with_stem(f"{path.stem}-{label}").relative_to(work).as_posix())
            with atomic_path(work / kept[-1]) as temporary:
                temporary.write_bytes(path.read_bytes())
    changed = replace(before, pictures=tuple(kept))
    return tuple(changed if run is before else run for run in runs)


def varied_values(runs: Sequence[FinishedRun]) -> list[str]:
    """Return the names of the values that are not the same in all runs of the last one's recipe."""
    own = [run.values for run in runs if run.recipe == runs[-1].recipe]
    return [name for name in own[-1] if len({values.get(name) for values in own}) > 1]


def with_run(work: Path, runs: Sequence[FinishedRun], now: FinishedRun,
             reports: Sequence[Mapping[str, object]]) -> tuple[FinishedRun, ...]:
    """Add a run that has come to its end; it replaces one of the same values, or the same result.

    Args:
        work: the workspace folder.
        runs: those before, the last one with its sheets under their own names.
        now: this one.
        reports: what `eval` found in it.
    """
    now = replace(now, scores=dict(_scores(reports)),
                  pictures=tuple(name for name in now.pictures if (work / name).is_file()))
    others = [run for run in runs if (run.recipe, run.values) != (now.recipe, now.values)]
    if others and others[-1].recipe == now.recipe and _same_result(work, others[-1], now):
        for name in others.pop().pictures:
            (work / name).unlink(missing_ok=True)
    return (*others[1 - _MOST:], now)


def _scores(reports: Sequence[Mapping[str, object]]) -> Iterator[tuple[str, float]]:
    """Title and value of each score; of several models on a split, the first has the bare title."""
    seen: set[str] = set()
    for report in reports:
        metric, score = _SCORES.get(str(report.get("kind")), ("", None))
        if score is not None and (value := score(report)) is not None:
            title = f"{metric} {report['split']}"
            model = f" {str(report['what']).partition('-')[2]}" if title in seen else ""
            yield title + model, value
            seen.add(title)


def _same_result(work: Path, one: FinishedRun, other: FinishedRun) -> bool:
    """Whether two runs ended in the same sheets, kept under names of their own, and scores."""
    pairs = [(work / first, work / second)
             for first, second in zip(one.pictures, other.pictures, strict=False)]
    return (bool(pairs) and len(one.pictures) == len(other.pictures) and one.scores == other.scores
            and all(first != second and first.is_file()
                    and first.read_bytes() == second.read_bytes() for first, second in pairs))


def table_of(runs: Sequence[FinishedRun]) -> str:
    """Format the runs of the last one's recipe: sheets, values that differ, scores in percent."""
    own = [run for run in runs if run.recipe == runs[-1].recipe]
    varied = varied_values(runs)
    titles = list(dict.fromkeys(title for run in own for title in run.scores))
    cells = [["sheet", *varied, *titles]]
    for run in own:
        cells.append([next(iter(run.pictures), "-"),
                      *(run.values.get(name) or "-" for name in varied),
                      *(f"{100 * run.scores[title]:.1f}" if title in run.scores else "-"
                        for title in titles)])
    return format_table(cells, markdown=False)
