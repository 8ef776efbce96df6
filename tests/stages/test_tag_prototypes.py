"""`tag-prototypes`, and what follows it without a word: salient CAMs, a discriminant, its CAMs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Run

from vpltool.core.affinity import border_saliency
from vpltool.formats import open_workspace, read_tensors, write_tensors


def read_photos(work: Path) -> list[tuple[torch.Tensor, tuple[int, int], list[int]]]:
    """Patches, grid and tags of each training photo."""
    workspace = open_workspace(work)
    found = []
    for photo in workspace.photos("train"):
        tensors = read_tensors(work / f"features/train/{photo.id}.safetensors", "features")[1]
        found.append((tensors["patches"].float(), tuple(tensors["grid"].tolist()),
                      workspace.indices_of(photo)))
    return found


def test_rows_are_those_of_plain_loops(run: Run, ready: Path, tmp_path: Path) -> None:
    work = ready / "work"
    made = run("tag-prototypes", "--share", 0.2, "--out", tmp_path / "t.safetensors", work=work)
    assert made.code == 0, made.err
    header, tensors = read_tensors(tmp_path / "t.safetensors", "prototypes")
    assert tensors["class_index"].tolist() == [1, 2, 3]
    assert header.facts["space"] == "vision"
    wanted = torch.zeros_like(tensors["prototypes"])
    for patches, grid, shown in read_photos(work):
        rank = border_saliency(patches[None], grid)[0]
        salient = [patch for patch, place in zip(patches, rank, strict=True) if place >= 0.8]
        for index in shown:
            wanted[index - 1] += torch.stack(salient).mean(dim=0) / len(shown)
    torch.testing.assert_close(tensors["prototypes"], F.normalize(wanted, dim=-1), atol=2e-3,
                               rtol=0)


@pytest.fixture()
def tagged(run: Run, copied: Path) -> Path:
    """A workspace with tag prototypes and salient CAMs, and no text prototypes."""
    work = copied / "work"
    (work / "prototypes/text.safetensors").unlink()
    for line in (("tag-prototypes",), ("cam", "--prototypes", "tags", "--method", "salient")):
        made = run(*line, work=work)
        assert made.code == 0, made.err
    return work


def test_a_discriminant_needs_no_words(run: Run, tagged: Path) -> None:
    made = run("seed-prototypes", "--cams", "tags-salient", "--start", "tags", "--phi", 0.9,
               "--phi-background", 0.5, "--method", "discriminant", work=tagged)
    assert made.code == 0, made.err
    tensors = read_tensors(tagged / "prototypes/seeds.safetensors", "prototypes")[1]
    assert tensors["class_index"].tolist() == [1, 2, 3, 0]
    made = run("cam", "--prototypes", "seeds", "--method", "discriminant", "--name", "seeds",
               work=tagged)
    assert made.code == 0, made.err
    rows = tensors["prototypes"] * tensors["scale"][:, None]
    owners = tensors["class_index"].tolist()
    workspace = open_workspace(tagged)
    for photo, (patches, grid, shown) in zip(workspace.photos("train"), read_photos(tagged),
                                             strict=True):
        cam = read_tensors(tagged / f"cams/seeds/train/{photo.id}.safetensors", "cams")[1]
        scores = patches @ rows.T + tensors["bias"]
        likely = scores[:, [owners.index(index) for index in [*shown, 0]]].softmax(dim=-1)
        torch.testing.assert_close(cam["cam"].float().flatten(1).T, likely[:, :-1], atol=2e-3,
                                   rtol=0)
        assert cam["cam"].shape[1:] == grid


def test_maps_need_the_discriminant_s_own_prototypes(run: Run, tagged: Path) -> None:
    refused = run("cam", "--prototypes", "tags", "--method", "discriminant", work=tagged)
    assert refused.code == 1
    assert "how its rows are weighed" in refused.lines("error:")[0]
    assert "--method discriminant" in refused.lines("hint:")[0]


def test_cams_without_a_seed_are_refused(run: Run, tagged: Path) -> None:
    """Unlabelled pixels alone teach nothing, although they are read."""
    workspace = open_workspace(tagged)
    for photo in workspace.photos("train"):
        path = tagged / f"cams/tags-salient/train/{photo.id}.safetensors"
        header, tensors = read_tensors(path, "cams")
        write_tensors(path, header, {**tensors, "cam": torch.full_like(tensors["cam"], 0.7)})
    refused = run("seed-prototypes", "--cams", "tags-salient", "--start", "tags", "--phi", 0.9,
                  "--phi-background", 0.5, "--method", "discriminant", work=tagged)
    assert refused.code == 1
    assert "no pixel reaches" in refused.lines("error:")[0]
