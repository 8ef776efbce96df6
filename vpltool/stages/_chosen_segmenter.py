"""Which segmenter `predict` runs: a decoder or groups of the workspace, or a bundle by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vpltool import options
from vpltool.engine.running import RunsSegmenter, stand_in_workspace
from vpltool.engine.segmenters import find_segmenter, is_bundle, segmenter_header
from vpltool.errors import VplError
from vpltool.formats import Header, Workspace, expect_header, identity_of_file, open_workspace
from vpltool.formats.storage import read_json
from vpltool.methods.inputs import AUTO, parse_tile, side_of
from vpltool.settings import setting
from vpltool.stages._group_predict import GroupSettings, check_words, named_workspace


@dataclass(frozen=True, kw_only=True)
class PredictSettings(GroupSettings, RunsSegmenter):
    """Settings of `predict`."""

    images: tuple[Path, ...] = setting(
        (), "Photos or folders of photos; default: those of the split.",
        metavar="[PHOTO-OR-FOLDER]...", positional=True, record="never")
    decoder: str = setting("", "Decoder, or trained groups; default: the only decoder, or the "
                               "first of vision-refined, vision, text-refined and text, else the "
                               "groups.",
                           metavar="NAME-OR-PATH", record="never")
    segmenter: str = setting(
        "", "Decoder, trained groups, or a bundle; with a bundle, photos need no workspace.",
        metavar="NAME-OR-PATH", record="never")
    tags: bool = setting(False, "Allow only the photo's tagged classes, as CAMs do.",
                         record="changed")
    probabilities: bool = setting(
        True, "Also store class probabilities of a split, and where it is given, of named photos; "
              "crf prefers them to labels.",
        off="--labels-only", record="never")
    bands: str = options.bands()
    percentiles: str = options.percentiles()
    abstain: float = setting(
        0.0, "Write 255 where the label has a smaller probability than this; probabilities are "
             "calibrated by `calibrate` first. 0: label each pixel.", low=0, high=1,
        record="changed")
    overlay: bool = setting(False, "Also draw each photo with labels and names.",
                            record="never")


@dataclass(frozen=True)
class Chosen:
    """What all photos of a run have in common.

    Args:
        workspace: of the photos; of a bundle, a stand-in.
        settings: of `predict`, with what the bundle says.
        path: of the segmenter.
        header: of the segmenter.
        scales: at which photos are seen.
        named: the workspace with the classes that are predicted: those of the words, for groups.
        temperature: that `calibrate` has found, where labels may be left out.
    """

    workspace: Workspace
    settings: PredictSettings
    path: Path
    header: Header
    scales: list[float]
    named: Workspace
    temperature: float = 1.0


def choose_segmenter(path: Path, settings: PredictSettings) -> Chosen:
    """Find the segmenter of a workspace, or take the bundle that was named.

    Raises:
        VplError: there is none, it has other classes than the workspace, or words are missing.
    """
    if settings.decoder and settings.segmenter:
        raise VplError(f"`decoder={settings.decoder!r}` and `segmenter={settings.segmenter!r}` are "
                       "two segmenters", "leave one out")
    scales, choice = parse_scales(settings.scales), settings.decoder or settings.segmenter
    if choice and Path(choice).is_file() and is_bundle(Path(choice)):
        return _choose_bundle(path, Path(choice), settings, scales)
    named = choice.endswith(".safetensors")
    if named and not any(file.is_file() for file in (Path(choice), path / choice)):
        raise VplError(f"no segmenter at {choice}", "`export('bundle')` writes a portable one")
    workspace = open_workspace(path)
    file = find_segmenter(workspace.path, choice)
    header = segmenter_header(file)
    check_words(settings, header, file)
    words = named_workspace(workspace, settings.classes) if header.kind == "groups" else workspace
    workspace.check_classes(header, file)
    return Chosen(workspace, _sized(settings, header), file, header, scales, words,
                  _temperature(settings, calibration_of(workspace.path, file), file))


def _choose_bundle(path: Path, bundle: Path, settings: PredictSettings, scales: list[float]
                   ) -> Chosen:
    header = expect_header(bundle, "bundle")
    check_words(settings, header, bundle)
    if not settings.images:
        raise VplError(f"`segmenter='{bundle}'` is for photos that are named",
                       f"`predict(images=['PHOTOS'], segmenter='{bundle}')`")
    workspace = stand_in_workspace(path, header.model, header.facts["classes"])
    return Chosen(workspace, _sized(settings, header), bundle, header, scales, workspace,
                  _temperature(settings, header.facts.get("about", {}).get("calibration"), bundle))


def _temperature(settings: PredictSettings, found: Mapping[str, Any] | None, file: Path) -> float:
    """The temperature of a segmenter; 1 where every pixel is labelled.

    Raises:
        VplError: pixels may be left out, and it is not known how sure the segmenter may be.
    """
    if not settings.abstain:
        return 1.0
    if found is None or not isinstance(found.get("temperature"), (int, float)):
        raise VplError(f"`abstain={settings.abstain}`: it is not known how sure {file} may be",
                       f"`calibrate(decoder={file.stem!r})`; a bundle is exported again after that")
    return float(found["temperature"])


def _sized(settings: PredictSettings, header: Header) -> PredictSettings:
    """Have photos scaled down as in training, unless a side is given; in tiles, not at all."""
    if settings.tile:
        parse_tile(settings.tile, 1)
    as_trained = 0 if settings.tile not in ("", AUTO) else None
    given = as_trained if settings.max_side is None else settings.max_side
    return replace(settings, max_side=side_of(header, given))


def parse_scales(choice: str) -> list[float]:
    """Read a list of factors, `1,0.75`.

    Raises:
        VplError: it is not such a list.
    """
    try:
        factors = [float(part) for part in choice.split(",")]
    except ValueError:
        factors = []
    if not factors or min(factors) <= 0:
        raise VplError(f"`scales={choice!r}` is not a list of factors",
                       "for example `scales='1,0.75'`")
    return factors


def calibration_of(work: Path, decoder: Path) -> dict[str, Any] | None:
    """What `calibrate` has found out of a decoder, as it is now; None, if it has not."""
    path = work / "calibration" / f"{decoder.stem}.json"
    if not path.is_file():
        return None
    found = read_json(path, "`calibrate()`")
    return found if found.get("decoder") == identity_of_file(decoder) else None
