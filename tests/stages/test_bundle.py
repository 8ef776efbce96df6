"""A segmenter in one file: the same labels as its decoder, on a machine that has only the file."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHAPES, TRAIN, Run, copy_workspace, run_chain
from PIL import Image

from vpltool import Segmenter, VplError
from vpltool.formats import describe, read_tensors, write_tensors


@pytest.fixture(scope="module")
def work(layered: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """As `layered`, with a decoder that reads patches too, and a linear segmenter."""
    base = copy_workspace(layered, tmp_path_factory.mktemp("bundle") / "base", tiny_clip)
    run_chain(base, ((*TRAIN, "--name", "residual", "--residual"), (
        "train-decoder", "--masks", "text-refined", "--prototypes", "text", "--method", "linear",
        "--lambda-rsc", 0, "--iters", 3, "--crop", 3, "--name", "linear")))
    return base


def exported(run: Run, base: Path, *options: object) -> Path:
    result = run("export", "bundle", *options, work=base / "work")
    assert result.code == 0, result.err
    return Path(result.out.strip())


def labels_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


@pytest.mark.parametrize("name", ["tiny", "residual", "linear"])
def test_the_file_alone_is_enough(name: str, run: Run, work: Path, tmp_path: Path,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, no workspace, and nothing that could load a CLIP."""
    bundle = exported(run, work, "--what", name, "--max-side", 32)
    assert bundle == work / f"work/exports/{name}.safetensors"
    shutil.copyfile(bundle, tmp_path / "shapes.safetensors")
    shutil.copytree(work / "photos", tmp_path / "holiday")
    there = ("--workers", 0, "--batch-size", 1)
    assert run("predict", work / "photos", "--decoder", name, "--max-side", 32, *there, "--out",
               tmp_path / "wanted", work=work / "work").code == 0

    def absent(*_: object, **__: object) -> None:
        raise AssertionError("a CLIP was looked for")

    monkeypatch.setattr("vpltool.clip.load.load_clip", absent)
    monkeypatch.chdir(tmp_path)
    result = run("predict", "holiday", "--segmenter", "shapes.safetensors", "--overlay", *there)
    assert result.code == 0, result.err
    assert result.out.split() == ["predictions/shapes/holiday",
                                  "pictures/predictions/shapes/holiday"]
    found, wanted = (labels_in(tmp_path / part)
                     for part in ("predictions/shapes/holiday", "wanted"))
    assert len(wanted) == 8
    assert found.keys() == wanted.keys()
    for key, labels in wanted.items():
        np.testing.assert_array_equal(found[key], labels)
    again = run("predict", "holiday", "--segmenter", "shapes.safetensors", *there)
    assert "8 of 8 photos are done already" in again.err
    one = run("predict", "holiday/scene0.png", "--segmenter", "shapes.safetensors", *there, "--out",
              "one.png")
    assert one.code == 0, one.err
    np.testing.assert_array_equal(np.asarray(Image.open("one.png")), wanted["scene0.png"])


def test_in_memory(run: Run, work: Path, tmp_path: Path) -> None:
    bundle = exported(run, work, "--what", "residual", "--max-side", 32, "-o",
                      tmp_path / "given.safetensors")
    given = Segmenter.load(bundle)
    assert given.classes == SHAPES
    own = Segmenter.load(work / "work/decoder/residual.safetensors", max_side=32)
    photo = work / "photos/scene6.png"
    np.testing.assert_array_equal(given(photo, flip=True).probabilities,
                                  own(photo, flip=True).probabilities)
    whole = Segmenter.load(bundle, max_side=0)(photo, flip=True).probabilities
    assert not np.array_equal(whole, given(photo, flip=True).probabilities)


def test_what_the_file_says(run: Run, work: Path, tiny_clip: Path, tmp_path: Path) -> None:
    bundle = exported(run, work, "--what", "tiny", "--licence", "CC-BY-4.0", "-o",
                      tmp_path / "a.safetensors")
    header = describe(bundle).header
    assert header is not None
    decoder = describe(work / "work/decoder/tiny.safetensors").header
    assert decoder is not None
    assert header.model == decoder.model
    assert header.facts["classes"] == list(SHAPES)
    assert header.facts["licence"] == {"segmenter": "CC-BY-4.0",
                                       "clip": "not known: ask whoever published it"}
    assert header.facts["mean"] == json.loads(
        (tiny_clip / "open_clip_config.json").read_text())["preprocess_cfg"]["mean"]
    assert header.facts["trained"]["options"] == decoder.options
    assert str(work).encode() not in bundle.read_bytes()
    again = exported(run, work, "--what", "tiny", "--licence", "CC-BY-4.0", "-o",
                     tmp_path / "b.safetensors")
    assert again.read_bytes() == bundle.read_bytes()
    said = run("inspect", bundle)
    assert "kind: bundle" in said.out
    assert "vpltool export" in said.out


def test_half_precision_where_it_loses_nothing(tmp_path: Path) -> None:
    from vpltool.formats import Header
    from vpltool.formats.storage import read_part, write_bundle

    exact, fine = torch.tensor([1.5, -0.25]), torch.tensor([0.1, 70000.0])
    path = tmp_path / "x.safetensors"
    write_bundle(path, Header(kind="bundle", command="export"), {"w": exact},
                 {"exact": exact, "fine": fine})
    stored = read_tensors(path, "bundle")[1]
    assert {name: tensor.dtype for name, tensor in stored.items()} == {
        "decoder.w": torch.float32, "tower.exact": torch.float16, "tower.fine": torch.float32}
    tower = read_part(path, "tower")[1]
    assert tower["exact"].dtype == torch.float32
    assert (tower["exact"] == exact).all()
    assert (tower["fine"] == fine).all()


def test_without_weights(run: Run, work: Path, tiny_clip: Path, tmp_path: Path,
                         monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = exported(run, work, "--what", "tiny", "--clip", "identity", "-o",
                      tmp_path / "named.safetensors")
    assert not [name for name in describe(bundle).shapes if name.startswith("tower.")]
    photo = work / "photos/scene6.png"
    named = Segmenter.load(bundle, pretrained=tiny_clip, max_side=0)
    own = Segmenter.load(work / "work/decoder/tiny.safetensors", max_side=0)
    np.testing.assert_array_equal(named(photo).labels, own(photo).labels)
    monkeypatch.chdir(tmp_path)
    result = run("predict", photo, "--segmenter", bundle)
    assert result.code == 1
    assert "only names its encoder" in result.lines("error:")[0]
    assert "vpltool export bundle" in result.lines("hint:")[0]
    assert not (tmp_path / "predictions").exists()


@pytest.mark.parametrize(("arguments", "said"), [
    (("--segmenter", "bundle"), "is for photos that are named"),
    (("photos", "--segmenter", "bundle", "--decoder", "tiny"), "are two segmenters"),
    (("photos", "--segmenter", "decoder"), "only names its encoder: "),
    (("photos", "--segmenter", "none.safetensors"), "no segmenter at none.safetensors"),
    (("photos", "--segmenter", "torn"), "is truncated"),
    (("none", "--segmenter", "bundle"), "none"),
])
def test_what_is_refused(arguments: tuple[str, ...], said: str, run: Run, work: Path,
                         tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = exported(run, work, "--what", "tiny")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(bundle.read_bytes()[:-10])
    named = {"bundle": bundle, "decoder": work / "work/decoder/tiny.safetensors", "torn": torn,
             "photos": work / "photos"}
    monkeypatch.chdir(tmp_path)
    result = run("predict", *(named.get(word, word) for word in arguments))
    assert result.code == 1
    assert said in result.lines("error:")[0]
    assert result.lines("hint:")
    assert list(tmp_path.iterdir()) == [torn]


def test_a_stored_tower_is_another_segmenter_s(run: Run, work: Path, tmp_path: Path) -> None:
    """Tensors of another shape than the header says are noticed, not run."""
    from vpltool.formats.storage import read_part, write_bundle

    bundle = exported(run, work, "--what", "tiny", "-o", tmp_path / "a.safetensors")
    (header, decoder), tower = read_part(bundle, "decoder"), read_part(bundle, "tower")[1]
    write_bundle(bundle, header, decoder, {**tower, "cls": torch.zeros(2, 32)})
    with pytest.raises(VplError, match="does not hold the tower"):
        Segmenter.load(bundle)


def test_classes_that_are_fewer_than_the_network_s_are_refused(run: Run, work: Path, tmp_path: Path
                                                               ) -> None:
    """Its labels would have no name. And whoever has only a copy is told to copy it again."""
    bundle = exported(run, work, "--what", "linear", "-o", tmp_path / "a.safetensors")
    header, tensors = read_tensors(bundle, "bundle")
    facts = {**header.facts, "classes": header.facts["classes"][:2]}
    write_tensors(bundle, replace(header, facts=facts), tensors)
    with pytest.raises(VplError, match="has 4 outputs, and its header names 3,") as caught:
        Segmenter.load(bundle)
    assert "copy it again" in caught.value.hint
    content = bundle.read_bytes()
    bundle.write_bytes(content[:-4] + b"\xff" * 4)
    with pytest.raises(VplError) as caught:
        read_tensors(bundle, "bundle")
    assert "copy it again" in caught.value.hint
    bundle.write_bytes(content[:-4])
    with pytest.raises(VplError, match="truncated") as caught:
        Segmenter.load(bundle)
    assert "copy it again" in caught.value.hint


def test_bytes_that_are_not_those_that_were_written_are_refused(run: Run, work: Path, tmp_path: Path
                                                                ) -> None:
    """A hole in the middle would give other labels. Older bundles have no hashes, and are read."""
    bundle = exported(run, work, "--what", "tiny", "-o", tmp_path / "a.safetensors")
    content = bundle.read_bytes()
    header, tensors = read_tensors(bundle, "bundle")
    assert set(header.facts["hashes"]) == {"decoder", "tower"}
    for part, name in (("decoder", "decoder.mask_scale"), ("tower", "tower.blocks.0.fc.weight")):
        raw = tensors[name].numpy().tobytes()
        start = content.index(raw)
        bundle.write_bytes(content[:start] + bytes(len(raw)) + content[start + len(raw):])
        with pytest.raises(VplError, match=f"is damaged: its {part} is not") as caught:
            Segmenter.load(bundle)
        assert "copy it again" in caught.value.hint
        result = run("predict", work / "photos/scene6.png", "--segmenter", bundle, "-o",
                     tmp_path / "x.png")
        assert result.code == 1 and "is damaged" in result.lines("error:")[0]
    facts = {name: value for name, value in header.facts.items() if name != "hashes"}
    write_tensors(bundle, replace(header, facts=facts), tensors)
    assert Segmenter.load(bundle).classes == SHAPES


def test_a_bundle_is_data(run: Run, work: Path, tmp_path: Path) -> None:
    """Whatever its header says: nothing runs, nothing is replaced, no file is a method."""
    mark, victim = tmp_path / "mark", tmp_path / "victim.safetensors"
    victim.write_text("precious")
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
    header, tensors = read_tensors(exported(
        run, work, "--what", "tiny", "-o", tmp_path / "bundle.safetensors"), "bundle")
    there = work / "work/exports/hostile.safetensors"
    predict = ("predict", work / "photos", "--segmenter", there, "--workers", 0,
               "--out", tmp_path / "labels", "--overwrite")
    write_tensors(there, replace(
        header, command="prepare webdataset", inputs={"classes": "0" * 16},
        sources={"overwrite": "x"}, call={"tars": [f"pipe:touch {mark}"], "allow_pipe": True,
                                          "out": str(victim), "overwrite": True}), tensors)
    assert run(*predict, work=work / "work").code == 0
    for command in ("update", "status", "doctor"):
        run(command, work=work / "work")
    for method in (str(tmp_path / "evil"), str(tmp_path / "evil.py"), "../../../evil", "os"):
        write_tensors(there, replace(
            header, facts=header.facts | {"segmenter": method}), tensors)
        result = run(*predict, work=work / "work")
        assert result.code == 1
        assert len(result.lines("error:")) == 1
    there.unlink()
    assert not mark.exists() and victim.read_text() == "precious"
