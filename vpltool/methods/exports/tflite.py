"""Write a segmenter for LiteRT, the runtime of TFLite files on phones: a square of one side.

Google's converter makes the file from the network itself. Its input is `pixels` (1, 3, S, S): a
photo as for `export onnx`, in the upper left corner, and zeros around it; S is `max_side`, rounded
up to a multiple of the patch. The outputs are `logits` (1, classes, 4h, 4w) and `labels` (1, S, S),
of which the photo's part is taken. A JSON file beside it gives classes, palette, mean, std, patch
and max_side. Needs litert-torch.

Example: vpltool export tflite --what student --max-side 384
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

from vpltool.core import segment, vit
from vpltool.errors import VplError, first_line, silent
from vpltool.formats.atomic import atomic_path
from vpltool.lazy import Tensor, torch
from vpltool.methods.exports import onnx as graphs
from vpltool.methods.exports._segmenter import SegmenterSettings, check_packages
from vpltool.methods.inputs import TrainedSegmenter, side_of

EXPORTS = "segmenter"
SUFFIX = ".tflite"

Settings = SegmenterSettings


def check(settings: Settings) -> None:
    """Check that the converter is installed."""
    check_packages("tflite", "litert_torch")


def export(segmenter: TrainedSegmenter, path: Path, settings: Settings) -> list[Path]:
    """Write the file, and a JSON for its caller.

    Raises a VplError if photos have no largest side, or the converter does not know the network.
    """
    import litert_torch

    patch = segmenter.encoder.vision.patch
    cells = -(-side_of(segmenter.header, settings.max_side) // patch)
    if not cells:
        raise VplError(f"{path.name} takes photos up to one side, and none is set",
                       "`max_side=512`")
    vision = copy.deepcopy(segmenter.encoder.vision)
    if isinstance(vision, vit.VisionTower):
        # The converter cannot resample them.
        vision.positions = torch.nn.Parameter(vision.positions_for((cells, cells)))
        vision.grid = (cells, cells)
    # Cached while tensors have values; see `SegmenterNetwork.class_rows`.
    assert segmenter.network.class_rows
    whole = segment.WholeSegmenter(vision, segmenter.network).eval()
    try:
        with silent():
            model = litert_torch.convert(whole, (torch.zeros(1, 3, *2 * (cells * patch,)),))
    # Code that the converter cannot follow raises anything.
    except Exception as error:
        raise VplError(f"{segmenter.name} cannot be written as TFLite: {first_line(error)}",
                       "`export('onnx')`") from error
    values = {name: json.loads(value) for name, value in graphs.metadata_of(
        segmenter, graphs.Settings(max_side=cells * patch, licence=settings.licence)).items()}
    with atomic_path(path) as temporary, silent():
        model.export(str(temporary))
    beside = path.with_suffix(".json")
    with atomic_path(beside) as temporary:
        temporary.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", "utf-8")
    return [path, beside]


def runs(path: Path, settings: Settings) -> Callable[[Tensor], Tensor]:
    """Return a function that runs the file."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (pixels,), (logits, _) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(photo: Tensor) -> Tensor:
        height, width = photo.shape[2:]
        square = torch.zeros(*pixels["shape"].tolist())
        square[:, :, :height, :width] = photo
        interpreter.set_tensor(pixels["index"], square.numpy())
        interpreter.invoke()
        found = torch.from_numpy(interpreter.get_tensor(logits["index"]))
        side = square.shape[3]
        return found[:, :, : height * found.shape[2] // side, : width * found.shape[3] // side]

    return run
