"""From photos and tags to a scored segmenter, every command on the way; and again without masks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import SHAPES, Run, draw_scenes, prepare, run_chain, write_scenes

SPLITS = ("train", "val")

CHAIN: tuple[tuple[object, ...], ...] = (
    ("text-prototypes", "--prompts", "single"),
    *(("extract", "--split", split, "--workers", 0, "--keep", "tokens,patches,attention,layers")
      for split in SPLITS),
    *(("cam", "--split", split) for split in SPLITS),
    ("cam", "--method", "salient"),
    *(("refine", "--cams", "text", "--split", split) for split in SPLITS),
    ("seed-prototypes", "--cams", "text-salient", "--phi", "0.8", "--phi-background", "0.5",
     "--background", "clusters", "--clusters", 3),
    ("learn-prototypes", "--pixels", "seeds", "--cams", "text-salient", "--phi", "0.8",
     "--phi-background", "0.5", "--start", "seeds", "--iters", 5),
    ("shift-gap", "--centroid", "regions", "--cams", "text-salient"),
    *(("cam", "--prototypes", "vision", "--split", split) for split in SPLITS),
    *(("cam", "--prototypes", "vision", "--method", "dense", "--split", split)
      for split in SPLITS),
    *(("refine", "--cams", "vision", "--split", split) for split in SPLITS),
    ("refine", "--cams", "vision-dense", "--affinity", "patches", "--mask", "none", "--keep-scale"),
    ("crf", "--workers", 0),
    ("crf", "--what", "vision-dense-refined", "--kernels", "weclip", "--alpha", 4, "--workers", 0),
    ("train-decoder", "--iters", 3, "--crop", 3, "--batch-size", 2, "--width", 16),
    ("train-decoder", "--iters", 3, "--crop", 3, "--batch-size", 2, "--width", 16, "--source",
     "photos", "--residual", "--masks", "vision-dense-refined", "--lambda-rsc", 0),
    ("predict", "--split", "val"),
    ("predict", "--decoder", "vision-dense-refined", "--scales", "1,0.75", "--flip", "--workers",
     0),
    ("crf", "--what", "predictions/vision-refined", "--kernels", "weclip", "--split", "val",
     "--workers", 0),
)

SCORED = (("cams/text", "train"), ("cams/vision-refined", "val"),
          ("masks/vision-refined-full", "train"), ("predictions/vision-refined", "val"),
          ("predictions/vision-refined-crf", "val"), ("predictions/vision-dense-refined", "val"))


def build(base: Path, tiny_clip: Path, *, masks: bool) -> Path:
    (base / "clip").symlink_to(tiny_clip)
    write_scenes(base, draw_scenes())
    assert prepare(base, "--masks", base / "masks").code == 0
    if not masks:
        shutil.rmtree(base / "masks")
    run_chain(base, CHAIN)
    return base


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    return build(tmp_path_factory.mktemp("chain"), tiny_clip, masks=True)


def contents(work: Path) -> dict[str, bytes]:
    return {str(path.relative_to(work)): path.read_bytes()
            for path in sorted(work.rglob("*")) if path.is_file()
            and path.relative_to(work).parts[0] not in ("scores", "pictures")}


def test_eval_scores_and_show(run: Run, done: Path) -> None:
    work = done / "work"
    for what, split in SCORED:
        result = run("eval", "--what", what, "--split", split, "--json", work=work)
        assert result.code == 0, result.err
        report = json.loads(result.out)
        assert list(report["iou"]) == ["background", *SHAPES]
        assert report["photos"] == {"train": 6, "val": 2}[split]
        assert 0 < report["accuracy"] <= 1
    table = run("scores", "--markdown", work=work)
    assert table.code == 0, table.err
    assert len(table.out.splitlines()) == 2 + len(SCORED)
    for split in SPLITS:
        shown = run("show", "--split", split, work=work)
        assert shown.code == 0, shown.err
        assert Path(shown.out.strip()).read_bytes().startswith(b"\x89PNG")


def test_inspect_knows_all_of_it(run: Run, done: Path) -> None:
    work = done / "work"
    folders = sorted({path.parent for path in work.rglob("artifact.json")})
    files = [folder / sorted(path.name for path in folder.iterdir())[-1] for folder in folders]
    singles = [*work.glob("prototypes/*"), *work.glob("decoder/*"), *work.glob("features/*.*")]
    assert len(folders) > 15
    assert len(singles) == 8
    kinds = set()
    for path in (work, *folders, *files, *singles):
        result = run("inspect", path, "--json")
        assert result.code == 0, f"{path}: {result.err}"
        found = json.loads(result.out)
        kinds.add(found["kind"])
        assert found["kind"] == "workspace" or found["made by"].startswith("vpltool ")
    assert kinds == {"workspace", "features", "head", "prototypes", "cams", "masks", "decoder",
                     "predictions", "probabilities"}


def test_every_step_done_twice_is_done_once(run: Run, done: Path) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (done / "work").rglob("*")
                if path.is_file() and path.parent.name not in ("scores", "pictures")}

    before = times()
    for command in CHAIN:
        result = run(*command, work=done / "work")
        assert result.code == 0, f"{command}: {result.err}"
    assert times() == before


def test_without_true_masks_it_is_the_same_bytes(run: Run, done: Path, tmp_path: Path,
                                                 tiny_clip: Path) -> None:
    work = build(tmp_path, tiny_clip, masks=False) / "work"
    first, second = contents(done / "work"), contents(work)
    assert first.keys() == second.keys()
    assert len(first) > 120
    assert [name for name in first if first[name] != second[name]] == []
    assert run("show", "--no-truth", work=work).code == 0
    for command in ("eval", "show"):
        refused = run(command, "--split", "val", work=work)
        assert refused.code == 1, f"{command} showed a truth that does not exist"
        assert len(refused.lines("error:")) == 1
        assert refused.lines("hint:")
