"""Which segmenter `predict` runs: one of the workspace, or a file by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vpltool import console, options
from vpltool.core import agreement, segment
from vpltool.datasets import layouts
from vpltool.datasets.words import read_classes
from vpltool.engine import groups, headers, running, segmenters
from vpltool.errors import VplError
from vpltool.formats import Header, InputFolder, JsonObject, Workspace, kinds, open_workspace
from vpltool.lazy import np, npt
from vpltool.methods.inputs import parse_tile
from vpltool.settings import setting

_NOT_FOLDERS = layouts.PHOTO_SUFFIXES | {".gpkg"}
"""Suffixes of files, which no folder of results should have."""


@dataclass(frozen=True, kw_only=True)
class PredictSettings(groups.GroupSettings):
    """Settings of `predict`."""

    images: tuple[Path, ...] = setting(
        (), "Photos or folders of photos; default: those of the split.",
        metavar="[PHOTO-OR-FOLDER]...", positional=True, record="never")
    decoder: str = setting("", "Decoder, or trained groups; default: the only decoder, or the "
                               "first of vision-refined, vision, text-refined and text, else the "
                               "groups.",
                           metavar="NAME-OR-PATH", record="never")
    segmenter: str = setting(
        "", "Decoder, trained groups, or a bundle; the path of a file works without a workspace.",
        metavar="NAME-OR-PATH", record="never")
    tags: bool = setting(False, "Allow only the photo's tagged classes, as CAMs do.",
                         record="changed")
    probabilities: bool = setting(
        True, "Also store class probabilities; of named photos, only if given. crf prefers them to "
              "labels.",
        off="--labels-only", record="never")
    bands: str = options.bands()
    percentiles: str = options.percentiles()
    abstain: float = setting(
        0.0, "Write 255 where the label has a smaller probability than this; probabilities are "
             "calibrated by `calibrate` first. 0: label each pixel.", low=0, high=1,
        record="changed")
    overlay: bool = setting(False, "Also draw each photo with labels and names.", record="never")


@dataclass(frozen=True)
class Chosen:
    """A segmenter and its settings, which all photos of a run share.

    Args:
        workspace: of the photos; for a bundle, a stand-in.
        settings: of `predict`.
        named: the workspace with the classes that are predicted: for groups, the requested words.
        temperature: from `calibrate`; 1 if every pixel gets a label.
    """

    workspace: Workspace
    settings: PredictSettings
    segmenter: segmenters.SegmenterFile
    named: Workspace
    temperature: float

    def header(self, kind: str, inputs: Mapping[str, InputFolder | Path], options: JsonObject,
               *skip: str) -> Header:
        """Make the header of an output, with further inputs and options; see `make_header`.

        What is taken from training is an option, but no part of the call: `update` takes it again.
        """
        segmenter = self.segmenter
        if "max_side" not in segmenter.unused:
            side = running.side_of_whole(segmenter.header, self.settings, segmenter.tile_scale())
            options = options | {"max_side": side}
        return headers.make_header(
            self.workspace, kind, "predict", self.settings,
            inputs={segmenter.role: segmenter.path, "classes": self.named.classes_identity,
                    **inputs},
            model=segmenter.header.model,
            options=options | ({"temperature": self.temperature} if self.settings.abstain else {}),
            skip=(*segmenter.unused, *skip))

    @cached_property
    def scaled(self) -> JsonObject:
        """Return the option that records how much tiles are scaled down, as in training.

        A note says so, once. It is empty if they are not.
        """
        scale = self.segmenter.tile_scale()
        if self.settings.max_side is not None or scale >= 1:
            return {}
        console.note(f"tiles are scaled by {scale:.3g}, as {self.segmenter.path.stem} was trained; "
                     "`max_side=0` sees them at full size")
        return {"tile_scale": scale}

    def labels(self, segmented: running.Segmented) -> npt.NDArray[np.uint8]:
        """Return the labels (H, W) of a photo at its own size."""
        sure = agreement.tempered(segmented.probabilities, self.temperature)
        return segment.labels_of(sure, segmented.size, self.settings.abstain)


def choose_segmenter(path: Path, settings: PredictSettings) -> Chosen:
    """Find the segmenter of a workspace, or take the file that was named.

    Raises:
        VplError: there is none, it has other classes than the workspace, or words are missing.
    """
    if settings.tile:
        parse_tile(settings.tile, 1)
    if settings.decoder and settings.segmenter:
        raise VplError(f"`decoder={settings.decoder!r}` and `segmenter={settings.segmenter!r}` are "
                       "two segmenters", "leave one out")
    choice = settings.decoder or settings.segmenter
    if choice.endswith(".safetensors") and not any(
            file.is_file() for file in (Path(choice), path / choice)):
        raise VplError(f"no segmenter at {choice}", "`export('bundle')` writes a portable one")
    given = choice and Path(choice).is_file()
    segmenter = segmenters.open_segmenter(Path(choice)) if given else None
    workspace = segmenter.workspace(path) if segmenter else open_workspace(path)
    segmenter = segmenter or segmenters.find_segmenter(workspace.path, choice)
    named = segmenter.named(workspace, read_classes(settings.classes).names
                            if settings.classes else ())
    if not segmenter.portable and kinds.is_workspace(path):
        workspace.check_classes(segmenter.header, segmenter.path)
    elif not settings.images:
        raise VplError(f"`segmenter='{choice}'` is for photos that are named",
                       f"`predict(images=['PHOTOS'], segmenter='{choice}')`")
    return Chosen(workspace, settings, segmenter, named,
                  _temperature(settings, segmenter, workspace.path))


def check_out(out: Path | None, suffixes: Sequence[str], what: str) -> None:
    """Check that `out` is not named like a file of another kind: `what` is a file with a suffix.

    Raises:
        VplError: it is.
    """
    if out and out.suffix.lower() in _NOT_FOLDERS - {*suffixes} and not out.is_dir():
        raise VplError(f"{out}: {what}", f"`out='{out.with_suffix(suffixes[0])}'`, or a folder")


def _temperature(settings: PredictSettings, segmenter: segmenters.SegmenterFile, work: Path
                 ) -> float:
    """Return the temperature of a segmenter; 1 if every pixel is labelled."""
    if not settings.abstain:
        return 1.0
    found, file = segmenter.calibration(work), segmenter.path
    if found is None or not isinstance(found.get("temperature"), (int, float)):
        raise VplError(f"`abstain={settings.abstain}`: it is not known how sure {file} may be",
                       f"`calibrate(decoder={file.stem!r})`; a bundle is exported again after that")
    return float(found["temperature"])
