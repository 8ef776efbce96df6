"""The runner of command lines: of recipes, in order or in parallel rounds, and of single ones."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vpltool import console
from vpltool.command import Call, parse_line
from vpltool.errors import PhotosFailed, VplError, then
from vpltool.lazy import torch
from vpltool.parallel import once
from vpltool.parallel.processes import core_count, run_jobs
from vpltool.preset import Preset
from vpltool.recipes.parse import Recipe, Rounds, Step, commands_of, steps_of
from vpltool.recipes.terms import Terms, terms_of
from vpltool.run import run_stage
from vpltool.shell import settings_with, to_shell


@dataclass
class Job:
    """A running recipe, with its results."""

    work: Path
    preset: Preset | None  # protocol whose values replace the defaults
    terms: Terms
    processes: int = 1  # maximum number of rounds that run in parallel
    # ids of photos that failed in a line; the others were processed
    failed: dict[str, None] = field(default_factory=dict)
    # paths that the lines made, or found up to date
    made: dict[Path, None] = field(default_factory=dict)
    # results of lines that are no paths, such as scores
    reports: list[Mapping[str, object]] = field(default_factory=list)

    def take(self, result: object) -> None:
        """Keep the result of a line: paths, or a report with `paths` beside it."""
        if isinstance(result, Mapping):
            self.reports.append(result)
            result = getattr(result, "paths", ())
        paths = result if isinstance(result, (list, tuple)) else [result]
        self.made.update(dict.fromkeys(path for path in paths if isinstance(path, Path)))


def shell_lines(steps: Sequence[Step | Rounds], program: Sequence[str]) -> Iterator[str]:
    """Format steps as lines for a shell; headings are comments."""
    for step in steps:
        if isinstance(step, Rounds):
            for part in step.rounds:
                yield from shell_lines(part, program)
        elif step.heading:
            yield f"# {step.heading}"
        else:
            yield shlex.join([*program, *step.words])


def checked_steps(recipe: Recipe, given: Mapping[str, str], work: Path,
                  preset: Preset | None = None) -> tuple[list[Step | Rounds], Terms]:
    """Return the checked steps of a recipe, and the terms of its user.

    Raises:
        VplError: a value is missing or unknown, or a line is not a command, or has a wrong option;
            the line is named.
    """
    steps, terms = steps_of(recipe, given, work), terms_of(recipe, given)
    for step in commands_of(steps):
        try:
            parse_line(step.words, preset)
        except VplError as error:
            raise _wrong_line(step, terms, error) from error
    return steps, terms


def _wrong_line(step: Step, terms: Terms, error: VplError) -> VplError:
    """Return the error for a line that is not a command; it names the wrong value, or the line."""
    line = f"{terms.where(step.line)}: vpltool {shlex.join(step.words)}"
    stage = step.words[0]
    if by_value := terms.value_error(error.message, stage):
        return VplError(f"{by_value.message} ({line})", by_value.hint)
    return VplError(f"{line}: {terms.spell(error.message, stage)}", terms.spell(error.hint, stage))


def run_steps(job: Job, steps: Sequence[Step | Rounds]) -> None:
    """Run steps in order; finished ones are skipped, stale ones are recomputed.

    Photos that fail do not end the job; they are listed in `job.failed`.

    Raises:
        VplError: a line failed; the line is named.
    """
    before = None
    for step in steps:
        if isinstance(step, Rounds):
            _run_rounds(job, step)
        elif step.heading:
            together = isinstance(before, Step) and before.heading
            console.note(step.heading if together else f"\n{step.heading}")
        else:
            _run_step(job, step)
        before = step


def run_call(call: Call, work: Path, *, update: bool = True) -> object:
    """Run a line; stale results are recomputed, or refused without `update`.

    Raises:
        VplError: the stage raised it.
    """
    values = dict(call.values)
    if update and "update" in settings_with(call.found, str(values.get("method", ""))):
        values["update"] = True
    return run_stage(call.found, work, values, given=call.given, preset=call.preset)


def run_through(call: Call, work: Path, known: Collection[str] = ()
                ) -> tuple[object, PhotosFailed | None]:
    """Run a line, and warn about photos that failed, unless all are `known`.

    Returns:
        the result of the command; and the error with the failed photos, if any.

    Raises:
        VplError: it failed.
    """
    try:
        return run_call(call, work), None
    except PhotosFailed as error:
        if not error.photos or set(error.photos) - set(known):
            console.warn(error.message)
        return error.result, error


def run_line(words: Sequence[str], work: Path, preset: Preset | None = None,
             known: Collection[str] = ()) -> tuple[Call, object, PhotosFailed | None]:
    """Parse and run the words after `vpltool`; return the parsed line, and see `run_through`.

    Raises:
        VplError: the line is wrong, or failed.
    """
    console.note(f"  vpltool {shlex.join(words)}")
    call = parse_line(words, preset)
    return call, *run_through(call, work, known)


def _run_step(job: Job, step: Step) -> None:
    try:
        with console.without_advice():
            call, result, failed = run_line(step.words, job.work, job.preset, job.failed)
    except VplError as error:
        message, hint = (job.terms.spell(text, step.words[0], job.work)
                         for text in (error.message, error.hint))
        error.message = (f"{job.terms.where(step.line)}, vpltool {shlex.join(step.words)}: "
                         f"{message}")
        error.hint = then(hint, "run the recipe again: it resumes at this line")
        raise
    job.failed.update(dict.fromkeys(failed.photos if failed else ()))
    job.take(result)
    if call.found.show is not None and not call.quiet:
        for text in call.found.lines(result, call.values):
            console.result(text)


def _run_rounds(job: Job, rounds: Rounds) -> None:
    outer = once.this_round()
    titles = [f"{rounds.name} {word}" for word in rounds.words]
    if job.processes < 2 or len(titles) < 2:
        for title, part in zip(titles, rounds.rounds, strict=True):
            with once.one_round(outer, title):
                run_steps(job, part)
        return
    parts = [(outer, *part) for part in zip(titles, rounds.rounds, strict=True)]
    workers = min(job.processes, len(parts))
    run_round = partial(_run_round, Job(job.work, job.preset, job.terms, workers),
                        console.prints())
    done = dict(run_jobs(run_round, parts, workers, fewest=2, finish=False))
    # In the order of the recipe, whichever ended first.
    for title in titles:
        job.failed.update(done[title].failed)
        job.made.update(done[title].made)
        job.reports.extend(done[title].reports)


def _run_round(whole: Job, prints: bool,
               part: tuple[tuple[str, ...], str, Sequence[Step | Rounds]]) -> tuple[str, Job]:
    """Run a round in a worker process; its title precedes each message, since these alternate.

    Returns its title, and its results.
    """
    outer, title, steps = part
    torch.set_num_threads(min(torch.get_num_threads(), max(1, core_count() // whole.processes)))
    job = Job(whole.work, whole.preset, whole.terms)
    with once.one_round(outer, title), console.heard_by(console.Terminal(
            rewrite=lambda text: f"{title}: " + to_shell(text, work=job.work).strip(), bars=False,
            prints=prints)):
        run_steps(job, steps)
    return title, job
