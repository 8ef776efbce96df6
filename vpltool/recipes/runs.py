"""Runs of a recipe: the values of the last run, its pictures, and a table of all runs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vpltool import console
from vpltool.formats import identity_of_file, identity_of_many, kinds, open_workspace
from vpltool.formats.atomic import atomic_path
from vpltool.formats.changes import last_call
from vpltool.formats.corrections import corrections_there
from vpltool.formats.started import PICTURES, FinishedRun, StartedRecipe
from vpltool.names import short_path
from vpltool.recipes.parse import Recipe, Rounds, Step, steps_of
from vpltool.recipes.terms import path_in, path_names, terms_of
from vpltool.tables import format_table

_MOST = 50
"""Maximum number of recorded runs."""

_LONGEST = 40
"""Maximum number of characters of the values in the name of a kept sheet."""

_SCORES = {"scores": ("mIoU", lambda report: report["miou"]),
           "agreement": ("F1", lambda report: report["mean"]["f1"])}
"""Title of the score in the table, and the score, by kind of report."""


def last_values(recipe: Recipe, started: StartedRecipe | None) -> dict[str, str]:
    """Return the values that were last given to a recipe in a workspace, by name."""
    name = started.words[1] if started and len(started.words) > 1 else ""
    if started is None or (name != recipe.name
                           and Path(name).resolve() != recipe.path.resolve()):
        return {}
    known = {value.name for value in recipe.values}
    pairs = (word.partition("=") for word in started.words[2:])
    # An address that runs a command is accepted only from the command line.
    return {name: value for name, equals, value in pairs
            if equals and name in known and not value.startswith("pipe:")}


def reviewed_tags(recipe: Recipe, last: Mapping[str, str], typed: Collection[str], work: Path
                  ) -> dict[str, str]:
    """Return the tags of `review`, by name of the value, that replace those of the last run.

    They do not if a person has edited or typed the others since.
    """
    name = terms_of(recipe, last).names.get("prepare", {}).get("labels", "")
    given, reviewed = Path(last.get(name, "")), work / kinds.REVIEWED_TAGS
    if (not last.get(name) or name in typed or not reviewed.is_file()
            or last_call(work).get("labels") != kinds.REVIEWED_TAGS
            or given.exists() and given.stat().st_mtime > reviewed.stat().st_mtime):
        return {}
    return {name: short_path(reviewed)}


def without_effect(recipe: Recipe, values: Mapping[str, str], names: Collection[str], work: Path
                   ) -> list[str]:
    """Return those of the names whose values change no step beside the other values."""
    steps = steps_of(recipe, values, work)
    return [value.name for value in recipe.values
            if value.name in names and value.default is not None
            and steps == steps_of(recipe, {**values, value.name: value.default}, work)]


def tell_values(recipe: Recipe, last: Mapping[str, str], given: Mapping[str, str],
                taken: Mapping[str, str], work: Path, reviewed: Mapping[str, str]) -> None:
    """Print the values of the last run, and the changes; warn about given values without effect.

    `taken` are the values of this run, `reviewed` those that replace some of the last run's.
    """
    default = {value.name: value.default for value in recipe.values}
    kept = [f"{name}={value}" for name, value in last.items() if name not in reviewed
            and name in taken.keys() - given.keys() and value != (default[name] or "")]
    if kept:
        console.note(f"as in the last run: {' '.join(kept)}")
    for name, value in reviewed.items():
        console.note(f"{name}={value}, since `review` has changed tags; `{name}={last[name]}` "
                     "takes that file")
    changes = [f"{name} was {old or 'not set'}, now {new or 'not set'}"
               for name, new in given.items() if last
               and not _same(old := last.get(name, default.get(name) or ""), new)]
    if changes:
        console.note(f"since the last run: {'; '.join(changes)}")
    for name in without_effect(recipe, taken, given, work):
        if given[name] not in ("", default[name]):
            console.warn(f"{name}={given[name]} has no effect with these values")


def _same(one: str, other: str) -> bool:
    (text, path), (other_text, other_path) = (path_in(value, is_path=False)
                                              for value in (one, other))
    return one == other or bool(path and other_path) and text == other_text and (
        Path(path).resolve() == Path(other_path).resolve())


def run_of(recipe: Recipe, given: Mapping[str, str], steps: Sequence[Step | Rounds], work: Path
           ) -> FinishedRun:
    """Describe a run by its values and its sheets below `pictures/`, without scores.

    Paths are reduced to their names, since workspaces are passed on.
    """
    values, paths = recipe.filled(given, work), path_names(recipe)
    named = {}
    for value in recipe.values:
        text, found = path_in(values[value.name], is_path=value.name in paths)
        named[value.name] = text + Path(found).name
    sheets = []
    for step in steps:
        if isinstance(step, Step) and step.words[:1] == ("show",) and "--out" in step.words[:-1]:
            path = Path(step.words[step.words.index("--out") + 1])
            if path.is_relative_to(work / PICTURES):
                sheets.append(path.relative_to(work).as_posix())
    return FinishedRun(recipe.path.name, named, {}, tuple(sheets))


def keep_sheets(work: Path, runs: Sequence[FinishedRun], now: FinishedRun
                ) -> tuple[FinishedRun, ...]:
    """Copy the sheets of the last run, if it had other values, to names with these values.

    Returns:
        the runs, of which the last has the copies.
    """
    before = next((run for run in reversed(runs) if run.recipe == now.recipe), None)
    if before is None or before.values == now.values or before.pictures != now.pictures:
        return tuple(runs)
    varied = varied_values([*runs, now])
    words = "-".join(f"{name}-{before.values.get(name) or 'none'}" for name in varied)
    label = re.sub(r"[^\w.+-]+", "-", words)
    if len(label) > _LONGEST:
        label = f"{label[:_LONGEST]}-{identity_of_many(before.values)[:8]}"
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
    """Return the names of the values that differ between runs of the last run's recipe."""
    own = [run.values for run in runs if run.recipe == runs[-1].recipe]
    return [name for name in own[-1] if len({values.get(name) for values in own}) > 1]


def with_run(work: Path, runs: Sequence[FinishedRun], now: FinishedRun,
             reports: Sequence[Mapping[str, object]]) -> tuple[FinishedRun, ...]:
    """Add a finished run with its scores; it replaces one of the same result, or of the same values
    and data.

    `runs` come from `keep_sheets`; `reports` are those of `eval` in this run.
    """
    now = replace(now, scores=dict(_scores(reports)), data=_data_of(work),
                  pictures=tuple(name for name in now.pictures if (work / name).is_file()))
    others = [run for run in runs if (run.recipe, run.values) != (now.recipe, now.values)
              or run.data not in ("", now.data)]
    if others and others[-1].recipe == now.recipe and _same_result(work, others[-1], now):
        for name in others.pop().pictures:
            (work / name).unlink(missing_ok=True)
    return tuple(_with_last_sheets([*others[1 - _MOST:], now]))


def _with_last_sheets(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Return the runs without the sheets that later ones have replaced."""
    return [replace(run, pictures=tuple(name for name in run.pictures if all(
        name not in later.pictures for later in runs[place:])))
        for place, run in enumerate(runs, 1)]


def _data_of(work: Path) -> str:
    """Return an identity of the photos' bytes, tags, splits and corrected masks.

    It is empty without a workspace.
    """
    if not kinds.is_workspace(work):
        return ""
    workspace = open_workspace(work)
    photos = workspace.photos()
    hashes = workspace.hashes_of(photos)
    masks = corrections_there(work, [photo.id for photo in photos])
    corrected = {key: [identity_of_file(path)] for key, path in masks.items()}
    return identity_of_many({photo.id: [sorted(photo.tags), photo.splits, hashes.get(photo.id),
                                        *corrected.get(photo.id, ())] for photo in photos})


def _scores(reports: Sequence[Mapping[str, object]]) -> Iterator[tuple[str, float]]:
    """Yield title and value of each score; of several models, the first has the plain title."""
    titles: set[str] = set()
    for report in reports:
        metric, score = _SCORES.get(str(report.get("kind")), ("", None))
        if score is not None and (value := score(report)) is not None:
            title = f"{metric} {report['split']}"
            model = f" {str(report['what']).partition('-')[2]}" if title in titles else ""
            yield title + model, value
            titles.add(title)


def _same_result(work: Path, one: FinishedRun, other: FinishedRun) -> bool:
    """Return whether two runs have the same scores, and sheets with the same bytes."""
    pairs = [(work / first, work / second)
             for first, second in zip(one.pictures, other.pictures, strict=False)]
    return (bool(pairs) and len(one.pictures) == len(other.pictures) and one.scores == other.scores
            and all(first != second and first.is_file()
                    and first.read_bytes() == second.read_bytes() for first, second in pairs))


def table_of(runs: Sequence[FinishedRun]) -> str:
    """Format the runs of the last run's recipe: sheet, differing values, scores in percent.

    If the photos, tags or corrections of some runs were others, the last column says which.
    """
    own = [run for run in runs if run.recipe == runs[-1].recipe]
    varied = varied_values(runs)
    titles = list(dict.fromkeys(title for run in own for title in run.scores))
    data = {"": "not recorded", own[-1].data: "as now"}
    last = ["photos, tags, corrections"] if len({run.data for run in own}) > 1 else []
    cells = [["sheet", *varied, *titles, *last]]
    for run in own:
        cells.append([next(iter(run.pictures), "-"),
                      *(run.values.get(name) or "-" for name in varied),
                      *(f"{100 * run.scores[title]:.1f}" if title in run.scores else "-"
                        for title in titles),
                      *(data.get(run.data, "changed since") for _ in last)])
    return format_table(cells)
