"""A command imports what it uses, and no more: tested by names of modules, since times vary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vpltool
from vpltool.command_help import help_of
from vpltool.stages import find_stages

SLOW = ("torch", "torch._dynamo", "torchvision", "open_clip", "timm", "sympy", "PIL", "scipy",
        "sklearn", "numpy", "safetensors", "rich", "tqdm")
"""Each takes a tenth of a second or more to import, or brings one that does."""

SCRIPT = """
import json, sys
from vpltool.cli import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)))
"""


def loaded_by(*words: object) -> set[str]:
    """Modules that a process has imported which ran a command line."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, *map(str, words)], text=True, check=False,
                          capture_output=True,
                          env={"PYTHONPATH": str(Path(vpltool.__file__).parents[1])})
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(("words", "used"), [
    (("inspect", "work/features/train/scene0.safetensors"), set()),
    (("-C", "work", "cam", "--overwrite", "-q"), {"torch", "numpy", "safetensors", "tqdm"}),
])
def test_a_command_imports_what_it_uses(words: tuple[str, ...], used: set[str], copied: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """GradCAM needs torch, and neither open_clip nor what torch loads for compilers (sympy)."""
    monkeypatch.chdir(copied)
    loaded = loaded_by(*words)
    assert loaded & set(SLOW) <= used
    own = next(word for word in words if word in find_stages())
    others = {found.module.__name__ for found in find_stages().values()} & loaded
    assert others == {find_stages()[own].module.__name__}


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
def test_a_command_runs_with_stdout_closed() -> None:
    """As some supervisors start it; the work was done, and then it ended in a traceback."""
    done = subprocess.run(["sh", "-c", '"$0" -m vpltool recipes >&-', sys.executable], check=False,
                          stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_looking_a_stage_up_imports_no_other() -> None:
    code = ("import json, sys\nfrom vpltool.stages import find_stages\n"
            "assert 'cam' in find_stages() and 'no' not in find_stages()\n"
            "assert find_stages()['eval'].stage.order\nprint(json.dumps(sorted(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], text=True, check=True, capture_output=True,
                          env={"PYTHONPATH": str(Path(vpltool.__file__).parents[1])})
    loaded = set(json.loads(done.stdout))
    assert "vpltool.stages.eval" in loaded
    assert not {"vpltool.stages.cam", "vpltool.stages.extract", "vpltool.commands.run"} & loaded


def test_all_stages_and_methods_import_nothing_heavy() -> None:
    """Such as a type alias of an array that is no text would."""
    code = ("import json, sys\nfrom vpltool.methods import KINDS, find_methods\n"
            "from vpltool.stages import find_stages\n"
            "stages = [found.stage for found in find_stages().values()]\n"
            "methods = [one.module for kind in KINDS for one in find_methods(kind).values()]\n"
            "assert len(stages) > 25 and len(methods) > 40\n"
            "print(json.dumps(sorted(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], text=True, check=True, capture_output=True,
                          env={"PYTHONPATH": str(Path(vpltool.__file__).parents[1])})
    assert not set(SLOW) & set(json.loads(done.stdout))


def test_a_list_of_stages_imports_none(tmp_path: Path) -> None:
    code = ("import json, sys\nfrom vpltool.cli import main\nsys.argv = ['vpltool', '--help']\n"
            "try:\n    main()\nfinally:\n    print(json.dumps(sorted(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], text=True, check=True, capture_output=True,
                          env={"PYTHONPATH": str(Path(vpltool.__file__).parents[1])}, cwd=tmp_path)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "extract" in done.stdout and "vpltool.stages" in loaded
    assert not {found.module.__name__ for found in find_stages().values()} & loaded


def test_what_is_listed_is_what_the_stages_say() -> None:
    assert len(find_stages().listed) > 25
    for name, listed in find_stages().listed.items():
        found = find_stages()[name]
        assert (listed.order, listed.panel) == (found.stage.order, found.stage.panel), name
        assert listed.about == help_of(found).split("\n\n")[0], name
    orders = [found.stage.order for found in find_stages().values()]
    assert orders == sorted(orders)


@pytest.mark.parametrize(("given", "found"), [
    ({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")])
def test_threads_spin_briefly_unless_told_otherwise(given: dict[str, str], found: str) -> None:
    """On shared cores, threads of OpenMP that wait by spinning took most of the time."""
    done = subprocess.run(
        [sys.executable, "-c", "import os, sys, vpltool; "
         "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"], text=True, check=True,
        capture_output=True, env=given | {"PYTHONPATH": str(Path(vpltool.__file__).parents[1])})
    assert done.stdout.split() == [found, "False"]
