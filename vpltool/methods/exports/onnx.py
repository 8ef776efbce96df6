"""Write a segmenter as an ONNX file: encoder and decoder in one graph, for photos of any size.

`pixels` (1, 3, H, W) is a photo in RGB, each side rounded up to a multiple of the patch, values in
[0, 1], minus `mean`, divided by `std`. `logits` (1, classes, 4h, 4w) are for h×w patches; `labels`
(1, H, W) are the most likely classes, 0 is the background. The file's metadata gives the classes, a
palette, mean, std, patch, max_side, licences. With `--int8`, onnxruntime's quantiser stores the
weights in a quarter of the space; the ranges of all values are measured on photos of the workspace
beforehand (static), or at each run (dynamic; `--calibrate 0`). With `--anylabeling PIXELS`, the
input is a square of this side with values in [0, 1], the outputs are `regions` and `masks` as those
of YOLO26's instance segmentation, and a YAML lies beside it: X-AnyLabeling loads that as a custom
model, and draws a polygon for each region. Needs onnx, onnxscript and onnxruntime.

Example: vpltool export onnx --what segmenter --max-side 512 --int8
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vpltool.core import segment
from vpltool.errors import VplError, first_line, silent
from vpltool.formats import atomic, voc_palette
from vpltool.lazy import Tensor, np, torch
from vpltool.methods.exports import _segmenter
from vpltool.methods.inputs import TrainedSegmenter, side_of
from vpltool.settings import setting

if TYPE_CHECKING:
    from onnx import ModelProto

EXPORTS = "segmenter"
SUFFIX = ".onnx"

_MOST_BYTES = 2_000_000_000
"""An ONNX file is one protobuf message, which holds 2 GiB at most."""

_FAR = 1e-4
"""Largest difference of onnxruntime from torch, of the largest logit; rounding: about 1e-6."""


@dataclass(frozen=True, kw_only=True)
class Settings(_segmenter.SegmenterSettings):
    """Settings of an ONNX file."""

    int8: bool = setting(False, "Store the weights in 8 bits, and multiply in 8 bits.")
    calibrate: int | None = setting(
        None, "With `int8`: photos of the workspace on which the ranges of values are measured "
              "beforehand; 0: they are measured at each run; default: 32, or 0 with "
              "`anylabeling` or without photos.", low=0, metavar="N")
    anylabeling: int = setting(0, "Side of X-AnyLabeling's square input, in pixels; the model then "
                                  "returns regions, and a YAML file is written beside it. 0: any "
                                  "size.", low=0, metavar="PIXELS")


def check(settings: _segmenter.SegmenterSettings) -> None:
    """Check that the packages are installed."""
    _segmenter.check_packages("onnx", "onnx", "onnxscript", "onnxruntime")


def export(segmenter: TrainedSegmenter, path: Path, settings: Settings) -> list[Path]:
    """Write the file, and the YAML if it is wanted; for errors see `graph_of`."""
    import onnx

    if settings.calibrate and not settings.int8:
        raise VplError(f"`calibrate={settings.calibrate}` is for 8 bits", "`int8=True`")
    if settings.calibrate and (settings.anylabeling or not segmenter.photos):
        raise VplError(f"`calibrate={settings.calibrate}` needs "
                       + ("a graph for photos of any size" if settings.anylabeling
                          else "photos of the workspace, and none can be found"),
                       "`calibrate=0`")
    with silent():
        model = graph_of(segmenter, settings)
        if settings.int8:
            model = _in_8_bits(model, segmenter, settings)
    onnx.helper.set_model_props(model, metadata_of(segmenter, settings))
    with atomic.atomic_path(path) as temporary:
        onnx.save_model(model, temporary)
    return [path, *([_write_yaml(segmenter, path)] if settings.anylabeling else [])]


def graph_of(segmenter: TrainedSegmenter, settings: Settings) -> ModelProto:
    """Make the graph in full precision, without metadata; VplError if ONNX cannot hold it."""
    vision = segmenter.encoder.vision
    size = 4 * sum(weight.numel() for part in (vision, segmenter.network)
                   for weight in part.state_dict().values())
    if size > _MOST_BYTES:
        raise VplError(f"{segmenter.name} with its CLIP is {size / 1e9:.1f} GB; an ONNX file "
                       "holds 2", "`export('bundle')` has no limit; or train on a smaller CLIP")
    resampling = getattr(vision, "resampling", None)
    if resampling is not None and resampling.offset and not settings.anylabeling:
        raise VplError(f"{segmenter.name}: the positions of DINO's weights are resampled by a "
                       "factor, which an ONNX file for photos of any size cannot hold",
                       "`export('bundle')`")
    if settings.anylabeling % vision.patch:
        raise VplError(f"`anylabeling={settings.anylabeling}`: not a multiple of the patch, "
                       f"{vision.patch} pixels",
                       f"`anylabeling={-(-settings.anylabeling // vision.patch) * vision.patch}`")
    model = _graph(segmenter, settings.anylabeling)
    if not settings.anylabeling:
        _check_any_size(model, segmenter)
    return model


def _graph(segmenter: TrainedSegmenter, side: int) -> ModelProto:
    """Return the graph for a fixed side, or for 0 with symbols `rows` and `columns` of patches."""
    vision, patch = segmenter.encoder.vision, segmenter.encoder.vision.patch
    # Any other grid than the tower's own: the positions of that one are not resampled.
    rows, columns = (vision.grid[0] + 1, vision.grid[1] + 2) if not side else (side // patch,) * 2
    shapes = None if side else ({2: patch * torch.export.Dim("rows"),
                                 3: patch * torch.export.Dim("columns")},)
    outputs = ["regions", "masks"] if side else ["logits", "labels"]
    whole = _module(segmenter, side)
    # Cached while tensors have values; see `SegmenterNetwork.class_rows`.
    assert segmenter.network.class_rows
    try:
        program = torch.onnx.export(
            whole, (torch.zeros(1, 3, rows * patch, columns * patch),), dynamo=True,
            dynamic_shapes=shapes, input_names=["pixels"], output_names=outputs, verbose=False)
    # Library code that torch cannot follow raises anything.
    except Exception as error:
        if hasattr(vision, "blocks"):
            raise
        raise VplError(f"{segmenter.header.model['name']} cannot be written as ONNX: torch cannot "
                       f"follow its own code ({first_line(error)})",
                       "`export('bundle')` holds any encoder; of timm's, plain ViTs such as "
                       "DINOv2's can be written") from error
    assert program is not None
    model = program.model_proto
    # The exporter stores lines of source files at each node.
    for part in (*model.graph.node, *model.graph.input, *model.graph.output,
                 *model.graph.value_info, *model.graph.initializer, model.graph, model):
        del part.metadata_props[:]
        part.doc_string = ""
    if not side:
        for output, factor in zip(model.graph.output, (4, patch), strict=True):
            for axis, symbol in zip(output.type.tensor_type.shape.dim[-2:], ("rows", "columns"),
                                    strict=True):
                axis.dim_param = f"{factor}*{symbol}"
    return model


def _check_any_size(model: ModelProto, segmenter: TrainedSegmenter) -> None:
    """Check that the graph agrees with torch on another grid than that of the trace.

    Code that computes numbers from a photo's sides, as some positions do, keeps those of the trace.
    """
    import onnxruntime

    patch = segmenter.encoder.vision.patch
    pixels = np.random.default_rng(0).standard_normal((1, 3, 3 * patch, 7 * patch), np.float32)
    with torch.no_grad():
        wanted = _module(segmenter, 0)(torch.from_numpy(pixels))[0].numpy()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options,
                                           providers=["CPUExecutionProvider"])
    try:
        found = session.run(["logits"], {"pixels": pixels})[0]
        near = np.abs(found - wanted).max() <= _FAR * np.abs(wanted).max()
        why = "" if near else "it gives other values there"
    # onnxruntime's errors have no type of their own.
    except Exception as error:
        why = first_line(error)
    if why:
        raise VplError(f"{segmenter.header.model['name']} cannot be written as ONNX for photos of "
                       f"any size: its own code fixes the size that it was traced at ({why})",
                       "`anylabeling=448` writes a square of one side, `export('bundle')` holds "
                       "any encoder; timm's and transformers' forms of a model differ in this")


def _module(segmenter: TrainedSegmenter, side: int) -> torch.nn.Module:
    """Return the module to trace; for a square of a side, values in [0, 1] to regions."""
    encoder = segmenter.encoder
    if not side:
        return segment.WholeSegmenter(encoder.vision, segmenter.network).eval()
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (encoder.mean, encoder.std))
    whole = segment.WholeSegmenter(encoder.vision, segmenter.network, (1 / std, -mean / std))
    return segment.RegionSegmenter(whole, len(segmenter.classes), side).eval()


def _in_8_bits(model: ModelProto, segmenter: TrainedSegmenter, settings: Settings) -> ModelProto:
    """Return the model in 8 bits, with ranges measured on photos, if there are any."""
    from vpltool.methods.exports import _int8

    count = settings.calibrate
    if count is None:
        count = 0 if settings.anylabeling else 32
    paths, side = segmenter.photos[:count], side_of(segmenter.header, settings.max_side)
    if not paths:
        return _int8.dynamic(model)
    return _int8.static(model, lambda: (
        {"pixels": pixels.numpy()}
        for _, pixels in _segmenter.photo_pixels(segmenter.encoder, paths, side)))


def runs(path: Path, settings: Settings) -> Callable[[Tensor], Tensor] | None:
    """Return a function that runs the file, unless it outputs regions."""
    import onnxruntime

    if settings.anylabeling:
        return None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])


def metadata_of(segmenter: TrainedSegmenter, settings: Settings) -> dict[str, str]:
    """Return the file's metadata; each value is JSON. The classes begin with the background."""
    values = _segmenter.inference_config(segmenter, settings)
    patch, side = segmenter.encoder.vision.patch, settings.anylabeling
    flat = voc_palette()
    if side:
        values |= {"mean": [0.0] * 3, "std": [1.0] * 3,
                   "resize": f"into {side}×{side}, bilinear; what is left is grey, 114 of 255"}
    else:
        values["resize"] = ("no side above max_side, by one factor; then each side, less 1e-6 "
                            f"for rounding errors, up to a multiple of {patch}; bicubic")
    values |= {"classes": ["background", *values["classes"]], "patch": patch,
               "palette": [list(flat[3 * index : 3 * index + 3])
                           for index in range(len(values["classes"]) + 1)],
               "weights": "int8" if settings.int8 else "float32",
               "clip": segmenter.header.model, "decoder": segmenter.identity}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


def _write_yaml(segmenter: TrainedSegmenter, path: Path) -> Path:
    """Write the YAML of X-AnyLabeling's `Load Custom Model`; it finds the model beside it."""
    import yaml

    content = {"type": "yolo26_seg", "name": f"{segmenter.name}-{segmenter.identity[:8]}",
               "display_name": segmenter.name, "provider": "vpltool", "model_path": path.name,
               "classes": list(segmenter.classes),
               # A region counts however likely it is; polygons follow it closely.
               "conf_threshold": 0.01, "epsilon_factor": 0.001}
    file = path.with_suffix(".yaml")
    with atomic.atomic_path(file) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")
    return file
