"""Chains of stages that the rows of the tables share; each distinct call is made once."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpltool import api, console
from vpltool.clip import models
from vpltool.core.photos import photo_size
from vpltool.formats import Header, InputFolder, JsonObject, Photo, Workspace, open_input
from vpltool.formats.kinds import result_name, result_path
from vpltool.formats.manifest import MANIFEST
from vpltool.preset import Preset
from vpltool.recipes.runner import run_line
from vpltool.run import find_stage, stage_settings
from vpltool.settings import Settings, values_of
from vpltool.shell import command_line, settings_with
from vpltool.stages import FoundStage


@dataclass
class Chains:
    """Makes what rows measure, under one protocol, in a workspace of its own."""

    work: api.Workspace  # that workspace
    source: Workspace  # the workspace that the photos come from; its features may serve
    preset: Preset  # values that replace the defaults
    learn: str  # split to learn on
    split: str  # split to score
    cut: str  # split on which the threshold of CAMs is chosen; empty: the preset's
    seeds: tuple[int, ...]  # a run for each; one where chance plays no part
    # settings that win over the preset, by stage; a row's own win over them
    given: Mapping[str, Mapping[str, Any]]
    quick: bool  # whether iterations are fewer than the preset's
    # calls, spelled for a shell, and what they returned
    made: JsonObject = field(default_factory=dict)
    # what photos failed in which stage; the others were processed
    failed: list[str] = field(default_factory=list)
    # splits that were asked for, and the features of `source` that serve, if any
    stored: dict[str, Path | None] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Folder of the workspace."""
        return self.work.path

    def protocol(self) -> JsonObject:
        """What all files of a folder of tables have in common, as JSON can hold it."""
        given = {f"{stage} {name}": str(value) if isinstance(value, Path) else value
                 for stage, values in self.given.items() for name, value in values.items()}
        return {"preset": f"{self.preset.name} {self.preset.identity}", "learn": self.learn,
                **dict(sorted(given.items()))}

    def call(self, stage: str, **values: Any) -> Any:
        """Make a call of a stage, unless it was made, and give what it returns."""
        found = find_stage(stage)
        known = _names(found, self._chosen(stage) | values)
        values = {name: value for name, value in self.given.get(stage, {}).items()
                  if name in known} | values
        line = command_line(stage, values)
        if line not in self.made:
            _, self.made[line], failed = run_line(shlex.split(line)[1:], self.path, self.preset)
            if failed:
                self.failed.append(f"{stage}: {failed.message}")
        return self.made[line]

    def _chosen(self, stage: str) -> JsonObject:
        preset = self.preset.values(find_stage(stage))
        return preset | dict(self.given.get(stage, {}))

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
        return "refine" in self.preset.defaults

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
            return {"features": result_path(self.source.path, "features", split)}
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
        self.call("crf", what=result_name("cams", cams), split=split)
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
        self.call("train-decoder", **values)
        seen = (self.features(self.split)
                if self.setting("predict", "source") == "features" else {})
        self.call("predict", decoder=name, split=self.split, **seen)
        return name

    def at_test(self, name: str) -> str:
        """Predictions after the CRF: WeCLIP's constants, as VPL gives none."""
        self.call("crf", what=result_name("predictions", name), split=self.split, kernels="weclip")
        return f"{name}-crf"

    def _prototypes(self, name: str) -> Path:
        return result_path(self.path, "prototypes", name)


def _names(found: FoundStage, values: Mapping[str, object]) -> tuple[str, ...]:
    """Names of the settings of a stage, and of the method that values choose."""
    return tuple(settings_with(found, str(values.get("method") or "")))


def find_stored_features(source: Workspace, own: Path, split: str, wanted: Settings) -> Path | None:
    """Find features of a split in the workspace that the photos come from.

    Returns:
        their folder, if they are those that the settings of `extract` ask for; None where they are
        not, or where the tables' `own` workspace has some already.
    """
    folder = result_path(source.path, "features", split)
    if not (folder / MANIFEST).exists() or result_path(own, "features", split).exists():
        return None
    reason = _unfit(source, open_input(folder, ("features",)), source.photos(split), wanted)
    if reason:
        console.note(f"  {folder} does not serve here: {reason}")
        return None
    console.note(f"  features of `{split}` are read from {folder}")
    return folder


def _unfit(source: Workspace, features: InputFolder, photos: Sequence[Photo], wanted: Settings
           ) -> str:
    """Why features are not those that settings ask for; empty if they are."""
    header, values = features.header, values_of(wanted)
    held = header.options
    absent = {*listed(values["keep"])} - {*held["keep"]}
    if absent:
        return f"they lack {', '.join(sorted(absent))}"
    for name in ("scale", "patches", "calibrated_blocks", "calibrated_heads", "precision", "store"):
        # A header lacks settings that were added later, if they were at their defaults.
        found = held.get(name, getattr(type(wanted), name))
        if found != values[name]:
            return f"{name} is {found}, not {values[name]}"
    sides = {held["max_side"], values["max_side"]}
    if len(sides) > 1 and not _all_below(source, photos, min(sides - {0})):
        return f"max_side is {held['max_side']}, not {values['max_side']}"
    if "layers" in listed(values["keep"]) and not _same_layers(header, values["layers"]):
        return f"they hold the layers {', '.join(map(str, held['layers']))}"
    if not _same_model(header, source):
        return "they are of another CLIP than the workspace"
    missing = [photo.id for photo in photos if not features.holds(photo.id)]
    return f"they lack {len(missing)} of {len(photos)} photos" if missing else ""


def listed(choice: str) -> list[str]:
    """Split a list of names at its commas."""
    return [part.strip() for part in choice.split(",") if part.strip()]


def _same_layers(header: Header, choice: str) -> bool:
    """Whether the stored layers are those that are asked for; empty: all but the last."""
    if choice in ("", "spread"):
        return header.call.get("layers", "") == choice
    return sorted(map(int, listed(choice))) == header.options["layers"]


def _same_model(header: Header, workspace: Workspace) -> bool:
    """Whether names say the workspace's CLIP; stages compare the weights themselves."""
    names = models.find_source(workspace.model, workspace.pretrained, workspace.path).names
    return (all(header.model.get(key) == value for key, value in names.items())
            and header.model.get("normalise", "model") == workspace.normalise)


def _all_below(workspace: Workspace, photos: Iterable[Photo], side: int) -> bool:
    """Whether no photo is longer than this: then the limit changes nothing."""
    for photo in photos:
        try:
            if max(photo_size(workspace.image_path(photo))) > side:
                return False
        except OSError:
            return False
    return True
