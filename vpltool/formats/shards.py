"""Shards: the division of photos among processes.

A photo's id alone determines its shard, so that processes need not communicate.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass

from vpltool.errors import VplError


@dataclass(frozen=True)
class Shard:
    """The photos whose id hashes to `index` modulo `count`.

    `set_by` tells users which setting or environment variables chose it.
    """

    index: int = 0
    count: int = 1
    set_by: str = ""

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def holds(self, photo_id: str) -> bool:
        """Return whether a photo belongs to this shard."""
        return self.count == 1 or shard_of(photo_id, self.count) == self.index


WHOLE = Shard()
"""All photos, in one process."""


def shard_of(photo_id: str, count: int) -> int:
    """Return the index of a photo's shard, the same in any process on any machine."""
    digest = hashlib.sha256(photo_id.encode("utf-8", "surrogatepass")).hexdigest()
    return int(digest[:16], 16) % count


def find_shard(choice: str) -> Shard:
    """Parse a shard `I/N`; if empty, take it from the environment, else return all photos.

    Raises:
        VplError: the choice is malformed, or the environment is inconsistent.
    """
    if not choice:
        return shard_of_environment()
    match = re.fullmatch(r"(\d+)/(\d+)", choice)
    if match and int(match[1]) < int(match[2]):
        return Shard(int(match[1]), int(match[2]), "as asked for")
    raise VplError(f"`shard={choice!r}`: expected I/N, with I from 0 to N - 1",
                   "for example `shard='0/4'` to `shard='3/4'`")


def shard_of_environment() -> Shard:
    """Return the shard assigned by torchrun or a Slurm array; `WHOLE` without them.

    Raises:
        VplError: a variable is not a number, or the array's indices are not 0, 1, … without gaps.
    """
    rank, count = rank_of_process()
    if count > 1:
        return Shard(rank, count, "RANK and WORLD_SIZE")
    index, tasks = _number("SLURM_ARRAY_TASK_ID"), _number("SLURM_ARRAY_TASK_COUNT")
    if index is None or tasks is None:
        return WHOLE
    first, last = _number("SLURM_ARRAY_TASK_MIN"), _number("SLURM_ARRAY_TASK_MAX")
    # Retrying some tasks, `--array=3,5`, changes the task count, which would assign other photos to
    # each shard than before.
    if first or index >= tasks or (last is not None and last != tasks - 1):
        raise VplError(
            f"a Slurm array of {tasks} tasks, {first or 0} to {index if last is None else last}, "
            f"does not number its shards 0 to {tasks - 1}",
            f"number the array 0-{tasks - 1}; to repeat some of N shards, name them: "
            f"`shard='{index}/N'`")
    return Shard(index, tasks, "SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT")


def undivided_tasks(choice: str) -> int:
    """Return the number of srun's tasks, of which this is one, that take the same shard; else 1.

    In a batch script, SLURM_NTASKS counts tasks that may never start.

    Raises:
        VplError: a variable is not a number.
    """
    divided = choice or rank_of_process()[1] > 1
    return 1 if divided else _number("SLURM_STEP_NUM_TASKS") or 1


def tasks_of_array() -> int:
    """Return the number of tasks of the Slurm array that this process belongs to; else 1.

    Raises:
        VplError: a variable is not a number.
    """
    return _number("SLURM_ARRAY_TASK_COUNT") or 1


def check_alone(what: str) -> None:
    """Check that this is not one of several processes that would all do the same work.

    Raises:
        VplError: it is; `what` names the work that cannot be divided.
    """
    for variable, count in (("WORLD_SIZE", rank_of_process()[1]),
                            ("SLURM_ARRAY_TASK_COUNT", tasks_of_array())):
        if count > 1:
            raise VplError(f"{what} has steps over all photos, but this is one of {count} "
                           f"processes ({variable})",
                           "`dry_run=True` prints its commands, of which those on single photos "
                           f"take shards; to run it all in this process, unset {variable}")


def check_even(batch_size: int) -> None:
    """Check that the batch size is divisible by the number of torchrun processes.

    Raises:
        VplError: it is not.
    """
    count = rank_of_process()[1]
    if batch_size % count:
        raise VplError(f"{count} processes cannot share `batch_size={batch_size}` evenly",
                       f"`batch_size={-(-batch_size // count) * count}`, or another number of "
                       "processes")


def rank_of_process() -> tuple[int, int]:
    """Return this process's rank and the world size set by torchrun; 0 and 1 without it.

    Raises:
        VplError: a variable is not a number, or the rank is not below the world size.
    """
    rank, count = _number("RANK"), _number("WORLD_SIZE")
    if rank is None or count is None:
        return 0, 1
    if rank >= count:
        raise VplError(f"RANK={rank}, WORLD_SIZE={count}: ranks are 0 to {count - 1}",
                       "unset both, or let torchrun set them")
    return rank, count


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    if text and not re.fullmatch(r"\d+", text, re.ASCII):
        raise VplError(f"{variable}={text}: expected a whole number", f"unset {variable}")
    return int(text) if text else None
