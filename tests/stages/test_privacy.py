"""What leaves the machine tells nothing of place, owner, user and path: each export, page and card.

The exports are those of the registry, so a new one is looked at without a line here.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, copy_workspace, run_chain
from drawn_masks import draw_made, hide_secrets
from PIL import Image
from test_export import build
from test_export_photos import predict_by_hand

from vpltool.datasets.words import COCO, VOC
from vpltool.formats import open_workspace
from vpltool.methods import Exporter, find_methods, load_method

pytest.importorskip("cv2")
pytest.importorskip("pycocotools")
pytest.importorskip("yaml")

OWNER = "alice-secret"
SECRETS = (OWNER.encode(), b"48.8584", b"GPS-84", b"Owner", b"pytest-of", b"site-packages",
           str(Path.home()).encode() + b"/", str(Path(__file__).parents[2]).encode() + b"/")
_ABSOLUTE = re.compile(r"(?<![\w.:/-])/"
                       r"(?:tmp|dev|home|root|Users|usr|var|opt|mnt|srv|private)/[\w.-]+")
_ORIENTATION = 274
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp")

EXPORTS = sorted(find_methods("exports"))
OF_DATA_SETS = {"voc-server": ("voc", VOC.classes, ["2008_000006", "2008_000011"], "test"),
                "coco-panoptic": ("coco", COCO.classes, ["COCO_val2014_000000000042"], "val")}
"""Exports that take the classes and ids of a data set alone."""
OPTIONS: dict[str, tuple[object, ...]] = {"review": ("--by", "random"), "onnx": ("--max-side", 16)}
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",),
         "tflite": ("litert_torch",), "geopackage": ("rasterio",)}


def files_in(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file at a path, and of each file in its archives."""
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if not file.is_file():
            continue
        yield file.name, file.read_bytes()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                yield from ((name, archive.read(name)) for name in archive.namelist())
        elif tarfile.is_tarfile(file):
            with tarfile.open(file) as tar:
                for member in tar.getmembers():
                    yield f"{member.name} of {member.uname}", b""
                    if (content := tar.extractfile(member)) is not None:
                        yield member.name, content.read()


def told_by(path: Path) -> list[str]:
    """What the files at a path tell that nobody asked them to; they are at least one."""
    told, count = list[str](), 0
    for name, content in files_in(path):
        count += 1
        told += [f"{name}: {secret!r}" for secret in SECRETS
                 if secret in content or secret in name.encode()]
        with contextlib.suppress(UnicodeDecodeError):
            told += [f"{name}: {found}" for found in _ABSOLUTE.findall(content.decode())]
        if name.lower().endswith(_PICTURES) and content:
            told += [f"{name}: {entry}" for entry in beside_pixels(content)]
    assert count
    return told


def beside_pixels(content: bytes) -> list[str]:
    """What a picture holds beside pixels, colours and orientation."""
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        exif = image.getexif()
        # 256 to 339: the sizes of a TIFF, without which it has no pixels.
        tags = [tag for tag in exif if tag != _ORIENTATION
                and not (image.format == "TIFF" and 254 <= tag <= 339)]
        return [f"EXIF {tag}" for tag in tags] + [
            f"EXIF of {name}" for name in (0x8769, 0x8825) if exif.get_ifd(name)] + [
            key for key in image.info
            if key.lower() in ("comment", "xmp", "xml:com.adobe.xmp", "photoshop", "iptc",
                               "author", "parsed_exif")]


@pytest.fixture
def as_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, OWNER)


@pytest.fixture(scope="module")
def trained(layered: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """A workspace whose decoder was trained in the owner's folder."""
    base = copy_workspace(layered, tmp_path_factory.mktemp("trained") / OWNER / "base", tiny_clip)
    run_chain(base, (("train-decoder", "--method", "discriminant", "--masks", "text-refined",
                      "--prototypes", "text", "--name", "mine"),))
    return base / "work"


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A workspace with masks, predictions, and photos that have places and owners."""
    (tmp_path / OWNER).mkdir()
    work = draw_made(tmp_path / OWNER)
    hide_secrets(work)
    predict_by_hand(work, "train", [photo.id for photo in open_workspace(work).photos("train")])
    return work


def write_scene(work: Path, run: Run) -> str:
    """Predict a GeoTIFF that lies in the owner's folder; the file of its labels."""
    import rasterio

    path = work.parent / "map.tif"
    with rasterio.open(path, "w", driver="GTiff", count=3, height=64, width=64, dtype="uint8",
                       crs="EPSG:32633", transform=rasterio.Affine(1, 0, 0, 0, -1, 0)) as file:
        file.write(np.random.default_rng(0).integers(0, 255, (3, 64, 64), dtype=np.uint8))
        file.update_tags(artist=OWNER)
    result = run("predict", path, "--decoder", "mine", "--tile", 32, "--workers", 0, work=work)
    assert result.code == 0, result.err
    return result.out.splitlines()[0]


def export(form: str, drawn: Path, trained: Path, run: Run, *options: object) -> list[Path]:
    """Export what a format takes; its files."""
    work, what, split = drawn, "drawn", "train"
    takes = load_method(Exporter, form).EXPORTS
    if takes == "segmenter":
        work, what = trained, "mine"
    elif takes == "scene":
        work, what = trained, write_scene(trained, run)
    elif form in OF_DATA_SETS:
        base = drawn.parent / form
        if not base.exists():
            base.mkdir()
            build(base, *OF_DATA_SETS[form])
            hide_secrets(base / "work")
        work, what, split = base / "work", "predictions/vision", OF_DATA_SETS[form][3]
    elif takes == "predictions":
        what = "segmenter"
    result = run("export", form, "--what", what,
                 *(() if takes in ("segmenter", "scene") else ("--split", split)),
                 *OPTIONS.get(form, ()), *options, work=work)
    assert result.code == 0, result.err
    return [Path(line) for line in result.out.splitlines()]


@pytest.mark.parametrize("form", EXPORTS)
def test_no_export_tells_of_place_owner_user_and_path(
    form: str, drawn: Path, trained: Path, run: Run, as_owner: None
) -> None:
    for name in NEEDS.get(form, ()):
        pytest.importorskip(name)
    paths = export(form, drawn, trained, run)
    assert [found for path in paths for found in told_by(path)] == []


@pytest.mark.parametrize("form", ["coco", "cvat", "imagefolder", "label-studio", "review", "yolo",
                                  "yolo-semantic"])
def test_a_flag_keeps_what_cameras_wrote(form: str, drawn: Path, trained: Path, run: Run) -> None:
    """And what is looked for above is found where it is."""
    export(form, drawn, trained, run, "--keep-exif", "--out", drawn / "kept")
    told = told_by(drawn / "kept")
    assert any("'Owner'" in found for found in told)
    assert any("EXIF" in found for found in told)
    assert not any("pytest-of" in found or OWNER in found for found in told)


@pytest.mark.parametrize("options", [(), ("--one-file",)])
def test_no_report_tells_either(options: tuple[str, ...], drawn: Path, run: Run, as_owner: None
                                ) -> None:
    result = run("report", "--split", "train", *options, work=drawn)
    assert result.code == 0, result.err
    path = Path(result.out.splitlines()[0])
    assert told_by(path if path.is_file() and options else path.parent) == []


def test_no_picture_tells_either(drawn: Path, run: Run, as_owner: None) -> None:
    assert run("show", "masks/drawn", "--split", "train", work=drawn).code == 0
    assert told_by(drawn / "pictures") == []


def test_no_card_and_no_bundle_tells_either(trained: Path, tmp_path: Path, run: Run,
                                            as_owner: None) -> None:
    """What `push` would upload, with weights and without."""
    for number, options in enumerate(((), ("--clip", "identity"))):
        bundle = tmp_path / f"{number}.safetensors"
        made = run("export", "bundle", "--what", "mine", *options, "--out", bundle, work=trained)
        assert made.code == 0, made.err
        assert told_by(bundle) == []
        card = run("push", "someone/shapes", "--segmenter", bundle, "--card", work=trained)
        assert card.code == 0, card.err
        (tmp_path / "README.md").write_text(card.out)
        assert "shapes" in card.out
        assert told_by(tmp_path / "README.md") == []


def test_what_tells_is_found(tmp_path: Path) -> None:
    """The search itself: in text, in archives, and beside pixels."""
    (tmp_path / "a.json").write_text('{"folder": "/home/jane/photos"}')
    (tmp_path / "b.json").write_text('{"page": "https://example.org/home/jane"}')
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    Image.new("RGB", (2, 2)).save(tmp_path / "turned.jpg", exif=exif)
    exif[0x010F] = "a camera"
    Image.new("RGB", (2, 2)).save(tmp_path / "camera.jpg", exif=exif)
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.txt", OWNER * 9)
    shutil.make_archive(str(tmp_path / "d"), "gztar", tmp_path, "a.json")
    assert sorted({found.partition(":")[0] for found in told_by(tmp_path)}) == [
        "a.json", "camera.jpg", "inner.txt"]
