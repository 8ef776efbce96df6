"""`run`: runs a recipe, from where it stopped or where something changed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vpltool import console
from vpltool.errors import PhotosFailed, VplError, counted, first_few, fix_and_repeat
from vpltool.formats.kinds import folder_of
from vpltool.formats.manifest import MANIFEST, manifest_of
from vpltool.formats.shards import check_alone
from vpltool.formats.started import Word, read_started, write_started
from vpltool.parallel import device, processes
from vpltool.preset import read_preset
from vpltool.recipes import runs
from vpltool.recipes.parse import Recipe, Rounds, find_recipe, read_recipe, recipe_files
from vpltool.recipes.runner import Job, checked_steps, run_steps, shell_lines
from vpltool.recipes.terms import check_encoders, check_paths, path_in, path_names
from vpltool.settings import RUNNING, Settings, Stage, setting
from vpltool.shell import program


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """Settings of `run`."""

    recipe: str = setting(help="Name of a recipe (`vpltool recipes` lists them), or a file.",
                          positional=True, metavar="RECIPE", record="never")
    values: tuple[str, ...] = setting((), "The recipe's values: photos=DIR tags=FILE …",
                                      positional=True,
                                      metavar="[NAME=VALUE]", record="never")
    preset: str = setting("", "Preset for all commands; as `vpltool --preset NAME COMMAND`.",
                          metavar="NAME-OR-FILE", record="never")
    dry_run: bool = setting(False, "Print the command lines without running them.",
                            off="-", record="never")
    jobs: int = setting(0, "Rounds that run in parallel; 0: depends on the number of cores.",
                        low=0, panel=RUNNING, record="never")


STAGE = Stage(order=2, panel="1. Begin", reads=(), writes=("recipe",), settings=RunSettings,
              begins=True)


def run(path: Path, settings: RunSettings) -> list[Path] | list[str]:
    """Run a recipe, a text file of vpltool commands, in one process.

    Steps that are up to date are skipped, and stale ones are recomputed. So the same command
    continues after an interruption, and updates the workspace after you add photos or tags. Values
    that you leave out are those of the last run. If you change one, earlier pictures are kept, and
    a table lists all runs.

    A recipe runs in a single process: it refuses to start under torchrun or in a Slurm array.

    Example: vpltool run own-photos photos=PHOTOS tags=tags.csv

    Next: vpltool status

    Returns:
        paths of what the lines made; the lines, for a dry run.

    Raises:
        VplError: a line is wrong (before anything is run), or failed.
        PhotosFailed: some photos failed; the recipe processed the others.
    """
    recipe = read_recipe(find_recipe(settings.recipe))
    started = read_started(path)
    last = runs.last_values(recipe, started)
    typed = _parsed(recipe, settings.values, path, last)
    given = last | typed
    for name in runs.without_effect(recipe, given, last.keys() - typed.keys(), path):
        del given[name]
    preset = read_preset(settings.preset) if settings.preset else None
    reviewed = runs.reviewed_tags(recipe, last, typed, path)
    taken = given | reviewed | _kept_precision(recipe, given, path)
    steps, terms = checked_steps(recipe, taken, path, preset)
    runs.tell_values(recipe, last, typed, taken, path, reviewed)
    try:
        check_paths(recipe, given, last.keys() - typed.keys())
        check_encoders(terms, steps, path)
    except VplError as error:
        if not settings.dry_run:
            raise
        # The lines may be for another machine.
        console.warn(f"{error.message}; {error.hint}")
    if settings.dry_run:
        protocol = ["--preset", settings.preset] if preset else []
        return list(shell_lines(steps, ["vpltool", "-C", str(path), *protocol]))
    check_alone("a recipe")

    on_cpu = device.find_device("auto").type == "cpu"
    job = Job(path, preset, terms, processes=settings.jobs or (
        processes.core_count() + 1 if on_cpu else 1))
    console.note(recipe.title)
    words = _line(recipe, settings, given)
    first = next((number for number, step in enumerate(steps, 1)
                  if isinstance(step, Rounds) or not step.heading), len(steps))
    # Until the first step is done, there may be no workspace, or one of other photos.
    run_steps(job, steps[:first])
    now = runs.run_of(recipe, given, steps, path)
    finished = runs.keep_sheets(path, started.runs if started else (), now)
    write_started(path, recipe.name, words, done=False, runs=finished)
    run_steps(job, steps[first:])
    finished = runs.with_run(path, finished, now, job.reports)
    write_started(path, recipe.name, words, done=True, runs=finished)
    if len([run for run in finished if run.recipe == now.recipe]) > 1:
        console.note(f"\n{runs.table_of(finished)}")
    made = list(job.made)
    if job.failed:
        ids = list(job.failed)
        raise PhotosFailed(f"{counted(len(ids), 'photo', 'photos')} failed, the others are done: "
                           f"{first_few(ids)}",
                           "a warning above says why; "
                           + fix_and_repeat(len(ids), "run the recipe again"), made, ids)
    return made


def show(result: list[Path] | list[str], values: Mapping[str, object]) -> str:
    """Format the lines of a dry run; otherwise the last lines have printed the results."""
    return "\n".join(map(str, result)) if values.get("dry_run") else ""


def _line(recipe: Recipe, settings: RunSettings, given: Mapping[str, str]) -> list[Word]:
    """Return the words that run the recipe again, with paths apart, so that they can be moved."""
    paths = path_names(recipe)
    words: list[Word] = ["run", recipe.name if recipe.name in recipe_files() else ("", recipe.path)]
    for name, value in given.items():
        text, found = path_in(value, is_path=name in paths)
        words.append((f"{name}={text}", Path(found)) if found else f"{name}={text}")
    if settings.preset:
        path = Path(settings.preset)
        words += ["--preset", ("", path) if path.is_file() else settings.preset]
    return [*words, *(["--jobs", str(settings.jobs)] if settings.jobs else ())]


def _kept_precision(recipe: Recipe, given: Mapping[str, str], path: Path) -> dict[str, str]:
    """Replace `precision=auto` by the number format of the present features.

    So a workspace that has moved to another machine is not recomputed.
    """
    found = sorted(folder_of(path, "features").glob(f"*/{MANIFEST}"))
    if not found or recipe.filled(given, path).get("precision") != "auto":
        return {}
    header = manifest_of(found[0].parent).header
    there = str(header.options.get("precision", "fp32"))
    return {"precision": device.settle_precision("auto", device.find_device("auto"), there)}


def _parsed(recipe: Recipe, words: tuple[str, ...], work: Path, last: Mapping[str, str]
            ) -> dict[str, str]:
    """Parse the values; the hint of an error is the whole line, corrected as far as possible."""
    if any(word.startswith("=") for word in words):
        joined = re.sub(r" ?= ?", "=", shlex.join(words))
        raise VplError("a value is written NAME=VALUE, without spaces",
                       f"{shlex.join([*program(work), 'run', recipe.name])} {joined}")
    given = {name: value for name, equals, value in (word.partition("=") for word in words)
             if equals}
    bare = [word for word in words if "=" not in word]
    if not bare:
        return given
    # A word without a name is most likely the first value that must be given.
    missing = recipe.missing({**last, **given})
    names = [value.name for value in missing or recipe.values]
    fixed = {names[0]: bare[0]} if len(missing) == 1 and len(bare) == 1 else {}
    line = [*program(work), "run", recipe.name,
            *(f"{name}={value}" for name, value in (fixed | given).items())]
    raise VplError(f"{bare[0]}: expected NAME=VALUE",
                   shlex.join(line) if fixed else
                   f"NAME is one of: {', '.join(names)}; {shlex.join(line)} …")
