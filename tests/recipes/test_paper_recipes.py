"""The recipes of docs/results.md and of the paper's protocols: what their lines come to."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Run


def lines_of(run: Run, work: Path, *words: str) -> list[str]:
    result = run("run", *words, "--dry-run", work=work)
    assert result.code == 0, result.err
    return [line.removeprefix(f"vpltool -C {work} ") for line in result.out.splitlines()
            if line.startswith("vpltool")]


def test_photos20_predicts_from_the_features(run: Run, tmp_path: Path) -> None:
    """They serve only at the size at which they were extracted."""
    lines = lines_of(run, tmp_path, "photos20", "data=D", "side=112", "seeds=0 1")
    sized = [line for line in lines if line.startswith(("extract", "predict"))]
    assert len(sized) == 3 + 2 * 3
    assert all("--max-side 112" in line for line in sized)
    # No score is read that is not made.
    rows = [file for line in lines if line.startswith("scores ")
            for file in line.replace("'", "").replace("[0-9]", "0").split("=scores/")[1:]]
    made = {line.split("scores/")[-1] for line in lines if line.startswith("eval")}
    assert {row.split()[0] for row in rows} <= made


@pytest.mark.parametrize(("name", "value", "decoders"), [
    ("vpl-voc", "voc", 2), ("vpl-coco", "coco", 1)])
def test_the_protocols_run_under_their_preset(name: str, value: str, decoders: int, run: Run,
                                              tmp_path: Path) -> None:
    lines = lines_of(run, tmp_path, name, f"{value}=D", "learn=some", "pretrained=B.pt",
                     "seeds=0 1")
    assert all(line.startswith((f"--preset {name} ", "scores ")) for line in lines)
    assert f"prepare {value} D" in lines[0] and "--pretrained B.pt" in lines[0]
    trained = [line for line in lines if " train-decoder " in line]
    assert len(trained) == 2 * decoders
    assert all("--split some" in line for line in trained)
    assert sum("--kernels weclip --split val" in line for line in lines) == 2


def test_weclip_s_second_round_goes_on_from_its_first(run: Run, tmp_path: Path) -> None:
    lines = lines_of(run, tmp_path, "weclip-voc", "voc=D", "learn=some", "steps=7")
    assert all(line.startswith(("--preset weclip-voc ", "scores ")) for line in lines)
    first, second = (line for line in lines if " train-decoder " in line)
    assert "--masks text-refined --name first" in first
    assert "--masks text-rfm --start first --name second" in second
    assert all("--split some --iters 7" in line for line in (first, second))
    (again,) = (line for line in lines if "--method rfm" in line)
    assert f"--decoder first --split some --out {tmp_path}/cams/text-rfm/some" in again
    assert sum("--method densecrf --kernels weclip --split val" in line for line in lines) == 1
