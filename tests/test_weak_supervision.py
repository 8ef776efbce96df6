"""True masks change nothing but what `eval` says: that is what weakly supervised means."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Run, draw_scenes, prepare, run_chain, write_scenes


def build(base: Path, tiny_clip: Path, masks: str) -> Path:
    """Run prepare to crf, with true masks, with garbage in their place, or without any."""
    base.mkdir()
    (base / "clip").symlink_to(tiny_clip)
    write_scenes(base, draw_scenes())
    if masks == "none":
        shutil.rmtree(base / "masks")
        assert prepare(base).code == 0
    else:
        for path in (base / "masks").iterdir() if masks == "garbage" else ():
            path.write_bytes(b"\x00garbage")
        assert prepare(base, "--masks", base / "masks").code == 0
        if masks == "garbage":
            shutil.rmtree(base / "masks")
    run_chain(base)
    run_chain(base, (("cam", "--method", "dense"), ("crf", "--what", "text-dense", "--workers", 0)))
    return base


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    return build(tmp_path_factory.mktemp("masks") / "base", tiny_clip, "true")


def contents(base: Path) -> dict[str, bytes]:
    return {str(path.relative_to(base / "work")): path.read_bytes()
            for path in sorted((base / "work").rglob("*")) if path.is_file()}


@pytest.mark.parametrize("masks", ["garbage", "none", "true"])
def test_artifacts_are_the_same_bytes(masks: str, honest: Path, tmp_path: Path,
                                      tiny_clip: Path) -> None:
    """`true` a second time shows that the same run gives the same bytes at all."""
    first, second = contents(honest), contents(build(tmp_path / "base", tiny_clip, masks))
    assert first.keys() == second.keys()
    assert len(first) > 50
    different = {name for name in first if first[name] != second[name]}
    assert different == ({"images.jsonl", "changes.jsonl"} if masks == "none" else set())
    calls = [json.loads(found["changes.jsonl"]) for found in (first, second)]
    for call in calls:
        call["call"].pop("masks", None)
    assert calls[0] == calls[1]


def test_only_the_mask_is_missing_from_the_list(honest: Path, tmp_path: Path,
                                                tiny_clip: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    write_scenes(base, draw_scenes())
    (base / "clip").symlink_to(tiny_clip)
    assert prepare(base).code == 0
    for first, second in zip((honest / "work/images.jsonl").open(),
                             (base / "work/images.jsonl").open(), strict=True):
        assert json.loads(first) | {"mask": None} == json.loads(second)


def test_eval_alone_needs_them(honest: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(honest, tmp_path / "base", symlinks=True)
    work = tmp_path / "base/work"
    scored = run("eval", "--split", "train", "--what", "masks/text-refined", "--json", work=work)
    assert scored.code == 0, scored.err
    report = json.loads(scored.out)
    assert report["photos"] == 6
    assert 0 <= report["miou"] <= 1
    shutil.rmtree(tmp_path / "base/masks")
    result = run("eval", "--split", "train", "--what", "masks/text-refined", work=work)
    assert result.code == 1
    assert len(result.lines("error:")) == 1
