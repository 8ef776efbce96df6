"""Write a segmenter for OpenVINO, Intel's runtime: an XML file with its weights beside it.

OpenVINO's own converter makes it from the graph of `export onnx`, so inputs and outputs are the
same. The weights are stored in 16 bits. What the caller needs, such as the classes, mean and std,
is in the XML's section `vpltool`, each value as JSON. Needs openvino, onnx, onnxscript and
onnxruntime.

Example: vpltool export openvino --what segmenter --max-side 512
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from vpltool.errors import VplError, silent
from vpltool.lazy import Tensor, torch
from vpltool.methods.exports import onnx as graphs
from vpltool.methods.exports._segmenter import SegmenterSettings, check_packages
from vpltool.methods.inputs import TrainedSegmenter

EXPORTS = "segmenter"
SUFFIX = ".xml"

Settings = SegmenterSettings


def check(settings: Settings) -> None:
    """Check that the packages are installed."""
    check_packages("openvino", "openvino")
    graphs.check(settings)


def export(segmenter: TrainedSegmenter, path: Path, settings: Settings) -> list[Path]:
    """Write both files; raise a VplError if the path is no .xml, or the graph cannot be made."""
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
    """Return a function that runs the files."""
    import openvino

    compiled = openvino.compile_model(path, "CPU")
    return lambda pixels: torch.from_numpy(compiled(pixels.numpy())["logits"])
