"""Encoders side by side: own-photos with each, scored, beside its ceiling; what `auto` chooses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Run, draw_scenes, write_scenes

from vpltool.engine.models import DEFAULT_ENCODERS
from vpltool.formats import open_workspace
from vpltool.papers.encoders import main


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn photos, tags and masks, and a random ViT of timm."""
    from safetensors.torch import save_file

    from vpltool.clip.catalogue import import_library

    base = tmp_path_factory.mktemp("encoders")
    write_scenes(base, draw_scenes())
    torch.manual_seed(0)
    model = import_library("timm").create_model("test_vit", num_classes=0)
    save_file(model.state_dict(), base / "vit.safetensors")
    return base


def test_each_encoder_is_a_row(drawn: Path, tiny_clip: Path,
                               capsys: pytest.CaptureFixture[str]) -> None:
    line = [str(drawn / "work"), f"timm:test_vit,{drawn / 'vit.safetensors'}",
            str(tiny_clip), "--photos", str(drawn / "photos"), "--tags", str(drawn / "tags.csv"),
            "--masks", str(drawn / "masks")]
    assert main(line) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = json.loads((drawn / "work/encoders.json").read_text())["rows"]
    assert [row["encoder"] for row in rows] == [
        "timm:test_vit,vit.safetensors", tiny_clip.name]
    for number, row in enumerate(rows, 1):
        assert 0 < row["cams_ceiling"] <= 1 and 0 < row["ceiling"] <= 1
        scores = drawn / f"work/{number}/scores"
        for name, file in (("cams", "cams-seeds-refined-train"),
                           ("masks", "masks-seeds-refined-full-train")):
            assert row[name] == json.loads((scores / f"{file}.json").read_text())["miou"]
        assert row["seconds"] >= 0
        assert f"| `{row['encoder']}` | {100 * row['cams']:.1f} |" in "\n".join(printed)


def test_auto_is_dinov2_where_nothing_is_named(run: Run, drawn: Path, tiny_clip: Path,
                                               tmp_path: Path) -> None:
    """A CLIP that is named, and what a workspace has, come first."""
    line = ("prepare", "folder", drawn / "photos", "--labels", drawn / "tags.csv",
            "--encoder", "auto")
    for work, more in (("new", ()), ("clip", ("--pretrained", tiny_clip))):
        made = run(*line, *more, work=tmp_path / work)
        assert made.code == 0, made.err
    assert open_workspace(tmp_path / "new").encoder in DEFAULT_ENCODERS.values()
    assert "Apache-2.0" in run(*line, work=tmp_path / "other").err
    for _ in range(2):
        clip = open_workspace(tmp_path / "clip")
        assert clip.encoder == ""
        assert clip.has_words
        assert run(*line, work=tmp_path / "clip").code == 0
