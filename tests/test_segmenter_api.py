"""`Segmenter.load(FILE)(photo)`: what `predict` writes, in memory."""

from __future__ import annotations

import io
import shutil
import struct
import sys
import typing
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHAPES, Run
from PIL import Image

from vpltool import Segmenter, VplError
from vpltool.segmenter import Segmentation


def test_the_labels_are_those_of_predict(run: Run, layered: Path, tmp_path: Path) -> None:
    work = layered / "work"
    out = tmp_path / "predicted"
    assert run("predict", "--decoder", "tiny", "--source", "photos", "--workers", 0, "--flip",
               "--scales", "1,0.75", "--batch-size", 1, "--out", out, work=work).code == 0
    segmenter = Segmenter.load(work / "decoder/tiny.safetensors")
    assert segmenter.classes == SHAPES
    for path in sorted((layered / "photos").glob("scene[67].png")):
        result = segmenter(path, scales=(1, 0.75), flip=True)
        with Image.open(path) as image:
            photo = np.asarray(image.convert("RGB"))
        assert result.labels.shape == photo.shape[:2]
        assert result.probabilities.shape == (4, *photo.shape[:2])
        np.testing.assert_allclose(result.probabilities.sum(axis=0), 1, atol=1e-4)
        np.testing.assert_array_equal(result.labels, result.probabilities.argmax(axis=0))
        with Image.open(out / f"{path.stem}.png") as labels:
            assert (np.asarray(labels) == result.labels).mean() > 0.995
        for other in (photo, Image.fromarray(photo), str(path)):
            np.testing.assert_array_equal(
                segmenter(other, scales=(1, 0.75), flip=True).labels, result.labels)


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".png", ".webp"])
def test_an_open_image_is_what_its_file_is(suffix: str, layered: Path, tmp_path: Path) -> None:
    """Turned by EXIF, transparent, of 16 bits; and it stays as it is."""
    segmenter = Segmenter.load(layered / "work/decoder/tiny.safetensors")
    with Image.open(layered / "photos/scene6.png") as scene:
        photo = scene.convert("RGB")
    files = [tmp_path / f"{number}{suffix}" for number in range(4)]
    for number, orientation in enumerate((3, 6)):
        exif = Image.Exif()
        exif[274] = orientation
        photo.save(files[number], exif=exif)
    if suffix in (".tif", ".png"):
        clear = photo.convert("RGBA")
        clear.putalpha(photo.convert("L"))
        clear.save(files[2])
        Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 200).save(files[3])
    for file in filter(Path.exists, files):
        with Image.open(file) as image:
            before = image.copy()
            result = segmenter(image)
            assert image.size == before.size and image.mode == before.mode
        wanted = segmenter(file)
        np.testing.assert_array_equal(segmenter(file.read_bytes()).labels, wanted.labels)
        with file.open("rb") as opened:
            np.testing.assert_array_equal(segmenter(opened).labels, wanted.labels)
        np.testing.assert_array_equal(result.photo, wanted.photo)
        np.testing.assert_array_equal(result.labels, wanted.labels)


def test_what_only_the_file_says_counts_for_an_open_image(layered: Path, tmp_path: Path) -> None:
    """That zero is white in its greyscale of 16 bits, and that its colours have as many."""
    segmenter = Segmenter.load(layered / "work/decoder/tiny.safetensors")
    with Image.open(layered / "photos/scene6.png") as scene:
        grey = np.asarray(scene.convert("L")).astype(np.uint16)
    Image.fromarray(65535 - grey).save(tmp_path / "white.tif", tiffinfo={262: 0})
    wanted = segmenter(tmp_path / "white.tif").photo
    with Image.open(tmp_path / "white.tif") as image:
        np.testing.assert_array_equal(segmenter(image).photo, wanted)
    (tmp_path / "dark.png").write_bytes(_png_of_16_bits(np.dstack([grey * 15] * 3)))
    with Image.open(tmp_path / "dark.png") as image, pytest.raises(VplError, match="16 bits use"):
        segmenter(image)


def _png_of_16_bits(rgb: np.ndarray) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return (struct.pack(">I", len(content)) + name + content
                + struct.pack(">I", zlib.crc32(name + content)))

    height, width, _ = rgb.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb)
    shape = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", shape)
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def test_a_result_is_the_program_s(layered: Path) -> None:
    """A buffer that is filled again changes nothing; results are compared by identity."""
    segmenter = Segmenter.load(layered / "work/decoder/tiny.safetensors")
    with Image.open(layered / "photos/scene6.png") as image:
        buffer = np.array(image.convert("RGB"))
    result = segmenter(buffer)
    before = buffer.copy()
    buffer[:] = 255
    np.testing.assert_array_equal(result.photo, before)
    assert result in {result} and result != segmenter(before)
    assert repr(result).startswith(f"Segmentation({buffer.shape[1]}×{buffer.shape[0]}: ")
    assert typing.get_type_hints(Segmentation)["field"] is torch.Tensor
    assert typing.get_type_hints(Segmenter.__call__)["return"] is Segmentation


@pytest.mark.parametrize("scales", [0.75, "0.75,1", (0.75, 1.0)])
def test_scales_are_numbers_or_their_list(scales: float | str, layered: Path) -> None:
    segmenter = Segmenter.load(layered / "work/decoder/tiny.safetensors")
    photo = layered / "photos/scene6.png"
    wanted = segmenter(photo, scales=(0.75,) if scales == 0.75 else (0.75, 1))
    np.testing.assert_array_equal(segmenter(photo, scales=scales).labels, wanted.labels)
    for wrong in ([float("nan")], "", ["x"], float("inf")):
        with pytest.raises(VplError, match="is not a list of factors"):
            segmenter(photo, scales=wrong)  # type: ignore[arg-type]


HOSTS: dict[str, Callable[[], typing.ContextManager[object]]] = {
    "inference": torch.inference_mode, "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "device": lambda: torch.device("meta")}
"""What a program may have set in torch."""


@pytest.mark.parametrize("name", [*HOSTS, "double"])
def test_torch_s_settings_are_the_program_s(name: str, layered: Path) -> None:
    """Labels are the same under each, and the settings are afterwards what they were."""
    file, photo = layered / "work/decoder/tiny.safetensors", layered / "photos/scene6.png"
    segmenter = Segmenter.load(file)
    wanted = [segmenter(photo, tile=tile).field for tile in ("", 32)]
    drawn = torch.get_rng_state()
    if name == "double":
        torch.set_default_dtype(torch.float64)
    try:
        with HOSTS.get(name, torch.enable_grad)():
            found = [each(photo, tile=tile).field for each in (segmenter, Segmenter.load(file))
                     for tile in ("", 32)]
            now = torch.get_default_dtype()
    finally:
        torch.set_default_dtype(torch.float32)
    assert now == (torch.float64 if name == "double" else torch.float32)
    assert all(torch.equal(*pair) for pair in zip(found, wanted * 2, strict=True))
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_truncated_image_is_named(layered: Path, tmp_path: Path) -> None:
    segmenter = Segmenter.load(layered / "work/decoder/tiny.safetensors")
    file = tmp_path / "torn.png"
    file.write_bytes((layered / "photos/scene6.png").read_bytes()[:-400])
    with Image.open(file) as image, pytest.raises(VplError, match="the photo cannot be read: "):
        segmenter(image)
    for content in (file.read_bytes(), b"", b"no photo"):
        with pytest.raises(VplError, match="the photo cannot be read: "):
            segmenter(content)


def test_a_decoder_can_be_shared(layered: Path, tmp_path: Path, tiny_clip: Path) -> None:
    """The file and its CLIP suffice: no workspace."""
    file = tmp_path / "shared.safetensors"
    shutil.copyfile(layered / "work/decoder/tiny.safetensors", file)
    photo = layered / "photos/scene6.png"
    shared = Segmenter.load(file, pretrained=tiny_clip)
    own = Segmenter.load(layered / "work/decoder/tiny.safetensors")
    np.testing.assert_array_equal(shared(photo).labels, own(photo).labels)
    assert shared.classes == SHAPES


def test_another_clip_is_refused(layered: Path, tmp_path: Path) -> None:
    from conftest import save_clip

    other = save_clip(tmp_path / "other", seed=5)
    with pytest.raises(VplError, match="different models"):
        Segmenter.load(layered / "work/decoder/tiny.safetensors", pretrained=other)


@pytest.mark.parametrize(("photo", "message"), [
    ("there/none.jpg", "there/none.jpg: the photo does not exist"),
    ("https://example.com/a.jpg", "download the file"),
    (Image.new("RGB", (0, 0)), "it has no pixels"),
    (Image.new("La", (4, 4)), "the photo cannot be read: conversion from La"),
    ([[1, 2], [3]], "the photo cannot be read: "),
    (torch.ones(4, 4, 3, requires_grad=True), r"tensor\.detach\(\)"),
    (io.StringIO("x"), "open as text"),
    (np.zeros((3, 4, 5), np.uint8), r"`photo\.transpose\(1, 2, 0\)`"),
    (torch.zeros(1, 3, 4, 5), r"`\(photo\[0\]\.permute\(1, 2, 0\) \* 255\)\.byte\(\)`"),
    (np.full((4, 5, 3), 9.5), r"uint8: `photo\.astype\('uint8'\)`"),
    (np.full((4, 5, 3), 999), "uint8$"),
    (np.zeros((4, 4), np.uint8), r"uint8 \(4, 4\) is not a photo"),
    (np.zeros((4, 4, 3), np.float32), "float32"),
    (np.zeros((0, 4, 3), np.uint8), r"uint8 \(0, 4, 3\) is not a photo"),
])
def test_what_is_not_a_photo_is_named(photo: object, message: str, layered: Path) -> None:
    segmenter = Segmenter.load(layered / "work/decoder/tiny.safetensors")
    with pytest.raises(VplError, match=message):
        segmenter(photo)


def test_open_files_are_read_from_where_they_stand(layered: Path) -> None:
    segmenter = Segmenter.load(layered / "work/decoder/tiny.safetensors")
    content = (layered / "photos/scene6.png").read_bytes()
    wanted = segmenter(content).labels
    for same in (bytearray(content), memoryview(content), io.BytesIO(content)):
        np.testing.assert_array_equal(segmenter(same).labels, wanted)
    ended, closed = io.BytesIO(content), io.BytesIO(content)
    ended.seek(0, 2)
    closed.close()
    picture = Image.open(io.BytesIO(content))
    picture.close()
    for wrong, hint in ((ended, "seek"), (closed, "open it again"), (picture, "another")):
        with pytest.raises(VplError, match="the photo cannot be read: ") as caught:
            segmenter(wrong)
        assert hint in caught.value.hint


def test_what_is_not_a_decoder_is_named(layered: Path) -> None:
    with pytest.raises(VplError, match="holds prototypes, expected decoder"):
        Segmenter.load(layered / "work/prototypes/text.safetensors")


def test_a_result_is_drawn_and_saved(layered: Path, tmp_path: Path) -> None:
    photo = layered / "photos/scene6.png"
    result = Segmenter.load(layered / "work/decoder/tiny.safetensors")(photo)
    picture = result.overlay()
    assert picture.width >= result.labels.shape[1] and picture.height > result.labels.shape[0]
    assert result.save(tmp_path / "deep/labels.png") == tmp_path / "deep/labels.png"
    with Image.open(tmp_path / "deep/labels.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), result.labels)
    with pytest.raises(VplError, match="saved as PNG"):
        result.save(tmp_path / "labels.jpg")


def test_a_result_is_plotted(layered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(pyplot, "show", lambda: pytest.fail("a script waits for a window"))
    result = Segmenter.load(layered / "work/decoder/tiny.safetensors")(
        layered / "photos/scene6.png")
    axes = result.plot()
    (drawn,) = axes.get_images()
    np.testing.assert_array_equal(drawn.get_array(), np.asarray(result.overlay()))
    assert not axes.axison
    assert result.plot() is not axes, "each photo has a picture of its own"
    pyplot.close("all")


def test_without_matplotlib_a_result_is_not_plotted(layered: Path, monkeypatch: pytest.MonkeyPatch
                                                    ) -> None:
    result = Segmenter.load(layered / "work/decoder/tiny.safetensors")(
        layered / "photos/scene6.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(VplError, match="matplotlib is not installed") as caught:
        result.plot()
    assert "`overlay()`" in caught.value.hint


@pytest.mark.parametrize("name", ["nope", "decoder"])
def test_a_segmenter_that_is_not_there(name: str, tmp_path: Path) -> None:
    (tmp_path / "decoder").mkdir()
    with pytest.raises(VplError, match=name) as caught:
        Segmenter.load(tmp_path / name)
    assert caught.value.hint


def test_the_file_in_a_folder_is_named(layered: Path) -> None:
    for folder in (layered / "work", layered / "work/decoder"):
        with pytest.raises(VplError, match="is a folder") as caught:
            Segmenter.load(folder)
        assert f"`{(layered / 'work/decoder/tiny.safetensors').as_posix()}`" in caught.value.hint
