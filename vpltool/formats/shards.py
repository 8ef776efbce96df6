"""Shards: which photos one of several processes does, and which process this is.

A shard is a property of a photo's id alone, so that processes need not know of each other.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass

from vpltool.errors import VplError


@dataclass(frozen=True)
class Shard:
    """The photos whose ids hash to `index`, from 0, modulo `count`.

    What chose it, `set_by`, a setting or environment variables, is for people.
    """

    index: int = 0
    count: int = 1
    set_by: str = ""

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def holds(self, photo_id: str) -> bool:
        """Tell whether a photo is of this shard."""
        return self.count == 1 or shard_of(photo_id, self.count) == self.index


WHOLE = Shard()
"""All photos, in one process."""


def shard_of(photo_id: str, count: int) -> int:
    """Number of the shard that a photo belongs to: the same in any process, on any machine."""
    digest = hashlib.sha256(photo_id.encode("utf-8", "surrogatepass")).hexdigest()
    return int(digest[:16], 16) % count


def find_shard(choice: str) -> Shard:
    """The shard that this process does: `I/N`, or if empty what the environment says, else all.

    Raises:
        VplError: it is not a shard, or the environment tells none that can be used.
    """
    if not choice:
        return shard_of_environment()
    match = re.fullmatch(r"(\d+)/(\d+)", choice)
    if match and int(match[1]) < int(match[2]):
        return Shard(int(match[1]), int(match[2]), "as asked for")
    raise VplError(f"`shard={choice!r}`: expected I/N, with I from 0 to N - 1",
                   "for example `shard='0/4'` to `shard='3/4'`")


def shard_of_environment() -> Shard:
    """The shard that torchrun, or else a Slurm array, gives this process; `WHOLE` without them.

    Raises:
        VplError: a variable is no number, or the array's numbers are not 0, 1, … without a gap.
    """
    rank, count = rank_of_process()
    if count > 1:
        return Shard(rank, count, "RANK and WORLD_SIZE")
    index, tasks = _number("SLURM_ARRAY_TASK_ID"), _number("SLURM_ARRAY_TASK_COUNT")
    if index is None or tasks is None:
        return WHOLE
    first, last = _number("SLURM_ARRAY_TASK_MIN"), _number("SLURM_ARRAY_TASK_MAX")
    # A retry of some tasks, `--array=3,5`, counts only these: another number of shards would give
    # each of them other photos than before.
    if first or index >= tasks or (last is not None and last != tasks - 1):
        raise VplError(
            f"a Slurm array of {tasks} tasks, {first or 0} to {index if last is None else last}, "
            f"does not number its shards 0 to {tasks - 1}",
            f"number the array 0-{tasks - 1}; to repeat some of N shards, name them: "
            f"`shard='{index}/N'`")
    return Shard(index, tasks, "SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT")


def check_alone(what: str) -> None:
    """Check that this process is none of several that would each do the same.

    Raises:
        VplError: it is one; `what` says what cannot be divided.
    """
    for variable, count in (("WORLD_SIZE", rank_of_process()[1]),
                            ("SLURM_ARRAY_TASK_COUNT", _number("SLURM_ARRAY_TASK_COUNT") or 1)):
        if count > 1:
            raise VplError(f"{what} has steps over all photos, but this is one of {count} "
                           f"processes ({variable})",
                           "`dry_run=True` prints its commands, of which those on single photos "
                           f"take shards; to run it all in this process, unset {variable}")


def check_even(batch_size: int) -> None:
    """Check that the processes that torchrun has started can share the items of a step.

    Raises:
        VplError: they cannot.
    """
    count = rank_of_process()[1]
    if batch_size % count:
        raise VplError(f"{count} processes cannot share `batch_size={batch_size}` evenly",
                       f"`batch_size={-(-batch_size // count) * count}`, or another number of "
                       "processes")


def rank_of_process() -> tuple[int, int]:
    """Number of this process, and how many there are, as torchrun says; 0 and 1 without it.

    Raises:
        VplError: a variable is no number, or there are fewer processes than that.
    """
    rank, count = _number("RANK"), _number("WORLD_SIZE")
    if rank is None or count is None:
        return 0, 1
    if rank >= count:
        raise VplError(f"RANK={rank}, WORLD_SIZE={count}: ranks are 0 to {count - 1}",
                       "unset both, or let torchrun set them")
    return rank, count


def _number(variable: str) -> int | None:
    """The whole number in an environment variable; None if it is not set."""
    text = os.environ.get(variable, "")
    if text and not re.fullmatch(r"\d+", text, re.ASCII):
        raise VplError(f"{variable}={text}: expected a whole number", f"unset {variable}")
    return int(text) if text else None
