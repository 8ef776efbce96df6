"""Quantisation of an ONNX graph's products to 8 bits, by onnxruntime.

Weights are unsigned like values: processors without 8-bit dot products overflow if one is signed.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import onnx
from onnxruntime import InferenceSession, RunOptions, quantization

from vpltool.lazy import np, npt

Photo = Mapping[str, npt.NDArray[np.float32]]
"""The graph's input, by name."""

_PROBED = 4
"""Number of photos on which outliers are looked for."""

_TOGETHER = 16
"""Number of products' inputs that are held at once: those of four blocks of a ViT."""

_SPOILED = 0.1
"""Relative change above which a product has outliers. In a ViT-Ti student, one product has 0.42,
all others at most 0.06."""


def dynamic(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the weights of its matrix products in 8 bits, a scale per column."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "int8.onnx"
        quantization.quantize_dynamic(
            model, file, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True,
            weight_type=quantization.QuantType.QUInt8)
        return onnx.load(file)


@quantization.CalibrationDataReader.register
class _Reader:
    """Photos for onnxruntime's calibration."""

    def __init__(self, photos: Iterator[Photo]) -> None:
        self._photos = photos

    def get_next(self) -> Photo | None:
        """Return the next photo; None after the last."""
        return next(self._photos, None)


def static(model: onnx.ModelProto, photos: Callable[[], Iterator[Photo]]) -> onnx.ModelProto:
    """Return a float32 graph with products in 8 bits, whose ranges are measured on photos.

    Products of two activations, in the attention, keep their precision, and so do those whose
    inputs have outliers; the first, of the pixels, whose error all others inherit; and the last,
    whose differences are small beside its sum. Each call of `photos` yields all photos.
    """
    weights = {weight.name for weight in model.graph.initializer}
    spoiled = products_with_outliers(model, itertools.islice(photos(), _PROBED))
    products = [node.name for node in model.graph.node if node.op_type in ("MatMul", "Conv")
                and node.input[1] in weights]
    chosen = [name for name in products[1:-1] if name not in spoiled]
    if not chosen:
        return dynamic(model)
    with tempfile.TemporaryDirectory() as folder:
        whole, file = Path(folder) / "whole.onnx", Path(folder) / "int8.onnx"
        onnx.save_model(model, whole)
        quantization.quantize_static(
            whole, file, _Reader(photos()), per_channel=True, nodes_to_quantize=chosen,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QUInt8,
            # onnxruntime multiplies so in one step; a convolution needs its output in 8 bits.
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]})
        return onnx.load(file)


def products_with_outliers(model: onnx.ModelProto, photos: Iterable[Photo]) -> set[str]:
    """Return the names of the nodes that multiply by weights, and whose inputs have outliers.

    In some blocks of a ViT, a few numbers are hundreds of times as large as all others (massive
    activations; Sun et al., COLM 2024, section 5), so that 8 bits over their range leave the others
    no steps. A product has outliers if that changes the result of the median patch by a tenth.
    Convolutions are not examined.
    """
    weights = {weight.name: onnx.numpy_helper.to_array(weight)
               for weight in model.graph.initializer}
    products = [node for node in model.graph.node
                if node.op_type == "MatMul" and node.input[1] in weights]
    inputs = list(dict.fromkeys(node.input[0] for node in products))
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inputs)
    session = InferenceSession(probed.SerializeToString(), providers=["CPUExecutionProvider"])
    changes: dict[str, list[float]] = {node.name: [] for node in products}
    part = RunOptions()
    part.only_execute_path_to_fetches = True
    for photo, first in itertools.product(photos, range(0, len(inputs), _TOGETHER)):
        some = inputs[first : first + _TOGETHER]
        values = dict(zip(some, session.run(some, photo, part), strict=True))
        for node in products:
            if node.input[0] not in values:
                continue
            value, weight = values[node.input[0]], weights[node.input[1]]
            step = (max(value.max(), 0) - min(value.min(), 0)) / 255
            rounded = np.round(value / step) * step if step else value
            change = np.linalg.norm((rounded - value) @ weight, axis=-1)
            whole = np.linalg.norm(value @ weight, axis=-1)
            changes[node.name].append(float(np.median(change / np.maximum(whole, 1e-12))))
    return {name for name, shares in changes.items() if np.median(shares) > _SPOILED}
