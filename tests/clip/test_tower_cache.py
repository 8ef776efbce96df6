"""Towers from the cache: the same as from open_clip, and only for the files that they are of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import Run, draw_scenes, prepare, save_clip, write_scenes
from safetensors.torch import load_file, save_file
from test_towers import build

from vpltool import file_hashes
from vpltool.clip import encoders, load, models, stored_towers
from vpltool.clip.encoders import Encoder, load_vision
from vpltool.clip.models import ModelSource, find_source
from vpltool.clip.weights import read_weights, recognise

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(file_hashes.FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_clip(tmp_path / "clip")


def read(folder: Path, **options: Any) -> Encoder:
    """Load a tower while open_clip cannot be imported."""
    with mock.patch.object(encoders, "load_clip", side_effect=AssertionError("open_clip")):
        return load_vision("", str(folder), CPU, **options)


def entry(cache: Path) -> Path:
    found, = (cache / "towers").iterdir()
    return found


@pytest.mark.parametrize("normalise", ["model", "imagenet"])
def test_the_second_time_it_is_the_same_without_open_clip(folder: Path, normalise: str) -> None:
    first = load_vision("", str(folder), CPU, normalise=normalise)
    second = read(folder, normalise=normalise)
    assert (second.mean, second.std, second.identity) == (first.mean, first.std, first.identity)
    state = second.vision.state_dict()
    assert list(state) == list(first.vision.state_dict())
    pixels = torch.randn(2, 3, 40, 48)
    for (name, wanted) in first.vision.state_dict().items():
        assert torch.equal(state[name], wanted), name
    wanted, found = first.vision(pixels), second.vision(pixels)
    assert torch.equal(found.patches, wanted.patches)
    assert torch.equal(found.attention, wanted.attention)
    assert not second.vision.training
    assert not any(tensor.requires_grad for tensor in second.vision.parameters())


def test_an_entry_serves_any_normalisation(folder: Path) -> None:
    own = load_vision("", str(folder), CPU)
    other = read(folder, normalise="imagenet")
    assert other.identity == {**own.identity, "normalise": "imagenet"}
    assert other.mean == models.IMAGENET[0] != own.mean


@pytest.mark.parametrize("name", ["ViT-B-16-quickgelu", "ViT-B-16-SigLIP", "coca_ViT-B-32"])
def test_every_kind_of_tower(name: str, tmp_path: Path) -> None:
    """SigLIP's query and positions are computed from several tensors: the entry holds them."""
    model = build(name)
    path = tmp_path / "weights.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path)
    source, state = find_source("ViT-B-16", str(path)), load_file(path)
    tower = load.tower_from_open_clip(model.visual)
    made_from = stored_towers.stamps(source, recognise(path))
    stored_towers.write_entry(source, made_from, state, tower, ((0, 0, 0), (1, 1, 1)), {})
    found = stored_towers.read_entry(source)
    assert found is not None
    pixels = torch.randn(1, 3, *(tower.patch * side for side in tower.grid))
    assert torch.equal(found[0].embed_photos(pixels), tower.embed_photos(pixels))


def test_half_precision_weights_are_read_as_the_model_has_them(folder: Path) -> None:
    path = folder / "open_clip_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    first, second = load_vision("", str(folder), CPU), read(folder)
    for name, tensor in first.vision.state_dict().items():
        assert torch.equal(second.vision.state_dict()[name], tensor), name


def test_an_entry_holds_no_weights(folder: Path, cache: Path) -> None:
    load_vision("", str(folder), CPU)
    weights = (folder / "open_clip_model.safetensors").stat().st_size
    assert entry(cache).stat().st_size < min(weights, 20_000)


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_config.json"])
def test_another_file_of_the_name_is_loaded_anew(file: str, folder: Path, tmp_path: Path,
                                                 cache: Path) -> None:
    """Same path, same size: the time of change tells."""
    first = load_vision("", str(folder), CPU)
    other = save_clip(tmp_path / "other", seed=1)
    (folder / file).write_bytes((other / file).read_bytes())
    with pytest.raises(AssertionError, match="open_clip"):
        read(folder)
    again = load_vision("", str(folder), CPU)
    assert (again.identity == first.identity) == (file == "open_clip_config.json")
    assert read(folder).identity == again.identity
    entry(cache)


def test_a_file_that_comes_first_now(folder: Path, tmp_path: Path) -> None:
    weights = folder / "open_clip_model.safetensors"
    weights.rename(folder / "model.safetensors")
    load_vision("", str(folder), CPU)
    shutil.copy(save_clip(tmp_path / "other", seed=1) / weights.name, weights)
    with pytest.raises(AssertionError, match="open_clip"):
        read(folder)


def test_a_copy_that_keeps_its_time(folder: Path, tmp_path: Path) -> None:
    weights = folder / "open_clip_model.safetensors"
    other = save_clip(tmp_path / "other", seed=1) / weights.name
    for path in (weights, other):
        os.utime(path, (1, 1))
    load_vision("", str(folder), CPU)
    shutil.copy2(other, weights)
    assert weights.stat().st_mtime == 1
    with pytest.raises(AssertionError, match="open_clip"):
        read(folder)


def test_a_revision_that_is_no_longer_the_hub_s(folder: Path, tmp_path: Path) -> None:
    """Its client keeps both, and takes the one that `refs/main` names."""
    shutil.copytree(folder, tmp_path / "hub/snapshots/old")
    main = tmp_path / "hub/refs/main"
    main.parent.mkdir()
    main.write_text("old")
    path = tmp_path / "hub/snapshots/old/open_clip_model.safetensors"
    source = ModelSource("clip", "hf-hub:a/clip", "hub")
    clip = load.load_clip("", str(folder), CPU)
    made_from = stored_towers.stamps(source, recognise(path))
    stored_towers.write_entry(source, made_from, load_file(path), clip.vision,
                              (clip.mean, clip.std), clip.identity)
    assert stored_towers.read_entry(source) is not None
    main.write_text("new")
    assert stored_towers.read_entry(source) is None


def test_weights_that_change_while_they_are_loaded(folder: Path, tmp_path: Path, cache: Path
                                                   ) -> None:
    """The new file under the old one's fingerprint would be taken for that for ever."""
    other = save_clip(tmp_path / "other", seed=1) / "open_clip_model.safetensors"

    def read_and_replace(*given: Any) -> Any:
        state = {name: tensor.clone() for name, tensor in read_weights(*given).items()}
        shutil.copy(other, folder / other.name)
        return state

    with mock.patch.object(load, "read_weights", read_and_replace):
        load_vision("", str(folder), CPU)
    assert not (cache / "towers").exists()


def damage_text(path: Path) -> None:
    path.write_text("{")


def damage_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def damage_config(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'\\"width\\": 32', b'\\"width\\": 33'))


def damage_colours(path: Path) -> None:
    content = path.read_bytes()
    at = content.index(b'\\"colours\\": [[') + len(b'\\"colours\\": [[')
    end = content.index(b"]", at)
    path.write_bytes(content[:at] + b"0, 1".ljust(end - at) + content[end:])


@pytest.mark.parametrize("damage", [damage_text, damage_end, damage_config, damage_colours])
def test_a_damaged_entry_is_made_again(damage: Any, folder: Path, cache: Path) -> None:
    load_vision("", str(folder), CPU)
    whole = entry(cache).read_bytes()
    damage(entry(cache))
    assert entry(cache).read_bytes() != whole
    with pytest.raises(AssertionError, match="open_clip"):
        read(folder)
    load_vision("", str(folder), CPU)
    assert entry(cache).read_bytes() == whole


def test_entries_of_vanished_weights_are_dropped(folder: Path, tmp_path: Path, cache: Path) -> None:
    load_vision("", str(folder), CPU)
    gone = entry(cache)
    shutil.rmtree(folder)
    load_vision("", str(save_clip(tmp_path / "other", seed=1)), CPU)
    assert entry(cache) != gone


def test_weights_that_vanished_are_the_usual_error(folder: Path) -> None:
    load_vision("", str(folder), CPU)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(load.VplError, match="has no weights"):
        read(folder)


def test_an_empty_name_means_no_cache(folder: Path, cache: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(file_hashes.FOLDER, "")
    load_vision("", str(folder), CPU)
    assert not (cache / "towers").exists()
    with pytest.raises(AssertionError, match="open_clip"):
        read(folder)


def test_a_folder_that_cannot_be_written_is_no_error(folder: Path, cache: Path) -> None:
    cache.write_text("a file")
    load_vision("", str(folder), CPU)
    assert cache.read_text() == "a file"


def test_a_folder_that_cannot_be_read_is_no_error(folder: Path, cache: Path) -> None:
    """As where a container runs as another user than the one whose home it has."""
    source = find_source("", str(folder))
    with mock.patch.object(stored_towers, "safe_open", side_effect=PermissionError):
        assert stored_towers.read_entry(source) is None
    with mock.patch.object(Path, "mkdir", side_effect=PermissionError):
        load_vision("", str(folder), CPU)
    assert not (cache / "towers").exists()


def test_the_home_of_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(file_hashes.FOLDER, "~no-such-user/cache")
    assert file_hashes.cache_folder() is None
    load_vision("", str(folder), CPU)


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(file_hashes.FOLDER)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert file_hashes.cache_folder() == Path.home() / ".cache/vpltool"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert file_hashes.cache_folder() == Path("/elsewhere/vpltool")


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Path]:
    write_scenes(tmp_path, draw_scenes(2))
    save_clip(tmp_path / "clip") if not (tmp_path / "clip").exists() else None
    assert prepare(tmp_path).code == 0
    return tmp_path / "work"


def test_the_second_extract_imports_no_open_clip(workspace: Path, cache: Path, run: Run) -> None:
    extract = ("extract", "--split", "val", "--overwrite", "--workers", "0")
    assert not cache.exists()
    assert run(*extract, work=workspace).code == 0
    assert entry(cache)
    code = ("import sys; from vpltool import cli\n"
            "try: cli.main()\n"
            "finally: print([name for name in ('open_clip', 'torchvision', 'timm') "
            "if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code, "-C", str(workspace), *extract],
                          capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
