"""Chains of stages that the rows of the tables share; each distinct call is made once."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpltool import api, console
from vpltool.formats import JsonObject, Workspace
from vpltool.formats.kinds import called, folder_of, place
from vpltool.methods import KINDS
from vpltool.papers.tables.stored_features import find_stored_features
from vpltool.preset import Preset
from vpltool.recipes.runner import run_line
from vpltool.run import find_stage, setting_names, stage_settings
from vpltool.settings import Settings, values_of
from vpltool.shell import command_line
from vpltool.stages import FoundStage

_STEPS = 6
"""Steps that are timed; the first, which waits for its crops, does not count."""

_LONG = 1000
"""Steps from which on a training is timed beforehand."""


@dataclass(frozen=True)
class Protocol:
    """What all rows share.

    Args:
        preset: values that replace the defaults.
        learn: split to learn on.
        split: split to score.
        cut: split on which the threshold of CAMs is chosen; empty: the preset's.
        seeds: a run for each; one where chance plays no part.
        given: settings that win over the preset, by stage; a row's own win over them.
        quick: whether iterations are fewer than the preset's.
    """

    preset: Preset
    learn: str
    split: str
    cut: str
    seeds: tuple[int, ...]
    given: Mapping[str, Mapping[str, Any]]
    quick: bool = False

    def record(self) -> JsonObject:
        """What all files of a folder of tables have in common, as JSON can hold it."""
        given = {f"{stage} {name}": str(value) if isinstance(value, Path) else value
                 for stage, values in self.given.items() for name, value in values.items()}
        return {"preset": f"{self.preset.name} {self.preset.identity}", "learn": self.learn,
                **dict(sorted(given.items()))}


@dataclass
class Chains:
    """Makes what rows measure, in a workspace of its own.

    Args:
        work: that workspace.
        source: the workspace that the photos come from; its features may serve.
        protocol: what all rows share.
        made: calls, spelled for a shell, and what they returned.
        failed: what photos failed in which stage; the others were processed.
        stored: splits that were asked for, and the features of `source` that serve, if any.
    """

    work: api.Workspace
    source: Workspace
    protocol: Protocol
    made: JsonObject = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    stored: dict[str, Path | None] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Folder of the workspace."""
        return self.work.path

    @property
    def learn(self) -> str:
        """Split to learn on."""
        return self.protocol.learn

    @property
    def split(self) -> str:
        """Split to score."""
        return self.protocol.split

    @property
    def seeds(self) -> tuple[int, ...]:
        """A run for each."""
        return self.protocol.seeds

    def call(self, stage: str, **values: Any) -> Any:
        """Make a call of a stage, unless it was made, and give what it returns."""
        found = find_stage(stage)
        known = _names(found, self._chosen(stage) | values)
        values = {name: value for name, value in self.protocol.given.get(stage, {}).items()
                  if name in known} | values
        line = command_line(stage, values)
        if line not in self.made:
            _, self.made[line], failed = run_line(shlex.split(line)[1:], self.path,
                                                  self.protocol.preset)
            if failed:
                self.failed.append(f"{stage}: {failed.message}")
        return self.made[line]

    def _chosen(self, stage: str) -> JsonObject:
        preset = self.protocol.preset.values(find_stage(stage))
        return preset | dict(self.protocol.given.get(stage, {}))

    def settings(self, stage: str) -> Settings:
        """The settings of a stage, as the protocol has them."""
        found, chosen = find_stage(stage), self._chosen(stage)
        known = _names(found, chosen)
        return stage_settings(found, {
            name: value for name, value in chosen.items() if name in known})

    def setting(self, stage: str, name: str) -> Any:
        """A setting of a stage, as the protocol has it."""
        return values_of(self.settings(stage))[name]

    @property
    def refines(self) -> bool:
        """Whether the protocol refines CAMs."""
        return "refine" in self.protocol.preset.defaults

    def text(self, name: str = "text", **values: Any) -> str:
        "Text prototypes."
        self.call("text-prototypes", **values, out=self._prototypes(name))
        return name

    def features(self, split: str) -> dict[str, Path]:
        """The setting that names the features of a split: empty for those of this workspace.

        What the frozen CLIP sees is read from the workspace that the photos come from, where that
        was made with the protocol's settings; else it is extracted here.
        """
        if self.features_are_stored(split):
            return {"features": place(self.source.path, "features", split)}
        self.call("extract", split=split)
        return {}

    def features_are_stored(self, split: str) -> bool:
        """Whether the workspace that the photos come from has the features that are wanted."""
        if split not in self.stored:
            self.stored[split] = find_stored_features(self.source, self.path, split,
                                                      self.settings("extract"))
        return self.stored[split] is not None

    def cams(self, prototypes: str, split: str) -> str:
        """CAMs of prototypes, refined if the protocol refines."""
        stored = self.features(split)
        self.call("cam", prototypes=prototypes, split=split, name=prototypes, **stored)
        if not self.refines:
            return prototypes
        self.call("refine", cams=prototypes, split=split, **stored)
        return f"{prototypes}-refined"

    def learned(self, name: str, seed: int, text: str = "text", **values: Any) -> str:
        """Vision prototypes; the text's CAMs, or the photo's saliency, mark seeds if need be."""
        name = f"{name}-{seed}"
        pixels = values.get("pixels", self.setting("learn-prototypes", "pixels"))
        seeded = self.setting("learn-prototypes", "start") == "seeds"
        stored = self.features(self.learn)
        seeds = {"text": text, "split": self.learn, "seed": seed, **stored}
        if pixels != "all" or seeded:
            marks = self._marks(text)
            if pixels != "all":
                values["cams"] = marks
        if seeded:
            values["start"] = str(self._prototypes(f"seeds-{name}"))
            self.call("seed-prototypes", cams=marks, **seeds, out=Path(values["start"]))
        self.call("learn-prototypes", **seeds, **values, out=self._prototypes(name))
        return name

    def _marks(self, text: str) -> str:
        """CAMs that mark seeds: those that are named may be the photo's saliency."""
        named = str(self.setting("learn-prototypes", "cams"))
        if not named.endswith("salient"):
            return self.cams(text, self.learn)
        self.call("cam", prototypes=text, method="salient", split=self.learn, name=named,
                  **self.features(self.learn))
        return named

    def masks(self, cams: str, split: str) -> str:
        """Pseudo masks by the CRF: NAME holds 255 where it is unsure, NAME-full none."""
        self.call("crf", what=called("cams", cams), split=split)
        return cams

    def segmenter(self, seed: int, rsc: float | None) -> str:
        """A decoder trained on the masks of vision prototypes, and what it predicts."""
        prototypes = self.learned("vision", seed)
        masks = self.masks(self.cams(prototypes, self.learn), self.learn)
        name = f"decoder-{seed}" if rsc is None else f"decoder-ce-{seed}"
        values: JsonObject = {} if rsc is None else {"lambda_rsc": rsc}
        if self.setting("train-decoder", "source") != "photos":
            values |= self.features(self.learn)
        values |= {"masks": masks, "prototypes": prototypes, "split": self.learn, "seed": seed,
                   "name": name}
        self._announce(values)
        self.call("train-decoder", **values)
        seen = (self.features(self.split)
                if self.setting("predict", "source") == "features" else {})
        self.call("predict", decoder=name, split=self.split, **seen)
        return name

    def _announce(self, values: Mapping[str, object]) -> None:
        """Say how long a training will take, from a few steps of it; nothing if it is short."""
        steps = int(self.setting("train-decoder", "iters"))
        started = folder_of(self.path, "decoder").glob(f"{values['name']}.*safetensors")
        if not is_long(steps) or any(started):
            return
        console.note("  timing a few steps of the training")
        given = dict(self.protocol.given.get("train-decoder", {})) | dict(values)
        each = seconds_a_step(self.work, given)
        quick = "" if self.protocol.quick else "; --quick takes fewer"
        console.note(f"  {values['name']}: {steps:,} steps of {each:.2g} s take about "
                     f"{console.duration(each * steps)} here{quick}")

    def at_test(self, name: str) -> str:
        """Predictions after the CRF: WeCLIP's constants, as VPL gives none."""
        self.call("crf", what=called("predictions", name), split=self.split, kernels="weclip")
        return f"{name}-crf"

    def _prototypes(self, name: str) -> Path:
        return place(self.path, "prototypes", name)


def _names(found: FoundStage, values: Mapping[str, object]) -> tuple[str, ...]:
    """Names of the settings of a stage, and of the method that values choose."""
    kind = found.stage.methods
    return setting_names(found, str(values.get("method") or (KINDS[kind].default if kind else "")))


def is_long(steps: int) -> bool:
    """Tell whether a training is worth timing beforehand."""
    return steps >= _LONG


def seconds_a_step(work: api.Workspace, values: Mapping[str, Any]) -> float:
    """Seconds that a step of a training takes here; nothing of it is kept.

    Args:
        work: the workspace.
        values: settings of `train_decoder`.

    Raises:
        VplError: the training is refused.
    """
    watch = _Watch()
    with tempfile.TemporaryDirectory() as folder, console.heard_by(watch):
        work.train_decoder(**{**values, "iters": _STEPS,
                              "out": Path(folder) / "trial.safetensors"})
    return statistics.median(after - before for before, after in itertools.pairwise(watch.times))


class _Watch(console.Silence):
    """Notes when each step of the last piece of work ended, and passes nothing on."""

    def __init__(self) -> None:
        self.times: list[float] = []

    @contextlib.contextmanager
    def progress(self, title: str, total: int) -> Iterator[console.Advance]:
        """Start over."""
        self.times = []
        yield lambda steps=1, text="": self.times.append(time.monotonic())
