"""Photos of every sort come out as upright 8-bit RGB, or fail with a reason."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vpltool.core import photos
from vpltool.core.photos import (
    PhotoSettings,
    describe_failure,
    fit_size,
    page_count,
    photo_size,
    read_photo,
    to_pixels,
)
from vpltool.errors import VplError
from vpltool.parallel.batches import load_batches

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def some_rgb(height: int = 20, width: int = 30) -> np.ndarray[Any, Any]:
    y, x = np.mgrid[:height, :width]
    return np.stack([8 * y, 7 * x, 255 - 6 * y], axis=-1).clip(0, 255).astype(np.uint8)


def test_greyscale(tmp_path: Path) -> None:
    Image.fromarray(some_rgb()[..., 0]).save(tmp_path / "a.png")
    found = read_photo(tmp_path / "a.png")
    assert (found == some_rgb()[..., :1].repeat(3, axis=2)).all()
    assert found.dtype == np.uint8


def test_cmyk(tmp_path: Path) -> None:
    Image.fromarray(some_rgb()).convert("CMYK").save(tmp_path / "a.jpg", quality=98)
    found = read_photo(tmp_path / "a.jpg")
    assert found.shape == (20, 30, 3)
    assert np.abs(found.astype(int) - some_rgb()).mean() < 6


@pytest.mark.parametrize("top", [255, 1000, 4095, 4200, 65535])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32])
def test_values_of_many_bits_are_stretched(tmp_path: Path, dtype: type, top: int) -> None:
    """Cameras store 10 to 16 bits in the same files; nothing says how many."""
    if dtype is np.int16 and top > 32767:
        pytest.skip("it cannot hold the value")
    levels = np.arange(64).reshape(8, 8).repeat(2, axis=0).repeat(2, axis=1) / 63
    Image.fromarray((100 + levels * (top - 100)).astype(dtype)).save(tmp_path / "a.tif")
    found = read_photo(tmp_path / "a.tif")
    assert np.abs(found[..., 0] - levels * 255).max() <= 2
    assert (found[..., :1] == found).all()
    if dtype is np.uint16:
        Image.open(tmp_path / "a.tif").save(tmp_path / "a.png")
        assert (read_photo(tmp_path / "a.png") == found).all()


@pytest.mark.parametrize("single", [0.0, 65000.0, np.nan, np.inf, -np.inf])
def test_single_pixels_do_not_set_the_scale(tmp_path: Path, single: float) -> None:
    """A hot pixel of a sensor made its photo black, and NaN all of it."""
    values = np.full((16, 16), 100, np.float32)
    values[4:8, 4:8] = 3000
    Image.fromarray(values).save(tmp_path / "plain.tif")
    values[12, 12] = single
    Image.fromarray(values).save(tmp_path / "a.tif")
    found, plain = read_photo(tmp_path / "a.tif"), read_photo(tmp_path / "plain.tif")
    assert set(plain[..., 0].flat) == {0, 255}
    assert (found != plain)[..., 0].sum() <= 1


@pytest.mark.parametrize("lit", [
    np.eye(16), np.indices((16, 16)).sum(axis=0) % 2, np.arange(16)[:, None] % 2 * np.ones(16),
    np.arange(256).reshape(16, 16) % 37 == 5])
def test_what_is_a_pixel_wide_is_shown(tmp_path: Path, lit: np.ndarray) -> None:
    Image.fromarray((100 + 900 * lit).astype(np.uint16)).save(tmp_path / "a.tif")
    assert (read_photo(tmp_path / "a.tif")[..., 0] == 255 * lit).all()


@pytest.mark.parametrize(("values", "found"), [
    ([[7, 9000]], [[0, 255]]), ([[7]], [[0]]), ([[7, 7], [7, 7]], [[0, 0], [0, 0]])])
def test_tiny_and_even_photos_of_many_bits(
    tmp_path: Path, values: list[list[int]], found: list[list[int]],
) -> None:
    Image.fromarray(np.array(values, np.uint16)).save(tmp_path / "a.tif")
    assert read_photo(tmp_path / "a.tif")[..., 0].tolist() == found


def test_a_photo_without_any_value(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(OSError, match="no pixel has a value"):
        read_photo(tmp_path / "a.tif")


def test_white_is_zero(tmp_path: Path) -> None:
    """TIFF's WhiteIsZero, as X-ray detectors write it."""
    wide = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(wide).save(tmp_path / "a.tif", tiffinfo={262: 1})
    content = bytearray((tmp_path / "a.tif").read_bytes())
    at = content.index(struct.pack("<HHI", 262, 3, 1))
    content[at + 8] = 0
    (tmp_path / "b.tif").write_bytes(content)
    assert (read_photo(tmp_path / "b.tif") == 255 - read_photo(tmp_path / "a.tif")).all()


def tiff(values: np.ndarray, *, planar: bool = False) -> bytes:
    """An uncompressed TIFF of (H, W, channels) of any number type, which Pillow cannot write."""
    height, width, channels = values.shape
    data = (values.transpose(2, 0, 1) if planar else values).tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    at = 8 + 2 + 11 * 12 + 4
    bits, kinds, size = at, at + 2 * channels, len(data) // (channels if planar else 1)
    count = channels if planar else 1
    starts = kinds + 2 * channels
    sizes = starts + 4 * count
    first = sizes + 4 * count
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, bits), (259, 3, 1, 1),
               (262, 3, 1, 2), (273, 4, count, starts if count > 1 else first),
               (277, 3, 1, channels), (278, 4, 1, height),
               (279, 4, count, sizes if count > 1 else size), (284, 3, 1, 2 if planar else 1),
               (339, 3, channels, kinds)]
    return b"".join([
        struct.pack("<2sHIH", b"II", 42, 8, len(entries)),
        *(struct.pack("<HHII", *entry) for entry in entries), struct.pack("<I", 0),
        struct.pack(f"<{channels}H", *[8 * values.itemsize] * channels),
        struct.pack(f"<{channels}H", *[kind] * channels),
        struct.pack(f"<{count}I", *(first + size * plane for plane in range(count))),
        struct.pack(f"<{count}I", *[size] * count), data])


@pytest.mark.parametrize(("content", "said"), [
    (tiff(np.full((9, 9, 3), 60000, np.uint16), planar=True), "one after the other, in 16 bits"),
    (tiff(np.zeros((9, 9, 3), np.float32)), "a TIFF with 3 values of 32 bits a pixel"),
    (tiff(np.zeros((9, 9, 7), np.uint8)), "a TIFF with 7 values of 8 bits a pixel"),
    (tiff(np.full((9, 9, 3), 60000, np.uint16))[:-9], "truncated")])
def test_what_pillow_would_read_wrongly(tmp_path: Path, content: bytes, said: str) -> None:
    """Colours became black, or noise."""
    (tmp_path / "a.tif").write_bytes(content)
    for read in (read_photo, page_count):
        with pytest.raises(OSError, match=said):
            read(tmp_path / "a.tif")


@pytest.mark.parametrize(("level", "dark"), [(0, False), (4095, True), (4096, False)])
def test_dark_colours_of_sixteen_bits(tmp_path: Path, level: int, dark: bool) -> None:
    """Photos of the night are read; what a camera of 12 bits stores would look black."""
    (tmp_path / "a.tif").write_bytes(tiff(np.full((9, 9, 3), level, np.uint16)))
    assert page_count(tmp_path / "a.tif") == 1
    if dark:
        with pytest.raises(OSError, match="less than a 16th of their range"):
            read_photo(tmp_path / "a.tif")
    else:
        assert (read_photo(tmp_path / "a.tif") == level // 256).all()


def test_colours_of_sixteen_bits(tmp_path: Path) -> None:
    values = (some_rgb().astype(np.uint16) * 257)
    (tmp_path / "a.tif").write_bytes(tiff(values))
    assert (read_photo(tmp_path / "a.tif") == some_rgb()).all()


def test_pages(tmp_path: Path) -> None:
    """Smaller copies of a page, as cameras store, are no pages."""
    pages = [Image.fromarray(some_rgb()) for _ in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert page_count(tmp_path / "a.tif") == 3
    small = pages[1].copy()
    small.encoderinfo = {"tiffinfo": {254: 1}}  # type: ignore[attr-defined]
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=[small])
    assert page_count(tmp_path / "b.tif") == 1


def test_palette_with_transparency(tmp_path: Path) -> None:
    """Transparent is shown over black, whatever colour the palette hides there."""
    image = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8))
    image.putpalette([250, 10, 10, 10, 250, 10, 10, 10, 250])
    image.save(tmp_path / "a.png", transparency=0)
    assert read_photo(tmp_path / "a.png").tolist() == [
        [[0, 0, 0], [10, 250, 10]], [[10, 10, 250], [0, 0, 0]]]


def test_half_transparent(tmp_path: Path) -> None:
    rgba = np.dstack([np.full((2, 2, 3), 200, np.uint8),
                      np.array([[255, 0], [51, 255]], np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert read_photo(tmp_path / "a.png")[..., 0].tolist() == [[200, 0], [40, 200]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotated(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(some_rgb()).save(tmp_path / "a.png", exif=exif)
    upright = {
        1: lambda p: p, 2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2), 6: lambda p: np.rot90(p, -1),
        7: lambda p: np.rot90(p[::-1], 1), 8: lambda p: np.rot90(p, 1),
    }[orientation](some_rgb())
    found = read_photo(tmp_path / "a.png")
    assert found.shape == upright.shape
    assert (found == upright).all()
    assert photo_size(tmp_path / "a.png") == upright.shape[:2]


def png_of_size(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    start = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start)
            + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b""))


BAD = {
    "empty.jpg": (b"", "empty"),
    "text.jpg": (b"this is a letter to the editor, not a photo\n" * 5, "not a readable image"),
    "phone.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "not a readable.*HEIC.*convert it"),
    "huge.png": (png_of_size(100_000, 100_000), "pixels"),
    "large.png": (png_of_size(30_000, 20_000), "pixels"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_say_what_is_wrong(tmp_path: Path, name: str) -> None:
    content, reason = BAD[name]
    (tmp_path / name).write_bytes(content)
    for read in (read_photo, photo_size):
        with pytest.raises(OSError, match=reason):
            read(tmp_path / name)
    with pytest.raises(OSError, match=reason):
        read_photo(content)


def test_bytes_are_read_as_files_are(tmp_path: Path) -> None:
    Image.fromarray(some_rgb()).save(tmp_path / "a.jpg", quality=90)
    content = (tmp_path / "a.jpg").read_bytes()
    assert (read_photo(content) == read_photo(tmp_path / "a.jpg")).all()


def test_a_missing_photo(tmp_path: Path) -> None:
    for read in (read_photo, photo_size):
        with pytest.raises(OSError, match="does not exist"):
            read(tmp_path / "none.jpg")


def test_pillows_lower_limit_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """400 million pixels are below MAX_PIXELS; Pillow alone refuses 179 million.

    Its limit is the program's, and gives way only to a photo that exceeds it.
    """
    # Commands that other tests run in this process have marked it as ours.
    monkeypatch.setattr("vpltool.process._own", [])
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", limit := Image.MAX_IMAGE_PIXELS or 89_478_485)
    Image.fromarray(some_rgb()).save(tmp_path / "small.png")
    assert photo_size(tmp_path / "small.png") == (20, 30)
    assert limit == Image.MAX_IMAGE_PIXELS
    (tmp_path / "a.png").write_bytes(png_of_size(20_000, 20_000))
    assert photo_size(tmp_path / "a.png") == (20_000, 20_000)


def test_photos_read_in_threads_keep_their_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread opens a large photo while another ends with a small one, which does not restore
    Pillow's limit, that is one for all threads."""
    (tmp_path / "large.png").write_bytes(png_of_size(20_000, 20_000))
    Image.fromarray(some_rgb()).save(tmp_path / "small.png")
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 89_478_485)
    inside, ended = threading.Barrier(2), threading.Event()
    really = Image.open

    def wait_and_open(path: Path, **_: object) -> Image.Image:
        if Image.MAX_IMAGE_PIXELS is None:
            return really(path)
        inside.wait(10)
        assert path.name == "small.png" or ended.wait(10)
        return really(path)

    monkeypatch.setattr(photos.Image, "open", wait_and_open)
    with ThreadPoolExecutor(2) as pool:
        small = pool.submit(photo_size, tmp_path / "small.png")
        small.add_done_callback(lambda _: ended.set())
        large = pool.submit(photo_size, tmp_path / "large.png")
        assert (small.result(), large.result()) == ((20, 30), (20_000, 20_000))
    assert Image.MAX_IMAGE_PIXELS is None


def test_a_moving_picture_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert photo_size(tmp_path / "a.gif") == (3, 4)
    assert read_photo(tmp_path / "a.gif").tolist() == [[[255, 0, 0]] * 4] * 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp", "gif", "webp", "ppm"])
def test_a_truncated_photo_is_an_oserror_wherever_it_ends(tmp_path: Path, suffix: str) -> None:
    """Pillow also raises SyntaxError, ValueError, struct.error …; a caller catches OSError."""
    whole = io.BytesIO()
    spelled = {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix)
    Image.fromarray(some_rgb()).save(whole, format=spelled)
    content = whole.getvalue()
    path = tmp_path / f"a.{suffix}"
    failed = 0
    for end in [*range(1, 64), *range(64, len(content), max(1, len(content) // 60))]:
        path.write_bytes(content[:end])
        for read in (photo_size, read_photo):
            try:
                read(path)
            except OSError as error:
                assert str(error)
                failed += 1
    assert failed > 60


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["jpeg", "png", "tiff", "webp"])
def test_a_damaged_photo_is_an_oserror_or_read(tmp_path: Path, suffix: str) -> None:
    whole = io.BytesIO()
    Image.fromarray(some_rgb()).save(whole, format=suffix)
    rng = np.random.default_rng(0)
    path = tmp_path / "a.jpg"
    for _ in range(150):
        content = bytearray(whole.getvalue())
        for place in rng.integers(0, len(content), 3):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content)
        for read in (photo_size, read_photo):
            try:
                read(path)
            except OSError as error:
                assert str(error)


@pytest.mark.parametrize(("size", "options", "wanted"), [
    ((375, 500), {}, (384, 512)),
    ((384, 512), {}, (384, 512)),
    ((1, 1), {}, (16, 16)),
    ((17, 16), {}, (32, 16)),
    ((320, 320), {"scale": 0.7}, (224, 224)),
    ((300, 400), {"scale": 0.5}, (160, 208)),
    ((1000, 2000), {"max_side": 500}, (256, 512)),
    ((100, 200), {"max_side": 500}, (112, 208)),
    ((1000, 2000), {"max_side": 500, "scale": 2}, (512, 1008)),
    ((2, 5000), {"max_side": 320}, (16, 320)),
])
def test_fit_size(size: tuple[int, int], options: dict[str, Any], wanted: tuple[int, int]) -> None:
    assert fit_size(size, 16, **options) == wanted


def test_to_pixels_is_pil_and_clips_normalisation() -> None:
    found = to_pixels(some_rgb(), (32, 32), MEAN, STD)
    resized = np.asarray(Image.fromarray(some_rgb()).resize((32, 32), Image.Resampling.BICUBIC))
    wanted = (resized / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), wanted, atol=1e-5)
    assert found.is_contiguous()


def mixed_folder(folder: Path) -> list[tuple[str, Path]]:
    photos = []
    for number in range(7):
        height, width = ((20, 30), (30, 20), (21, 30))[number % 3]
        path = folder / f"p{number}.png"
        Image.fromarray(np.roll(some_rgb(height, width), number, axis=0)).save(path)
        photos.append((f"p{number}", path))
    whole = photos[3][1].read_bytes()
    photos[3][1].write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    return [*photos, ("empty", folder / "empty.jpg"), ("none", folder / "none.jpg")]


def test_batches_are_the_same_with_workers(tmp_path: Path) -> None:
    photos = mixed_folder(tmp_path)
    settings = PhotoSettings(16, MEAN, STD)
    alone, helped = (list(load_batches(photos, settings, batch_size=2, workers=workers))
                     for workers in (0, 2))
    assert [batch.ids for batch in alone] == [batch.ids for batch in helped]
    assert [batch.failed for batch in alone] == [batch.failed for batch in helped]
    for first, second in zip(alone, helped, strict=True):
        assert torch.equal(first.pixels, second.pixels)


def test_batches_report_failures_and_go_on(tmp_path: Path) -> None:
    photos = mixed_folder(tmp_path)
    found = list(load_batches(photos, PhotoSettings(16, MEAN, STD), batch_size=2, workers=0))
    failed = {key: why for batch in found for key, why in batch.failed.items()}
    assert sorted(failed) == ["empty", "none", "p3"]
    assert failed["empty"] == "empty.jpg: the file is empty"
    assert "p3.png" in failed["p3"]
    done = [key for batch in found for key in batch.ids]
    assert sorted(done) == ["p0", "p1", "p2", "p4", "p5", "p6"]
    paths = dict(photos)
    for batch in found:
        assert len(batch.ids) == len(batch.sizes) <= 2
        for key, size, pixels in zip(batch.ids, batch.sizes, batch.pixels, strict=True):
            photo = read_photo(paths[key])
            assert size == photo.shape[:2]
            assert torch.equal(pixels, to_pixels(photo, fit_size(size, 16), MEAN, STD))


def test_no_photo_at_all() -> None:
    assert list(load_batches([], PhotoSettings(16, MEAN, STD), batch_size=2, workers=0)) == []


def test_sizes_are_read_in_threads_and_each_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a network each waits for its answer; a barrier that one thread alone cannot pass."""
    photos = mixed_folder(tmp_path)
    barrier = threading.Barrier(3)

    def waiting(path: Path) -> tuple[int, int]:
        barrier.wait(10)
        return photo_size(path)

    monkeypatch.setattr("vpltool.parallel.batches.photo_size", waiting)
    told = []
    batches = load_batches(photos, PhotoSettings(16, MEAN, STD), batch_size=2, workers=0,
                           sized=lambda: told.append(1))
    first = next(batches)
    assert len(told) == len(photos)
    assert set(first.failed) == {"empty", "none"}
    assert sorted(key for batch in batches for key in batch.ids) == [
        "p0", "p1", "p2", "p4", "p5", "p6"]


def test_largest_photos_come_first(tmp_path: Path) -> None:
    for name, side in (("small", 16), ("large", 64), ("middle", 32)):
        Image.fromarray(some_rgb(side, side)).save(tmp_path / f"{name}.png")
    photos = [(path.stem, path) for path in sorted(tmp_path.iterdir())]
    found = load_batches(photos, PhotoSettings(16, MEAN, STD), batch_size=4, workers=0)
    assert [batch.ids for batch in found] == [["large"], ["middle"], ["small"]]


def test_the_reason_of_a_failure_is_a_few_words() -> None:
    error = VplError("it is torn", "mend it")
    assert describe_failure(Path("a/b.png"), error) == "b.png: it is torn"
