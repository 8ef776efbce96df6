"""Proposals: made from photos, imported from every format, and given classes by `crf`."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result, Run, draw_scenes, prepare, run_chain, run_in_process, write_scenes
from drawn_masks import EXACT, draw_made, masks_of
from PIL import Image
from safetensors.torch import load_file

from vpltool.core.outlines import run_lengths
from vpltool.core.proposals import Proposals, from_tensors
from vpltool.formats import describe, open_input, read_labels
from vpltool.methods.labels import ProposalNames

pytest.importorskip("cv2")
pytest.importorskip("pycocotools")
pytest.importorskip("skimage")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_made(tmp_path_factory.mktemp("made"))


@pytest.fixture
def work(made: Path, tmp_path: Path) -> Path:
    """A copy of it, which a test may change."""
    shutil.copytree(made.parent, tmp_path / "base", symlinks=True)
    return tmp_path / "base/work"


def propose(work: Path, *options: object) -> Result:
    return run_in_process("propose", *options, "--workers", 0, work=work)


def read(work: Path, name: str, split: str = "train") -> dict[str, Proposals]:
    folder = open_input(work / "proposals" / name / split, ("proposals",))
    return {key: from_tensors(folder.read_tensors(key)) for key in (
        f"sub/scene{number}" if number < 2 else f"scene{number}" for number in range(6))}


@pytest.mark.parametrize(("method", "options"), [
    ("felzenszwalb", ("--scales", "20,60")), ("slic", ("--segments", "8,20"))])
def test_each_scale_covers_the_photo(method: str, options: tuple[str, ...], work: Path) -> None:
    result = propose(work, "--method", method, *options)
    assert result.code == 0, result.err
    for proposals in read(work, method).values():
        assert (sum(mask.astype(int) for mask in proposals.masks()) == 2).all()
        assert len(proposals) > 4
        assert set(proposals.words) == {""}
    again = propose(work, "--method", method, *options)
    assert "6 of 6 photos are done already" in again.err


def test_workers_make_the_same_files(work: Path, run: Run) -> None:
    assert propose(work, "--scales", "50").code == 0
    assert run("propose", "--scales", "50", "--name", "two", "--workers", 2, work=work).code == 0
    one, two = read(work, "felzenszwalb"), read(work, "two")
    assert all((one[key].runs == two[key].runs).all() for key in one)


FORMS = ("coco", "yolo", "label-studio", "cvat", "mmseg")


@pytest.mark.parametrize("form", FORMS)
def test_regions_of_labelling_tools_come_back(form: str, work: Path, run: Run) -> None:
    """Painted smallest on top or in their order, they are the masks that were exported."""
    options = (*EXACT.get(form, ()), *(("--kind", "annotations") if form == "label-studio" else ()))
    assert run("export", form, "--what", "drawn", "--split", "train", "--out", work / form,
               *options, work=work).code == 0
    result = propose(work, "--method", "files", "--path", work / form)
    assert result.code == 0, result.err
    names = ("background", "bar", "box", "disc")
    drawn = masks_of(work / "masks/drawn/train")
    for key, proposals in read(work, "files").items():
        painted = np.zeros(proposals.size, np.uint8)
        for mask, word in sorted(zip(proposals.masks(), proposals.words, strict=True),
                                 key=lambda found: -int(found[0].sum())):
            painted[mask] = names.index(word)
        assert (painted == np.where(drawn[key] == 255, 0, drawn[key])).all(), key
    header = describe(next((work / "proposals/files/train").glob("*.safetensors"))).header
    assert header is not None and "another tool" in header.supervision


def flat(key: str) -> str:
    """The name of a photo in a folder without folders."""
    return key.replace("/", "__")


def instances_of(work: Path, key: str) -> list[np.ndarray]:
    """Three overlapping masks of a photo's size."""
    with Image.open(work.parent / "photos" / f"{key}.png") as image:
        height, width = image.height, image.width
    masks = [np.zeros((height, width), bool) for _ in range(3)]
    masks[0][4:20, 3:30] = True
    masks[1][10:14, 5:40] = True
    masks[2][30:, :] = True
    return masks


KEYS = ("sub/scene0", "sub/scene1", *(f"scene{number}" for number in range(2, 6)))


def write_sam(work: Path, folder: Path, *, whole: bool) -> None:
    """As amg.py writes them, or as SA-1B does."""
    for key in KEYS:
        masks = instances_of(work, key)
        entries = [{"segmentation": run_lengths(mask), "area": int(mask.sum()),
                    "bbox": [0, 0, 1, 1], "predicted_iou": iou, "stability_score": 0.97,
                    "crop_box": [0, 0, 9, 9], "point_coords": [[1, 1]]}
                   for mask, iou in zip(masks, (0.9, 1.02, 0.5), strict=True)]
        height, width = masks[0].shape
        content = {"image": {"image_id": 1, "file_name": f"{flat(key)}.png", "width": width,
                             "height": height}, "annotations": entries} if whole else entries
        (folder / f"{flat(key)}.json").write_text(json.dumps(content))


def write_uncompressed(work: Path, folder: Path) -> None:
    """COCO's uncompressed run lengths, column by column, in one file, with scores."""
    content: dict[str, list[object]] = {"categories": [{"id": 7, "name": "a Thing"}], "images": [],
                                        "annotations": []}
    for number, key in enumerate(KEYS):
        for mask, score in zip(instances_of(work, key), (0.9, 1, 0.5), strict=True):
            flat = mask.ravel(order="F")
            ends = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
            content["annotations"].append({
                "id": len(content["annotations"]), "image_id": number, "category_id": 7,
                "score": score, "segmentation": {
                    "size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}})
        content["images"].append({"id": number, "file_name": f"{key}.png",
                                  "height": mask.shape[0], "width": mask.shape[1]})
    (folder / "found.json").write_text(json.dumps(content))


def write_masks(work: Path, folder: Path) -> None:
    """A folder per photo, with the table that amg.py writes."""
    for key in KEYS:
        own = folder / flat(key)
        own.mkdir()
        rows = ["id,area,predicted_iou,stability_score"]
        for number, (mask, iou) in enumerate(zip(instances_of(work, key), (0.9, 1.02, 0.5),
                                                 strict=True)):
            Image.fromarray(mask.astype(np.uint8) * 255).save(own / f"{number}.png")
            rows.append(f"{number},1,{iou},0.97")
        (own / "metadata.csv").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize(("write", "form", "word"), [
    (lambda work, folder: write_sam(work, folder, whole=False), "auto", ""),
    (lambda work, folder: write_sam(work, folder, whole=True), "auto", ""),
    (write_uncompressed, "auto", "a Thing"), (write_masks, "masks", "")],
    ids=["amg", "sa-1b", "coco", "masks"])
def test_overlapping_masks_keep_their_scores(write: Callable[[Path, Path], None], form: str,
                                             word: str, work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "found"
    folder.mkdir()
    write(work, folder)
    path = folder / "found.json" if (folder / "found.json").exists() else folder
    result = propose(work, "--method", "files", "--path", path, "--format", form)
    assert result.code == 0, result.err
    for key, proposals in read(work, "files").items():
        assert proposals.scores.tolist() == pytest.approx([0.9, 1, 0.5])
        assert list(proposals.words) == [word] * 3
        for mask, wanted in zip(proposals.masks(), instances_of(work, key), strict=True):
            assert (mask == wanted).all()


def test_pictures_of_every_depth(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "found"
    folder.mkdir()
    for number, key in enumerate(KEYS):
        first, _, last = instances_of(work, key)
        numbers = np.where(first, 3, np.where(last, 700, 0)).astype(np.uint16)
        if number % 2:
            # COCO's panoptic colours.
            Image.fromarray(np.stack([numbers % 256, numbers // 256, numbers * 0], axis=2
                                     ).astype(np.uint8)).save(folder / f"{flat(key)}.png")
        else:
            Image.fromarray(numbers).save(folder / f"{flat(key)}.png")
    assert propose(work, "--method", "files", "--path", folder, "--format", "instances").code == 0
    for key, proposals in read(work, "files").items():
        first, _, last = instances_of(work, key)
        assert len(proposals) == 2
        for mask, wanted in zip(proposals.masks(), (first, last & ~first), strict=True):
            assert (mask == wanted).all()


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_soft_maps_divide_a_photo(mode: str, work: Path, tmp_path: Path) -> None:
    """A grey map, or the photo cut out with it, as rembg writes them."""
    folder = tmp_path / "soft"
    folder.mkdir()
    for key in KEYS:
        first, *_ = instances_of(work, key)
        grey = Image.fromarray(np.where(first, 204, 51).astype(np.uint8))
        if mode == "RGBA":
            cut_out = Image.open(work.parent / "photos" / f"{key}.png").convert("RGBA")
            cut_out.putalpha(grey)
            grey = cut_out
        grey.save(folder / f"{flat(key)}.png")
    assert propose(work, "--method", "files", "--path", folder, "--format", "soft", "--levels",
                   "0.5").code == 0
    for key, proposals in read(work, "files").items():
        first, *_ = instances_of(work, key)
        assert [(mask == first).all() for mask in proposals.masks()] == [True, False]
        assert proposals.scores.tolist() == pytest.approx([0.8, 0.8])


def test_label_images_have_the_words_of_their_list(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "classes.txt").write_text("background\ntree\nbar\n")
    for key in KEYS:
        first, _, last = instances_of(work, key)
        labels = np.where(first, 2, np.where(last, 1, 0)).astype(np.uint8)
        labels[0, 0] = 255
        Image.fromarray(labels).save(folder / f"{flat(key)}.png")
    assert propose(work, "--method", "files", "--path", folder, "--format", "labels").code == 0
    assert {tuple(proposals.words) for proposals in read(work, "files").values()} == {
        ("tree", "bar")}


def test_painted_words_are_checked_by_the_tags(work: Path, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "labels"
    drawn = masks_of(work / "masks/drawn/train")
    for key, labels in drawn.items():
        label_image(folder, flat(key), labels)
    result = propose(work, "--method", "files", "--path", folder, "--format", "labels", "--paint")
    assert result.code == 0, result.err
    for key, labels in masks_of(work / "predictions/files/train").items():
        # Parts in the holes of others are smaller, and on top.
        assert (labels == np.where(drawn[key] == 255, 0, drawn[key])).mean() > 0.99
    result = run("eval", "--what", "predictions/files", "--split", "train", "--against", "tags",
                 "--json", work=work)
    assert result.code == 0, result.err
    assert json.loads(result.out)["made_by"] == "propose"
    assert "made with the tags" not in result.err
    assert "gives no words" in propose(work, "--paint").err


def test_a_file_may_have_more_words_than_bytes_have_values(work: Path, tmp_path: Path) -> None:
    names = ProposalNames(tmp_path, (), {})
    words = [f"word {number}" for number in range(300)]
    labels = [names.label(word, "") for word in words + words]
    assert labels[:300] == labels[300:] == [number for number in range(1, 302) if number != 255]
    assert [names.word(label) for label in labels[:300]] == words
    # CVAT's shapes are painted before they are proposals.
    shapes = "".join(f'<box label="{word}" xtl="{number % 40}" ytl="2" xbr="{number % 40 + 2}" '
                     'ybr="5" z_order="0"/>' for number, word in enumerate(words))
    (tmp_path / "annotations.xml").write_text(
        f'<annotations><image name="scene2" width="48" height="40">{shapes}</image>'
        "</annotations>")
    assert propose(work, "--method", "files", "--path", tmp_path / "annotations.xml").code == 0
    (found,) = [proposals for proposals in read(work, "files").values() if len(proposals)]
    # What was drawn last is on top, so the first ones are covered.
    assert set(found.words) <= set(words[-41:])
    assert "word 299" in found.words


def one_soft(folder: Path, name: str, size: tuple[int, int]) -> None:
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.full(size, 200, np.uint8)).save(folder / name)


def test_other_sizes_are_refused_or_scaled(work: Path, tmp_path: Path) -> None:
    one_soft(tmp_path / "soft", "scene2.png", (10, 12))
    options = ("--method", "files", "--path", tmp_path / "soft", "--format", "soft")
    result = propose(work, *options)
    assert result.code == 1
    assert "scene2.png: 10×12 (height×width), its photo scene2 is 40×48" in result.err
    assert "--resize" in result.err
    assert "5 photos have no proposals" in result.err
    result = propose(work, *options, "--resize", "--overwrite")
    assert result.code == 0, result.err
    found = read(work, "files")
    assert found["scene2"].size == (40, 48) and len(found["scene2"]) == 5
    assert len(found["scene3"]) == 0


def broken(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


HUGE = b'[{"segmentation": {"size": [40, 48], "counts": [0, 99999999999]}, "predicted_iou": 1}]'
HOSTILE: list[tuple[str, Callable[[Path], None], str]] = [
    ("auto", broken("scene2.json", b'[{"segmentation": 5, "predicted_iou": 1}]'), "as SAM writes"),
    ("auto", broken("scene2.json", b'[{"segmentation": {"size": [9, 9], "counts": "'
                    b'\\u00e9"}, "crop_box": 1}]'), "9×9"),
    ("auto", broken("scene2.json", HUGE), "its segmentation cannot be read"),
    ("auto", broken("scene2.json", b'[{"segmentation": {}, "predicted_iou": "x"'), "not JSON"),
    ("auto", broken("scene99.json", b'[{"segmentation": {"size": [1, 1]}, "predicted_iou": 1}]'),
     "the photo scene99 is not in the workspace"),
    ("auto", broken("nothing.txt", b"x"), "in no format that is detected"),
    ("soft", broken("scene2.png", b"\x89PNG\r\n\x1a\nnot"), "cannot be read as a PNG"),
    ("soft", broken("x.txt", b""), "holds no PNG"),
    ("labels", lambda folder: one_soft(folder, "scene2.png", (40, 48)), "the value 200"),
    ("masks", lambda folder: one_soft(folder / "scene99", "0.png", (4, 4)), "scene99"),
    ("masks", lambda folder: (one_soft(folder / "scene2", "0.png", (40, 48)), broken(
        "scene2/metadata.csv", b"id,iou\n0,1\n")(folder))[1], "lacks id and predicted_iou"),
]


@pytest.mark.parametrize(("form", "write", "said"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_files_are_named(form: str, write: Callable[[Path], None], said: str, work: Path,
                                 tmp_path: Path) -> None:
    folder = tmp_path / "found"
    folder.mkdir()
    write(folder)
    result = propose(work, "--method", "files", "--path", folder, "--format", form)
    assert result.code == 1
    assert said in result.err and "Traceback" not in result.err
    assert str(folder) in result.err


KEPT: list[object] = []


def torchvision_works() -> None:
    """Stand in for NMS where torchvision's own operators are not built for this torch."""
    import torch

    # Importing torchvision may fail without them, or define them without anything that does it.
    known = hasattr(torch.ops.torchvision, "nms")
    if KEPT or known and importlib.import_module("torchvision.extension")._has_ops():
        return
    library = torch.library.Library("torchvision", "FRAGMENT" if known else "DEF")
    KEPT.append(library)
    for name in () if known else ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    # Masks of random weights: each is kept.
    library.impl("nms", lambda boxes, scores, _: scores.argsort(descending=True), "CPU")
    for module in ("torchvision.extension", "torchvision.ops.boxes"):
        importlib.import_module(module)._assert_has_ops = lambda: None  # type: ignore[attr-defined]


def save_sam(folder: Path, *, second: bool) -> None:
    """A SAM, or SAM 2, of random weights, as transformers saves them."""
    from transformers import (
        Sam2Config,
        Sam2Model,
        SamConfig,
        SamImageProcessor,
        SamModel,
        SamProcessor,
    )

    decoder = {"hidden_size": 8, "mlp_dim": 16, "num_attention_heads": 2, "num_hidden_layers": 1,
               "iou_head_hidden_dim": 8, "iou_head_depth": 2}
    prompts = {"hidden_size": 8, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    if second:
        from transformers import Sam2ImageProcessor, Sam2Processor

        Sam2Model(Sam2Config(
            vision_config={"backbone_config": {
                "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [64, 64],
                "blocks_per_stage": [1, 1, 1, 1], "embed_dim_per_stage": [8, 16, 32, 64],
                "num_attention_heads_per_stage": [1, 1, 1, 1], "global_attention_blocks": [],
                "window_positional_embedding_background_size": [4, 4]},
                "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 8,
                "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
            prompt_encoder_config=prompts, mask_decoder_config=decoder | {
                "num_multimask_outputs": 3})).save_pretrained(folder)
        Sam2Processor(Sam2ImageProcessor(size={"height": 64, "width": 64}, mask_size={
            "height": 16, "width": 16})).save_pretrained(folder)
        return
    SamModel(SamConfig(
        vision_config={"hidden_size": 16, "output_channels": 8, "num_hidden_layers": 1,
                       "num_attention_heads": 2, "image_size": 64, "patch_size": 16, "mlp_dim": 16,
                       "global_attn_indexes": [0], "window_size": 0, "num_pos_feats": 4},
        prompt_encoder_config=prompts, mask_decoder_config=decoder)).save_pretrained(folder)
    SamProcessor(SamImageProcessor(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16}, mask_pad_size={"height": 16, "width": 16}
    )).save_pretrained(folder)


@pytest.mark.parametrize("second", [False, True], ids=["sam", "sam2"])
def test_sam_runs_on_random_weights(second: bool, work: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    torchvision_works()
    torch.manual_seed(0)
    save_sam(tmp_path / "sam", second=second)
    result = propose(work, "--method", "sam", "--model", tmp_path / "sam", "--least-iou", 0,
                     "--least-stability", 0, "--limit", 1, "--device", "cpu")
    assert result.code == 0, result.err
    (file,) = (work / "proposals/sam/train").rglob("*.safetensors")
    header = describe(file).header
    assert header is not None and "SAM" in header.supervision
    found = from_tensors(load_file(file))
    assert len(found)
    assert found.size in ((40, 48), (48, 40))


@pytest.mark.parametrize(("options", "said"), [
    (("--method", "files"), "`path` is missing"),
    (("--method", "files", "--path", "nowhere"), "nowhere does not exist"),
    (("--method", "felzenszwalb", "--scales", "0"), "is not a list of whole numbers"),
    (("--method", "slic", "--segments", "a,b"), "is not a list of whole numbers"),
    (("--method", "sam", "--model", "nowhere"), "cannot be loaded"),
])
def test_what_cannot_be_done_is_refused_first(options: tuple[str, ...], said: str, work: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    if "sam" in options:
        pytest.importorskip("transformers")
        # The variable of this name was read when the hub's package was imported.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        torchvision_works()
    result = propose(work, *options)
    assert result.code == 1
    assert said in result.err
    assert not (work / "proposals").exists()


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    base = tmp_path_factory.mktemp("chain") / "base"
    base.mkdir()
    (base / "clip").symlink_to(tiny_clip)
    write_scenes(base, draw_scenes())
    assert prepare(base, "--masks", base / "masks").code == 0
    run_chain(base)
    return base / "work"


def label_image(folder: Path, key: str, labels: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    Image.fromarray(labels.astype(np.uint8)).save(folder / f"{key}.png")


def vote(work: Path, *options: object) -> Result:
    return run_in_process("crf", "--method", "proposals", "--what", "text-refined", "--workers", 0,
                          *options, work=work)


def test_words_of_tags_win_and_others_are_vetoed(chain: Path, tmp_path: Path, run: Run) -> None:
    work = tmp_path / "work"
    shutil.copytree(chain.parent, tmp_path / "base", symlinks=True)
    work = tmp_path / "base/work"
    folder = tmp_path / "said"
    truth = {key: read_labels(work.parent / "masks" / f"{key}.png")
             for key in (f"scene{number}" for number in range(6))}
    for key, labels in truth.items():
        label_image(folder, key, labels)
    assert propose(work, "--method", "files", "--path", folder, "--format", "labels").code == 0
    # No model of the workspace made them, so none can have changed.
    (listed,) = (entry for entry in json.loads(run("status", "--json", work=work).out)
                 if entry["name"] == "proposals/files/train")
    assert listed["stale"] == []
    # Only words speak: then what they say is what comes out where they lie.
    assert vote(work, "--base", "cams", "--word-share", 1, "--min-area", 0, "--overwrite"
                ).code == 0
    for key, labels in truth.items():
        found = read_labels(work / "masks/text-refined-full/train" / f"{key}.png")
        assert (found[labels > 0] == labels[labels > 0]).all()
    # The same outlines with words that no photo is tagged with change nothing but by their shape.
    for key, labels in truth.items():
        label_image(tmp_path / "wrong", key, np.where(labels > 0, labels % 3 + 1, 0))
        label_image(tmp_path / "wordless", key, np.where(labels > 0, 1, 0))
    assert propose(work, "--method", "files", "--path", tmp_path / "wrong", "--format", "labels",
                   "--overwrite").code == 0
    result = vote(work, "--base", "cams", "--word-share", 1, "--overwrite")
    assert result.code == 0, result.err
    masks = work / "masks/text-refined-full/train"
    for photo, inputs in open_input(masks, ("masks",)).per_photo_inputs.items():
        tags = {0, *map(int, inputs.split())}
        found = read_labels(masks / f"{photo}.png")
        assert {*np.unique(found).tolist()} <= tags


def test_without_proposals_the_scores_stay(chain: Path, tmp_path: Path) -> None:
    """A photo that the tool found nothing in keeps what the CRF says of it."""
    shutil.copytree(chain.parent, tmp_path / "base", symlinks=True)
    work = tmp_path / "base/work"
    one_soft(tmp_path / "soft", "scene2.png", (40, 48))
    assert run_in_process("crf", "--what", "text-refined", "--kernels", "weclip", "--workers", 0,
                          "--overwrite", work=work).code == 0
    before = masks_of(work / "masks/text-refined-full/train")
    assert propose(work, "--method", "files", "--path", tmp_path / "soft", "--format", "soft"
                   ).code == 0
    result = vote(work, "--overwrite")
    assert result.code == 0, result.err
    after = masks_of(work / "masks/text-refined-full/train")
    assert all((before[key] == after[key]).all() for key in before if key != "scene2")
    header = describe(work / "masks/text-refined/train/scene2.png").header
    assert header is not None and "another tool" in header.supervision


def test_a_crf_needs_proposals_only_where_it_reads_them(chain: Path, tmp_path: Path, run: Run
                                                        ) -> None:
    shutil.copytree(chain.parent, tmp_path / "base", symlinks=True)
    work = tmp_path / "base/work"
    result = vote(work)
    assert result.code == 1
    assert "vpltool propose" in result.lines("hint:")[0]
    result = run("crf", "--what", "text-refined", "--proposals", "x", "--workers", 0, work=work)
    assert "`densecrf` reads no proposals" in result.err
    damaged = work / "proposals/felzenszwalb/train/scene2.safetensors"
    assert propose(work, "--scales", "50").code == 0
    content = bytearray(damaged.read_bytes())
    content[-9] ^= 0x55
    damaged.write_bytes(bytes(content))
    result = vote(work, "--overwrite")
    assert result.code == 1
    assert "scene2" in result.err and "Traceback" not in result.err


def test_what_has_no_effect_is_said_once_and_not_recorded(chain: Path, tmp_path: Path) -> None:
    shutil.copytree(chain.parent, tmp_path / "base", symlinks=True)
    work = tmp_path / "base/work"
    assert propose(work, "--scales", "50").code == 0
    result = vote(work, "--base", "cams", "--kernels", "clip-es", "--tile", 100, "--overwrite")
    assert result.code == 0, result.err
    assert result.err.count("no CRF is run") == 1
    assert result.err.count("proposals are of whole photos") == 1
    header = describe(work / "masks/text-refined/train/scene2.png").header
    assert header is not None and "tile" not in header.options
