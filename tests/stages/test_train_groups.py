"""`train-groups` through the command line: the file, resuming, several processes, refusals."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, copy_workspace, draw_scenes, prepare, write_scenes
from launching import launch
from torch import Tensor

from vpltool.core import group_training
from vpltool.core.group_maps import class_maps, group_maps, name_groups
from vpltool.engine.groups import from_groupvit, is_groupvit, read_groups, text_encoder
from vpltool.engine.segmenters import find_segmenter
from vpltool.formats import Header, describe, open_workspace, read_tensors, write_tensors
from vpltool.stages._pairs import Plan, WorkspacePairs, cut_photo

SIZES = ("--side", 16, "--patch", 4, "--width", 12, "--heads", 2, "--depths", "1,1,1",
         "--groups", "4,2", "--hidden", 8, "--npr-hidden", 8)
TRAIN = ("train-groups", *SIZES, "--iters", 5, "--batch-size", 4, "--lr", 1e-2, "--workers", 0)
OWN = ("--text", "own", "--text-width", 8, "--text-depth", 1, "--text-heads", 2, "--context", 12,
       "--dim", 8)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """A workspace of eight photos; all but one have captions. Read only."""
    base = tmp_path_factory.mktemp("captioned")
    (base / "clip").symlink_to(tiny_clip)
    scenes = draw_scenes()
    write_scenes(base, scenes)
    rows = [f"{scene.id},a {word} of a {scene.tags[0]}" for scene in scenes[1:]
            for word in ("photo", "picture")]
    (base / "captions.csv").write_text("\n".join(["id,caption", *rows, ""]))
    assert prepare(base, "--captions", base / "captions.csv").code == 0
    return base / "work"


@pytest.fixture
def work(captioned: Path, tmp_path: Path, tiny_clip: Path) -> Path:
    """A copy that a test may change."""
    return copy_workspace(captioned.parent, tmp_path / "base", tiny_clip) / "work"


def header_of(path: Path) -> Header:
    header = describe(path).header
    assert header is not None
    return header


def weights_of(path: Path) -> dict[str, Tensor]:
    return read_tensors(path, "groups")[1]


@pytest.mark.parametrize("text", ["clip", "own"])
def test_the_file_and_what_takes_it(text: str, run: Run, work: Path) -> None:
    result = run(*TRAIN, *(OWN if text == "own" else ()), work=work)
    assert result.code == 0, result.err
    path = work / "groups/groups.safetensors"
    assert result.out.splitlines() == [str(path)]
    assert result.lines("warning:") == ["1 of 6 photos has no caption and is skipped"]
    header = header_of(path)
    assert (header.kind, header.command) == ("groups", "train-groups")
    assert set(header.inputs) == {"captions"}
    assert bool(header.model) == (text == "clip")
    assert [entry[0] for entry in header.facts["curve"]] == [1, 2, 3, 4, 5]
    assert all(loss > 0 for entry in header.facts["curve"] for loss in entry[1:])
    header, network = read_groups(find_segmenter(work, "").path)
    maps = group_maps(network, torch.zeros(1, 3, 16, 24))[0]
    texts = text_encoder(open_workspace(work), network, header.model, torch.device("cpu"))(
        ["bar", "box", "disc"])
    scores = class_maps(maps.second, name_groups(maps, texts, network.log_scale, 5))
    assert scores.shape == (3, 4, 6)
    before = path.read_bytes()
    again = run(*TRAIN, *(OWN if text == "own" else ()), work=work)
    assert "already exists" in again.err
    assert path.read_bytes() == before


@pytest.mark.parametrize(("npr", "parts"), [("none", 1), ("photos", 3), ("text", 2), ("both", 4)])
def test_parts_of_the_loss(npr: str, parts: int, run: Run, work: Path) -> None:
    result = run(*TRAIN, "--npr", npr, "--iters", 2, work=work)
    assert result.code == 0, result.err
    path = work / "groups/groups.safetensors"
    assert sum(loss > 0 for loss in header_of(path).facts["curve"][0][1:]) == parts
    averages = {name.split(".")[-3] if "vision" in name else "text" for name in weights_of(path)
                if name.endswith("average")}
    assert averages == {"none": set(), "photos": {"first", "second"}, "text": {"text"},
                        "both": {"first", "second", "text"}}[npr]


def test_a_stopped_run_ends_in_the_same_bytes(run: Run, work: Path, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, optimizer, prototypes, BatchNorm and chance: there, only weights are loaded."""
    whole = tmp_path / "whole.safetensors"
    assert run(*TRAIN, "--out", whole, work=work).code == 0
    target = tmp_path / "stopped.safetensors"
    step = group_training.Objective.forward
    taken = []

    def stopped(self: Any, pixels: Tensor, texts: Tensor) -> Any:
        taken.append(1)
        if len(taken) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, pixels, texts)

    with monkeypatch.context() as patched:
        patched.setattr(group_training.Objective, "forward", stopped)
        assert run(*TRAIN, "--out", target, work=work).code == 130
    checkpoint = tmp_path / "stopped.checkpoint.safetensors"
    assert not target.exists()
    assert header_of(checkpoint).facts["checkpoint"] == 3
    with pytest.raises(Exception, match="checkpoint of a run that was stopped"):
        read_groups(checkpoint)
    torch.rand(7)
    result = run(*TRAIN, "--out", target, "--workers", 2, work=work)
    assert result.code == 0, result.err
    assert "resuming from step 3 of 5" in result.err
    assert target.read_bytes() == whole.read_bytes()
    assert not checkpoint.exists()


def test_other_settings_are_refused(run: Run, work: Path) -> None:
    assert run(*TRAIN, "--iters", 1, work=work).code == 0
    result = run(*TRAIN, "--iters", 1, "--reject", "0.3", work=work)
    assert result.code == 1
    assert "reject was 0.1, now 0.3" in result.lines("error:")[0]


@pytest.mark.parametrize(("options", "said", "hint"), [
    (("--side", 18), "`side=18`", "--side 20"),
    (("--heads", 5), "`width=12`", "--width 15"),
    (("--depths", "1,1"), "--depths", "6,3,3"),
    (("--groups", "4,x"), "--groups", "64,8"),
    (("--start", "none.safetensors"), "no such file", "train-groups"),
    (("--split", "nowhere"), "nowhere", ""),
    (("--precision", "fp16"), "fp16", "bf16"),
    (("--em-rounds", 3, "--npr", "none"), "", "")])
def test_refusals(options: tuple[object, ...], said: str, hint: str, run: Run, captioned: Path,
                  tmp_path: Path) -> None:
    result = run(*TRAIN, "--iters", 1, *options, "--out", tmp_path / "g.safetensors",
                 work=captioned)
    if not said:
        assert result.code == 0, result.err
        assert any("--em-rounds 3 has no effect with --npr none" in line
                   for line in result.lines("warning:"))
        return
    assert result.code == 1, result.err
    assert said.strip("`").replace("=", " ").lstrip("-") in result.lines("error:")[0].replace(
        "--", "")
    assert hint in result.lines("hint:")[0]
    assert not [*tmp_path.iterdir()]


def test_what_has_no_effect_is_said(run: Run, work: Path) -> None:
    given = {"--lambda-first": "0.2", "--lambda-second": "0.3", "--lambda-text": "0.02",
             "--tau": "2.5", "--text-tau": "0.1", "--momentum": "0.5", "--reject": "0.2"}
    result = run(*TRAIN, "--npr", "none", *(word for pair in given.items() for word in pair),
                 work=work)
    assert result.code == 0, result.err
    for option, value in given.items():
        assert any(f"{option} {value} has no effect with --npr none" in line
                   for line in result.lines("warning:")), option


def test_photos_without_captions(run: Run, ready: Path) -> None:
    result = run(*TRAIN, work=ready / "work")
    assert result.code == 1
    assert "no photo of the split `train` has a caption" in result.lines("error:")[0]
    assert "--captions" in result.lines("hint:")[0]


def test_a_broken_photo_is_named_and_another_takes_its_place(run: Run, work: Path) -> None:
    broken = work.parent / "photos/scene2.png"
    broken.write_bytes(b"no photo")
    result = run(*TRAIN, work=work)
    assert result.code == 0, result.err
    assert any("scene2.png" in line for line in result.lines("warning:"))
    assert "1 of 5 photos could not be read, and was replaced by another" in result.err
    for path in (work.parent / "photos").iterdir():
        path.write_bytes(b"no photo")
    result = run(*TRAIN, "--overwrite", work=work)
    assert result.code == 1
    assert "ten photos in a row cannot be read" in result.lines("error:")[0]


def test_each_pair_once_an_epoch_and_shared_by_processes(captioned: Path) -> None:
    source = WorkspacePairs(open_workspace(captioned), "train", 0)
    whole = Plan(8, 1.0, False, share=2, iterations=3, seed=1)
    steps = [*source.steps(whole, 0)]
    assert [len(step.captions) for step in steps] == [2, 2, 2]
    halves = [[*source.steps(replace(whole, share=1, rank=rank, ranks=2, workers=2), 0)]
              for rank in (0, 1)]
    for number, step in enumerate(steps):
        assert torch.cat([half[number].pixels for half in halves]).equal(step.pixels)
        assert [*halves[0][number].captions, *halves[1][number].captions] == step.captions
    later = [*source.steps(whole, 2)]
    assert later[0].pixels.equal(steps[2].pixels)
    first_epoch = torch.cat([step.pixels for step in steps])[: len(source.photos)]
    assert len(first_epoch.flatten(1).unique(dim=0)) == len(source.photos)


def test_a_cut_is_a_part_of_the_photo() -> None:
    photo = np.zeros((30, 40, 3), np.uint8)
    photo[..., 0], photo[..., 1] = np.arange(30)[:, None] * 4, np.arange(40) * 4
    for seed in range(20):
        rng = np.random.default_rng(seed)
        made = cut_photo(photo, Plan(16, 0.5, False, 1, 1, 0), rng).float()
        tall, wide = ((made[channel].amax() - made[channel].amin()) / 4 for channel in (0, 1))
        assert 0.3 < float(tall * wide) / (29 * 39) <= 1.02
        assert 0.6 < float(tall / wide) / (29 / 39) < 1.6
    same = cut_photo(photo, Plan(16, 1.0, False, 1, 1, 0), np.random.default_rng(0))
    mirrored = [cut_photo(photo, Plan(16, 1.0, True, 1, 1, 0), np.random.default_rng(seed))
                for seed in range(12)]
    assert {bool(each.equal(same.flip(2))) for each in mirrored} == {True, False}


def test_weights_to_begin_with(run: Run, work: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert run(*TRAIN, *OWN, "--npr", "none", "--out", first, work=work).code == 0
    result = run(*TRAIN, "--start", first, "--iters", 1, "--lr", "1e-9", "--lr-start", "1e-9",
                 "--lr-end", 0, "--out", second, work=work)
    assert result.code == 0, result.err
    assert "randomly initialised: " in result.err
    assert "project_vision" in result.err
    taken, given = weights_of(second), weights_of(first)
    assert torch.allclose(taken["vision.first.tokens"], given["vision.first.tokens"], atol=1e-6)
    assert set(header_of(second).inputs) == {"captions", "begin"}
    result = run(*TRAIN, "--start", first, "--width", 16, "--out", tmp_path / "c.safetensors",
                 work=work)
    assert result.code == 1
    assert "its `vision." in result.lines("error:")[0]


def names_of_transformers() -> list[str]:
    """The names of GroupViT's tensors there, with one block a stage."""
    both = [f"{part}.{kind}" for kind in ("weight", "bias") for part in (
        "vision_model.layernorm", "vision_model.embeddings.layernorm",
        "vision_model.embeddings.patch_embeddings.projection", "text_model.final_layer_norm",
        *(f"{side}_projection.{number}" for side in ("visual", "text") for number in (0, 1, 3)),
        *(f"{place}.layers.0.{part}" for place in (
            "text_model.encoder", *(f"vision_model.encoder.stages.{stage}" for stage in range(3)))
          for part in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2",
                       *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")))),
        *(f"vision_model.encoder.stages.1.group_projector.{part}" for part in ("0", "1.fc1",
                                                                               "1.fc2")),
        *(f"vision_model.encoder.stages.{stage}.downsample.{part}" for stage in (0, 1)
          for part in (
              "norm_tokens", "mlp_inter.fc1", "mlp_inter.fc2", "norm_post_tokens", "norm_x",
              *(f"pre_assign_attn.attn.{name}_proj" for name in ("q", "k", "v", "out")),
              "pre_assign_attn.norm2", "pre_assign_attn.mlp.fc1", "pre_assign_attn.mlp.fc2",
              "pre_assign_attn.norm_post", "assign.q_proj", "assign.k_proj", "assign.v_proj",
              "assign.proj", "norm_new_x", "mlp_channels.fc1", "mlp_channels.fc2")))]
    return [*both, "logit_scale", "vision_model.embeddings.position_embeddings",
            "text_model.embeddings.token_embedding.weight",
            "text_model.embeddings.position_embedding.weight", "text_model.embeddings.position_ids",
            *(f"vision_model.encoder.stages.{stage}.group_token" for stage in (0, 1)),
            *(f"{side}_projection.1.{kind}" for side in ("visual", "text")
              for kind in ("running_mean", "running_var", "num_batches_tracked"))]


def test_names_of_transformers(run: Run, work: Path, tmp_path: Path) -> None:
    """Each has its place, and no other weight of the network is left at random."""
    assert run(*TRAIN, *OWN, "--npr", "none", "--iters", 1, work=work).code == 0
    ours = weights_of(work / "groups/groups.safetensors")
    state = {name: torch.full((1,), float(number))
             for number, name in enumerate(names_of_transformers())}
    assert is_groupvit(state)
    assert not is_groupvit(ours)
    named = from_groupvit({name: tensor[None] if name.endswith("position_embeddings") else tensor
                           for name, tensor in state.items()})
    assert named.keys() == {name for name in ours
                            if "gamma_" not in name and name != "log_npr_scales"}
    qkv = named["vision.second.blocks.0.qkv.weight"]
    assert qkv.tolist() == [float(state[
        f"vision_model.encoder.stages.1.layers.0.self_attn.{part}_proj.weight"]) for part in "qkv"]


def test_a_file_of_something_else_is_no_start(run: Run, captioned: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    write_tensors(other, Header(kind="decoder", command="train-decoder"), {"x": torch.ones(3)})
    result = run(*TRAIN, "--start", other, work=captioned)
    assert result.code == 1
    assert "holds no weights of a grouping encoder" in result.lines("error:")[0]


def test_two_processes(work: Path) -> None:
    """Both take part in each step, one writes; the same command again begins from its file."""
    launch(2, ["-m", "vpltool", "-C", work, *TRAIN])
    header = header_of(work / "groups/groups.safetensors")
    assert header.options["processes"] == 2
    assert [entry[0] for entry in header.facts["curve"]] == [1, 2, 3, 4, 5]
    assert not [*(work / "groups").glob("*checkpoint*")]


def _gathered(rank: int, folder: str, photos: Tensor, spoken: Tensor, weight: Tensor) -> None:
    """A process's gradient of the contrast over all pairs, by `Ranks`."""
    import torch.distributed as dist

    from vpltool.parallel.ranks import Ranks

    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    ranks = Ranks(rank, 2, torch.device("cpu"))
    own = slice(3 * rank, 3 * rank + 3)
    learned = weight.clone().requires_grad_()
    seen, said = photos[own] @ learned, spoken[own] @ learned
    group_training.contrast(seen, said, ranks.gather(seen), ranks.gather(said), torch.tensor(1.0),
                            rank).backward()
    assert learned.grad is not None
    torch.save({"mean": ranks.mean(learned.grad), "any": ranks.any(rank == 1, False)},
               f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_gathered_features_have_the_gradient_of_one_process(tmp_path: Path) -> None:
    import multiprocessing

    generator = torch.Generator().manual_seed(0)
    photos, spoken = (torch.randn(6, 4, generator=generator) for _ in range(2))
    weight = torch.randn(4, 5, generator=generator)
    # A torch for CUDA refuses gradients in a process forked from one that has taken some.
    context = multiprocessing.get_context("spawn" if torch.version.cuda else "fork")
    others = [context.Process(target=_gathered, args=(rank, str(tmp_path), photos, spoken, weight))
              for rank in (0, 1)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
    learned = weight.clone().requires_grad_()
    seen, said = photos @ learned, spoken @ learned
    group_training.contrast(seen, said, seen, said, torch.tensor(1.0)).backward()
    for rank in (0, 1):
        made = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(made["mean"], learned.grad)
        assert made["any"] == [True, False]
