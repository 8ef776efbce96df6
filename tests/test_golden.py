"""Every stage and method writes what it wrote: headers, tensors, words (tests/golden)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import golden
import pytest
from conftest import Run
from golden.record import LINES, differences, record

from vpltool.methods import KINDS, find_methods
from vpltool.stages import find_stages

# The bytes that a CPU gives.
pytestmark = pytest.mark.cpu

EXPECTED: dict[str, Any] = json.loads(
    (Path(golden.__file__).parent / "expected.json").read_text())


@pytest.fixture(scope="module")
def recorded(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("golden")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        return json.loads(json.dumps(record(run, work)))


@pytest.mark.parametrize("part", ["said", "files"])
def test_all_is_as_it_was(recorded: dict[str, Any], part: str) -> None:
    assert differences(EXPECTED[part], recorded[part]) == []


def test_a_difference_is_found(recorded: dict[str, Any]) -> None:
    other = copy.deepcopy(recorded)
    other["files"]["cams/text/train"]["artifact.json"]["header"]["options"]["tau"] = 0.02
    other["files"]["cams/text/train"]["values"]["cam"]["mean"] *= 1.1
    del other["files"]["prototypes/vision.safetensors"]
    assert len(differences(EXPECTED["files"], other["files"])) == 3


def test_nearly_every_stage_and_method_is_recorded() -> None:
    used = {word for line in LINES for word in line}
    stages = {name for name, found in find_stages().items() if found.stage.writes}
    assert stages - used <= {"prepare", "pack", "train-groups", "run", "pull", "propose"}
    methods = {name for kind in KINDS if kind not in ("sources", "exports")
               for name, method in find_methods(kind).items() if method.name != KINDS[kind].default}
    assert methods - used <= {"rfm", "weclip", "sam", "files", "slic", "proposals"}
