"""`run`: a whole job, written down as a recipe."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpltool import console
from vpltool.datasets.tags import some
from vpltool.errors import PhotosFailed, VplError, counted
from vpltool.formats.shards import check_alone
from vpltool.preset import read_preset
from vpltool.recipes import find_recipe
from vpltool.recipes.reading import read_recipe, steps_of
from vpltool.recipes.running import Job, check_steps, run_steps, shell_lines
from vpltool.settings import RUNNING, Settings, setting
from vpltool.stage import Stage


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


STAGE = Stage(order=2, panel="1. Begin", reads=(), writes=(), settings=RunSettings, begins=True)


def run(path: Path, settings: RunSettings) -> list[str]:
    """Run a recipe, a text file of vpltool commands, in one process.

    Up-to-date steps are skipped, and stale ones are recomputed. So the same command continues
    after an interruption, and updates a workspace after you add photos or tags.

    A recipe runs in a single process: it refuses to start under torchrun or in a Slurm array.

    Example: vpltool run own-photos photos=PHOTOS tags=tags.csv

    Next: vpltool status

    Args:
        path: the workspace folder.
        settings: which recipe, with which values.

    Returns:
        the lines, for a dry run.

    Raises:
        VplError: a line is wrong (before anything is run), or failed.
        PhotosFailed: some photos failed; the recipe processed the others.
    """
    recipe = read_recipe(find_recipe(settings.recipe))
    steps = steps_of(recipe, _given(settings.values), path)
    preset = read_preset(settings.preset) if settings.preset else None
    check_steps(steps, preset)
    if settings.dry_run:
        given = ["--preset", settings.preset] if preset else []
        return list(shell_lines(steps, ["vpltool", "-C", str(path), *given]))
    check_alone("a recipe")

    from vpltool.parallel.device import find_device
    from vpltool.parallel.processes import core_count

    on_cpu = find_device("auto").type == "cpu"
    job = Job(path, preset, processes=settings.jobs or (core_count() + 1 if on_cpu else 1))
    console.note(recipe.title)
    run_steps(job, steps)
    if job.failed:
        ids = list(job.failed)
        raise PhotosFailed(f"{counted(len(ids), 'photo', 'photos')} failed, the others are done: "
                           f"{some(ids)}",
                           "a warning above says why; fix them and run the recipe again: only "
                           "these are processed", [], ids)
    return []


def show(result: list[str], _values: Mapping[str, Any]) -> str:
    """Format the lines of a dry run."""
    return "\n".join(result)


def _given(words: tuple[str, ...]) -> dict[str, str]:
    given = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise VplError(f"{word}: expected NAME=VALUE",
                           f"vpltool run RECIPE {shlex.quote(f'photos={word}')}")
        given[name] = value
    return given
