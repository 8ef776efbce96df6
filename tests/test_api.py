"""The Python API: the same files, the same errors, nothing printed; the page about it runs."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run

import vpltool
from vpltool import VplError, Workspace, console
from vpltool.formats import describe, read_tensors
from vpltool.methods import FOLDERS
from vpltool.stages import find_stages

PAGE = Path(__file__).parents[1] / "docs/python.md"


def test_the_same_bytes_as_the_shell(run: Run, copied: Path, capfd: pytest.CaptureFixture[str]
                                     ) -> None:
    work = copied / "work"
    assert run("cam", "--method", "dense", "--tau", "0.2", work=work).code == 0
    folder = work / "cams/text-dense/train"
    shell = {path.name: path.read_bytes() for path in folder.iterdir()}
    capfd.readouterr()
    made = Workspace(work).cam(method="dense", tau=0.2, overwrite=True)
    assert made == [folder]
    assert shell == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert capfd.readouterr().out == ""


def test_torch_is_as_the_program_left_it(layered: Path) -> None:
    """A training has the same bytes under its settings, and reseeds no generator of its."""
    work = Workspace(layered / "work")

    def train() -> bytes:
        path = work.train_decoder(masks="text-refined", prototypes="text", name="again", iters=2,
                                  width=8, crop=3, batch_size=2, overwrite=True)
        return Path(path).read_bytes()

    wanted = train()
    torch.manual_seed(5)
    drawn = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with (torch.inference_mode(), torch.device("meta"),
              torch.autocast("cpu", dtype=torch.bfloat16)):
            assert train() == wanted
            assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
            assert torch.ones(1).device.type == "meta"
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_numpy_s_numbers_are_numbers(copied: Path) -> None:
    work = Workspace(copied / "work")
    made = work.cam(method="dense", tau=np.float32(0.25), limit=np.int64(2), out=copied / "maps")
    assert made == [copied / "maps"]
    options = describe(made[0] / "scene0.safetensors").header.options
    assert options["tau"] == 0.25 and type(options["tau"]) is float
    assert work.cam(method="dense", out=np.str_(copied / "more")) == [copied / "more"]
    for wrong in ({"limit": np.float64(2.5)}, {"limit": np.bool_(True)}, {"tau": np.ones(2)}):
        with pytest.raises(VplError, match="expected"):
            work.cam(method="dense", **wrong)


def test_a_changed_method_is_imported_again(copied: Path, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook, the header would name the new file, and the maps be of the old one."""
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    work, file = Workspace(copied / "work"), tmp_path / "cams/flat.py"
    file.parent.mkdir()
    for level in (0.25, 0.75):
        (file.parent / "_level.py").write_text(f"LEVEL = {level}\n")
        file.write_text('"""Flat."""\nimport torch\nfrom _level import LEVEL\n'
                        "from vpltool.settings import Settings\nREADS = ()\n"
                        "def make_cams(batch, settings):\n    return [torch.full((len(present), "
                        "*batch.grid), LEVEL) for present in batch.present]\n")
        folder, = work.cam(method="flat", overwrite=True)
        maps = read_tensors(folder / "scene0.safetensors", "cams")[1]["cam"]
        assert maps.float().unique().tolist() == [level]
        assert work.status(stale=True) == []


def test_reports_are_returned(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = Workspace(copied / "work").eval(what="cams/text", split="train")
    assert 0 < report["miou"] < 1
    assert capfd.readouterr().out == ""
    assert Workspace(copied / "work").inspect(copied / "work/prototypes/text.safetensors")[
        "kind"] == "prototypes"


def test_notes_go_to_the_logger(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="vpltool"):
        Workspace(copied / "work").cam()
    assert "6 of 6 photos are done already" in caplog.text


def test_warnings_are_python_s(copied: Path) -> None:
    with pytest.warns(UserWarning, match=r"`precision='bf16'` has no effect"):
        Workspace(copied / "work").cam(method="dense", precision="bf16")


@pytest.mark.parametrize(("stage", "values", "message", "hint"), [
    ("cam", {"tua": 0.1}, "`tua` is not a setting", "did you mean `tau`?"),
    ("cam", {"method": "dense", "target": "softmax"},
     "`target='softmax'` is a setting of `method='gradcam'`", "`method='gradcam'`"),
    ("cam", {"method": "dens"}, "`method='dens'`: no such method", "`dense`"),
    ("cam", {"store": "fp61"}, "`store='fp61'`: no such choice", "fp16"),
    ("cam", {"split": "tset"}, "no photo is in the split `tset`", ""),
    ("extract", {"keep": "tokns"}, "`keep='tokns'`: features have no `tokns`", "tokens"),
    ("prepare", {"images": "x", "labels": "y"}, "`method` is missing", "folder"),
])
def test_errors_name_arguments(stage: str, values: dict[str, object], message: str, hint: str,
                               copied: Path) -> None:
    with pytest.raises(VplError) as caught:
        getattr(Workspace(copied / "work"), stage)(**values)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert "--" not in caught.value.message + caught.value.hint


def test_the_hint_of_an_error_is_shown(run: Run, copied: Path) -> None:
    """Where only its text is seen, as in a traceback; the command line shows it once."""
    with pytest.raises(VplError) as caught:
        Workspace(copied / "work").cam(method="dens")
    error = caught.value
    assert str(error) == f"{error.message}\nhint: {error.hint}"
    assert str(VplError("a message alone")) == "a message alone"
    result = run("refine", "--cams", "txt", work=copied / "work")
    assert len(result.lines("hint:")) == 1
    assert "hint" not in result.lines("error:")[0]


def test_an_unknown_stage_is_an_attribute_error(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="did you mean `extract`"):
        Workspace(tmp_path).extrac()


def test_every_stage_is_a_method_with_its_help(tmp_path: Path) -> None:
    work = Workspace(tmp_path)
    for found in find_stages().values():
        function = getattr(work, found.function_name)
        # `run` is more than a stage: it gives back what the recipe made.
        assert ("Args:" if found.name == "run" else "Settings:") in (function.__doc__ or "")
        assert found.function_name in dir(work)
        assert inspect.signature(function)
    assert "dense: Softmax of each patch" in (work.cam.__doc__ or "")
    assert "vpltool methods cams NAME" in (work.cam.__doc__ or "")


def test_a_preset(copied: Path) -> None:
    Workspace(copied / "work", preset="vpl-coco").refine(cams="text", mask="none", overwrite=True)
    header = describe(copied / "work/cams/text-refined/train/scene0.safetensors").header
    assert header is not None
    assert header.preset["name"] == "vpl-coco"
    assert header.preset["given"] == {"mask": "none"}
    assert header.options["mask"] == "none"


def test_classes_and_photos(ready: Path) -> None:
    work = Workspace(ready / "work")
    assert work.classes == ("bar", "box", "disc")
    assert len(work.photos("train")) == 6
    paths = work.photo_paths("train")
    assert list(paths) == [photo.id for photo in work.photos("train")]
    assert all(path.is_file() for path in paths.values())
    assert repr(work) == f"Workspace('{ready / 'work'}')"


def test_import_is_light() -> None:
    code = ("import sys, vpltool; from vpltool import Workspace; Workspace('x')\n"
            "print([name for name in ('torch', 'numpy', 'PIL', 'tqdm') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": str(Path(vpltool.__file__).parents[1])})
    assert done.stdout.strip() == "[]"


def test_the_page_runs(tmp_path: Path) -> None:
    """Its blocks, from top to bottom, as one script; it has no guard for worker processes."""
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"),
                                flags=re.MULTILINE | re.DOTALL))
    (tmp_path / "page.py").write_text(code, "utf-8")
    done = subprocess.run([sys.executable, "page.py"], capture_output=True, text=True, check=False,
                          cwd=tmp_path,
                          env={"PYTHONPATH": str(Path(vpltool.__file__).parents[1]),
                               "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("0.")
    told = next(number for number, line in enumerate(lines) if "visoin" in line)
    assert lines[told + 1] == "hint: did you mean `vision`? `learn_prototypes()` makes it"
    assert "uint8" in done.stdout


def test_a_preset_is_what_it_is_on_the_command_line(run: Run, copied: Path) -> None:
    """The same bytes and record; of another method than the preset's its settings are left out."""
    work = copied / "work"
    (copied / "mine.toml").write_text('[cam]\nmethod = "gradcam"\ntarget = "softmax"\ntau = 0.1\n'
                                      '[refine]\nlambda = 0.3\n')
    preset = str(copied / "mine.toml")
    for command, values, words in (
            ("cam", {"method": "dense", "name": "a", "tau": 0.1}, ("--method", "dense")),
            ("cam", {"name": "b", "target": "margin"}, ("--target", "margin"))):
        (made,) = getattr(Workspace(work, preset=preset), command)(**values)
        ours = {path.name: path.read_bytes() for path in made.iterdir()}
        assert run("--preset", preset, command, *words, "--tau", "0.1", "--name", values["name"],
                   "--overwrite", work=work).code == 0
        assert {path.name: path.read_bytes() for path in made.iterdir()} == ours
    header = describe(work / "cams/b/train/scene0.safetensors").header
    assert header.preset["given"] == {"target": "margin"}
    assert header.options["target"] == "margin"


def test_a_recipe_takes_keywords_and_returns_what_it_made(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (copied / "maps.recipe").write_text(
        "# Maps.\nphotos = ?\ncut = 0.4\nvpltool prepare folder $photos\n"
        "vpltool cam --split train --method dense\n"
        "vpltool eval --what cams/text-dense --split train --threshold $cut\n")
    monkeypatch.chdir(copied)
    work = vpltool.Workspace("work")
    made = work.run("maps.recipe", photos=Path("photos"), cut=0.3)
    assert capfd.readouterr().out == "", "the program prints what it wants"
    assert made == [Path("work/workspace.json"), Path("work/cams/text-dense/train"),
                    Path("work/scores/cams-text-dense-train.json")]
    assert all(path.exists() for path in made)
    lines = work.run("maps.recipe", "photos=photos", "cut=0.2", dry_run=True)
    assert lines[-1].endswith("--threshold 0.2")
    (copied / "cuts.recipe").write_text(
        "# Scores.\ncuts = 0.4\neach cut in $cuts\n"
        "vpltool eval --what cams/text --split train --threshold $cut\nend\n")
    with caplog.at_level("INFO", logger="vpltool"):
        work.run("cuts.recipe", jobs=2)
    assert "mIoU" in caplog.text
    work.run("cuts.recipe", cuts=[0.1, 0.3], jobs=2)
    assert capfd.readouterr().out == "", "nor do its worker processes"
    lines = work.run("cuts.recipe", cuts=[0.1, np.float64(0.3)], dry_run=True)
    assert [line.split()[-1] for line in lines] == ["0.1", "0.3"]
    with pytest.raises(vpltool.VplError, match="has no parameter `fotos`"):
        work.run("maps.recipe", fotos="photos")


NOTES = """
import sys
from vpltool import console
sys.stderr.isatty = lambda: {watched}
{setup}
console.note("a note")
with console.progress("work", 2) as advance:
    advance()
    advance()
"""


@pytest.mark.parametrize(("watched", "setup", "told"), [
    (True, "", True), (False, "", False), (False, "sys.modules['ipykernel'] = sys", True)])
def test_notes_and_a_bar_without_set_up(watched: bool, setup: str, told: bool) -> None:
    """Where a person looks on: at a terminal, or in a notebook."""
    code = NOTES.format(watched=watched, setup=setup)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ("a note" in done.stderr) == told
    assert ("work:" in done.stderr) == told
    logged = subprocess.run(
        [sys.executable, "-c", f"import logging\nlogging.basicConfig(level='ERROR')\n{code}"],
        capture_output=True, text=True, check=True)
    assert "a note" not in logged.stderr, "whoever sets up logging decides"


def test_long_work_of_a_script_is_not_silent(monkeypatch: pytest.MonkeyPatch,
                                             capfd: pytest.CaptureFixture[str]) -> None:
    """A line every ten seconds, also of many short pieces; nothing of short work."""
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(console, "_logs", lambda: False)
    monkeypatch.setattr(console, "_is_watched", lambda: False)

    def work(pieces: int, steps: int) -> list[str]:
        for _ in range(pieces):
            with console.progress("extract", steps) as advance:
                for _ in range(steps):
                    advance()
        return capfd.readouterr().err.splitlines()

    assert work(pieces=5, steps=2) == []
    assert work(pieces=1, steps=4) == ["extract: 3 of 4, about 4 s left"]
    with console.timed_as_one():
        assert len(work(pieces=5, steps=2)) == 5
    assert work(pieces=5, steps=2) == []


def test_a_call_is_one_piece(copied: Path, monkeypatch: pytest.MonkeyPatch,
                             capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "_logs", lambda: False)
    monkeypatch.setattr(console, "_is_watched", lambda: False)
    with monkeypatch.context() as patch:
        patch.setattr(console, "_SCRIPT_SECONDS", -1.0)
        Workspace(copied / "work").cam(split="val", overwrite=True)
    assert "cam text val: 1 of 2, about" in capfd.readouterr().err
    Workspace(copied / "work").cam(split="val", overwrite=True)
    assert capfd.readouterr().err == ""
