"""Write a segmenter for OpenVINO, Intel's runtime: an XML file with its weights beside it.

OpenVINO's own converter makes it from the graph of `export onnx`, so inputs and outputs are the
same. The weights are stored in 16 bits. What the caller needs, such as the classes, mean and std,
is in the XML's section `vpltool`, each value as JSON. Needs openvino, onnx, onnxscript and
onnxruntime.

Example: vpltool export openvino --what segmenter --max-side 512
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vpltool import settings
from vpltool.errors import VplError, silent
from vpltool.lazy import Tensor, torch
from vpltool.methods.exports import onnx as graphs
from vpltool.methods.exports._segmenter import SegmenterSettings
from vpltool.methods.inputs import TrainedSegmenter

READS = ()
EXPORTS = "segmenter"
SUFFIX = ".xml"


@dataclass(frozen=True, kw_only=True)
class Settings(SegmenterSettings):
    """Settings of OpenVINO's files."""


def check(settings: settings.Settings) -> None:
    """Check that the packages are there.

    Raises:
        VplError: one is missing.
    """
    if importlib.util.find_spec("openvino") is None:
        raise VplError("the package openvino is not installed", "pip install 'vpltool[openvino]'")
    graphs.check(settings)


def export(segmenter: TrainedSegmenter, path: Path, settings: Settings) -> list[Path]:
    """Write both files.

    Raises:
        VplError: the path does not end in .xml, or the graph cannot be made.
    """
    import onnx
    import openvino

    if path.suffix != SUFFIX:
        raise VplError(f"{path}: OpenVINO's files end in .xml and .bin",
                       f"`out={str(path.with_suffix(SUFFIX))!r}`")
    whole = graphs.Settings(max_side=settings.max_side, licence=settings.licence)
    with tempfile.TemporaryDirectory() as folder, silent():
        file = Path(folder) / "segmenter.onnx"
        onnx.save_model(graphs.graph_of(segmenter, whole), file)
        model = openvino.convert_model(file)
        for name, value in graphs.metadata_of(segmenter, whole).items():
            model.set_rt_info(value, ["vpltool", name])
        path.parent.mkdir(parents=True, exist_ok=True)
        openvino.save_model(model, path)
    return [path, path.with_suffix(".bin")]


def runs(path: Path, settings: Settings) -> Callable[[Tensor], Tensor]:
    """What runs the files."""
    import openvino

    compiled = openvino.compile_model(path, "CPU")
    return lambda pixels: torch.from_numpy(compiled(pixels.numpy())["logits"])
