"""Encoders in the form of transformers: each family against the original model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vpltool.clip.catalogue import import_library
from vpltool.clip.encoders import Encoder, find_encoder, load_encoder
from vpltool.clip.models import find_source
from vpltool.clip.stored_towers import tower_config, tower_from_config
from vpltool.clip.transformers_towers import TransformersTower
from vpltool.errors import VplError

pytest.importorskip("transformers")

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3,
                         "intermediate_size": 64, "image_size": 64, "patch_size": 16}
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "Dinov2": (SMALL, 1),
    "Dinov2WithRegisters": (SMALL | {"use_swiglu_ffn": True}, 5),
    "DINOv3ViT": (SMALL | {"num_register_tokens": 4}, 5),
    "SiglipVision": (SMALL, 0),
    "CLIPVision": (SMALL, 1),
    "MetaClip2Vision": (SMALL, 1),
    "Tipsv2Vision": (SMALL, 2),
    "ViT": (SMALL, 1),
}
"""Small models of the families with tokens; tokens before their patches."""


def pixels(height: int, width: int) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(3))


def original(name: str, values: dict[str, Any]) -> Any:
    """A random model of transformers, whose biases and scales are all away from 0 and 1."""
    transformers = import_library("transformers")
    torch.manual_seed(7)
    model = getattr(transformers, f"{name}Model")(
        getattr(transformers, f"{name}Config")(**values))
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def load(folder: Path) -> Encoder:
    return load_encoder(find_encoder(str(folder), (Path(),)), CPU)


def given(name: str, photo: Tensor) -> dict[str, Any]:
    resampled = name in ("SiglipVision", "CLIPVision", "MetaClip2Vision", "ViT")
    return {"pixel_values": photo, **({"interpolate_pos_encoding": True} if resampled else {})}


def wanted_patches(name: str, model: Any, photo: Tensor, prefix: int) -> Tensor:
    last = model(**given(name, photo)).last_hidden_state
    if name in ("CLIPVision", "MetaClip2Vision"):
        last = model.post_layernorm(last)
    return F.normalize(last[:, prefix:], dim=-1)


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_those_of_the_model(name: str, tmp_path: Path) -> None:
    """At its own size and at another one, not square; and again from what a bundle holds."""
    values, prefix = FAMILIES[name]
    model = original(name, values)
    model.save_pretrained(tmp_path)
    tower = load(tmp_path).vision
    assert isinstance(tower, TransformersTower)
    assert (tower.patch, tower.depth, tower.width, tower.grid) == (16, 3, 48, (4, 4))
    for size in ((64, 64), (48, 80)):
        photo = pixels(*size)
        outputs = model(**given(name, photo), output_hidden_states=True).hidden_states
        found = tower(photo, attention=False, layers=[0, 1])
        torch.testing.assert_close(found.patches, wanted_patches(name, model, photo, prefix),
                                   atol=1e-4, rtol=0)
        torch.testing.assert_close(found.layers[0], torch.stack(
            [outputs[1][:, prefix:], outputs[2][:, prefix:]], 1)[0], atol=1e-4, rtol=1e-4)
        attended = tower(photo, attentions=True, attention_blocks=2)
        assert attended.attentions.shape == (1, 2, *(2 * found.patches.shape[1:2]))
        torch.testing.assert_close(attended.patches, found.patches, atol=1e-4, rtol=0)
    again = tower_from_config(json.loads(json.dumps(tower_config(tower))), tower.state_dict())
    torch.testing.assert_close(again(photo, attention=False).patches, found.patches)


def test_the_packed_patches_of_siglip_2(tmp_path: Path) -> None:
    """Its original takes patches as its own image processor cuts them."""
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    model = original("Siglip2Vision", SMALL | {"num_patches": 16})
    model.save_pretrained(tmp_path)
    photo = pixels(48, 80)
    rows = torch.as_tensor(convert_image_to_patches(photo[0].numpy(), 16))
    wanted = model(rows[None], torch.ones(1, 15, dtype=torch.long), torch.tensor([[3, 5]]))
    found = load(tmp_path).vision(photo, attention=False).patches
    torch.testing.assert_close(found, F.normalize(wanted.last_hidden_state, dim=-1), atol=1e-4,
                               rtol=0)


def test_dinov3_convnext(tmp_path: Path) -> None:
    """Its last grid of 32 pixels is joined with that of 16."""
    model = original("DINOv3ConvNext", {"hidden_sizes": [16, 24, 32, 40],
                                        "depths": [1, 1, 1, 1], "image_size": 64})
    model.save_pretrained(tmp_path)
    tower = load(tmp_path).vision
    photo = pixels(64, 96)
    seen = model(photo, output_hidden_states=True)
    last = F.normalize(seen.last_hidden_state[:, 1:], dim=-1).transpose(1, 2).unflatten(2, (2, 3))
    middle = next(maps for maps in seen.hidden_states if maps.shape[1:] == (32, 4, 6))
    parts = [F.normalize(middle, dim=1), F.interpolate(last, (4, 6), mode="bilinear")]
    wanted = F.normalize(torch.cat(parts, dim=1), dim=1).flatten(2).transpose(1, 2)
    found = tower(photo, attention=False, layers=range(4))
    assert tower.patch == 16 and found.layers.shape == (1, 4, 24, 40)
    torch.testing.assert_close(found.patches, wanted, atol=1e-4, rtol=0)
    with pytest.raises(VplError, match="gives no attention"):
        tower(photo)


@pytest.mark.parametrize(("name", "part", "values"), [
    ("CLIP", "vision_config", {"text_config": {"hidden_size": 32, "num_hidden_layers": 1,
                                               "num_attention_heads": 2,
                                               "intermediate_size": 32, "vocab_size": 50}}),
    ("Tipsv2", "vision_config", {"text_config": {"hidden_size": 48, "num_hidden_layers": 1,
                                                 "num_attention_heads": 2, "vocab_size": 50,
                                                 "intermediate_size": 32}})])
def test_a_model_with_text_gives_its_vision_tower(name: str, part: str, values: dict[str, Any],
                                                  tmp_path: Path) -> None:
    model = original(name, {part: SMALL, **values})
    model.save_pretrained(tmp_path)
    encoder = load(tmp_path)
    family = "CLIPVision" if name == "CLIP" else "Tipsv2Vision"
    photo = pixels(48, 80)
    torch.testing.assert_close(
        encoder.vision(photo, attention=False).patches,
        wanted_patches(family, model.vision_model, photo, FAMILIES[family][1]), atol=1e-4, rtol=0)
    assert encoder.std == ((1.0,) * 3 if name == "Tipsv2" else
                           (0.26862954, 0.26130258, 0.27577711))


def test_colours_are_those_of_the_folder(tmp_path: Path) -> None:
    original("Dinov2", SMALL).save_pretrained(tmp_path)
    assert load(tmp_path).mean == (0.485, 0.456, 0.406)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}))
    encoder = load(tmp_path)
    assert encoder.mean == (0.1, 0.2, 0.3) and encoder.std == (0.4, 0.5, 0.6)


def test_code_of_a_repository_is_not_run(tmp_path: Path) -> None:
    original("Dinov2", SMALL).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "model.py").write_text("raise SystemExit('code was run')\n")
    content |= {"auto_map": {"AutoModel": "model.Model", "AutoConfig": "model.Config"},
                "_attn_implementation": "someone/kernels", "quantization_config": {"bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    tower = load(tmp_path).vision
    assert "auto_map" not in json.dumps(tower_config(tower))
    content["model_type"] = "someones_own"
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(VplError, match="does not know the vision models of `someones_own`"):
        load(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    original("Dinov2", SMALL).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "num_hidden_layers": 4}))
    with pytest.raises(VplError, match="does not hold the model of config.json"):
        load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").unlink(missing_ok=True)
    with pytest.raises(VplError, match="has no model.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize("change", [
    {"model": "bert"}, {"model": None}, {"values": 3}, {"name": None},
    {"values": {"num_hidden_layers": 10**9}}, {"values": {"hidden_size": 10**9}},
    {"values": {"hidden_size": "wide"}}], ids=str)
def test_a_file_with_another_model_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    original("Dinov2", SMALL).save_pretrained(tmp_path)
    tower = load(tmp_path).vision
    with pytest.raises(ValueError, match="."):
        tower_from_config({**tower_config(tower), **change}, tower.state_dict())


def test_names_on_the_hub_and_words() -> None:
    for name in ("hf:dinov2", "hf:a/b/c", "hf:/b"):
        with pytest.raises(VplError, match="not a name on the hub"):
            find_encoder(name, ())
    source = find_encoder("hf:facebook/dinov2-small", ())
    assert source.setting("") == "hf:facebook/dinov2-small" and source.weights is None
    with pytest.raises(VplError, match="not the text") as caught:
        find_source("", "hf:google/tipsv2-b14")
    assert "encoder" in caught.value.hint
