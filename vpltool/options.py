"""Settings that several stages share: one name, one help text, one meaning.

Each function makes the field of a settings dataclass; its arguments are what may differ. The
classes are the blocks that stages inherit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vpltool.settings import RUNNING, NoEffect, Settings, setting


def shard() -> str:
    """The photos that this process does, where several share them."""
    return setting("", "Process only shard I of N, by a hash of the photo ids: 0/4 to 3/4. "
                       "Default: set by torchrun or a Slurm array, else all photos.", metavar="I/N",
                   panel=RUNNING, record="never", brief=False)


def split(default: str = "train") -> str:
    """The split of the data set that is worked on."""
    return setting(default, "Split of the data set.", metavar="NAME")


def device(*, brief: bool = True) -> str:
    """Where the work is done."""
    return setting("auto", "auto, cpu, mps, cuda or cuda:N.", panel=RUNNING, record="never",
                   brief=brief)


def precision(*no_effect: NoEffect) -> str:
    """Number format of the network."""
    return setting("fp32", "fp32, bf16 or fp16, for the network; auto: bf16 if this machine "
                           "supports it, else fp32.", choices=("fp32", "bf16", "fp16", "auto"),
                   panel=RUNNING, record="changed", no_effect=no_effect)


def store() -> str:
    """Number format of what is written."""
    return setting("fp16", "Number format of stored files: fp16, half the size, or fp32.",
                   choices=("fp16", "fp32"), panel=RUNNING, record="changed")


def batch_size(default: int) -> int:
    "Photos per batch."
    return setting(default, "Photos per batch.", low=1, panel=RUNNING, record="never")


def workers() -> int:
    """Processes or threads beside the main one."""
    return setting(-1, "Processes that read photos; -1: depends on the number of cores.", low=-1,
                   panel=RUNNING, record="never")


def checkpoint_every(default: int) -> int:
    """Steps between the checkpoints of a training."""
    return setting(default, "Steps between checkpoints; there is also one every minute, and one on "
                            "interruption. A stopped run resumes from the last.", low=1,
                   panel=RUNNING, record="never", brief=False)


def seed() -> int:
    "Random seed."
    return setting(0, "Random seed.")


def limit(record: str = "never", *, brief: bool = True) -> int:
    """Number of photos at most."""
    return setting(0, "Use only the first N photos of the split; 0: all.", low=0, metavar="N",
                   panel=RUNNING, record=record, brief=brief)


def out() -> Path | None:
    """Where the result goes."""
    return setting(None, "Output path, instead of the default.", metavar="PATH", short="-o",
                   record="never", by_hand=True)


def overwrite() -> bool:
    """Whether to replace what is there."""
    return setting(False, "Replace existing results, even if made with other settings.",
                   panel=RUNNING, record="never", by_hand=True, off="-")


def update(*, brief: bool = True) -> bool:
    """Whether to recompute stale results."""
    return setting(False, "Recompute stale results: made with other settings, or from inputs that "
                          "have changed since. Masks corrected by hand are kept.",
                   panel=RUNNING, record="never", by_hand=True, off="-", brief=brief)


def features() -> Path | None:
    """Folder of features."""
    return setting(None, "Folder of features; default: features/SPLIT.", metavar="DIR",
                   record="never", brief=False, reads="features")


def second() -> Path | None:
    """Folder of features of a second encoder."""
    return setting(None, "Features of a second encoder, for a method that reads them; default: "
                         "features-second/SPLIT.", metavar="DIR", record="never", brief=False,
                   reads="second")


def bands() -> str:
    """Which bands of a GeoTIFF are seen."""
    return setting("", "Of a GeoTIFF: the bands that are seen as red, green and blue, or one for "
                       "grey; 1 is the first. Default: 1,2,3, or 1.", metavar="LIST",
                   record="changed", brief=False)


def percentiles() -> str:
    """What black and white are in a GeoTIFF."""
    return setting("", "Of a GeoTIFF: percentiles of each band that become black and white. "
                       "Default: bytes as they are, other numbers 2,98.", metavar="LOW,HIGH",
                   record="changed", brief=False)


def allow_pipe() -> bool:
    """Whether addresses may start programs."""
    return setting(False, "Take addresses that start a program: pipe:COMMAND. Only those of this "
                          "command line.", record="never", by_hand=True, off="-", brief=False)


@dataclass(frozen=True, kw_only=True)
class Replaces(Settings, shared=True):
    """Where a result goes, and what becomes of one that is there."""

    out: Path | None = out()
    overwrite: bool = overwrite()
    update: bool = update()


@dataclass(frozen=True, kw_only=True)
class PerPhoto(Replaces, shared=True):
    """Settings of a stage that makes one file per photo of a split."""

    split: str = split("train")
    device: str = device()
    batch_size: int = batch_size(8)
    limit: int = limit()
    shard: str = shard()


@dataclass(frozen=True, kw_only=True)
class WholeSplit(Replaces, shared=True):
    """Settings of a stage that makes one file of all photos of a split, from their features."""

    split: str = split("train")
    features: Path | None = features()
    device: str = device()
    limit: int = limit("changed")
