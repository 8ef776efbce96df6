"""Photos' files without metadata: the same pixels, upright, with the same colour profile."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from vpltool.core.photos import read_photo, without_metadata

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3)).astype(np.uint8)
SECRETS = (b"Alice Owner", b"48.8584", b"GPS", b"/home/alice", b"thumbnail-of-mine")


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    found[0x013B] = "Alice Owner"
    found[0x8298] = "/home/alice"
    found.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 30.0), 18: "GPS-84"})
    return found


def saved(form: str, orientation: int, **options: Any) -> bytes:
    file = io.BytesIO()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>Alice Owner 48.8584</x:xmpmeta>"
    if form == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("Author", "Alice Owner")
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        options |= {"pnginfo": text}
    else:
        options |= {"xmp": xmp}
    if form == "JPEG":
        options |= {"comment": "thumbnail-of-mine"}
    Image.fromarray(PIXELS).save(file, form, exif=exif(orientation), icc_profile=profile, **options)
    return file.getvalue()


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(("form", "options"), [
    ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {"lossless": True}),
    ("WEBP", {"quality": 60})])
def test_nothing_but_the_picture_is_left(form: str, options: dict[str, Any], orientation: int
                                         ) -> None:
    content = saved(form, orientation, **options) + b"\xff\xd8 a second picture: Alice Owner"
    assert any(secret in content for secret in SECRETS)
    clean = without_metadata(content)
    assert clean is not None
    assert not [secret for secret in SECRETS if secret in clean]
    assert (read_photo(clean) == read_photo(content)).all(), "the same pixels, as upright"
    with Image.open(io.BytesIO(clean)) as image:
        image.load()
        assert image.info["icc_profile"]
        assert dict(image.getexif()) == ({} if orientation == 1 else {0x0112: orientation})
        assert ImageOps.exif_transpose(image).size == read_photo(content).shape[1::-1]
    assert without_metadata(clean) == clean


def test_adobe_colours_and_transparency_stay() -> None:
    for mode, form in (("CMYK", "JPEG"), ("RGBA", "PNG"), ("RGBA", "WEBP"), ("P", "PNG"),
                       ("L", "JPEG"), ("1", "PNG")):
        file = io.BytesIO()
        Image.fromarray(PIXELS).convert(mode).save(file, form, exif=exif(1))
        clean = without_metadata(file.getvalue())
        assert clean is not None and b"Alice" not in clean
        assert (read_photo(clean) == read_photo(file.getvalue())).all(), (mode, form)


def test_a_plain_file_stays_as_it_is() -> None:
    for form in ("JPEG", "PNG", "WEBP"):
        file = io.BytesIO()
        Image.fromarray(PIXELS).save(file, form)
        assert without_metadata(file.getvalue()) == file.getvalue()


def test_other_files() -> None:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "TIFF")
    assert without_metadata(file.getvalue()) is None
    assert without_metadata(b"RIFF....WAVE") is None


def test_damaged_files_raise_nothing_but_os_errors() -> None:
    """A cut or changed file is stripped as far as it goes, or refused."""
    chance = np.random.default_rng(0)
    for form in ("JPEG", "PNG", "WEBP"):
        whole = saved(form, 6)
        for _ in range(150):
            content = bytearray(whole[: int(chance.integers(4, len(whole)))])
            for at in chance.integers(0, len(content), 3):
                content[at] = int(chance.integers(256))
            with contextlib.suppress(OSError):
                without_metadata(bytes(content))
