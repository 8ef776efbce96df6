"""A method of one's own is a file: every command and page follows from it, and errors name it."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import sys
import types
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from conftest import Run, copy_workspace
from safetensors.torch import load_file

from vpltool import Workspace
from vpltool.core.phase_one import Pixels
from vpltool.errors import OtherSettings, VplError
from vpltool.methods import FOLDERS, KINDS, SegmenterMethod, find_method
from vpltool.methods.inputs import SegmenterParts
from vpltool.run import run_stage
from vpltool.stages import FoundStage

ROOT = Path(__file__).parents[2]

HEAD = '''"""A toy: {does}.

The second paragraph is only on its page.
"""

from dataclasses import dataclass

import torch

from vpltool import options, settings
from vpltool.settings import setting

READS = {reads}


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the toy."""

    toy_level: float = setting(0.5, "Level of the toy.", low=0, high=1, source="a test")
{more}

'''

BODIES: dict[str, tuple[str, tuple[str, ...], str, str]] = {
    "cams": ("maps of one level", ("patches", "photo"), "", '''
def make_cams(batch, settings):
    assert [photo.ndim for photo in batch.photos] == [3] * len(batch.ids)
    return [torch.full((len(present), *batch.grid), settings.toy_level)
            for present in batch.present]
'''),
    "embeddings": ("patches of one level", ("patches",), "", '''
def make_patches(batch, settings):
    assert batch.head is None
    return torch.full_like(batch.tensors["patches"], settings.toy_level)
'''),
    "refiners": ("maps of one level at most", ("attention",), "", '''
def refine(photo, settings):
    assert photo.tensors["attention"].ndim == 2
    return photo.cams.float().clamp(max=settings.toy_level)
'''),
    "estimators": ("text, turned by a level", ("patches",), "", '''
def estimate(pool, text, text_index, settings, seed):
    noise = torch.randn(text.shape, generator=torch.Generator().manual_seed(seed)).to(text)
    rows = text + settings.toy_level * noise
    return rows / rows.norm(dim=-1, keepdim=True), text_index
'''),
    "label_refiners": ("scores as they are", ("photo",), "", '''
def refine_labels(photos, settings, device):
    return [photo.scores ** settings.toy_level for photo in photos]
'''),
    "proposers": ("the left part of a photo", ("photo",), "", '''
import numpy as np

from vpltool.core.photos import read_photo
from vpltool.core.proposals import Proposal, Proposals


def propose(request, settings):
    for key, path in request.jobs:
        inside = np.zeros(read_photo(path).shape[:2], bool)
        inside[:, : int(settings.toy_level * inside.shape[1])] = True
        yield key, Proposals.of(inside.shape, [Proposal(inside, 0.5, "bar")])
'''),
    "segmenters": ("one linear map of the last layer", ("layers",), "", '''
from vpltool.core.segmenter import SegmenterNetwork


class Toy(SegmenterNetwork):
    def __init__(self, layers, width, level, rows, index):
        super().__init__(rows, index, layers=tuple(layers))
        self.shape = [list(layers), width, level]
        self.linear = torch.nn.Linear(width, rows.shape[1])

    @property
    def config(self):
        return {"shape": self.shape, "rows": len(self.prototypes)}

    def embeddings(self, layers, patches, grid):
        return torch.nn.functional.normalize(self.linear(layers[:, -1].float()), dim=-1)


def build(parts, settings):
    return Toy(parts.layers, parts.input_width, settings.toy_level, parts.prototypes,
               parts.class_index)


def rebuild(config):
    layers, width, level = config["shape"]
    return Toy(layers, width, level, torch.zeros(config["rows"], 16),
               torch.zeros(config["rows"], dtype=torch.long))
'''),
    "sources": ("a folder of bars", (), '''
    images: str = setting(help="Folder of photos.", positional=True, metavar="IMAGES")
''', '''
from pathlib import Path

from vpltool.formats import Photo
from vpltool.methods.inputs import Source


def read(workspace_path, settings, shared):
    photos = [Photo(path.stem, path.name, ("bar",), ("train",))
              for path in sorted(Path(settings.images).iterdir())]
    return Source("toys", Path(settings.images), photos, ("bar",), ())
'''),
    "exports": ("the number of labels in a photo", (), '''
    split: str = options.split("train")
''', '''
SUFFIX = ".txt"


def export(predictions, path, settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{photo.id} {len(set(labels.flat))} {settings.toy_level}\\n"
                            for photo, labels in predictions.each()))
    return [path]
'''),
}


def text_of(kind: str) -> str:
    does, reads, more, body = BODIES[kind]
    return HEAD.format(does=does, reads=reads, more=more) + body


def write_toy(folder: Path, kind: str, name: str = "toy", text: str | None = None) -> Path:
    path = folder / kind / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text_of(kind) if text is None else text)
    return path


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("toys")
    for kind in BODIES:
        write_toy(folder, kind)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(FOLDERS, str(folder))
        yield folder


@pytest.fixture(scope="module")
def work(layered: Path, toys: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path
         ) -> Path:
    """As `layered`; every toy is run in it once."""
    return copy_workspace(layered, tmp_path_factory.mktemp("world") / "base", tiny_clip)


def test_there_is_a_toy_of_every_kind() -> None:
    assert set(BODIES) == set(KINDS)


def command_of(kind: str) -> tuple[str, ...]:
    """The command, with the toy chosen."""
    stage = KINDS[kind].stage
    return (stage, "toy") if kind in ("sources", "exports") else (stage, "--method", "toy")


@pytest.mark.parametrize("kind", KINDS)
def test_help_lists_it_and_its_options(kind: str, toys: Path, run: Run) -> None:
    topic = () if kind in ("sources", "exports") else ("methods",)
    listed = run(KINDS[kind].stage, "--help", *topic)
    assert listed.code == 0
    assert f"A toy: {BODIES[kind][0]}" in " ".join(listed.out.split())
    assert "--toy-level" not in listed.out
    helped = run(*command_of(kind), "--help")
    assert helped.code == 0, helped.err
    assert "--toy-level" in helped.out
    assert "Level of the toy." in helped.out


RUNS: dict[str, tuple[tuple[object, ...], str]] = {
    "cams": ((), "cams/text-toy/train"),
    "embeddings": ((), "features-toy/train"),
    "refiners": (("--cams", "text", "--out", "toys/refined"), "toys/refined"),
    "estimators": (("--cams", "text", "--phi", 0.6, "--phi-background", 0.3, "--out",
                    "toys/seeds.safetensors"), "toys/seeds.safetensors"),
    # In a process of its own: it must find the file, too.
    "label_refiners": (("--what", "text-refined", "--workers", 1, "--out", "toys/masks"),
                       "toys/masks"),
    "proposers": ((), "proposals/toy/train"),
    "segmenters": (("--masks", "text-refined", "--prototypes", "text", "--crop", 3,
                    "--batch-size", 2, "--iters", 2, "--name", "toy"), "decoder/toy.safetensors"),
}
"""Kind to further options, and what is made; a path below the workspace."""


@pytest.mark.parametrize("kind", RUNS)
def test_it_runs_and_its_settings_are_in_the_header(kind: str, work: Path, run: Run,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    more, made = RUNS[kind]
    monkeypatch.chdir(work / "work")
    result = run(*command_of(kind), "--toy-level", 0.25, *more)
    assert result.code == 0, result.err
    assert made in result.out
    found = json.loads(run("inspect", made, "--json").out)
    assert found["options"]["method"] == "toy"
    assert found["options"]["toy_level"] == 0.25
    assert found["settings"] == found["settings"] | {"method": "toy", "toy_level": 0.25}
    told = run("inspect", made).out
    assert "  toy_level: 0.25" in told.splitlines()
    again = run(*command_of(kind), "--toy-level", 0.25, *more)
    assert again.code == 0
    assert "already" in again.err
    other = run(*command_of(kind), "--toy-level", 0.75, *more)
    assert other.code == 1
    assert "toy_level was 0.25, now 0.75" in other.lines("error:")[0]


@pytest.mark.parametrize(("given", "powers"), [((), [1.0, 2.0]), (("--powers", "3"), [3.0])])
def test_a_list_that_is_not_given_has_its_default(
        given: tuple[str, ...], powers: list[float], tmp_path: Path, ready: Path, tiny_clip: Path,
        run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    work = copy_workspace(ready, tmp_path / "base", tiny_clip) / "work"
    does, reads, _, body = BODIES["cams"]
    write_toy(tmp_path / "mine", "cams", text=HEAD.format(
        does=does, reads=reads,
        more='    powers: tuple[float, ...] = setting((1.0, 2.0), "Powers.")') + body)
    monkeypatch.setenv(FOLDERS, str(tmp_path / "mine"))
    result = run("cam", "--method", "toy", *given, work=work)
    assert result.code == 0, result.err
    made = json.loads(run("inspect", "cams/text-toy/train", "--json", work=work).out)
    assert made["options"]["powers"] == powers


def test_predict_rebuilds_a_segmenter_of_ones_own(work: Path, run: Run) -> None:
    made = run(*command_of("segmenters"), *RUNS["segmenters"][0], "--name", "used", "--toy-level",
               0.25, work=work / "work")
    assert made.code == 0, made.err
    result = run("predict", "--decoder", "used", "--workers", 0, work=work / "work")
    assert result.code == 0, result.err
    assert run("eval", "--what", "predictions/used", work=work / "work").code == 0
    packed = run("export", "bundle", "--what", "used", work=work / "work")
    assert packed.code == 0, packed.err
    assert "segmenters/toy.py, found by VPLTOOL_METHODS" in packed.err


NETWORKS = {
    ("return Toy(parts", "return (parts"): "build returned a tuple",
    ('len(self.prototypes)}', '{1}}'): "build returned a network whose `config` is not JSON: ",
    ("return Toy(layers, width,", "return Toy(layers, 2 * width,"):
        "build returned a network whose `linear.weight` is (4, 6), and (4, 12) in that of",
    ("return Toy(layers,", "return (layers,"):
        "build returned a network, and `rebuild(config)` a tuple",
    ("dim=-1)", "dim=-1)[:, 1:]"):
        "build returned a network whose embeddings are a Tensor (2, 191, 4) for 2 photos",
    ("+ self.shape[2])", "+ torch.nan)"): "build returned a network whose logits are not finite",
    ("self.linear(", "self.line("): "AttributeError: 'Toy' object has no attribute 'line'",
    ("def config", "def other"): "NotImplementedError: Toy has no `config`",
    ("return Toy(layers, width, level", "return Toy(layers, width, 3"):
        "build returned a network, and `rebuild(config)` one with other logits"}
"""What replaces what in a file of `segmenters`, and what is wrong then."""


@pytest.mark.parametrize("change", [("", ""), *NETWORKS])
def test_a_network_is_tried_before_it_is_trained(
        change: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    text = text_of("segmenters").replace('["rows"], 16)', '["rows"], 4)').replace(
        ".float())", ".float() + self.shape[2])")
    assert text.count(change[0]) >= 1
    path = write_toy(tmp_path, "segmenters", text=text.replace(*change))
    method = find_method("segmenters", "toy").load()
    assert isinstance(method, SegmenterMethod)
    given = (SegmenterParts((3,), 6, torch.eye(3, 4), torch.tensor([0, 1, 2])), method.Settings())
    torch.manual_seed(0)
    if change in NETWORKS:
        with pytest.raises(VplError, match=f"^{path}:.*{re.escape(NETWORKS[change])}"):
            method.build(*given)
        return
    assert method.build(*given).training
    after = torch.get_rng_state()
    torch.manual_seed(0)
    inspect.unwrap(method.build)(*given)
    assert torch.equal(torch.get_rng_state(), after)


def test_prepare_takes_a_source_of_ones_own(work: Path, run: Run, tmp_path: Path) -> None:
    result = run("prepare", "toy", work / "photos", "--toy-level", 0.25, "--pretrained",
                 work / "clip", work=tmp_path / "work")
    assert result.code == 0, result.err
    found = json.loads(run("inspect", tmp_path / "work", "--json").out)
    assert (found["photos"], found["classes"]) == (8, ["bar"])
    last = json.loads((tmp_path / "work/changes.jsonl").read_text().splitlines()[-1])
    assert last["call"]["method"] == "toy"
    assert last["call"]["toy_level"] == 0.25


def test_export_takes_a_format_of_ones_own(work: Path, run: Run) -> None:
    result = run("export", "toy", "--what", "masks/text-refined", "--toy-level", 0.25,
                 work=work / "work")
    assert result.code == 0, result.err
    lines = Path(result.out.strip()).read_text().splitlines()
    assert [line.split()[::2] for line in lines] == [[f"scene{n}", "0.25"] for n in range(6)]


@pytest.mark.parametrize("kind", RUNS)
def test_an_option_of_another_method_is_a_usage_error(kind: str, toys: Path, work: Path, run: Run
                                                      ) -> None:
    stage, default = KINDS[kind].stage, KINDS[kind].default
    result = run(stage, "--toy-level", 0.25, work=work / "work")
    assert result.code == 2
    said = " ".join(result.err.replace("│", " ").split())
    assert f"--toy-level is an option of --method toy, not of --method {default}" in said


def test_methods_lists_it(toys: Path, run: Run) -> None:
    listed = run("methods")
    assert listed.code == 0, listed.err
    lines = listed.out.splitlines()
    for kind, (does, *_) in BODIES.items():
        at = lines.index(f"  {'toy':14} A toy: {does}")
        assert lines[at + 1].strip() == f"from {toys / kind}/toy.py"
        assert sum(line.startswith(f"{kind}: ") for line in lines) == 1
    assert "toy" in run("methods", "label-refiners").out
    assert "gradcam" not in run("methods", "refiners").out
    found = json.loads(run("methods", "cams", "--json").out)
    names = [method["name"] for method in found[0]["methods"]]
    assert names == sorted(names)
    assert {"dense", "gradcam", "toy"} <= {*names}


@pytest.mark.parametrize("kind", KINDS)
def test_methods_tells_all_about_it(kind: str, toys: Path, run: Run) -> None:
    told = run("methods", kind, "toy")
    assert told.code == 0, told.err
    for part in (f"A toy: {BODIES[kind][0]}.", "The second paragraph is only on its page.",
                 f"use: vpltool {' '.join(command_of(kind))}", f"function: {KINDS[kind].function}(",
                 f"from: {toys / kind}/toy.py",
                 "--toy-level  number, at least 0, at most 1; default 0.5",
                 "    Level of the toy. Source: a test."):
        assert part in told.out
    if BODIES[kind][1]:
        assert f"reads: {', '.join(BODIES[kind][1])}" in told.out


def test_the_page_lists_it(toys: Path, run: Run) -> None:
    page = run("methods", "--markdown")
    assert page.code == 0, page.err
    assert page.out.count("\n### toy\n") == len(KINDS)
    assert ("| `toy_level` | `--toy-level` | number, at least 0, at most 1; default 0.5 "
            "| Level of the toy. Source: a test. |") in page.out
    assert run("methods", "cams", "--markdown").out.startswith("## cams\n")


def test_the_page_of_the_bundled_methods_is_up_to_date(run: Run, monkeypatch: pytest.MonkeyPatch
                                                       ) -> None:
    """Made by: python -m vpltool.reference docs/reference"""
    monkeypatch.delenv(FOLDERS, raising=False)
    page = ROOT / "docs/reference/methods.md"
    assert run("methods", "--markdown").out == page.read_text("utf-8")


@pytest.mark.parametrize(("words", "said", "hint"), [
    (("camz",), "`camz` is not a kind of method", "did you mean `cams`?"),
    (("cams", "gradcm"), "cams has no method `gradcm`", "did you mean `gradcam`?")])
def test_methods_of_what_is_not_there(words: tuple[str, ...], said: str, hint: str, run: Run
                                      ) -> None:
    result = run("methods", *words)
    assert result.code == 1
    assert result.lines("error:") == [said]
    assert result.lines("hint:") == [hint]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_without_its_function_is_named(kind: str, tmp_path: Path, run: Run,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    function = KINDS[kind].function
    path = write_toy(tmp_path, kind, text=text_of(kind).replace(f"def {function}(", "def other("))
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    for command in (("methods", kind, "toy"), (*command_of(kind), "--help")):
        result = run(*command)
        assert result.code == 1, command
        assert result.lines("error:") == [f"{path}: a method of {kind} needs `{function}`"]
        assert function in result.lines("hint:")[0]


@pytest.mark.parametrize(("kind", "name"), [
    ("exports", "SUFFIX"), ("segmenters", "rebuild"), ("cams", "READS"), ("refiners", "Settings")])
def test_what_else_a_file_lacks_is_named(kind: str, name: str, tmp_path: Path, run: Run,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of(kind)
    for begin in ("def ", "class "):
        text = text.replace(f"{begin}{name}(", f"{begin}Other(")
    path = write_toy(tmp_path, kind, text=text.replace(f"\n{name} =", "\nOTHER ="))
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    result = run("methods", kind, "toy")
    assert result.code == 1
    assert result.lines("error:") == [f"{path}: a method of {kind} needs `{name}`"]


def test_a_file_that_reads_what_there_is_not_is_named(tmp_path: Path, run: Run,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_toy(tmp_path, "cams", text=text_of("cams").replace("'photo'", "'depth'"))
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    result = run("methods", "cams", "toy")
    assert result.lines("error:") == [f"{path}: READS names `depth`"]
    assert "tokens" in result.lines("hint:")[0]


def test_a_forgotten_comma_is_told(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
                                   ) -> None:
    path = write_toy(tmp_path, "cams", text=text_of("cams").replace(
        "('patches', 'photo')", "('patches')"))
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    result = run("methods", "cams", "toy")
    assert result.lines("error:") == [f"{path}: READS is the text 'patches', not a tuple"]
    assert result.lines("hint:") == ["READS = ('patches',), with a comma"]


@pytest.mark.parametrize(("named", "said"), [
    ("gone", "VPLTOOL_METHODS names {}, which is no folder"),
    ("good/cams", "VPLTOOL_METHODS names {}, not the folder above it, "),
    ("bad", "{}/cam holds no kind of methods: did you mean `cams`?"),
    ("empty", "VPLTOOL_METHODS names {}, which holds no methods: KIND/NAME.py"),
    ("good", "")])
def test_a_folder_in_which_nothing_is_found_is_warned_of(
        named: str, said: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy(tmp_path / "good", "cams")
    (tmp_path / "good/helpers").mkdir()
    (tmp_path / "good/helpers/sums.py").write_text("")
    write_toy(tmp_path / "bad", "cam", text="")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv(FOLDERS, str(tmp_path / named))
    for result in (run("methods", "cams"), run("cam", "--method", "dence")):
        assert (said.format(tmp_path / named) in result.err.replace("\n", " ")) if said else (
            FOLDERS not in result.err)


@pytest.mark.parametrize(("text", "fault"), [
    ("this is no Python", "SyntaxError"), ("import no_such_module", "ModuleNotFoundError"),
    ("1 / 0", "ZeroDivisionError")])
def test_a_file_that_cannot_be_imported_hinders_nothing_else(
        text: str, fault: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_toy(tmp_path, "cams", text=f"# At work.\n{text}\n")
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    listed = run("methods", "cams")
    assert listed.code == 0 and str(path) in listed.out
    assert ("Cannot be imported" in listed.out) == (fault == "SyntaxError")
    assert run("cam", "--help").code == 0
    assert "did you mean `--method`" in run("cam", "--metod", "dense").err
    for command in (("cam", "--method", "toy"), ("methods", "cams", "toy")):
        result = run(*command)
        assert result.code == 1
        assert result.lines("error:")[0].startswith(f"{path}:2: {fault}: ")


def test_a_setting_of_the_stage_s_name_is_refused(tmp_path: Path, copied: Path, run: Run,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    toy = text_of("cams").replace("toy_level", "prototypes")
    assert "prototypes:" in toy
    path = write_toy(tmp_path, "cams", text=toy)
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    result = run("cam", "--method", "toy", work=copied / "work")
    assert result.code == 1
    assert result.lines("error:") == [f"{path}: cam has a setting `prototypes` already"]


def test_two_methods_of_one_name_are_an_error(tmp_path: Path, run: Run,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_toy(tmp_path, "cams", "gradcam")
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    for command in (("methods",), ("cam", "--help")):
        result = run(*command)
        assert result.code == 1
        (error,) = result.lines("error:")
        assert error.startswith(f"{path}: cams has a method `gradcam` already, ")
        assert result.lines("hint:") == ["give the file another name"]


def test_several_folders_may_be_named(tmp_path: Path, toys: Path, run: Run,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy(tmp_path, "cams", "second_toy")
    monkeypatch.setenv(FOLDERS, f"{toys}:{tmp_path}:{tmp_path / 'none'}")
    listed = run("methods", "cams").out
    assert "  toy " in listed
    assert "  second-toy " in listed


def test_a_command_stands_for_the_kind_that_it_chooses_from(run: Run) -> None:
    assert run("methods", "crf").out == run("methods", "label-refiners").out
    assert run("methods", "cam", "gradcam").out == run("methods", "cams", "gradcam").out


def test_the_example_of_the_design_runs(tmp_path: Path, ready: Path, tiny_clip: Path, run: Run,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file and its lines, as they stand on the page."""
    page = (ROOT / "docs/design.md").read_text()
    code = next(block for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
                if "def make_cams" in block)
    assert "..." not in code
    file = re.search(r"Saved as `(\S+)`", page)
    lines = re.findall(r"^    (vpltool .*cosine.*)$", page, re.M)
    assert file is not None and len(lines) == 2
    base = copy_workspace(ready, tmp_path / "base", tiny_clip)
    target = base / "work" / file[1]
    target.parent.mkdir(parents=True)
    target.write_text(code)
    monkeypatch.chdir(base / "work")
    monkeypatch.setenv(FOLDERS, "my-methods")
    for line in lines:
        result = run(*shlex.split(line)[1:])
        assert result.code == 0, result.err
    made = {path.stem: load_file(path) for path in Path("cams/text-cosine/train").glob("*.saf*")}
    assert len(made) == 6
    for maps in made.values():
        assert len(maps["cam"]) == len(maps["classes"]) > 0
        assert maps["cam"].amin() == 0 and maps["cam"].amax() == 1


def test_the_stage_of_the_design_runs(tmp_path: Path, ready: Path, tiny_clip: Path) -> None:
    """The file that stands on the page is a whole stage, which resumes."""
    page = (ROOT / "docs/design.md").read_text()
    code = next(block for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
                if "SharpenSettings" in block)
    module = types.ModuleType("sharpen")
    # A dataclass looks its module up, to read annotations.
    sys.modules["sharpen"] = module
    try:
        exec(compile(code, "sharpen.py", "exec"), vars(module))
        work = copy_workspace(ready, tmp_path / "base", tiny_clip) / "work"
        cams = Workspace(work).cam(method="dense")
        values = {"cams": "text-dense", "power": 3.0}
        (folder,) = run_stage(FoundStage("sharpen", module), work, values)
        before = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
        run_stage(FoundStage("sharpen", module), work, values)
        assert {path: path.stat().st_mtime_ns for path in before} == before
    finally:
        del sys.modules["sharpen"]
    assert len(before) == 6
    for path in before:
        maps, made = load_file(cams[0] / path.name)["cam"], load_file(path)["cam"]
        assert torch.equal(made, maps**3)
    with pytest.raises(OtherSettings, match=r"power was 3.0, now 2.0"):
        run_stage(FoundStage("sharpen", module), work, {"cams": "text-dense"})


def test_the_page_names_every_field_that_a_method_is_given() -> None:
    from vpltool.methods import inputs

    page = (ROOT / "docs/reference/methods.md").read_text()
    for kind in KINDS.values():
        section = page.partition(f"\n## {kind.name}\n")[2].partition("\n## ")[0]
        for name in kind.types:
            found = Pixels if name == "Pixels" else getattr(inputs, name, None)
            names = ([entry.name for entry in fields(found)] if found else
                     ["config", "embeddings", "logits", "layers", "fuses"])
            table = section.partition(f"`{name}`: ")[2].partition("\n### ")[0]
            for field in names:
                assert re.search(rf"^\| `{field}` \| `[^`]+` \| \S.* \|$", table, re.M), (
                    f"{name}.{field}")


FAULTS = {
    'return batch.tensors["attention"]': "KeyError: 'attention'",
    "return batch.nothing": "AttributeError: 'CamBatch' object has no attribute 'nothing'",
    "return []": "make_cams returned 0 maps for 3 photos",
    "return [torch.zeros(5, 2) for _ in batch.ids]": "make_cams returned a Tensor (5, 2) for ",
    "return [torch.zeros(len(one), 1, 1).numpy() for one in batch.present]":
        "make_cams returned a ndarray (",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_ones_own_method_is_told_with_its_line(
        fault: str, tmp_path: Path, ready: Path, tiny_clip: Path, run: Run,
        monkeypatch: pytest.MonkeyPatch) -> None:
    work = copy_workspace(ready, tmp_path / "base", tiny_clip) / "work"
    does, reads, more, _ = BODIES["cams"]
    file = write_toy(tmp_path / "mine", "cams", text=HEAD.format(
        does=does, reads=reads, more=more) + f"""
@torch.no_grad()
def make_cams(batch, settings):
    {fault}
""")
    monkeypatch.setenv(FOLDERS, str(tmp_path / "mine"))
    result = run("cam", "--method", "toy", work=work)
    assert result.code == 1
    line = next(number for number, text in enumerate(file.read_text().splitlines(), 1)
                if (fault if "return batch" in fault else "@torch") in text)
    assert result.lines("error:")[0].startswith(f"{file}:{line}: {FAULTS[fault]}")
    assert ("add `attention` to READS" in result.err) == ("attention" in fault)
    # Nothing was made, so there is nothing to be continued.
    assert "text-toy" not in run("status", work=work).out


def test_what_a_method_left_incomplete_needs_it(
        tmp_path: Path, ready: Path, tiny_clip: Path, run: Run, monkeypatch: pytest.MonkeyPatch
        ) -> None:
    work = copy_workspace(ready, tmp_path / "base", tiny_clip) / "work"
    write_toy(tmp_path / "mine", "cams", text=text_of("cams").replace(
        "    assert", "    DONE.append(1)\n    assert len(DONE) < 3\n    assert") + "DONE = []\n")
    monkeypatch.setenv(FOLDERS, str(tmp_path / "mine"))
    assert run("cam", "--method", "toy", "--batch-size", 1, work=work).code == 1
    assert "INCOMPLETE" in run("status", work=work).out
    monkeypatch.delenv(FOLDERS)
    gone = run("update", work=work)
    assert gone.code == 1
    assert "VPLTOOL_METHODS=FOLDER finds FOLDER/cams/toy.py; then vpltool update continues" in (
        gone.lines("hint:")[0])


def test_a_fault_of_vpltool_keeps_its_traceback(work: Path, toys: Path, run: Run,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    run("methods", "cams", "toy")
    monkeypatch.setattr("vpltool.methods.cams.dense.make_cams", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("cam", "--method", "dense", work=work / "work")
