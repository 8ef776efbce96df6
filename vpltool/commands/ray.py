"""`ray`: runs a command or a recipe on a Ray cluster, with a task per shard of the photos."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from vpltool import console
from vpltool.command import parse_line
from vpltool.errors import PhotosFailed, VplError, counted, first_few
from vpltool.formats import open_workspace
from vpltool.formats.shards import check_alone
from vpltool.lazy import torch
from vpltool.recipes.parse import commands_of, find_recipe, read_recipe
from vpltool.recipes.runner import checked_steps, run_call
from vpltool.recipes.terms import check_paths
from vpltool.settings import Settings, Stage, setting
from vpltool.shell import settings_with, to_shell


@dataclass(frozen=True, kw_only=True)
class RaySettings(Settings):
    """Settings of `ray`."""

    line: tuple[str, ...] = setting(
        help="Command with its options, after --; or run RECIPE NAME=VALUE ….",
        positional=True, metavar="-- COMMAND…", record="never")
    shards: int = setting(0, "Number of tasks that share the photos; 0: as many as fit at once.",
                          low=0, record="never")
    cpus: float = setting(1, "Cores per task.", low=0, record="never")
    gpus: float = setting(-1, "GPUs per task; -1: one, if the cluster has any.", low=-1,
                          record="never")
    retries: int = setting(3, "How many times a task is retried if its worker dies.", low=0,
                           record="never")


STAGE = Stage(order=9, panel="1. Begin", reads=(), writes=(), settings=RaySettings, begins=True)


def run(path: Path, settings: RaySettings) -> list[str]:
    """Run a command or a recipe on a Ray cluster; photos are divided into shards.

    Each shard is a task. A task whose worker dies is retried and resumes from its files, so only
    the work in flight is lost. Commands that cannot be divided run as one task. All nodes must
    share the disk of the workspace. RAY_ADDRESS names the cluster; without it, one is started on
    this machine.

    Example: vpltool ray --shards 64 -- extract --split train

    Next: vpltool status

    Returns:
        what the lines return: paths, or what they print.

    Raises:
        VplError: a line is wrong (before anything is run), a task failed, or Ray is not installed.
        PhotosFailed: some photos failed; the others are done.
    """
    is_recipe, lines = _lines(path, settings.line)
    check_alone("a Ray job")
    printed: dict[str, None] = {}
    failed: dict[str, None] = {}
    # Ray prints to stdout, such as a line about a worker that died.
    with contextlib.redirect_stdout(sys.stderr), _cluster() as ray:
        for words in lines:
            console.note(f"vpltool {shlex.join(words)}")
            for outcome in _run_line(ray, path.resolve(), words, settings, update=is_recipe):
                printed.update(dict.fromkeys(outcome.lines))
                failed.update(dict.fromkeys(outcome.photos))
    if failed:
        raise PhotosFailed(
            f"{counted(len(failed), 'photo', 'photos')} failed, the others are done: "
            f"{first_few(list(failed))}",
            "fix them and run the same command again: only these are processed", list(printed),
            list(failed))
    return list(printed)


def show(result: list[str], _values: object) -> str:
    """Format the results of the lines."""
    return "\n".join(result)


def _lines(path: Path, line: Sequence[str]) -> tuple[bool, list[list[str]]]:
    """Return whether a line is a recipe, and the lines to run, each checked."""
    call = parse_line(line) if line else None
    if call is None:
        raise VplError("no command is given", "vpltool ray -- extract --split train")
    if call.found.name != "run":
        if not call.found.stage.begins:
            # Check the workspace before a cluster is started.
            open_workspace(path)
        return False, [list(line)]
    recipe = read_recipe(find_recipe(call.values["recipe"]))
    given = dict(word.partition("=")[::2] for word in call.values.get("values", ()))
    steps, _ = checked_steps(recipe, given, path.resolve())
    check_paths(recipe, given)
    preset = ["--preset", call.values["preset"]] if call.values.get("preset") else []
    return True, [[*preset, *step.words] for step in commands_of(steps)]


@contextlib.contextmanager
def _cluster() -> Iterator[ModuleType]:
    """Join the cluster of RAY_ADDRESS, or start one here; a joined cluster is left running."""
    try:
        import ray
    except ImportError as error:
        raise VplError("the package `ray` is not installed", "pip install 'vpltool[ray]'"
                       ) from error
    if ray.is_initialized():
        yield ray
        return
    # Ray lowers the priority of local workers, unlike any other launcher.
    os.environ.setdefault("RAY_worker_niceness", "0")
    kept = {name: value for name, value in os.environ.items() if name.startswith("VPLTOOL_")}
    try:
        ray.init(logging_level=logging.ERROR, runtime_env={"env_vars": kept} if kept else None)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise VplError(f"no Ray cluster: {error}",
                       "`ray start --head` starts one; without RAY_ADDRESS one is started here"
                       ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Outcome:
    """The outcome of a task: printed lines, ids of failed photos, or message and hint."""

    lines: tuple[str, ...] = ()
    photos: tuple[str, ...] = ()
    error: tuple[str, str] | None = None


def _run_line(ray: ModuleType, work: Path, words: Sequence[str], settings: RaySettings, *,
              update: bool) -> list[Outcome]:
    """Run a line as tasks, and wait for all of them."""
    call = parse_line(words)
    names = settings_with(call.found, str(call.values.get("method", "")))
    has = ray.cluster_resources()
    gpus = settings.gpus if settings.gpus >= 0 else float("GPU" in has)
    gpus = gpus if "device" in names else 0
    shards = [""]
    if "shard" in names and not call.values.get("shard"):
        count = settings.shards or _at_once(has, settings.cpus, gpus)
        shards = [f"{index}/{count}" for index in range(count)]
    task = ray.remote(num_cpus=settings.cpus, num_gpus=gpus, max_retries=settings.retries)(_do)
    waiting = {task.remote(str(work), list(words), shard, update, settings.cpus): shard
               for shard in shards}
    outcomes, errors = [], list[VplError]()
    with console.progress(call.found.name, len(shards)) as advance:
        try:
            while waiting:
                (done,), _ = ray.wait(list(waiting), num_returns=1)
                outcome = _outcome(ray, done, waiting.pop(done), settings.retries)
                outcomes.append(outcome)
                if outcome.error is not None:
                    errors.append(VplError(*outcome.error))
                advance()
        finally:
            for unfinished in waiting:
                ray.cancel(unfinished)
    if errors:
        errors[0].message += f"; {len(errors)} of {len(shards)} tasks failed" if shards[1:] else ""
        raise errors[0]
    return outcomes


def _at_once(has: dict[str, float], cpus: float, gpus: float) -> int:
    fits = [has.get(name, 0) / need for name, need in (("CPU", cpus), ("GPU", gpus)) if need]
    return max(1, int(min(fits, default=1)))


def _outcome(ray: ModuleType, done: object, shard: str, retries: int) -> Outcome:
    who = f"shard {shard}" if shard else "the task"
    try:
        outcome: Outcome = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        return Outcome(error=(f"{who}: {error.cause or error}", "VPLTOOL_DEBUG=1 shows more"))
    except ray.exceptions.RayError as error:
        return Outcome(error=(f"{who} died {retries + 1} times: {type(error).__name__}",
                              "the same command continues from the existing files"))
    if outcome.error is not None and shard:
        return Outcome(error=(f"{who}: {outcome.error[0]}", outcome.error[1]))
    return outcome


def _do(work: str, words: list[str], shard: str, update: bool, cpus: float) -> Outcome:
    """Run a line, or a shard of it, in a worker of the cluster."""
    torch.set_num_threads(max(1, int(cpus)))
    call = parse_line(words)
    if shard:
        call.values["shard"] = shard
    name = call.found.name
    listener = console.Terminal(rewrite=lambda text: to_shell(text, name, Path(work)), bars=False)
    try:
        with console.heard_by(listener):
            result = run_call(call, Path(work), update=update)
    except PhotosFailed as error:
        return Outcome(tuple(call.found.lines(error.result, call.values)), error.photos)
    except VplError as error:
        return Outcome(error=(to_shell(error.message, name, Path(work)),
                              to_shell(error.hint, name, Path(work))))
    return Outcome(tuple(call.found.lines(result, call.values)))
