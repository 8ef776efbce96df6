"""Segmenters: building one, finding a trained one, making its network again, and running it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vpltool import console
from vpltool.errors import VplError, near_name
from vpltool.formats import Header, InputFolder, Workspace, expect_header, read_tensors
from vpltool.methods import find_method
from vpltool.parallel.batches import FeatureBatch, feature_batches
from vpltool.stages import _inputs
from vpltool.stages._inputs import BEST_FIRST
from vpltool.stages._photo_work import Failed, Made, count_sizes, run_batches
from vpltool.stages.extract import smaller_side_hint

if TYPE_CHECKING:
    from torch import Tensor

    from vpltool.core.segmenter import SegmenterNetwork
    from vpltool.methods.inputs import SegmenterParts
    from vpltool.parallel.photos import Batch
    from vpltool.stages._lessons import Frozen
    from vpltool.stages.train_decoder import TrainDecoderSettings


def find_decoder(work: Path, choice: str) -> Path:
    """Path of a decoder given by NAME or path; if none is named, the only one or the furthest.

    Raises:
        VplError: there is none, or there are several.
    """
    names = sorted(path.stem for path in (work / "decoder").glob("*.safetensors")
                   if not path.stem.endswith(".checkpoint"))
    if not choice:
        if not names:
            raise VplError(f"no decoder in {work / 'decoder'}", "`train_decoder()`")
        preferred = [name for name in BEST_FIRST if name in names]
        if len(names) > 1 and not preferred:
            raise VplError(f"{work / 'decoder'} holds several decoders",
                           " or ".join(f"`decoder={name!r}`" for name in names))
        return work / "decoder" / f"{(preferred or names)[0]}.safetensors"
    for path in (work / "decoder" / f"{choice}.safetensors", Path(choice), work / choice):
        if path.is_file():
            return path
    raise VplError(f"no decoder called `{choice}`",
                   near_name(choice, names) if names else "`train_decoder()`")


def decoder_header(path: Path) -> Header:
    """Read the header of a decoder.

    Raises:
        VplError: it is none, or only the checkpoint of one.
    """
    header = expect_header(path, "decoder")
    if "checkpoint" in header.facts:
        raise VplError(f"{path} is the checkpoint of a run that was stopped",
                       "the same `train_decoder()` again finishes it")
    return header


def read_segmenter(path: Path) -> tuple[Header, SegmenterNetwork]:
    """Make the network of a decoder again, in the state in which it was kept, on the CPU.

    Raises:
        VplError: the file is no decoder, or its method is not there.
    """
    header = decoder_header(path)
    tensors = read_tensors(path, "decoder")[1]
    # Files from before there were methods are all of this one.
    method = find_method("segmenters", header.facts.get("segmenter", "weclip")).load()
    network: SegmenterNetwork = method.rebuild(header.facts["config"])
    network.load_state_dict(tensors)
    return header, network.eval().requires_grad_(False)


def take_weights(network: SegmenterNetwork, path: Path, name: str, model: Mapping[str, str]
                 ) -> None:
    """Begin with the weights of another decoder; prototypes stay the network's own.

    Args:
        network: changed in place.
        path: the other decoder.
        name: the method that built the network.
        model: identity of its CLIP.

    Raises:
        VplError: the other decoder is of another method, shape or CLIP.
    """
    header, other = read_segmenter(path)
    _inputs.check_same_model(model, header.model, f"the prototypes and {path}")
    theirs = header.facts.get("segmenter", "weclip")
    if theirs != name:
        raise VplError(f"{path} is of the method {theirs}", f"`method={theirs!r}`")
    own, found = ({key: tensor for key, tensor in part.state_dict().items()
                   if key not in ("prototypes", "class_index")} for part in (network, other))
    differ = [key for key in own.keys() | found.keys()
              if key not in own or key not in found or own[key].shape != found[key].shape]
    if differ or network.layers != other.layers or network.reads != other.reads:
        said = ", ".join(f"`{key}={value!r}`" for key, value in header.options.items()
                         if key in ("layers", "width", "residual"))
        raise VplError(f"{path} has another shape than this decoder", said)
    network.load_state_dict(found, strict=False)


def reads_of(header: Header) -> tuple[set[str], set[int]]:
    """What a decoder reads of the frozen CLIP: `layers` and `patches`, and which layers."""
    return (set(header.facts.get("reads", ("layers", "patches"))),
            set(header.options.get("layers", ())))


@dataclass(frozen=True)
class Seen:
    """A photo's class probabilities (classes, 4h, 4w), and its (height, width)."""

    probabilities: Tensor
    size: tuple[int, int]


class Running(Protocol):
    """The settings that running a segmenter reads."""

    @property
    def device(self) -> str:
        """Where the work is done."""

    @property
    def precision(self) -> str:
        """Number format of the encoder."""

    @property
    def batch_size(self) -> int:
        """Photos at a time."""

    @property
    def workers(self) -> int:
        """Processes that read photos."""

    @property
    def max_side(self) -> int:
        """Longer photos are scaled down to this first; 0: never."""

    @property
    def flip(self) -> bool:
        """Whether to see photos mirrored, too."""

    @property
    def average(self) -> str:
        """What is averaged over scales and mirrored copies."""


def from_features(decoder: Path, features: InputFolder, paths: Mapping[str, Path],
                  settings: Running) -> Iterator[Made]:
    """Segment photos from their stored layers.

    Args:
        decoder: its file.
        features: they hold what it reads.
        paths: id to path of each photo, for its size.
        settings: device and batch size.

    Returns:
        yields a `Seen` for each photo.

    Raises:
        VplError: the decoder cannot be read.
    """
    from vpltool.core.decoder import layers_of
    from vpltool.core.photos import describe_failure, photo_size
    from vpltool.core.segment import probabilities_of
    from vpltool.parallel.device import find_device

    device = find_device(settings.device)
    network = read_segmenter(decoder)[1].to(device)
    reads = network.reads

    def decode(batch: FeatureBatch) -> Iterator[Made]:
        tensors = batch.tensors
        layers = (layers_of(tensors["layers"], tensors["layer_index"][0].tolist(), network.layers)
                  if "layers" in reads else None)
        layers, patches = (
            None if tensor is None else tensor.to(device, non_blocking=True).float()
            for tensor in (layers, tensors["patches"] if "patches" in reads else None))
        result = probabilities_of(network, layers, patches, batch.grid)
        for key, part in zip(batch.ids, result, strict=True):
            try:
                yield key, Seen(part, photo_size(paths[key]))
            except OSError as error:
                yield key, Failed(describe_failure(paths[key], error))

    names = [*reads, *(["layer_index"] if "layers" in reads else [])]
    batches = feature_batches(features, list(paths), names, settings.batch_size, device=device)
    return run_batches(batches, decode, lambda _: _inputs.smaller_photos_hint(features.header))


def from_photos(workspace: Workspace, decoder: Path, paths: Mapping[str, Path],
                scales: Sequence[float], settings: Running) -> Iterator[Made]:
    """Segment photos with the CLIP of the workspace and a decoder.

    Args:
        workspace: its CLIP.
        decoder: its file.
        paths: id to path of each photo.
        scales: sizes at which each is seen.
        settings: how the work is done.

    Returns:
        yields a `Seen` for each photo, or why there is none.

    Raises:
        VplError: the CLIP cannot be had, or is not that of the decoder.
    """
    from vpltool.clip.load import load_clip
    from vpltool.core.photos import PhotoSettings
    from vpltool.core.segment import segment
    from vpltool.parallel.device import find_device, find_precision, worker_count
    from vpltool.parallel.photos import load_batches

    device = find_device(settings.device)
    dtype = find_precision(settings.precision, device, console.warn)
    header, network = read_segmenter(decoder)
    network = network.to(device)
    clip = load_clip(workspace.model, workspace.pretrained, device, base=workspace.path,
                     normalise=workspace.normalise)
    _inputs.check_same_model(clip.identity, header.model, f"the workspace's model and {decoder}")
    vision = clip.vision.to(dtype)
    factors = [scale / max(scales) for scale in scales]

    def see(batch: Batch) -> Iterator[Made]:
        for key, reason in batch.failed.items():
            yield key, Failed(reason)
        if not batch.ids:
            return
        result = segment(vision, network, batch.pixels.to(device, non_blocking=True), factors,
                         flip=settings.flip, average=settings.average)
        for key, size, part in zip(batch.ids, batch.sizes, result, strict=True):
            yield key, Seen(part, size)

    batches = load_batches(
        list(paths.items()),
        PhotoSettings(vision.patch, clip.mean, clip.std, max(scales), settings.max_side),
        batch_size=settings.batch_size, workers=worker_count(settings.workers), device=device,
        sized=count_sizes(len(paths)))
    return run_batches(batches, see, smaller_side_hint)


def build_segmenter(settings: TrainDecoderSettings, method: Any, parts: SegmenterParts,
                    frozen: Frozen) -> SegmenterNetwork:
    """Build the network that is trained, always the same one for a seed.

    Args:
        settings: of `train-decoder`.
        method: of segmenters.
        parts: what the network is built of.
        frozen: where its inputs come from.

    Raises:
        VplError: the method refuses its settings, or the features are not what it reads.
    """
    import torch

    if not hasattr(method, "rebuild"):
        raise VplError(f"{method.__file__}: a method of segmenters needs `rebuild`",
                       "rebuild(config) gives an empty network, for `predict`")
    torch.manual_seed(settings.seed)
    network: SegmenterNetwork = method.build(parts, settings.of_method)
    if not hasattr(method, "fit"):
        _check_training(settings, network)
    held = frozen.features.header.options.get("patches", "block") if frozen.features else "block"
    if network.reads_patches and held != "block":
        raise VplError(f"the segmenter reads the last block's patch embeddings; {frozen.name} "
                       f"holds others ({held})",
                       "`source='photos'`" + (", or `residual=False`" if hasattr(
                           settings.of_method, "residual") else ""))
    return network


def _check_training(settings: TrainDecoderSettings, network: SegmenterNetwork) -> None:
    """Check that the settings of the steps suit the network.

    Raises:
        VplError: one does not.
    """
    if not settings.iters and not network.serves_untrained:
        raise VplError("`iters=0` would keep an untrained network, whose predictions are random",
                       "`iters=300`" + (", or `residual=True`, which begins as the dense CAM"
                                        if hasattr(settings.of_method, "residual") else ""))
    if settings.lambda_aff and not network.fuses:
        raise VplError(f"`lambda_aff={settings.lambda_aff!r}`: `{settings.method}` has no fused "
                       "features to compare", "`lambda_aff=0`")
    if settings.lambda_rsc and not network.in_joint_space:
        raise VplError(f"`lambda_rsc={settings.lambda_rsc!r}`: `{settings.method}` has no "
                       "embeddings to compare with the prototypes", "`lambda_rsc=0`")
