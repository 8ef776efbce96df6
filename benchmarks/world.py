"""What is measured on: drawn photos in the sizes of VOC or COCO, tags, true masks, and a CLIP.

The CLIP has random weights, since time does not depend on them; the photos are the demo's scenes
with grain, so that the CRF meets about as many colours as in real ones.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import vpltool.demo
from vpltool import console
from vpltool.clip.catalogue import import_open_clip
from vpltool.command import parse_line
from vpltool.core.photos import photo_size
from vpltool.demo.scenes import CLASSES, Scene, draw_scene
from vpltool.formats import Header, read_tensors, write_labels
from vpltool.run import run_stage
from vpltool.shell import settings_with

DATA: dict[str, tuple[dict[tuple[int, int], float], tuple[int, ...]]] = {
    "voc": ({(500, 375): 0.40, (375, 500): 0.15, (500, 333): 0.16, (333, 500): 0.07,
             (500, 400): 0.08, (480, 360): 0.06, (500, 281): 0.08}, (1, 2, 1, 2)),
    "coco": ({(640, 480): 0.75, (480, 640): 0.25}, (3, 1, 5, 3)),
    "demo": ({(320, 240): 1}, (0,)),
    "toy": ({(64, 48): 0.75, (48, 64): 0.25}, (1, 2, 1, 2))}
"""Of each data set: (width, height) of photos with their shares, and least tags of one photo after
another, 1.5 and 3 in the mean. VOC's shares are rough, not counted: many sizes, so that not every
batch is full, and 728 patches of 16 pixels in the mean, 500×375 having 768. `demo` is the size that
its CLIP was trained for, and no photo has a tag of what it does not show."""

GRAIN = 10
"""Deviation of the noise: a lattice of 0.2 million vertices, as that of a median real photo."""

TOY: dict[str, Any] = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16,
                       "patch_size": 8}
NAMES = (*CLASSES, "bicycle", "bird", "bottle", "chair", "dog", "horse", "motorbike", "sofa")
"""As many classes as VOC has; those that are not drawn compete all the same."""

_TEXT: dict[str, Any] = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2,
                         "layers": 1}


@dataclass(frozen=True)
class World:
    """A prepared workspace.

    Args:
        base: folder of photos, masks and the model.
        work: the workspace in it.
        photos: id to photo.
        masks: id to true mask.
        tags: id to the class indices of its tags.
        device: where all is computed.
        model: open_clip's name.
    """

    base: Path
    work: Path
    photos: dict[str, Path]
    masks: dict[str, Path]
    tags: dict[str, list[int]]
    device: torch.device
    model: str

    def run(self, *command: object) -> float:
        """Run a command of vpltool in this process, files and all; give its seconds."""
        started = time.perf_counter()
        call = parse_line([*map(str, command)])
        known = settings_with(call.found, str(call.values.get("method", "")))
        device = {"device": str(self.device)} if "device" in known else {}
        with console.heard_by(console.Terminal(quiet=True)):
            run_stage(call.found, self.work, call.values | device, given=call.given)
        return time.perf_counter() - started

    def prototypes(self, name: str = "text") -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (rows, dim) and their classes (rows,)."""
        tensors = read_tensors(self.work / f"prototypes/{name}.safetensors", "prototypes")[1]
        return (tensors["prototypes"].to(self.device), tensors["class_index"].to(self.device))

    def first(self, count: int) -> dict[str, Path]:
        """The first photos."""
        return dict(list(self.photos.items())[:count])

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of every photo."""
        return [photo_size(path) for path in self.photos.values()]


def make_world(base: Path, count: int, device: torch.device, *, data: str = "voc",
               model: str = "ViT-B-16-quickgelu", scenes: int = 0) -> World:
    """Draw photos and masks, save a CLIP, and run `prepare` and `text-prototypes`.

    Args:
        base: an empty folder.
        count: number of photos.
        device: where the commands compute.
        data: whose photo sizes and numbers of tags: `voc`, `coco`, `demo` or `toy`.
        model: open_clip's name; `toy`; or `demo`, the small trained CLIP of `vpltool demo`.
        scenes: number of different photos; the others are copies of these. 0: all are different.
    """
    shares, least = DATA[data]
    rng = np.random.default_rng(0)
    photos: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    tags: dict[str, list[int]] = {}
    for folder in ("photos", "masks"):
        (base / folder).mkdir(parents=True)
    for number in range(count):
        key = f"p{number:05}"
        photos[key], masks[key] = base / f"photos/{key}.jpg", base / f"masks/{key}.png"
        if scenes and number >= scenes:
            like = f"p{number % scenes:05}"
            photos[key].write_bytes(photos[like].read_bytes())
            masks[key].write_bytes(masks[like].read_bytes())
            tags[key] = tags[like]
            continue
        width, height = size_of(number, shares)
        scene, grainy = draw_photo(number, (height, width), rng)
        Image.fromarray(grainy).save(photos[key], quality=90)
        write_labels(masks[key], scene.labels, Header(kind="masks", command="demo"))
        names = list(scene.tags)
        others = [name for name in CLASSES if name not in names]
        missing = max(least[number % len(least)] - len(names), 0)
        names += rng.choice(others, missing, replace=False).tolist()
        tags[key] = sorted(CLASSES.index(name) + 1 for name in names)
    lines = ["id,labels", *(f"{key},{';'.join(CLASSES[index - 1] for index in shown)}"
                            for key, shown in tags.items())]
    (base / "tags.csv").write_text("\n".join(lines))
    (base / "classes.txt").write_text("\n".join(NAMES))
    weights = base / "clip"
    if model == "demo":
        weights = Path(vpltool.demo.__path__[0]) / "clip"
    else:
        save_model(weights, model)
    world = World(base, base / "work", photos, masks, tags, device, model)
    world.run("prepare", "folder", base / "photos", "--labels", base / "tags.csv", "--masks",
              base / "masks", "--classes", base / "classes.txt", "--pretrained", weights)
    world.run("text-prototypes")
    return world


def draw_photo(number: int, size: tuple[int, int], rng: np.random.Generator
               ) -> tuple[Scene, np.ndarray[Any, Any]]:
    """Draw a scene of size (height, width), and its photo with grain (H, W, 3)."""
    scene = draw_scene(0, number, size)
    grainy = scene.image + rng.normal(0, GRAIN, scene.image.shape)
    return scene, grainy.clip(0, 255).astype(np.uint8)


def size_of(number: int, shares: dict[tuple[int, int], float]) -> tuple[int, int]:
    """Size (width, height) of a photo.

    By steps of the golden ratio: the first photos, which the plain way takes, have nearly the same
    mixture as all of them.
    """
    position = (number + 0.5) * 0.6180339887 % 1
    for size, share in shares.items():
        position -= share
        if position < 0:
            return size
    return size


def save_model(folder: Path, name: str) -> None:
    """Write an open_clip model with random weights; a small text tower, as no time hangs on it."""
    from safetensors.torch import save_file

    open_clip = import_open_clip()
    torch.manual_seed(0)
    config = ({"embed_dim": 16, "vision_cfg": TOY} if name == "toy"
              else dict(open_clip.get_model_config(name)))
    config["text_cfg"] = _TEXT
    model = open_clip.CLIP(**config)
    with torch.no_grad():
        model.token_embedding.weight.normal_(std=1.0)
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({
        "model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}))
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")


def bytes_of(folder: Path) -> int:
    """Bytes of the files in a folder, the manifest left out."""
    return sum(file.stat().st_size for file in folder.rglob("*")
               if file.is_file() and file.name != "artifact.json")
