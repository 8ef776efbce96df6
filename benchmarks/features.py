"""Speed of `extract` + `cam` + `refine` against the straightforward way, on the same weights.

The straightforward way is the peers': one photo at a time, in one process; the last block run
forward and backward once per class; and per class the n×n affinity, made and squared explicitly.
Ours are the commands themselves, with all their files; `again` is `cam` + `refine` from stored
features, as with other prototypes. Both read the same JPEGs, of VOC's sizes.
Prints photos per second, the ratio round by round, and how far the maps differ.

    python benchmarks/features.py --photos 12 --rounds 3
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from vpltool import console
from vpltool.cli import build_app
from vpltool.core.affinity import box_mask
from vpltool.core.clip import Clip, import_open_clip, load_clip
from vpltool.core.gradcam import min_max
from vpltool.core.photos import fit_size, read_photo, to_pixels
from vpltool.formats import open_input, read_tensors

CLASSES = ("cat", "dog", "bus", "boat", "bird", "car")


def draw_photos(folder: Path, count: int) -> dict[str, list[str]]:
    """Write blurred noise of VOC's two common sizes; tags as many as in VOC, 1 to 3 a photo."""
    rng = np.random.default_rng(0)
    tags = {}
    folder.mkdir(parents=True)
    for number in range(count):
        size = (500, 375) if number % 4 else (375, 500)
        noise = rng.integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize(size).filter(ImageFilter.GaussianBlur(2))
        picture.save(folder / f"p{number:03}.jpg", quality=90)
        shown = (1, 2, 1, 3)[number % 4]
        tags[f"p{number:03}"] = sorted(rng.choice(CLASSES, shown, replace=False).tolist())
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


def straightforward(clip: Clip, photos: dict[str, Path], classes: dict[str, list[int]],
                    rows: torch.Tensor, index: torch.Tensor) -> dict[str, torch.Tensor]:
    """Refined CAMs (K, h, w) of each photo, the plain way."""
    tower, head = clip.vision, clip.vision.head
    result = {}
    for key, path in photos.items():
        photo = read_photo(path)
        size = fit_size((photo.shape[0], photo.shape[1]), tower.patch)
        pixels = to_pixels(photo, size, clip.mean, clip.std)[None]
        grid = (size[0] // tower.patch, size[1] // tower.patch)
        with torch.no_grad():
            x, maps = tower.embed(pixels), []
            for block in tower.blocks:
                x, weights = block.forward_with_attention(x)
                maps.append(weights[0, 1:, 1:])
        refined = []
        for wanted in classes[key]:
            normed = head.block.ln_1(x).detach().requires_grad_(True)
            with torch.no_grad():
                last = head.block.forward_with_attention(x)[1][0, 1:, 1:]
            pooled = head.pooled(head.block.forward_from(x, normed))
            allowed = torch.isin(index, torch.tensor([0, *classes[key]]))
            logits = (pooled @ rows[allowed].T)[0] / 0.01
            place = index[allowed].tolist().index(wanted)
            others = torch.cat([logits[:place], logits[place + 1 :]])
            (gradient,) = torch.autograd.grad(logits[place] - others.logsumexp(0), normed)
            weights = gradient[0, 1:].mean(dim=0)
            cam = min_max((normed[0, 1:].detach() @ weights).relu().view(grid))
            affinity = torch.stack([*maps[-7:], last]).mean(dim=0)
            for _ in range(3):
                affinity = affinity / affinity.sum(dim=0, keepdim=True)
                affinity = affinity / affinity.sum(dim=1, keepdim=True)
            affinity = (affinity + affinity.T) / 2
            transition = affinity @ affinity
            mask = box_mask(cam[None], 0.4).flatten().float()
            refined.append(min_max(((transition * mask) @ cam.flatten()).view(grid)))
        result[key] = torch.stack(refined)
    return result


def ours(work: Path, batch: int) -> tuple[float, float]:
    """Run the three commands; seconds of all, and of `cam` + `refine` alone."""
    app = build_app()
    spent = []
    for command in (["extract"], ["cam"], ["refine", "--cams", "text"]):
        argv = ["-C", str(work), *command, "--overwrite", "-q", "--batch-size", str(batch)]
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            app(argv, standalone_mode=False)
        spent.append(time.perf_counter() - started)
    return sum(spent), sum(spent[1:])


def main() -> None:
    """Prepare a workspace, run both in turn, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--model", default="ViT-S-16")
    options = parser.parse_args()
    console.set_quiet(True)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        tags = draw_photos(base / "photos", options.photos)
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
        rates: dict[str, list[float]] = {"plain": [], "ours": [], "again": []}
        for _ in range(options.rounds):
            started = time.perf_counter()
            clip = load_clip("clip", str(base / "clip"), torch.device("cpu"))
            plain = straightforward(clip, photos, classes, vectors["prototypes"],
                                    vectors["class_index"])
            rates["plain"].append(len(photos) / (time.perf_counter() - started))
            for name, seconds in zip(("ours", "again"), ours(work, options.batch_size),
                                     strict=True):
                rates[name].append(len(photos) / seconds)
        refined = open_input(work / "cams/text-refined/train", ("cams",))
        worst = max(float((refined.read_tensors(key)["cam"].float() - plain[key]).abs().max())
                    for key in photos)
    print(f"{options.model}, {options.photos} photos of 500×375, {options.rounds} rounds, "
          f"{torch.get_num_threads()} threads")
    for name, values in rates.items():
        print(f"{name:6} {statistics.median(values):5.2f} photos/s "
              f"({min(values):.2f} to {max(values):.2f})")
    for name in ("ours", "again"):
        ratios = [new / old for old, new in zip(rates["plain"], rates[name], strict=True)]
        print(f"{name} / plain {statistics.median(ratios):5.2f} "
              f"({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"largest difference of a map value {worst:.4f} (features are stored in half precision)")


if __name__ == "__main__":
    main()
