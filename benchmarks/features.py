"""Speed of `extract` + `cam` + `refine` against the straightforward way, on the same weights.

The straightforward way is the peers', in float32: one photo at a time, in one process; the last
block run forward and backward once per class; and per class the n×n affinity, made and squared
explicitly. Ours are the commands themselves, with all their files, in each number format; `again`
is `cam` + `refine` from stored features, as with other prototypes. Both load the model anew in each
round and read the same JPEGs, in the sizes of VOC or COCO (--data) and with as many tags.
Prints photos per second, the ratio round by round, and how far the maps are from the plain ones.

    python benchmarks/features.py --photos 48 --rounds 3
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter

from vpltool import console
from vpltool.cli import build_app
from vpltool.core.affinity import box_mask
from vpltool.core.clip import import_open_clip
from vpltool.core.gradcam import min_max
from vpltool.core.photos import fit_size, read_photo, to_pixels
from vpltool.formats import open_input, read_tensors

CLASSES = ("cat", "dog", "bus", "boat", "bird", "car")

DATA = {"voc": ((500, 375), (1, 2, 1, 2)), "coco": ((640, 480), (3, 1, 5, 3))}
"""Photo size of each data set, and tags of one photo after another: 1.5 and 3 in the mean."""


def draw_photos(folder: Path, count: int, data: str) -> dict[str, list[str]]:
    """Write blurred noise of a data set's size, every fourth upright; with as many tags."""
    rng = np.random.default_rng(0)
    (width, height), shown = DATA[data]
    tags = {}
    folder.mkdir(parents=True)
    for number in range(count):
        size = (width, height) if number % 4 else (height, width)
        noise = rng.integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize(size).filter(ImageFilter.GaussianBlur(2))
        picture.save(folder / f"p{number:03}.jpg", quality=90)
        tags[f"p{number:03}"] = sorted(
            rng.choice(CLASSES, shown[number % 4], replace=False).tolist())
    return tags


def save_model(folder: Path, name: str) -> None:
    """Write an open_clip model with random weights: time does not depend on them."""
    from safetensors.torch import save_file

    open_clip = import_open_clip()
    torch.manual_seed(0)
    config = open_clip.get_model_config(name)
    model = open_clip.create_model(name)
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({
        "model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}))
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")


def straightforward(visual: Any, mean: Sequence[float], std: Sequence[float],
                    photos: dict[str, Path], classes: dict[str, list[int]],
                    rows: torch.Tensor, index: torch.Tensor) -> dict[str, torch.Tensor]:
    """Refined CAMs (K, h, w) of each photo, the plain way, with open_clip's own modules."""
    def block(layer: Any, x: torch.Tensor, normed: torch.Tensor) -> tuple[Any, torch.Tensor]:
        mixed, weights = layer.attn(normed, normed, normed, need_weights=True)
        x = x + mixed
        return x + layer.mlp(layer.ln_2(x)), weights[0, 1:, 1:]

    patch, (*layers, last) = visual.patch_size[0], visual.transformer.resblocks
    result = {}
    for key, path in photos.items():
        photo = read_photo(path)
        size = fit_size((photo.shape[0], photo.shape[1]), patch)
        grid = (size[0] // patch, size[1] // patch)
        with torch.no_grad():
            x = visual.conv1(to_pixels(photo, size, mean, std)[None]).flatten(2).transpose(1, 2)
            table = visual.positional_embedding
            side = visual.grid_size
            spread = F.interpolate(table[1:].T.reshape(1, -1, *side), grid, mode="bilinear")
            table = torch.cat([table[:1], spread.flatten(2)[0].T])
            x = visual.ln_pre(torch.cat([visual.class_embedding.expand(1, 1, -1), x], 1) + table)
            maps = []
            for layer in layers:
                x, weights = block(layer, x, layer.ln_1(x))
                maps.append(weights)
        refined = []
        for wanted in classes[key]:
            normed = last.ln_1(x).detach().requires_grad_(True)
            out, weights = block(last, x, normed)
            pooled = F.normalize(visual.ln_post(out[:, 1:]).mean(dim=1) @ visual.proj, dim=-1)
            allowed = torch.isin(index, torch.tensor([0, *classes[key]]))
            logits = (pooled @ rows[allowed].T)[0] / 0.01
            place = index[allowed].tolist().index(wanted)
            others = torch.cat([logits[:place], logits[place + 1 :]])
            (gradient,) = torch.autograd.grad(logits[place] - others.logsumexp(0), normed)
            channels = gradient[0, 1:].mean(dim=0)
            cam = min_max((normed[0, 1:].detach() @ channels).relu().view(grid))
            affinity = torch.stack([*maps[-7:], weights.detach()]).mean(dim=0)
            for _ in range(3):
                affinity = affinity / affinity.sum(dim=0, keepdim=True)
                affinity = affinity / affinity.sum(dim=1, keepdim=True)
            affinity = (affinity + affinity.T) / 2
            transition = affinity @ affinity
            mask = box_mask(cam[None], 0.4).flatten().float()
            refined.append(min_max(((transition * mask) @ cam.flatten()).view(grid)))
        result[key] = torch.stack(refined)
    return result


def load_plainly(folder: Path) -> tuple[Any, Sequence[float], Sequence[float]]:
    """Load the vision tower as open_clip gives it; also the mean and deviation of its input."""
    model, _, preprocess = import_open_clip().create_model_and_transforms(f"local-dir:{folder}")
    normalise = preprocess.transforms[-1]
    return model.eval().requires_grad_(False).visual, normalise.mean, normalise.std


def ours(work: Path, batch: int, precision: str) -> tuple[float, float]:
    """Run the three commands; seconds of all, and of `cam` + `refine` alone."""
    app = build_app()
    spent = []
    for command in (["extract", "--keep", "tokens,attention", "--precision", precision],
                    ["cam", "--precision", precision], ["refine", "--cams", "text"]):
        argv = ["-C", str(work), *command, "--overwrite", "-q", "--batch-size", str(batch)]
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            app(argv, standalone_mode=False)
        spent.append(time.perf_counter() - started)
    return sum(spent), sum(spent[1:])


def difference(work: Path, plain: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Mean and largest difference of a map value from the straightforward way's."""
    refined = open_input(work / "cams/text-refined/train", ("cams",))
    apart = torch.cat([(refined.read_tensors(key)["cam"].float() - maps).abs().flatten()
                       for key, maps in plain.items()])
    return float(apart.mean()), float(apart.max())


def main() -> None:
    """Prepare a workspace, run both in turn, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--model", default="ViT-S-16")
    parser.add_argument("--data", choices=tuple(DATA), default="voc")
    parser.add_argument("--precision", default="fp32,bf16", help="comma-separated")
    options = parser.parse_args()
    console.set_quiet(True)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        tags = draw_photos(base / "photos", options.photos, options.data)
        lines = ["id,labels", *(f"{key},{';'.join(names)}" for key, names in tags.items())]
        (base / "tags.csv").write_text("\n".join(lines))
        save_model(base / "clip", options.model)
        work = base / "work"
        app = build_app()
        with contextlib.redirect_stdout(io.StringIO()):
            app(["-C", str(work), "prepare", "folder", str(base / "photos"), "--labels",
                 str(base / "tags.csv"), "--pretrained", str(base / "clip"), "-q"],
                standalone_mode=False)
            app(["-C", str(work), "text-prototypes", "-q"], standalone_mode=False)
        vectors = read_tensors(work / "prototypes/text.safetensors", "prototypes")[1]
        known = sorted({name for names in tags.values() for name in names})
        classes = {key: [known.index(name) + 1 for name in names] for key, names in tags.items()}
        photos = {key: base / "photos" / f"{key}.jpg" for key in tags}
        rates: dict[str, list[float]] = {"plain": []}
        apart: dict[str, tuple[float, float]] = {}
        for _ in range(options.rounds):
            started = time.perf_counter()
            plain = straightforward(*load_plainly(base / "clip"), photos, classes,
                                    vectors["prototypes"], vectors["class_index"])
            rates["plain"].append(len(photos) / (time.perf_counter() - started))
            for precision in options.precision.split(","):
                spent = ours(work, options.batch_size, precision)
                apart[precision] = difference(work, plain)
                for name, seconds in zip(("all", "again"), spent, strict=True):
                    rates.setdefault(f"{name} {precision}", []).append(len(photos) / seconds)
    print(f"{options.model}, {options.photos} photos of {options.data}'s size, "
          f"{options.rounds} rounds, {torch.get_num_threads()} threads")
    print("              photos/s               times plain")
    for name, values in rates.items():
        ratios = [new / old for old, new in zip(rates["plain"], values, strict=True)]
        print(f"{name:10} {_spread(values)}   {_spread(ratios)}")
    for precision, (mean, largest) in apart.items():
        print(f"{precision}: map values differ from plain by {mean:.4f} in the mean, "
              f"{largest:.3f} at most")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):6.2f} ({min(values):5.2f} to {max(values):5.2f})"


if __name__ == "__main__":
    main()
