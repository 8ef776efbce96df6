"""Every reader of the product: a file of a small world, valid content of it, and what reads it."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from conftest import CHAIN, LAYERED, SHAPES, TRAIN, draw_scenes, prepare, save_clip, write_scenes
from conftest import run_in_process as run
from PIL import Image
from safetensors.torch import save_file

from campaigns.stages import make_stage_world, stage_readers
from vpltool import Segmenter, completion
from vpltool.clip.models import check_tower, read_config
from vpltool.clip.weights import read_weights, recognise
from vpltool.core.photos import photo_size, read_photo
from vpltool.datasets.captions import read_captions
from vpltool.datasets.layouts import read_folder
from vpltool.datasets.webdataset import read_tar
from vpltool.datasets.words import find_prompts, read_attributes, read_classes
from vpltool.engine.checkpoints import read_checkpoint
from vpltool.errors import VplError
from vpltool.formats import describe, open_input, open_workspace, read_labels, read_tensors
from vpltool.formats.archives import write_tree
from vpltool.formats.changes import explain_change, last_call
from vpltool.formats.corrections import is_edited
from vpltool.formats.packed import write_tar
from vpltool.formats.started import read_started
from vpltool.methods.labels import LabellingRequest, find_reader
from vpltool.methods.sources.coco import read_coco
from vpltool.methods.sources.voc import read_voc
from vpltool.options import Replaces
from vpltool.papers.comparison.methods import read_methods
from vpltool.preset import read_preset
from vpltool.recipes.parse import read_recipe, steps_of
from vpltool.stages._pairs import stream_pairs

Read = Callable[[Path], object]


@dataclass(frozen=True)
class Reader:
    """A reader of the product.

    Args:
        name: of the reader.
        place: the file that is mutated, below the world's folder.
        form: of the file, see `mutations.FORMS`.
        read: reads it, given the world's folder.
        more: further contents to begin with, made from the world's folder.
        weight: share of the campaign's executions; slow readers have a smaller one.
    """

    name: str
    place: str
    form: str
    read: Read
    more: Callable[[Path], Iterable[bytes]] = lambda _: ()
    weight: int = 10


def make_world(base: Path) -> Path:
    """Make a workspace with something of every kind, and files of every format around it."""
    base.mkdir(parents=True)
    save_clip(base / "clip")
    write_scenes(base, draw_scenes(6))
    (base / "captions.csv").write_text('id,caption\nscene0,a bar\nscene1,"a ""box"", and more"\n')
    _succeed(prepare(base, "--masks", base / "masks", "--captions", base / "captions.csv"))
    for words in (*CHAIN, *LAYERED, (*TRAIN, "--name", "tiny"),
                  ("predict", "--decoder", "tiny", "--split", "val", "--workers", 0),
                  ("export", "bundle", "--what", "tiny", "--out", base / "bundle.safetensors"),
                  ("export", "label-studio", "--kind", "annotations", "--out", base / "studio"),
                  ("export", "cvat", "--out", base / "cvat"),
                  ("export", "coco", "--out", base / "instances"),
                  ("export", "yolo", "--out", base / "yolo"),
                  ("export", "mmseg", "--out", base / "mmseg"),
                  ("export", "imagefolder", "--out", base / "imagefolder")):
        _succeed(run(*words, work=base / "work"))
    shutil.copytree(base / "imagefolder", base / "given")
    for make in (make_stage_world, _make_coco, _make_voc, _make_texts, _make_weights, _make_tar,
                 _make_photos, _make_checkpoint, _make_packed):
        make(base)
    return base


def _succeed(result: Any) -> None:
    assert result.code == 0, result.err


def _make_coco(base: Path) -> None:
    entries: dict[str, Any] = {
        "info": {"year": 2014}, "categories": [
            {"id": 1 + number, "name": name} for number, name in enumerate(SHAPES)],
        "images": [{"id": number, "file_name": f"scene{number}.png", "height": 40, "width": 48}
                   for number in range(2)],
        "annotations": [{"id": 5, "image_id": number, "category_id": 1 + number, "iscrowd": 0,
                         "area": 9.0, "caption": "a bar", "segmentation": [[1, 1, 9, 1, 9, 9]]}
                        for number in range(2)]}
    (base / "coco/annotations").mkdir(parents=True)
    (base / "coco/annotations/instances_train2014.json").write_text(json.dumps(entries))
    (base / "captions.json").write_text(json.dumps(entries))
    (base / "coco/train2014").mkdir()
    for number in range(2):
        shutil.copy(base / f"photos/scene{number}.png", base / "coco/train2014")


def _make_voc(base: Path) -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (base / "voc" / folder).mkdir(parents=True)
    (base / "voc/JPEGImages/scene0.jpg").write_bytes(b"photo")
    (base / "voc/ImageSets/Segmentation/train.txt").write_text("scene0\n")
    (base / "voc/Annotations/scene0.xml").write_text(
        '<?xml version="1.0"?>\n<annotation><size><width>48</width></size><object><name>bar</name>'
        '<bndbox note="x"><xmin>1</xmin></bndbox></object></annotation>')


def _make_texts(base: Path) -> None:
    (base / "classes.txt").write_text("0 background\n1 bar\n2 box\n7 disc\n")
    (base / "prompts.txt").write_text("a photo of a {}.\nart of a {}.\n")
    (base / "attributes.json").write_text('{"bar": ["a bar is long", "metal"], "box": ["square"]}')
    (base / "protocol.toml").write_text(
        '[refine]\nlambda = 0.4\n[crf]\nmethod = "par"\n[prepare.voc]\nhalve = "train"\n')
    (base / "mine.recipe").write_text(
        "# A recipe.\nphotos = ?  # where\nseeds = 0 1\nvpltool prepare folder $photos [--labels "
        "$seeds]\nif photos\nsay Hello ${photos}\nend\neach seed in $seeds\nvpltool cam \\\n "
        "--split train\nend\n")
    (base / "work/recipe.json").write_text(json.dumps({
        "recipe": "own-photos", "done": False,
        "words": ["run", "own-photos", {"text": "photos=", "path": "../photos"}, "alpha=3"]}))
    (base / "rows.recipe").write_text(
        "vpltool extract\nsay a | b\neach split in $learn $score\nvpltool cam --split $split\n"
        "end\n")
    work = base / "work/features/train/.shards"
    work.mkdir()
    config = json.loads((base / "work/features/train/artifact.json").read_text())["config"]
    (work / "0-of-2.json").write_text(json.dumps({
        "config": config, "shard": 0, "shards": 2, "whole": True, "complete": True,
        "failed": {"scene9": "torn"}, "own": {"scene0": "bar"}}))


def _make_weights(base: Path) -> None:
    state = {"visual.proj": torch.ones(4, 3), "logit_scale": torch.ones(())}
    save_file(state, base / "weights.safetensors")
    torch.save({"state_dict": state, "epoch": 3}, base / "weights.pt")
    torch.save(state, base / "legacy.pth", _use_new_zipfile_serialization=False)

    class Inner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = torch.nn.Parameter(torch.ones(4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.proj

    whole = torch.nn.Module()
    whole.visual = Inner()
    whole.register_buffer("input_resolution", torch.tensor(32))
    whole.forward = whole.visual.forward
    torch.jit.save(torch.jit.trace_module(whole.visual, {"forward": torch.ones(2, 4)}),
                   base / "archive.pt")


def _make_tar(base: Path) -> None:
    with tarfile.open(base / "pairs.tar", "w") as tar:
        for number in range(3):
            for suffix, content in (
                    ("png", (base / f"photos/scene{number}.png").read_bytes()),
                    ("txt", f"a bar {number}\n".encode()), ("cls", b"1"),
                    ("json", json.dumps({"caption": "x", "tags": ["bar"]}).encode())):
                member = tarfile.TarInfo(f"{number:04}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _make_photos(base: Path) -> None:
    photo = Image.open(base / "photos/scene0.png")
    exif = Image.Exif()
    exif[274] = 6
    for suffix in ("jpg", "gif", "bmp", "tiff", "webp", "ppm"):
        photo.save(base / f"photo.{suffix}", **({"exif": exif} if suffix == "jpg" else {}))
    photo.save(base / "photo.png", exif=exif)


def _make_checkpoint(base: Path) -> None:
    """Keep a checkpoint, which a training that has finished would have deleted."""
    source = base / "work/decoder/tiny.safetensors"
    header, tensors = read_tensors(source, "decoder")
    facts = dict(header.facts) | {"checkpoint": 2, "curve": [[0, 1.0]], "recent": []}
    from dataclasses import replace

    from vpltool.formats import write_tensors

    write_tensors(base / "tiny.checkpoint.safetensors", replace(header, facts=facts),
                  {f"network.{name}": tensor for name, tensor in tensors.items()})


def _make_packed(base: Path) -> None:
    """Pack features of two photos, as `pack` does."""
    folder = base / "packed"
    shutil.copytree(base / "work/features/train", folder)
    shutil.rmtree(folder / ".shards")
    files = {file.stem: file for file in sorted(folder.glob("*.safetensors"))[:2]}
    write_tar(folder, "0-of-1-000000", "", files)
    for file in files.values():
        file.unlink()


def _inside(base: Path, paths: Iterable[Path]) -> None:
    """Check that what an id names is in the workspace."""
    for path in paths:
        assert path.resolve().is_relative_to(base.resolve()), f"outside: {path}"


def read_workspace(base: Path) -> None:
    """Read workspace.json and images.jsonl as every command does."""
    work = open_workspace(base / "work")
    photos = work.photos("train")
    folder = open_input(base / "work/features/train", ("features",))
    _inside(base / "work", (folder.path_of(photo.id) for photo in photos))
    for photo in photos:
        work.indices_of(photo)
        work.image_path(photo).exists()
    assert work.classes_identity and work.tags_identity("train")
    assert isinstance(work.captions_identity("train"), str)
    work.class_name(1)
    work.has_true_masks_in(base, photos)
    work.check_classes(folder.header, folder.path)


def read_changes(base: Path) -> None:
    """Explain what has changed, as `status` does."""
    last_call(base / "work")
    for role in ("classes", "tags", "captions"):
        explain_change(base / "work", role, "0" * 16)


def read_artifact(base: Path) -> None:
    """Open a folder of features, and one file of it."""
    folder = open_input(base / "work/features/train", ("features",))
    assert folder.identity
    folder.photo_ids()
    folder.left_out(["scene0", "scene9"])
    folder.available(["scene0", "scene1"])
    folder.read_tensors("scene0", "patches", "grid")
    assert repr(folder.name)


def read_packed(base: Path) -> None:
    """Read features that lie in a tar."""
    folder = open_input(base / "packed", ("features",))
    for key in [*folder.packed, "scene0"][:3]:
        _inside(base / "packed", [place.path for place in [folder.packed.get(key)]
                                  if place and place.path and "://" not in place.tar])
        folder.describe(key)
        folder.read_tensors(key, "patches")


def complete(base: Path) -> None:
    """Complete names, as a shell asks while one types: never an error."""
    for name in ("split", "ids", "tagged"):
        completion.names_for(name, base / "work", "")


def read_weight_file(name: str) -> Read:
    """Read a file of weights."""
    return lambda base: read_weights(recognise(base / name))


def read_photo_file(name: str) -> Read:
    """Decode a photo; what a command would put down as failed is fine."""
    def read(base: Path) -> None:
        for decode in (photo_size, read_photo):
            try:
                decode(base / name)
            except OSError:
                continue

    return read


def read_all_pairs(base: Path) -> None:
    """Read a tar, and the stream that a training draws from it."""
    pairs = list(read_tar(str(base / "pairs.tar")))
    if any(getattr(pair, "captions", ()) for pair in pairs):
        stream = stream_pairs([str(base / "pairs.tar")], seed=0, window=4)
        for _ in range(8):
            next(stream)


def read_labels_of(place: str) -> Read:
    """Take back what a labelling tool exported."""
    def read(base: Path) -> None:
        work = open_workspace(base / "work")
        photos = {photo.id: photo for photo in work.photos()}
        found = find_reader(base / place)
        if found:
            for labelled in found[1].read(base / place, LabellingRequest(
                    base / "photos", work.classes, photos)):
                assert labelled.labels.ndim == 2

    return read


def load_bundle(base: Path) -> None:
    """Load a segmenter that somebody gave away."""
    Segmenter.load(base / "bundle.safetensors", device="cpu")


def resume(base: Path) -> None:
    """Go on from a checkpoint."""
    header, _ = read_tensors(base / "work/decoder/tiny.safetensors", "decoder")
    read_checkpoint(base / "tiny.safetensors", header, Replaces())


def read_mask(base: Path) -> None:
    """Read a mask, and its header."""
    path = base / "work/masks/text-refined/train/scene0.png"
    is_edited(path)
    read_labels(path)
    describe(path)


def replace_export(base: Path) -> None:
    """Replace a folder that was exported before."""
    write_tree(base / "given", [("classes.json", b"[]")], "imagefolder")


def _zipped(name: str, source: str) -> Callable[[Path], list[bytes]]:
    def content(base: Path) -> list[bytes]:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.write(base / source, name)
        return [out.getvalue()]

    return content


def read_zip(base: Path) -> None:
    """Take CVAT's ZIP back."""
    if (base / "cvat.zip").exists():
        read_labels_of("cvat.zip")(base)


def _first(base: Path, pattern: str) -> str:
    return next(iter(sorted(base.glob(pattern)))).relative_to(base).as_posix()


FEATURES = "work/features/train/scene0.safetensors"

READERS = (
    Reader("workspace", "work/workspace.json", "json", read_workspace),
    Reader("images", "work/images.jsonl", "json lines", read_workspace),
    Reader("changes", "work/changes.jsonl", "json lines", read_changes),
    Reader("completion", "work/images.jsonl", "json lines", complete),
    Reader("manifest", "work/features/train/artifact.json", "json", read_artifact, weight=6),
    Reader("shard", "work/features/train/.shards/0-of-2.json", "json", read_artifact, weight=6),
    Reader("features", FEATURES, "safetensors", read_artifact, weight=6),
    Reader("prototypes", "work/prototypes/text.safetensors", "safetensors",
           lambda base: read_tensors(base / "work/prototypes/text.safetensors", "prototypes")),
    Reader("checkpoint", "tiny.checkpoint.safetensors", "safetensors", resume, weight=5),
    Reader("bundle", "bundle.safetensors", "safetensors", load_bundle, weight=1),
    Reader("tags", "tags.csv", "lines",
           lambda base: read_folder(base / "photos", base / "tags.csv", base / "masks"), weight=5),
    Reader("captions csv", "captions.csv", "lines",
           lambda base: list(read_captions(base / "captions.csv"))),
    Reader("captions json", "captions.json", "json",
           lambda base: list(read_captions(base / "captions.json"))),
    Reader("coco", "coco/annotations/instances_train2014.json", "json",
           lambda base: read_coco(base / "coco", SHAPES)),
    Reader("voc xml", "voc/Annotations/scene0.xml", "xml",
           lambda base: read_voc(base / "voc", SHAPES)),
    Reader("voc list", "voc/ImageSets/Segmentation/train.txt", "lines",
           lambda base: read_voc(base / "voc", SHAPES)),
    Reader("classes", "classes.txt", "lines", lambda base: read_classes(base / "classes.txt")),
    Reader("prompts", "prompts.txt", "lines",
           lambda base: find_prompts(str(base / "prompts.txt"))),
    Reader("attributes", "attributes.json", "json",
           lambda base: read_attributes(base / "attributes.json", SHAPES)),
    Reader("preset", "protocol.toml", "lines",
           lambda base: read_preset(str(base / "protocol.toml")), weight=5),
    Reader("recipe", "mine.recipe", "lines", lambda base: steps_of(
        read_recipe(base / "mine.recipe"), {"photos": "x"}, base / "work")),
    Reader("started recipe", "work/recipe.json", "json", lambda base: read_started(base / "work")),
    Reader("comparison", "rows.recipe", "lines", lambda base: read_methods(
        base / "rows.recipe", {"learn": "train", "score": "val"}, (0,), base / "work"), weight=2),
    Reader("clip config", "clip/open_clip_config.json", "json",
           lambda base: check_tower("clip", read_config(base / "clip"))),
    Reader("safetensors weights", "weights.safetensors", "safetensors",
           read_weight_file("weights.safetensors"), weight=6),
    Reader("torch weights", "weights.pt", "zip", read_weight_file("weights.pt"), weight=4),
    Reader("legacy weights", "legacy.pth", "pickle", read_weight_file("legacy.pth"), weight=6),
    Reader("openai archive", "archive.pt", "zip", read_weight_file("archive.pt"), weight=4),
    Reader("mask", "work/masks/text-refined/train/scene0.png", "png", read_mask, weight=6),
    *(Reader(f"photo {suffix}", f"photo.{suffix}", "png" if suffix == "png" else "bytes",
             read_photo_file(f"photo.{suffix}"), weight=4)
      for suffix in ("png", "jpg", "gif", "bmp", "tiff", "webp", "ppm")),
    Reader("tar", "pairs.tar", "tar", read_all_pairs, weight=3),
    Reader("packed index", "packed/.packed/0-of-1-000000.json", "json", read_packed, weight=6),
    Reader("packed tar", "packed/.packed/0-of-1-000000.tar", "tar", read_packed, weight=3),
    Reader("label studio", "studio/tasks.json", "json", read_labels_of("studio"), weight=4),
    Reader("cvat", "cvat/annotations.xml", "xml", read_labels_of("cvat"), weight=4),
    Reader("cvat zip", "cvat.zip", "zip", read_zip, _zipped("annotations.xml",
                                                            "cvat/annotations.xml"), weight=2),
    Reader("instances", "instances/annotations/instances_train.json", "json",
           read_labels_of("instances"), weight=4),
    Reader("yolo", "yolo/labels/train/scene0.txt", "lines", read_labels_of("yolo"), weight=4),
    Reader("yolo names", "yolo/data.yaml", "lines", read_labels_of("yolo"), weight=2),
    Reader("mmseg", "mmseg/dataset.py", "lines", read_labels_of("mmseg"), weight=4),
    Reader("imagefolder", "imagefolder/train/metadata.jsonl", "json lines",
           read_labels_of("imagefolder"), weight=4),
    Reader("export mark", "given/vpltool-export.json", "json", replace_export, weight=4),
    *stage_readers(Reader),
)


def begin(reader: Reader, base: Path) -> list[bytes]:
    """Valid contents of a reader's file; each is read without an error."""
    path = base / reader.place
    contents = [*([path.read_bytes()] if path.exists() else []), *reader.more(base)]
    for content in contents:
        path.write_bytes(content)
        reader.read(base)
    assert contents, reader.name
    return contents


__all__ = ["READERS", "Reader", "VplError", "begin", "make_world"]
