"""What methods may read beside features: a second encoder, prototypes, what a row comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Run, copy_workspace, save_clip
from PIL import Image

from vpltool.formats import open_input, read_tensors
from vpltool.methods import FOLDERS

TOYS = {
    "estimators/all-rows": '''"""Every region is a row."""
import torch
from vpltool import settings
READS = ("patches",)
class Settings(settings.Settings):
    """None."""
def estimate(pool, text, text_index, settings, seed):
    kept = pool.labels > 0
    return (torch.cat([pool.embeddings[kept], text]), torch.cat([pool.labels[kept], text_index]),
            {"photo_of": torch.cat([pool.photo_of[kept], torch.full_like(text_index, -1)]),
             "context_of": torch.cat([torch.zeros_like(pool.labels[kept]), text_index])})
''',
    "cams/rows": '''"""Level of each class: the share of rows that come from the photo itself."""
import torch
from vpltool import settings
READS = ("patches", "second_patches", "second_attention", "attentions")
class Settings(settings.Settings):
    """None."""
def make_cams(batch, settings):
    n = batch.grid[0] * batch.grid[1]
    assert batch.tensors["second_patches"].shape[:2] == (len(batch.ids), n)
    assert batch.tensors["second_attention"].shape == (len(batch.ids), n, n)
    assert batch.tensors["attentions"].shape == (len(batch.ids), 2, n, n)
    maps = []
    for key, present in zip(batch.ids, batch.present):
        own = batch.of_rows["photo_of"] == batch.row_photos.index(key)
        maps.append(torch.stack([torch.full(batch.grid, (own & (batch.class_index == c)).sum() / 8)
                                 for c in present]))
    return maps
''',
    "refiners/rows": '''"""As many as there are rows with a context, in 64."""
import torch
from vpltool import settings
READS = ("patches", "prototypes", "second_attention")
class Settings(settings.Settings):
    """None."""
def refine(photo, settings):
    assert photo.tensors["second_attention"].shape == 2 * photo.tensors["patches"].shape[:1]
    assert len(photo.prototypes) == len(photo.class_index)
    return torch.full_like(photo.cams, (photo.of_rows["context_of"] > 0).sum() / 64)
''',
}


@pytest.fixture(scope="module")
def root(ready: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """As `ready`, with the attention of two blocks, a second encoder's features, and toys."""
    base = copy_workspace(ready, tmp_path_factory.mktemp("world") / "base", tiny_clip)
    for name, text in TOYS.items():
        path = base / "toys" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    fine = save_clip(base / "fine", seed=5, vision={"patch_size": 4})
    second = base / "second"
    assert run("prepare", "folder", base / "photos", "--labels", base / "tags.csv",
               "--pretrained", fine, work=second).code == 0
    assert run("extract", "--out", base / "work/features-second/train", "--keep",
               "patches,attention", work=second).code == 0
    assert run("extract", "--keep", "tokens,patches,attention,attentions", "--attention-blocks",
               2, "--overwrite", work=base / "work").code == 0
    return base


@pytest.fixture(autouse=True)
def toys(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDERS, str(root / "toys"))


@pytest.fixture(scope="module")
def bank(root: Path, run: Run) -> Path:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(FOLDERS, str(root / "toys"))
        result = run("seed-prototypes", "--method", "all-rows", "--pixels", "regions",
                     "--cams", "text", "--out", root / "work/prototypes/bank.safetensors",
                     work=root / "work")
    assert result.code == 0, result.err
    return Path(result.out.strip())


def test_rows_know_their_photos(bank: Path) -> None:
    header, tensors = read_tensors(bank, "prototypes")
    assert header.facts["photos"] == [f"scene{number}" for number in range(6)]
    assert tensors["photo_of"].shape == tensors["class_index"].shape


def test_a_map_reads_a_second_encoder_and_the_rows_photos(root: Path, bank: Path, run: Run
                                                          ) -> None:
    result = run("cam", "--method", "rows", "--prototypes", "bank", work=root / "work")
    assert result.code == 0, result.err
    folder = root / "work/cams/bank-rows/train"
    assert "second" in open_input(folder, ("cams",)).header.inputs
    for path in folder.glob("scene*"):
        cam = read_tensors(path, "cams")[1]["cam"]
        seen = read_tensors(root / "work/cams/text/train" / path.name, "cams")[1]["cam"]
        # A class whose map is empty has no region, so no row.
        shown = seen.flatten(1).any(dim=1)[:, None, None].expand_as(cam)
        assert torch.equal(cam, shown.to(cam) / 8)


def test_a_refiner_reads_prototypes(root: Path, bank: Path, run: Run) -> None:
    result = run("refine", "--method", "rows", "--cams", "text", "--prototypes", "bank",
                 "--out", root / "refined", work=root / "work")
    assert result.code == 0, result.err
    assert {"second", "prototypes"} <= set(open_input(root / "refined", ("cams",)).header.inputs)
    cam = read_tensors(next((root / "refined").glob("scene*")), "cams")[1]["cam"]
    assert float(cam.min()) == float(cam.max()) > 0


def test_what_a_method_does_not_read_is_warned_about(root: Path, tmp_path: Path, run: Run
                                                     ) -> None:
    result = run("refine", "--cams", "text", "--prototypes", "text", "--second", tmp_path,
                 "--out", tmp_path / "refined", work=root / "work")
    assert result.code == 0, result.err
    assert result.lines("warning:") == [
        f"--second {tmp_path} has no effect: `attention` reads no second encoder",
        "--prototypes text has no effect: `attention` reads no prototypes"]


def test_a_second_encoder_that_is_not_there(root: Path, bank: Path, tmp_path: Path, run: Run
                                            ) -> None:
    result = run("refine", "--method", "rows", "--prototypes", "bank", "--cams", "text",
                 "--second", tmp_path / "none", work=root / "work")
    assert result.code == 1
    assert str(tmp_path / "none") in result.lines("error:")[0]
    assert "vpltool extract" in result.lines("hint:")[0]


def test_a_second_encoder_that_saw_another_photo(root: Path, bank: Path, tmp_path: Path, run: Run
                                                 ) -> None:
    """Both sizes are told; nothing is stretched in silence."""
    work, other = root / "work", tmp_path / "second"
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in (root / "photos").iterdir():
        Image.open(path).resize((96, 32)).save(photos / path.name)
    assert run("prepare", "folder", photos, "--labels", root / "tags.csv", "--pretrained",
               root / "fine", work=other).code == 0
    assert run("extract", "--keep", "patches,attention", work=other).code == 0
    line = ("refine", "--method", "rows", "--prototypes", "bank", "--cams", "text",
            "--second", other / "features/train", "--out", tmp_path / "out")
    result = run(*line, work=work)
    assert result.code == 1
    assert "6 of 6 files are out of date (photo replaced)" in result.lines("error:")[0]
    # As where the photos could not be read.
    manifest = other / "features/train/artifact.json"
    content = json.loads(manifest.read_text())
    del content["photos"]
    manifest.write_text(json.dumps(content))
    result = run(*line, work=work)
    assert result.code == 1
    assert "8×24 patches" in result.lines("error:")[0]
