"""What holds for every command, found by looking into vpltool/stages: nothing is listed here
that a new command would have to be added to, but the arguments that it cannot do without."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHAIN, TRAIN, Run, prepare

import vpltool
from vpltool.formats import KINDS, Photo, describe
from vpltool.formats.workspace import read_images
from vpltool.methods import find_methods
from vpltool.settings import Stage
from vpltool.shell import to_shell
from vpltool.stages import FoundStage, find_stages

COMMANDS: dict[str, FoundStage] = find_stages()
PACKAGE = Path(vpltool.__file__).parent
HEAVY = ("torch", "torchvision", "numpy", "PIL", "open_clip", "safetensors")

NEEDED: dict[str, list[list[str]]] = {
    "prepare": [["voc", "none"], ["coco", "none", "--no-truth"],
                ["folder", "none", "--labels", "none.csv"]],
    "export": [["voc-server"], ["coco-panoptic"], ["bundle"]],
    "push": [["me/animals"]],
    "inspect": [["none.safetensors"]],
    "run": [["none"]],
}
"""Arguments without which a command is a usage error."""


def documented(found: FoundStage) -> dict[str, str]:
    """Command line (`prepare voc`) to the text that its help shows."""
    if found.stage.subcommands:
        return {f"{found.name} {method.name}": method.docstring
                for method in find_methods(found.stage.methods).values()}
    return {found.name: found.run.__doc__ or ""}


ALL = {line: text for found in COMMANDS.values() for line, text in documented(found).items()}


@pytest.mark.parametrize("line", ALL)
def test_docstring_has_an_example_that_begins_with_the_command(line: str) -> None:
    examples = [row.strip().removeprefix("Example: ") for row in ALL[line].splitlines()
                if row.strip().startswith("Example: ")]
    assert examples
    assert all(f"{example} ".startswith(f"vpltool {line} ") for example in examples)


@pytest.mark.parametrize("line", [*COMMANDS, *(line for line in ALL if line not in COMMANDS)])
def test_help(line: str, run: Run) -> None:
    result = run(*line.split(), "--help")
    assert result.code == 0
    assert "Usage" in result.out
    if line in ALL:
        assert ALL[line].split("\n")[0].split(".")[0].split()[0] in result.out
        assert "Example:" in result.out


def test_help_lists_the_commands_in_the_order_of_the_pipeline(run: Run) -> None:
    result = run("--help")
    assert result.code == 0
    # The text above the panels names commands too.
    panels_at = result.out.index(next(iter(COMMANDS.values())).stage.panel)
    listed = result.out[panels_at:].replace(",", " ").replace("\n", " ")
    positions = [listed.index(f" {name} ") for name in COMMANDS]
    panels: dict[str, list[int]] = {}
    for found, position in zip(COMMANDS.values(), positions, strict=True):
        panels.setdefault(found.stage.panel, []).append(position)
    assert all(panel == sorted(panel) for panel in panels.values())


def test_version(run: Run) -> None:
    assert run("--version").out.strip() == f"vpltool {vpltool.__version__}"


def test_help_loads_nothing_heavy() -> None:
    """In a fresh interpreter; all helps are rendered in it, one after the other."""
    code = f"""
import sys
from vpltool.cli import build_app
for line in {[[], *[line.split() for line in ALL]]!r}:
    try:
        build_app()([*line, "--help"])
    except SystemExit as stop:
        assert not stop.code, line
loaded = sorted({{name.split(".")[0] for name in sys.modules}} & set({HEAVY!r}))
print("LOADED", loaded)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env={"PYTHONPATH": str(PACKAGE.parent), "PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"


@pytest.mark.parametrize("name", COMMANDS)
def test_stage(name: str) -> None:
    stage = COMMANDS[name].stage
    assert isinstance(stage, Stage)
    assert set(stage.reads) | set(stage.writes) <= set(KINDS)
    for kind in stage.reads:
        makers = [other for other, found in COMMANDS.items() if kind in found.stage.writes]
        assert makers, f"no command writes the {kind} that {name} reads"


def test_orders_are_unique() -> None:
    orders = [found.stage.order for found in COMMANDS.values()]
    assert len(set(orders)) == len(orders)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_the_hint_of_a_missing_kind_is_a_command(kind: object) -> None:
    assert to_shell(kind.made_by).split()[:1] == ["vpltool"]  # type: ignore[attr-defined]
    assert to_shell(kind.made_by).split()[1] in COMMANDS  # type: ignore[attr-defined]


@pytest.mark.parametrize("line", ALL)
def test_an_unknown_option_is_a_usage_error(line: str, run: Run) -> None:
    result = run(*line.split(), "--no-such-option")
    assert result.code == 2
    assert "--no-such-option" in result.err


@pytest.mark.parametrize("name", [name for name, found in COMMANDS.items()
                                  if found.stage.subcommands])
def test_a_group_alone_lists_its_commands(name: str, run: Run) -> None:
    result = run(name)
    assert (result.code, result.out) == (2, "")
    assert result.err == run(name, "--help").out


def test_an_unknown_command_is_a_usage_error(run: Run) -> None:
    assert run("no-such-command").code == 2


STARTS = [(name, arguments) for name, found in COMMANDS.items()
          if found.stage.reads or name in NEEDED for arguments in NEEDED.get(name, [[]])]


@pytest.mark.parametrize(("name", "arguments"), STARTS)
def test_in_an_empty_folder_it_is_one_line_and_a_hint(
    name: str, arguments: list[str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(name, *arguments)
    assert result.code == 1, result.err
    lines = result.err.strip().splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "hint"]
    assert all(len(line) > len("error: ") for line in lines)
    assert result.out == ""
    assert list(tmp_path.iterdir()) == [], "a command that failed left something behind"


def test_debug_shows_the_traceback(run: Run, tmp_path: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    from vpltool.errors import VplError

    monkeypatch.setenv("VPLTOOL_DEBUG", "1")
    with pytest.raises(VplError):
        run("extract", work=tmp_path)


def test_an_interrupt_is_130(run: Run, ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vpltool.run.open_workspace", stop)
    result = run("cam", work=ready / "work")
    assert result.code == 130
    assert "run the same command again" in result.err


def test_an_interrupted_run_goes_on(run: Run, copied: Path, ready: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at the third photo: two stay as they are, and the end is the same bytes."""
    from vpltool.formats import OutputFolder

    folder = copied / "work/features/train"
    shutil.rmtree(folder)
    write, written = OutputFolder.write_tensors, []

    def stop_at_third(self: OutputFolder, photo_id: str, tensors: dict[str, object]) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(photo_id)
        write(self, photo_id, tensors)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(OutputFolder, "write_tensors", stop_at_third)
        assert run(*CHAIN[1], work=copied / "work").code == 130
    assert not json.loads((folder / "artifact.json").read_text())["complete"]
    first = {path.name: path.stat().st_mtime_ns for path in folder.glob("scene*")}
    assert len(first) == 2
    refused = run("cam", "--overwrite", work=copied / "work")
    assert refused.code == 1
    assert "extract --split train" in refused.lines("hint:")[0]
    assert run(*CHAIN[1], work=copied / "work").code == 0
    for path in folder.iterdir():
        assert path.read_bytes() == (ready / "work/features/train" / path.name).read_bytes()
        assert path.stat().st_mtime_ns == first.get(path.name, path.stat().st_mtime_ns)


OTHERWISE: dict[str, tuple[str, ...]] = {
    "text-prototypes": ("--prompts", "origami"), "extract": ("--scale", "0.5"),
    "cam": ("--target", "softmax"), "refine": ("--lambda", "0.5"), "crf": ("--alpha", "2"),
}
"""For each command of the ready workspace, options that give another result."""


def files_of(base: Path) -> dict[str, int]:
    return {str(path.relative_to(base)): path.stat().st_mtime_ns
            for path in sorted((base / "work").rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", OTHERWISE)
def test_output_of_other_settings_is_refused_then_replaced(name: str, run: Run,
                                                           copied: Path) -> None:
    before = files_of(copied)
    settings: list[object] = ["--workers", 0] if name in ("extract", "crf") else []
    result = run(name, *OTHERWISE[name], *settings, work=copied / "work")
    assert result.code == 1
    assert len(result.lines("error:")) == 1
    assert "--overwrite" in result.lines("hint:")[0]
    assert "was" in result.lines("error:")[0], "it should say which setting differs"
    assert files_of(copied) == before
    replaced = run(name, *OTHERWISE[name], *settings, "--overwrite", work=copied / "work")
    assert replaced.code == 0, replaced.err
    assert files_of(copied) != before


@pytest.mark.parametrize("command", CHAIN, ids=lambda command: "-".join(map(str, command[:3])))
def test_a_second_run_rewrites_nothing(command: tuple[object, ...], run: Run, copied: Path) -> None:
    before = files_of(copied)
    result = run(*command, work=copied / "work")
    assert result.code == 0, result.err
    assert result.out.strip(), "the path of the result is printed also when nothing was to do"
    assert files_of(copied) == before


def test_a_second_prepare_rewrites_nothing_and_another_is_refused(copied: Path) -> None:
    (copied / "work" / "workspace.json").unlink()
    assert prepare(copied, "--masks", copied / "masks").code == 0
    before = files_of(copied)
    assert prepare(copied, "--masks", copied / "masks").code == 0
    assert files_of(copied) == before
    refused = prepare(copied, "--masks", copied / "masks", "--normalise", "imagenet")
    assert refused.code == 1
    assert "--overwrite" in refused.lines("hint:")[0]
    assert files_of(copied) == before


def test_headers_name_the_hashes_of_their_inputs(ready: Path) -> None:
    """Each folder's inputs are the configuration hashes, or contents, of what it was made from."""
    from vpltool.formats import identity_of_file, open_input, open_workspace

    work = ready / "work"
    features = open_input(work / "features/train", ("features",))
    prototypes = describe(work / "prototypes/text.safetensors").header
    cams = open_input(work / "cams/text/train", ("cams",))
    refined = open_input(work / "cams/text-refined/train", ("cams",))
    masks = open_input(work / "masks/text-refined/train", ("masks",))
    workspace = open_workspace(work)
    classes = {"classes": workspace.classes_identity}
    # A photo's own tags are told photo by photo, so that one more photo does not touch the others.
    assert cams.per_photo_inputs == {photo.id: " ".join(map(str, workspace.indices_of(photo)))
                        for photo in workspace.photos("train")}
    assert cams.header.inputs == {
        **classes, "features": features.identity,
        "prototypes": identity_of_file(work / "prototypes/text.safetensors")}
    assert refined.header.inputs == {
        **classes, "features": features.identity, "cams": cams.identity}
    assert masks.header.inputs == {**classes, "what": refined.identity}
    assert prototypes is not None
    fingerprints = {entry.header.model["fingerprint"] for entry in (features, cams, refined, masks)}
    assert fingerprints == {prototypes.model["fingerprint"]}


def test_every_file_carries_the_header_of_its_folder(ready: Path) -> None:
    manifests = list((ready / "work").rglob("artifact.json"))
    assert len(manifests) == 8
    for manifest in manifests:
        content = json.loads(manifest.read_text())
        assert content["complete"]
        files = [path for path in manifest.parent.iterdir() if path != manifest]
        assert files
        for path in files:
            header = describe(path).header
            assert header is not None
            assert header.config_hash == content["config"]


def test_no_artifact_holds_a_path_a_date_or_a_host(ready: Path) -> None:
    import socket

    for path in (ready / "work").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(ready).encode() not in content
            assert str(Path.home()).encode() + b"/" not in content
            if len(socket.gethostname()) > 5:
                assert socket.gethostname().encode() not in content


def test_a_workspace_can_be_moved(copied: Path, tmp_path: Path, run: Run) -> None:
    """Photos and workspace together, to another place: all is done already."""
    moved = tmp_path / "elsewhere" / "deep"
    moved.parent.mkdir()
    shutil.move(copied, moved)
    for command in CHAIN[3:]:
        result = run(*command, work=moved / "work")
        assert result.code == 0, result.err
        assert "done already" in result.err


@pytest.mark.parametrize("command", [
    ("extract", "--overwrite", "--workers", 0), ("cam", "--overwrite"),
    ("learn-prototypes", "--iters", 1), (*TRAIN, "--iters", 1, "--source", "photos"),
    ("eval", "--what", "cams/text", "--split", "train")], ids=lambda command: command[0])
def test_the_list_of_photos_is_read_once(command: tuple[object, ...], run: Run, copied: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """For the photos, for the hash of their tags, and for what a stage asks again."""
    calls = []

    def counted(path: Path) -> list[Photo]:
        calls.append(path)
        return read_images(path)

    monkeypatch.setattr("vpltool.formats.workspace.read_images", counted)
    result = run(*command, work=copied / "work")
    assert result.code == 0, result.err
    assert calls == [copied / "work/images.jsonl"]


@pytest.mark.parametrize(("words", "wanted"), [
    ("vpltool learn-p", "learn-prototypes"), ("vpltool cam --proto", "--prototypes"),
    ("vpltool prepare fol", "folder")])
def test_the_shell_completes(words: str, wanted: str) -> None:
    """As bash asks: by environment variables, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "vpltool"], capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(PACKAGE.parent), "PATH": "/usr/bin:/bin", "COMP_WORDS": words,
             "_VPLTOOL_COMPLETE": "complete_bash", "COMP_CWORD": str(len(words.split()) - 1)})
    assert wanted in done.stdout.split(), done.stderr


@pytest.mark.parametrize(("words", "said"), [
    (("prepare", "photos"), "vpltool prepare --help"), (("help",), "vpltool --help"),
    (("train",), "train-decoder"), (("text",), "text-prototypes"), (("gaps",), "`gap`")])
def test_an_unknown_command_is_answered(words: tuple[str, ...], said: str, run: Run) -> None:
    result = run(*words)
    assert result.code == 2
    assert said in " ".join(result.err.replace("│", " ").split())


@pytest.mark.parametrize("words", [("-q", "cam"), ("cam", "-q"), ("--quiet", "cam")])
def test_quiet_is_taken_before_and_after_the_command(words: tuple[str, ...], run: Run,
                                                     ready: Path) -> None:
    before = [word for word in words if words.index(word) < words.index("cam")]
    after = [word for word in words if words.index(word) > words.index("cam")]
    result = run(*before, "cam", *after, work=ready / "work")
    assert (result.code, result.err) == (0, "")


@pytest.mark.cpu
def test_a_slow_precision_is_warned_about(run: Run, copied: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vpltool.parallel.device.slowdown_of", lambda _dtype: 70.4)
    result = run("cam", "--precision", "bf16", "--overwrite", work=copied / "work")
    assert result.code == 0
    (warning,) = result.lines("warning:")
    assert "about 70 times slower" in warning
    assert "--precision fp32" in warning
