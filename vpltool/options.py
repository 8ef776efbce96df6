"""Settings that several stages share: one name, one help text, one meaning.

Each function makes the field of a settings dataclass; its arguments are what may differ.
"""

from __future__ import annotations

from typing import Any

from vpltool.settings import RUNNING, NoEffect, setting

PRECISIONS = ("fp32", "bf16", "fp16", "auto")
STORES = ("fp16", "fp32")


def shard() -> Any:
    """The photos that this process does, where several share them."""
    return setting("", "Only shard I of N of the photos, by a hash of their ids: 0/4 to 3/4. "
                       "Default: as torchrun or a Slurm array says, else all.", metavar="I/N",
                   panel=RUNNING, record="never", brief=False)


def split(default: str = "train") -> Any:
    """The split of the data set that is worked on."""
    return setting(default, "Split of the data set.", metavar="NAME")


def device(*, brief: bool = True) -> Any:
    """Where the work is done."""
    return setting("auto", "auto, cpu, cuda or cuda:N.", panel=RUNNING, record="never",
                   brief=brief)


def precision(*no_effect: NoEffect) -> Any:
    """Number format of the network."""
    return setting("fp32", "fp32, bf16 or fp16, for the network; auto: bf16 where this machine "
                           "computes in it, else fp32.", choices=PRECISIONS,
                   panel=RUNNING, record="changed", no_effect=no_effect)


def store() -> Any:
    """Number format of what is written."""
    return setting("fp16", "fp16 or fp32, for what is written: half the size, or a few more "
                           "digits.", choices=STORES, panel=RUNNING, record="changed")


def batch_size(default: int) -> Any:
    """Photos at a time."""
    return setting(default, "Photos at a time.", low=1, panel=RUNNING, record="never")


def workers() -> Any:
    """Processes or threads beside the main one."""
    return setting(-1, "Processes that read photos; -1: by the number of cores.", low=-1,
                   panel=RUNNING, record="never")


def seed() -> Any:
    """Start of the random numbers."""
    return setting(0, "Start of the random numbers.")


def limit(record: str = "never", *, brief: bool = True) -> Any:
    """Number of photos at most."""
    return setting(0, "Only the first N photos of the split; 0: all.", low=0, metavar="N",
                   panel=RUNNING, record=record, brief=brief)


def out() -> Any:
    """Where the result goes."""
    return setting(None, "Write here instead of the default path.", metavar="PATH", short="-o",
                   record="never")


def overwrite() -> Any:
    """Whether to replace what is there."""
    return setting(False, "Replace what is there, even if it was made with other settings.",
                   panel=RUNNING, record="never", off="-")


def update(*, brief: bool = True) -> Any:
    """Whether to make again what is outdated."""
    return setting(False, "Make again what is outdated: made with other settings, or from inputs "
                          "that have changed since. Masks corrected by hand are kept.",
                   panel=RUNNING, record="never", off="-", brief=brief)


def features() -> Any:
    """Folder of features."""
    return setting(None, "Features of the split; default: features/SPLIT.", metavar="DIR",
                   record="never", brief=False)
