"""What files are made from is known by its bytes: photos, weights, words; and what then is stale.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import CHAIN, TRAIN, Run, copy_workspace, run_chain
from PIL import Image
from safetensors.torch import load_file, save_file

from vpltool import file_hashes
from vpltool.formats import Photo, Workspace, describe, open_workspace
from vpltool.formats.workspace import write_workspace


def stale(run: Run, work: Path) -> dict[str, list[str]]:
    """Name to reasons of what `status` calls stale."""
    said = run("status", "--stale", "--json", work=work)
    assert said.code == 0, said.err
    return {entry["name"]: entry["stale"] for entry in json.loads(said.out)}


def contents(work: Path) -> dict[str, bytes]:
    """Name to bytes of every file that a stage made."""
    return {str(path.relative_to(work)): path.read_bytes() for path in sorted(work.rglob("*"))
            if path.is_file() and path.suffix in (".safetensors", ".png", ".json")
            and path.relative_to(work).parts[0] not in ("scores", "pictures")}


# Weights


def change_all_but_the_sampled(clip: Path) -> None:
    """Change every number of the weights, but not the first of every 101."""
    file = clip / "open_clip_model.safetensors"
    state = load_file(file)
    for tensor in state.values():
        flat = tensor.view(-1)
        kept = flat[::101].clone()
        flat += 0.25
        flat[::101] = kept
    save_file(state, file)


@pytest.fixture
def own_clip(ready: Path, tmp_path: Path, tiny_clip: Path) -> Path:
    """A copy of `ready` with a CLIP of its own, base/clip, that a test may change."""
    shutil.copytree(tiny_clip, tmp_path / "models" / "clip")
    return copy_workspace(ready, tmp_path / "base", tmp_path / "models" / "clip")


def test_other_weights_under_the_same_name(run: Run, own_clip: Path) -> None:
    work = own_clip / "work"
    assert stale(run, work) == {}
    change_all_but_the_sampled(own_clip.parent / "models" / "clip")
    found = stale(run, work)
    assert {"features/train", "prototypes/text.safetensors"} <= found.keys()
    assert all("the weights of clip have changed" in found[name][0]
               for name in ("features/train", "prototypes/text.safetensors"))
    for command in ("extract", "text-prototypes"):
        refused = run(command, *(("--prompts", "single") if command == "text-prototypes" else ()),
                      work=work)
        assert refused.code == 1
        assert "have changed" in refused.lines("error:")[0]
        assert "update" in refused.lines("hint:")[0]
    updated = run("update", work=work)
    assert updated.code == 0, updated.err
    assert stale(run, work) == {}

    fresh = own_clip.parent / "fresh"
    copy_workspace(own_clip, fresh, own_clip.parent / "models" / "clip")
    for name in ("features", "prototypes", "cams", "masks"):
        shutil.rmtree(fresh / "work" / name)
    run_chain(fresh, CHAIN)
    assert contents(fresh / "work") == contents(work)


def test_features_of_one_clip_are_never_mixed_with_those_of_another(run: Run, own_clip: Path
                                                                    ) -> None:
    """The second half of a run that was stopped, with other weights by then."""
    work = own_clip / "work"
    lost = sorted((work / "features/train").glob("*.safetensors"))[0]
    lost.unlink()
    change_all_but_the_sampled(own_clip.parent / "models" / "clip")
    assert run("extract", work=work).code == 1
    assert not lost.exists()


# Photos


SEEDING = ("--cams", "text", "--phi", "0.5", "--phi-background", "0.5", "--background", "clusters",
           "--clusters", 3)

STAGES: tuple[tuple[tuple[object, ...], tuple[str, ...]], ...] = (
    (("extract", "--workers", 0, "--keep", "tokens,patches,attention,layers"),
     ("features/train", "features/train.head.safetensors")),
    (("cam",), ("cams/text/train",)),
    (("refine", "--cams", "text"), ("cams/text-refined/train",)),
    (("crf", "--workers", 0), ("masks",)),
    (("seed-prototypes", *SEEDING), ("prototypes/seeds.safetensors",)),
    (("learn-prototypes", "--pixels", "seeds", *SEEDING[:6], "--start", "seeds", "--iters", 5),
     ("prototypes/vision.safetensors",)),
    (("cam", "--prototypes", "vision"), ("cams/vision/train",)),
    ((*TRAIN, "--name", "tiny"), ("decoder",)),
    (("predict", "--decoder", "tiny", "--split", "train", "--probabilities", "--workers", 0),
     ("predictions", "probabilities")),
)
"""A stage of a chain, and what it writes."""

ITS_OWN = ("features/train", "cams/text/train", "cams/text-refined/train", "masks/text-refined",
           "masks/text-refined-full")
"""What is made from one photo alone."""


def replace_photo(base: Path, name: str = "scene2") -> None:
    """Another photo under the name of one, of the same size in pixels."""
    path = base / "photos" / f"{name}.png"
    pixels = np.asarray(Image.open(path))
    Image.fromarray(pixels[::-1, ::-1].copy()).save(path)


def run_stages(base: Path, first: int = 0) -> None:
    run_chain(base, tuple(command for command, _ in STAGES[first:]))


@pytest.fixture(scope="module")
def bare(ready: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """Photos, and a workspace with text prototypes."""
    base = copy_workspace(ready, tmp_path_factory.mktemp("bare") / "base", tiny_clip)
    for name in ("features", "cams", "masks"):
        shutil.rmtree(base / "work" / name)
    return base


@pytest.fixture(scope="module")
def chained(bare: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    base = copy_workspace(bare, tmp_path_factory.mktemp("chained") / "base", tiny_clip)
    run_stages(base)
    return base


@pytest.fixture(scope="module")
def clean(bare: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path
          ) -> dict[str, bytes]:
    """What all stages make of the replaced photo, from the start."""
    base = copy_workspace(bare, tmp_path_factory.mktemp("clean") / "base", tiny_clip)
    replace_photo(base)
    run_stages(base)
    return contents(base / "work")


def untouched(work: Path) -> dict[str, tuple[int, int]]:
    """Name to time and inode of the files of one photo each, but those of the replaced one."""
    return {f"{name}/{path.name}": (path.stat().st_mtime_ns, path.stat().st_ino)
            for name in ITS_OWN for path in sorted((work / name).rglob("scene*"))
            if path.stem != "scene2"}


@pytest.mark.parametrize("number", range(len(STAGES) + 1),
                         ids=[str(command[0]) for command, _ in STAGES] + ["status"])
def test_a_photo_is_replaced_before_a_stage(run: Run, chained: Path, clean: dict[str, bytes],
                                            tmp_path: Path, tiny_clip: Path, number: int) -> None:
    base = copy_workspace(chained, tmp_path / "base", tiny_clip)
    work = base / "work"
    for _, names in STAGES[number:]:
        for name in names:
            path = work / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert stale(run, work) == {}
    replace_photo(base)
    before = untouched(work)
    made = [name for _, names in STAGES[:number] for name in names if "head" not in name]
    found = stale(run, work)
    assert {name.split("/")[0] for name in found} >= {name.split("/")[0] for name in made}
    if number < len(STAGES):
        result = run(*STAGES[number][0], work=work)
        # `extract` reads the photo; the others what was made from the one that was there.
        assert result.code == (1 if number else 0), result.err
        if number:
            assert "replaced" in result.lines("error:")[0]
            assert "update" in result.lines("hint:")[0]
    assert run("update", work=work).code == 0
    assert stale(run, work) == {}
    run_stages(base, number)
    after = untouched(work)
    assert {name: after[name] for name in before} == before
    assert contents(work) == clean


# What is remembered of files


def test_a_file_is_read_again_only_when_it_changed(tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(file_hashes.FOLDER, str(tmp_path / "cache"))
    monkeypatch.setattr(file_hashes, "_SETTLED", 0)
    read: list[str] = []
    whole = file_hashes.identity_of_file
    monkeypatch.setattr(file_hashes, "identity_of_file",
                        lambda path: (read.append(path.name), whole(path))[1])
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a", "b"):
        (photos / name).write_text(name)
    names = ["a", "b", "missing"]
    first = file_hashes.hashes_of(photos, names)
    assert first == {name: whole(photos / name) for name in "ab"}
    assert file_hashes.hashes_of(photos, names) == first
    assert sorted(read) == ["a", "b"]
    (photos / "a").write_text("A")
    assert file_hashes.hashes_of(photos, names) == {**first, "a": whole(photos / "a")}
    assert sorted(read) == ["a", "a", "b"]
    memory, = (tmp_path / "cache/hashes").iterdir()
    for damaged in ("{", "[]", '{"a": 1}', '{"a": [["x"], "y"]}'):
        memory.write_text(damaged)
        assert file_hashes.hashes_of(photos, ["b"]) == {"b": first["b"]}


def test_what_changed_a_moment_ago_is_not_remembered(tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may change twice within a tick of the clock, in place, and keep its size."""
    monkeypatch.setenv(file_hashes.FOLDER, str(tmp_path / "cache"))
    (tmp_path / "a").write_text("a")
    file_hashes.hashes_of(tmp_path, ["a"])
    assert not (tmp_path / "cache").exists()


# What is looked at before anything is deleted


@pytest.mark.parametrize("command", [("extract", "--workers", 0), ("crf", "--workers", 0)])
def test_photos_that_are_gone_delete_nothing(run: Run, copied: Path, command: tuple[object, ...]
                                             ) -> None:
    """A disk that is not mounted: the results that are there are all that is left."""
    (copied / "photos").rename(copied / "elsewhere")
    before = contents(copied / "work")
    refused = run(*command, "--overwrite", work=copied / "work")
    assert refused.code == 1
    assert "gone or cannot be read" in refused.lines("error:")[0]
    assert contents(copied / "work") == before
    assert stale(run, copied / "work") == {}


def test_photos_of_the_same_names_from_another_folder(run: Run, copied: Path) -> None:
    """`prepare --overwrite` with other photos: none of the old ones' features stay."""
    work, other = copied / "work", copied / "other"
    shutil.copytree(copied / "photos", other)
    for path in other.glob("*.png"):
        Image.fromarray(np.asarray(Image.open(path))[::-1].copy()).save(path)
    before = contents(work / "features")
    assert run("prepare", "folder", other, "--labels", copied / "tags.csv", "--overwrite",
               work=work).code == 0
    assert stale(run, work)["features/train"] == ["6 of 6 photos are to be done"]
    assert run("update", work=work).code == 0
    after = contents(work / "features")
    assert after.keys() == before.keys()
    assert not [name for name in after if "scene" in name and after[name] == before[name]]


def test_a_photo_that_failed_and_is_another_one_now(run: Run, copied: Path) -> None:
    work, photo = copied / "work", copied / "photos/scene0.png"
    good = photo.read_bytes()
    photo.write_bytes(b"no photo")
    assert run("update", work=work).code == 1
    assert stale(run, work) == {}
    photo.write_bytes(good)
    assert stale(run, work)["features/train"] == ["1 of 6 photos is to be done"]
    assert run("update", work=work).code == 0
    assert stale(run, work) == {}
    assert (work / "masks/text-refined/train/scene0.png").exists()


def test_a_photo_that_failed_and_was_taken_away(run: Run, copied: Path) -> None:
    work, photo, tags = copied / "work", copied / "photos/scene0.png", copied / "tags.csv"
    photo.write_bytes(b"no photo")
    assert run("update", work=work).code == 1
    assert "scene0" in run("status", work=work).out
    photo.unlink()
    tags.write_text("".join(line for line in tags.read_text().splitlines(keepends=True)
                            if not line.startswith("scene0,")))
    assert run("prepare", "folder", copied / "photos", "--labels", tags, work=work).code == 0
    assert "scene0" not in run("status", work=work).out
    assert "scene0" not in run("doctor", work=work).out


def test_maps_of_tags_that_changed_are_not_read(run: Run, copied: Path) -> None:
    work, tags = copied / "work", copied / "tags.csv"
    tags.write_text(tags.read_text().replace("scene0,bar,", "scene0,disc,"))
    assert run("prepare", "folder", copied / "photos", "--labels", tags, work=work).code == 0
    refused = run("refine", work=work)
    assert refused.code == 1
    assert "out of date (tags changed): scene0" in refused.lines("error:")[0]
    assert run("cam", work=work).code == run("refine", work=work).code == 0


def test_manifests_of_photos_that_could_not_be_read(run: Run, copied: Path) -> None:
    """They do not say what the photos were: they count as made from those that are there."""
    work = copied / "work"
    for path in work.rglob("artifact.json"):
        content = json.loads(path.read_text())
        assert content.pop("photos")
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    before = untouched(work)
    assert stale(run, work) == {}
    for command in CHAIN:
        assert run(*command, work=work).code == 0
    assert untouched(work) == before
    replace_photo(copied)
    assert "features/train" in stale(run, work)


# Words, heads, tars


def test_prompts_of_a_file(run: Run, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, prompts = copied / "work", copied / "prompts.txt"
    prompts.write_text("a photo of a {}.\n")
    assert run("text-prototypes", "--prompts", prompts, "--overwrite", work=work).code == 0
    path = work / "prototypes/text.safetensors"
    assert str(copied).encode() not in path.read_bytes()
    assert run("update", work=work).code == 0
    assert stale(run, work) == {}
    before = path.read_bytes()
    prompts.write_text("a drawing of a {}.\n")
    assert stale(run, work)["prototypes/text.safetensors"] == ["../prompts.txt has changed"]
    (copied / "below").mkdir()
    monkeypatch.chdir(copied / "below")
    assert run("update", work=work).code == 0
    assert path.read_bytes() != before
    assert stale(run, work) == {}


def test_a_head_of_another_clip_than_the_features(run: Run, copied: Path) -> None:
    head = copied / "work/features/train.head.safetensors"
    header = describe(head).header
    assert header is not None
    other = replace(header, model={**header.model, "fingerprint": "0" * 16})
    save_file(load_file(head), head, {"vpltool": other.to_json()})
    refused = run("cam", "--overwrite", work=copied / "work")
    assert refused.code == 1
    assert "come from different models" in refused.lines("error:")[0]
    assert len(list((copied / "work/cams/text/train").glob("*.safetensors"))) == 6


def test_a_photo_in_a_tar_is_another_one_of_the_same_size(run: Run, tmp_path: Path) -> None:
    def write(level: int) -> None:
        with tarfile.open(tmp_path / "photos.tar", "w") as tar:
            for name, content in (("a.png", picture(level)), ("a.txt", b"a photo")):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))

    def picture(level: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (level, 0, 0)).save(buffer, "png", compress_level=0)
        return buffer.getvalue()

    def prepared() -> bytes:
        assert run("prepare", "webdataset", tmp_path / "photos.tar", work=tmp_path / "work"
                   ).code == 0
        found, = (tmp_path / "work/unpacked").rglob("*.png")
        return found.read_bytes()

    write(1)
    first = prepared()
    write(2)
    assert len(first) == len(picture(2))
    assert prepared() == picture(2) != first


def test_a_tag_of_two_words_is_not_two_tags(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, "photos", ".", ("a", "b", "a b"), (), "m", "p")
    found = set()
    for tags in (("a b",), ("a", "b")):
        write_workspace(workspace, [Photo("photo", "photo.png", tags, ("train",))])
        found.add(open_workspace(tmp_path).tags_identity("train"))
    assert len(found) == 2
