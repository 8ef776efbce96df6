"""The training of the demo's small CLIP: it lowers the loss, and saves a model that loads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import train_demo_clip  # noqa: E402

from vpltool.clip.load import import_open_clip, load_clip  # noqa: E402
from vpltool.demo.scenes import draw_scene  # noqa: E402


def test_training_lowers_the_loss_and_saves_a_model_that_loads(tmp_path: Path) -> None:
    """The script's own parts, on eight scenes and for a few steps."""
    open_clip = import_open_clip()
    torch.manual_seed(0)
    config = train_demo_clip.VISION | {"patch_dropout": 0.5}
    model = open_clip.CLIP(train_demo_clip.MODEL["embed_dim"], config, train_demo_clip.TEXT)
    tokenizer = open_clip.SimpleTokenizer(context_length=train_demo_clip.TEXT["context_length"])
    scenes = [draw_scene(0, number) for number in range(8)]
    photos = torch.stack([torch.from_numpy(scene.image).permute(2, 0, 1) for scene in scenes])
    captions = [tokenizer(list(scene.captions)) for scene in scenes]
    losses = train_demo_clip.train(model.train(), photos, captions, steps=12, batch=8, lr=1e-3,
                                   whole=0.2, device=torch.device("cpu"), seed=0)
    assert sum(losses[-3:]) < sum(losses[:3])
    train_demo_clip.save(model, tmp_path / "clip", {"seed": 0})
    loaded = load_clip("clip", str(tmp_path / "clip"), torch.device("cpu"))
    pixels = train_demo_clip.to_input(photos[:2], torch.device("cpu"))
    wanted = F.normalize(model.eval().encode_image(pixels).detach(), dim=-1)
    tower = loaded.vision
    found = tower.head.pooled(tower.head.block(tower(pixels).tokens))
    assert float((wanted * found).sum(dim=1).min()) > 0.999, "saved in half precision"


def test_captions_are_paired_with_their_photos() -> None:
    """The loss is least when each photo is most like its own caption."""
    vectors = F.normalize(torch.randn(6, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    scale = torch.tensor(20.0)
    paired = float(train_demo_clip.clip_loss(vectors, vectors, scale))
    shuffled = float(train_demo_clip.clip_loss(vectors, vectors.roll(1, 0), scale))
    assert paired < 0.1 < shuffled
    by_hand = sum(-(scale * vectors[i] @ vectors.T).log_softmax(0)[i] for i in range(6)) / 6
    assert paired == pytest.approx(float(by_hand), abs=1e-5)
