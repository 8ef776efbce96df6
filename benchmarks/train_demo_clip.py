"""Trains the small CLIP of the demo from scratch, on captions of generated scenes.

The usual symmetric contrastive loss on (photo, caption) pairs. Labels of scenes are not used.
Most patches are dropped in training (FLIP, CVPR 2023); the last steps see all of them.

    python benchmarks/train_demo_clip.py vpltool/demo/clip
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vpltool.clip.catalogue import import_open_clip
from vpltool.demo.scenes import CLASSES, draw_scene
from vpltool.lazy import safetensors

TRAIN_SEED, UNSEEN_SEED = 1_000, 2_000
"""Seeds of the scenes; `vpltool demo` uses others."""

MEAN = STD = (0.5, 0.5, 0.5)

VISION: dict[str, object] = {
    "image_size": [240, 320], "patch_size": 16, "width": 128, "head_width": 32, "layers": 6,
    "pool_type": "avg"}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 3}
MODEL: dict[str, object] = {"embed_dim": 128, "vision_cfg": VISION, "text_cfg": TEXT}


def _draw_one(number: int, seed: int
              ) -> tuple[npt.NDArray[np.uint8], tuple[str, ...], tuple[str, ...]]:
    scene = draw_scene(seed, number)
    return scene.image, scene.captions, scene.tags


def draw(count: int, seed: int) -> tuple[Tensor, list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Draw scenes on all cores: photos (count, 3, H, W) uint8, their captions, and their tags."""
    photos = None
    captions, tags = list[tuple[str, ...]](), list[tuple[str, ...]]()
    with ProcessPoolExecutor() as pool:
        drawn = pool.map(_draw_one, range(count), [seed] * count, chunksize=64)
        for number, (image, texts, names) in enumerate(drawn):
            if photos is None:
                photos = torch.empty((count, 3, *image.shape[:2]), dtype=torch.uint8)
            photos[number] = torch.from_numpy(image).permute(2, 0, 1)
            captions.append(texts)
            tags.append(names)
    assert photos is not None
    return photos, captions, tags


def to_input(photos: Tensor, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalise photos (B, 3, H, W) uint8 as in the model's preprocessing."""
    return photos.to(device, dtype, non_blocking=True).mul_(1 / 127.5).sub_(1)


def clip_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Return CLIP's symmetric cross-entropy (ICML 2021) of a batch; inputs L2-normed (B, dim)."""
    logits = scale * images @ texts.T
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def train(model: Any, photos: Tensor, captions: list[Tensor], *, steps: int, batch: int, lr: float,
          whole: float, device: torch.device, seed: int) -> list[float]:
    """Train the model, the last `whole` share of the steps with all patches; return the losses."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=lr, betas=(0.9, 0.98))
    chance = np.random.default_rng(seed)
    losses, order, started = [], np.empty(0, dtype=np.int64), time.monotonic()
    for step in range(steps):
        warm = min(1.0, (step + 1) / (0.05 * steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        if step == round(steps * (1 - whole)):
            model.visual.patch_dropout = torch.nn.Identity()
        if len(order) < batch:
            order = np.concatenate([order, chance.permutation(len(photos))])
        chosen, order = np.sort(order[:batch]), order[batch:]
        tokens = torch.stack([captions[number][chance.integers(len(captions[number]))]
                            for number in chosen])
        with torch.autocast(device.type, torch.bfloat16):
            pixels = to_input(photos[torch.from_numpy(chosen)], device, torch.bfloat16)
            images = model.encode_image(pixels, normalize=True)
            texts = model.encode_text(tokens.to(device), normalize=True)
        loss = clip_loss(images.float(), texts.float(), model.logit_scale.exp())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        losses.append(float(loss.detach()))
        if step % 50 == 49:
            spent = time.monotonic() - started
            print(f"{step + 1}/{steps} loss {np.mean(losses[-50:]):.3f} scale "
                  f"{float(model.logit_scale.exp()):.1f} {spent:.0f} s", flush=True)
    return losses


@torch.no_grad()
def measure(model: Any, tokenizer: Any, photos: Tensor, tags: Sequence[tuple[str, ...]],
            device: torch.device) -> dict[str, float]:
    """Measure zero-shot scores on unseen scenes with `a photo of a CLASS`, and the modality gap.

    Returns:
        `top1`: share of scenes with one tag whose best class is that tag; `top1_in_tags`: share of
        all scenes whose best class is a tag; `gap_centroid`: distance of the mean photo from the
        mean prompt, where a scene counts for the prompt of its first tag; `gap_cosine`: mean
        1 − cos of scenes with one tag and their prompts.
    """
    prompts = F.normalize(model.encode_text(tokenizer(
        [f"a photo of a {name}" for name in CLASSES]).to(device)).float(), dim=-1).cpu()
    encoded = [model.encode_image(to_input(part, device)) for part in photos.split(64)]
    images = F.normalize(torch.cat(encoded).float(), dim=-1).cpu()
    best = (images @ prompts.T).argmax(dim=1).tolist()
    single = [index for index, names in enumerate(tags) if len(names) == 1]
    tagged = [index for index, names in enumerate(tags) if names]
    own = torch.stack([prompts[CLASSES.index(tags[index][0])] for index in tagged])
    only = torch.stack([prompts[CLASSES.index(tags[index][0])] for index in single])
    return {
        "top1": sum(CLASSES[best[index]] in tags[index] for index in single) / len(single),
        "top1_in_tags": sum(CLASSES[best[index]] in tags[index] for index in tagged) / len(tagged),
        "gap_centroid": float((images[tagged].mean(0) - own.mean(0)).norm()),
        "gap_cosine": float((1 - (images[single] * only).sum(1)).mean())}


def save(model: Any, folder: Path, facts: dict[str, object]) -> None:
    """Write the model in open_clip's format, in half precision, and a note of how it was made."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": {
        "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    safetensors.torch.save_file({name: tensor.detach().cpu().half().contiguous()
               for name, tensor in model.state_dict().items()},
              folder / "open_clip_model.safetensors")
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


def main() -> None:
    """Draw scenes, train, measure on unseen scenes, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=int, default=12000)
    parser.add_argument("--steps", type=int, default=1700)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--dropped", type=float, default=0.66, help="share of patches dropped")
    parser.add_argument("--whole", type=float, default=0.06, help="share of steps with all patches")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    open_clip = import_open_clip()
    tokenizer = open_clip.SimpleTokenizer(context_length=TEXT["context_length"])
    started = time.monotonic()
    photos, words, _ = draw(options.scenes, TRAIN_SEED)
    captions = [tokenizer(list(texts)) for texts in words]
    unseen, _, tags = draw(600, UNSEEN_SEED)
    print(f"{options.scenes} scenes drawn in {time.monotonic() - started:.0f} s", flush=True)
    torch.manual_seed(options.seed)
    model = open_clip.CLIP(
        MODEL["embed_dim"], VISION | {"patch_dropout": options.dropped}, TEXT).to(device)
    before = measure(model.eval(), tokenizer, unseen, tags, device)
    began = time.monotonic()
    losses = train(model.train(), photos, captions, steps=options.steps, batch=options.batch,
                   lr=options.lr, whole=options.whole, device=device, seed=options.seed)
    facts = {name: value for name, value in vars(options).items() if name != "out"} | {
        "device": str(device), "minutes": round((time.monotonic() - began) / 60, 1),
        "loss_start": round(float(np.mean(losses[:50])), 3),
        "loss_end": round(float(np.mean(losses[-50:])), 3),
        "before": before, "after": measure(model.eval(), tokenizer, unseen, tags, device)}
    save(model, options.out, facts)
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
