"""Settings that several stages share: one name, one help text, one meaning.

Each name makes the field of a settings dataclass, `device: str = options.device()`; arguments
replace those given here. The classes are blocks that stages inherit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vpltool.settings import RUNNING, Settings, setting

shard = partial(
    setting, "", "Process only shard I of N, by a hash of the photo ids: 0/4 to 3/4. Default: set "
    "by torchrun or a Slurm array, else all photos.", metavar="I/N", panel=RUNNING, record="never",
    brief=False)

device = partial(setting, "auto", "auto, cpu, mps, cuda or cuda:N.", panel=RUNNING, record="never")

precision = partial(
    setting, "fp32", "fp32, bf16 or fp16, for the network; auto: bf16 if this machine supports it, "
    "else fp32.", choices=("fp32", "bf16", "fp16", "auto"), panel=RUNNING, record="changed")

store = partial(
    setting, "fp16", "Number format of stored files: fp16, half the size, or fp32.",
    choices=("fp16", "fp32"), panel=RUNNING, record="changed")

batch_size = partial(setting, help="Photos per batch.", low=1, panel=RUNNING, record="never")

workers = partial(
    setting, -1, "Processes that read photos; -1: depends on the number of cores.", low=-1,
    panel=RUNNING, record="never")

checkpoint_every = partial(
    setting, help="Steps between checkpoints; there is also one every minute, and one on "
    "interruption. A stopped run resumes from the last.", low=1, panel=RUNNING, record="never",
    brief=False)

seed = partial(setting, 0, "Random seed.")

out = partial(
    setting, None, "Output path, instead of the default.", metavar="PATH", short="-o",
    record="never", by_hand=True)

overwrite = partial(
    setting, False, "Replace existing results, even if made with other settings.", panel=RUNNING,
    record="never", by_hand=True, off="-")

update = partial(
    setting, False, "Recompute stale results: made with other settings, or from inputs that have "
    "changed since. Masks corrected by hand are kept.", panel=RUNNING, record="never",
    by_hand=True, off="-")

features = partial(
    setting, None, "Folder of features; default: features/SPLIT.", metavar="DIR", record="never",
    brief=False, reads="features")

second = partial(
    setting, None, "Features of a second encoder, for a method that reads them; default: "
    "features-second/SPLIT.", metavar="DIR", record="never", brief=False, reads="second")

bands = partial(
    setting, "", "Of a GeoTIFF: the bands that are seen as red, green and blue, or one for grey; "
    "1 is the first. Default: 1,2,3, or 1; in predict, as in prepare.", metavar="LIST",
    record="changed", brief=False)

percentiles = partial(
    setting, "", "Of a GeoTIFF: percentiles of each band that become black and white. Default: "
    "bytes as they are, other numbers 2,98; in predict, as in prepare.", metavar="LOW,HIGH",
    record="changed", brief=False)

allow_pipe = partial(
    setting, False, "Accept addresses that start a program, pipe:COMMAND, but only from this "
    "command line.", record="never", by_hand=True, off="-", brief=False)


limit = partial(
    setting, 0, "Use only the first N photos of the split; 0: all.", low=0, metavar="N",
    panel=RUNNING, record="never")


def split(default: str = "train") -> str:
    """Make the setting of the split."""
    return setting(default, "Split of the data set.", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class Replaces(Settings, shared=True):
    """Settings of where a result goes, and whether it replaces an earlier one."""

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
    limit: int = limit(record="changed")
