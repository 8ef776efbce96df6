"""Chains of stages that the rows of the tables share; each distinct call is made once."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpltool import api, console
from vpltool.clip import models
from vpltool.formats import Header, JsonObject, Workspace
from vpltool.formats.changes import differing
from vpltool.formats.kinds import result_name, result_path
from vpltool.formats.manifest import MANIFEST, manifest_of
from vpltool.preset import Preset
from vpltool.recipes.runner import run_line
from vpltool.run import find_stage, stage_settings
from vpltool.settings import Settings, recorded, values_of
from vpltool.shell import command_line, settings_with
from vpltool.stages import FoundStage
from vpltool.state import Artifact, State, artifact_of


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
        """Make text prototypes; return their name."""
        self.call("text-prototypes", **values, out=self._prototypes(name))
        return name

    def features(self, split: str) -> dict[str, Path]:
        """The setting that names the features of a split: empty for those of this workspace.

        What the frozen CLIP sees is read from the workspace that the photos come from, where that
        was made with the protocol's settings; else it is extracted here.
        """
        if folder := self.stored_features(split):
            return {"features": folder}
        self.call("extract", split=split)
        return {}

    def stored_features(self, split: str) -> Path | None:
        """The features that are wanted, if the workspace that the photos come from has them."""
        if split not in self.stored:
            self.stored[split] = find_stored_features(self.source, self.path, split,
                                                      self.settings("extract"))
        return self.stored[split]

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
        their folder, if `extract` would make the same with the settings that are wanted; None where
        it would not, or where the tables' `own` workspace has some already.
    """
    folder = result_path(source.path, "features", split)
    if not (folder / MANIFEST).exists() or result_path(own, "features", split).exists():
        return None
    artifact = artifact_of(source, folder, manifest_of(folder))
    reasons = _reasons_against(artifact, source, wanted) if artifact else ["no command made it"]
    if reasons:
        console.note(f"  {folder} does not serve here: {'; '.join(reasons)}")
        return None
    console.note(f"  features of `{split}` are read from {folder}")
    return folder


def _reasons_against(features: Artifact, source: Workspace, wanted: Settings) -> list[str]:
    """Return why features are not those of some settings of `extract`; empty if they are.

    They may hold more tensors than are wanted, layers among them.
    """
    if features.stage.name != "extract":
        return [f"`{features.stage.name}` made it"]
    held = stage_settings(features.stage, features.call())
    found, asked = values_of(held), values_of(wanted)
    kept = {*listed(asked["keep"])}
    alike = {"split", *(["keep"] if kept <= {*features.header.options["keep"]} else []),
             *(["layers"] if "layers" not in kept else [])}
    return [*(f"{name} is {found[name]}, not {asked[name]}"
              for name in differing(recorded(held), recorded(wanted)) if name not in alike),
            *State(source, {features.name: features}).stale(features),
            *(["it lacks photos that failed"] if features.failed else []),
            *(["it is of another CLIP"] if not _same_model(features.header, source) else [])]


def listed(choice: str) -> list[str]:
    """Split a list of names at its commas."""
    return [part.strip() for part in choice.split(",") if part.strip()]


def _same_model(header: Header, workspace: Workspace) -> bool:
    """Whether names say the workspace's CLIP; stages compare the weights themselves."""
    names = models.find_source(workspace.model, workspace.pretrained, workspace.path).names
    return (all(header.model.get(key) == value for key, value in names.items())
            and header.model.get("normalise", "model") == workspace.normalise)
