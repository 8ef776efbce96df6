"""Heads for a student: `train-student`'s own beside those of segmentation-models-pytorch.

    python benchmarks/student_heads.py WORK timm:vit_tiny_patch16_224,FILE --heads light,DPT
    python benchmarks/student_heads.py WORK timm:mobilenetv3_small_100 --heads light,Unet,FPN

WORK holds a segmenter and what `predict --split train` stored of it. Each head begins at random on
the same network, a ViT (DPT) or a convolutional one (all others), and takes the same steps on the
same crops of seven of eight photos. A row has the agreement with the teacher on the others (mIoU
against its labels), the processor time a photo on one thread, from pixels to labels, and the
parameters. No true mask is read. It needs `pip install segmentation-models-pytorch`.
"""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vpltool.clip.encoders import Encoder, find_encoder, load_encoder, random_encoder
from vpltool.core.joint import JointSettings, Pair, joint_optimizer, train_jointly
from vpltool.core.metrics import confusion, scores
from vpltool.core.photos import fit_size, to_pixels
from vpltool.core.segmenter import LightHead, SegmenterNetwork
from vpltool.core.tower import DenseFeatures, Tower
from vpltool.core.training import StepSettings
from vpltool.engine.features import parse_layers
from vpltool.engine.masks import find_masks
from vpltool.engine.photos import read_known_photo
from vpltool.engine.segmenters import find_segmenter
from vpltool.formats import open_workspace, read_labels
from vpltool.stages._joint import PixelData, TrainingPhoto, pixel_batches

_SIDE = 352
_STRIDE = 32
"""Sides of photos are multiples of it: the deepest level of the networks."""


class Levels(Tower):
    """The encoder of a model of segmentation-models-pytorch; its levels keep their own sizes."""

    def __init__(self, encoder: nn.Module, patch: int) -> None:
        super().__init__()
        self.encoder, self.patch = encoder, patch

    @property
    def depth(self) -> int:
        """Trained as one: there is no decay from level to level."""
        return 1

    @property
    def width(self) -> int:
        """Levels have widths of their own, which the decoder knows."""
        return 0

    def forward(self, pixels: Tensor, **_: Any) -> DenseFeatures:
        """Return all levels, the pixels first, as `layers`."""
        return DenseFeatures(None, None, None, None, layers=self.encoder(pixels))


class Decoder(SegmenterNetwork):
    """Decoder and head of a model of segmentation-models-pytorch."""

    in_joint_space = False

    def __init__(self, model: Any, classes: int, layers: tuple[int, ...]) -> None:
        super().__init__(torch.zeros(classes, 1), torch.arange(classes), layers=layers)
        self.decoder, self.head = model.decoder, model.segmentation_head

    def embeddings(self, layers: Any, patches: Tensor | None, grid: tuple[int, int]) -> Any:
        """Return the levels: as they are; those of a ViT normalised, as maps (B, width, h, w)."""
        if not isinstance(layers, Tensor):
            return layers
        normed = functional.layer_norm(layers.float(), layers.shape[-1:]).transpose(2, 3)
        return normed.unflatten(3, grid).unbind(dim=1)

    def logits(self, embeddings: Any, grid: tuple[int, int]) -> Tensor:
        """Return class logits (B, classes, H, W)."""
        of_vit = isinstance(embeddings, tuple)
        maps: Tensor = self.head(self.decoder(*(
            [list(embeddings), [None] * len(embeddings)] if of_vit else [embeddings])))
        return maps


def load(name: str) -> Encoder:
    """The encoder, with published weights if a file is named, else with random ones."""
    source = find_encoder(name, (Path(),))
    return load_encoder(source, torch.device("cpu")) if source.path else random_encoder(source, 0)


def parts_of(head: str, encoder: str, classes: int) -> tuple[Tower, SegmenterNetwork]:
    """An encoder, and an untrained head; `light` is `train-student`'s."""
    tower = load(encoder).vision
    layers = tuple(parse_layers("spread", tower.depth))
    torch.manual_seed(0)
    if head == "light":
        return tower, LightHead(layers, tower.width, classes, 128)
    # After timm, which has been imported in the way that fits this torch.
    smp = importlib.import_module("segmentation_models_pytorch")
    network = encoder.removeprefix("timm:").partition(",")[0]
    given = {"decoder_readout": "ignore"} if head == "DPT" else {}
    model = getattr(smp, head)(encoder_name=f"tu-{network}", encoder_weights=None, classes=classes,
                               **given)
    if head == "DPT":
        return tower, Decoder(model, classes, layers)
    return Levels(model.encoder, tower.patch), Decoder(model, classes, (0,))


def label(pair: Pair, pixels: Tensor, patch: int) -> np.ndarray[Any, Any]:
    """Labels (H, W) of normalised pixels (1, 3, H, W), by the average of the weights."""
    pair.mean.eval()
    height, width = pixels.shape[2:]
    logits = pair.mean(pair.encode(pixels), (height // patch, width // patch))
    return functional.interpolate(logits.float(), (height, width), mode="bilinear")[0] \
        .argmax(dim=0).to(torch.uint8).numpy()


def main() -> None:
    """Train each head, and print a table of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--teacher", default="segmenter")
    parser.add_argument("encoder", help="as `train-student --encoder`")
    parser.add_argument("--iters", type=int, default=1200)
    parser.add_argument("--heads", required=True)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    workspace = open_workspace(options.work)
    teacher = find_segmenter(workspace.path, options.teacher)
    photos = workspace.photos("train")
    soft = teacher.open_probabilities(workspace, "train")
    masks = find_masks(workspace, teacher.header.sources["masks"], "train", photos)
    encoder = load(options.encoder)
    masked, patch = set(masks.ids), encoder.vision.patch
    taught = [TrainingPhoto(photo, soft, photo.id in masked) for number, photo in enumerate(photos)
              if number % 8]
    data = PixelData(workspace, taught, masks, encoder, _SIDE, (0.7, 1.6))
    settings = StepSettings(
        iterations=options.iters, batch_size=8, crop=256 // patch, lr=5e-4,
        power=0.9, seed=0, warmup=50,
        precision=torch.bfloat16 if options.precision == "bf16" else torch.float32)
    classes = 1 + len(workspace.classes)
    print("| head | agreement with the teacher | ms a photo | parameters, millions |")
    print("| --- | ---: | ---: | ---: |")
    for name in options.heads.split(","):
        tower, network = parts_of(name, options.encoder, classes)
        pair = Pair(tower, network, JointSettings(
            average=0.999, head_lr=10.0, lambda_masks=0.5,
            layer_decay=0.65 if "," in options.encoder else 1.0))
        for _ in train_jointly(pair, joint_optimizer(pair, settings), settings,
                               pixel_batches(data, settings, 0, workers=1)):
            pass
        counts, seconds = None, []
        with torch.inference_mode():
            for photo in photos[::8]:
                image = read_known_photo(workspace, photo)
                size = fit_size(image.shape[:2], _STRIDE, max_side=_SIDE)
                pixels = to_pixels(image, size, encoder.mean, encoder.std)[None]
                start = time.process_time()
                labels = label(pair, pixels, patch)
                seconds.append(time.process_time() - start)
                truth = read_labels(options.work / "predictions" / teacher.path.stem / "train"
                                    / f"{photo.id}.png")
                rows, columns = (np.arange(count) * side // count for count, side in
                                 zip(truth.shape, labels.shape, strict=True))
                found = confusion(truth, labels[rows][:, columns], classes)
                counts = found if counts is None else counts + found
        assert counts is not None
        print(f"| {name} | {100 * scores(counts).miou:.1f} | {1000 * np.median(seconds):.1f} | "
              f"{sum(part.numel() for part in pair.now.parameters()) / 1e6:.2f} |", flush=True)


if __name__ == "__main__":
    main()
