"""Two and three processes, as torchrun starts them, end in what one process makes."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import Result, Run, copy_workspace, run_chain
from launching import ROOT, Forked, free_port, start

from vpltool.formats import read_tensors
from vpltool.formats.shards import shard_of

# A GPU sums in other orders for other batches.
pytestmark = pytest.mark.cpu

MEANS = ("seed-prototypes", "--cams", "text", "--phi", 0.6, "--background", "words")
COMMANDS: tuple[tuple[object, ...], ...] = (
    # At the default rate of 10, the order of a sum shows after 30 steps over so few pixels: in one
    # process, too, parts of another size give rows that differ by 3e-5.
    ("learn-prototypes", "--iters", 30, "--lr", 1, "--max-pixels", 60),
    ("learn-prototypes", "--iters", 8, "--pixels", "seeds", "--phi", 0.6, "--balance", "--solver",
     "lbfgs", "--rounds", 2, "--cams", "text", "-o", "@/prototypes/lbfgs.safetensors"),
    MEANS,
    ("train-decoder", "--masks", "text-refined", "--prototypes", "text", "--crop", 3,
     "--batch-size", 6, "--width", 16, "--iters", 4, "--lambda-aff", 0.1, "--name", "layers"),
    ("train-decoder", "--masks", "text-refined", "--prototypes", "text", "--crop", 3, "--source",
     "photos", "--batch-size", 6, "--width", 16, "--iters", 2, "--workers", 0, "--lambda-rsc", 0,
     "--name", "photos"),
    ("train-decoder", "--masks", "text-refined", "--prototypes", "text", "--method",
     "discriminant", "--name", "discriminant"),
    ("train-decoder", "--masks", "text-refined", "--prototypes", "text", "--method", "finetune",
     "--layers", "0,1", "--blocks", 2, "--crop", 3, "--batch-size", 6, "--iters", 2, "--workers", 0,
     "--name", "tuned"),
    ("eval", "--split", "train", "--what", "cams/text"),
    ("eval", "--split", "train", "--what", "masks/text-refined-full", "--per-photo",
     "@/photos.csv"),
    ("cam", "--method", "dense", "--split", "train"),
    ("crf", "--what", "text-dense", "--split", "train", "--workers", 0),
)
SAME = ("photos.csv", "scores/cams-text-train.json", "scores/masks-text-refined-full-train.json",
        "cams/text-dense/train", "masks/text-dense/train", "masks/text-dense-full/train")
CLOSE = ("prototypes/vision", "prototypes/lbfgs", "prototypes/seeds", "decoder/layers",
         "decoder/photos", "decoder/discriminant", "decoder/tuned")


def spelled(commands: tuple[tuple[object, ...], ...], work: Path) -> list[list[str]]:
    return [[str(word).replace("@", str(work)) for word in words] for words in commands]


@dataclass(frozen=True)
class Together:
    """A workspace that ranks have worked in, and what each of them said to each command."""

    work: Path
    said: list[list[Result]]


def run_together(base: Path, count: int, commands: tuple[tuple[object, ...], ...]) -> Together:
    work, script = base / "work", ROOT / "tests/commands_of_rank.py"
    (base / "commands.json").write_text(json.dumps(spelled(commands, work)))
    ports = [free_port() for _ in commands]
    ranks = start(count, [script, work, base / "commands.json", *ports])
    said = []
    for rank in ranks:
        out, err = rank.communicate(timeout=200)
        said.append([Result(*json.loads(line)) for line in out.splitlines()])
        assert len(said[-1]) == len(commands), err
    return Together(work, said)


@pytest.fixture(scope="module")
def alone(layered: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """What one process makes."""
    base = copy_workspace(layered, tmp_path_factory.mktemp("alone") / "base", tiny_clip)
    for words in spelled(COMMANDS, base / "work"):
        run_chain(base, (tuple(words),))
    return base / "work"


BROKEN = ("learn-prototypes", "--overwrite", "--iters", 3)


@pytest.fixture(scope="module", params=[2, 3])
def together(layered: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path,
             request: pytest.FixtureRequest) -> Together:
    """The same commands by two and by three processes; the last one fails in one of them."""
    base = copy_workspace(layered, tmp_path_factory.mktemp("together") / "base", tiny_clip)
    return run_together(base, request.param, COMMANDS)


def test_each_command_succeeds_and_only_the_first_process_speaks(together: Together) -> None:
    first, *others = together.said
    for words, result, *rest in zip(COMMANDS, first, *others, strict=True):
        assert result.code == 0, f"{words[0]}: {result.err}"
        assert result.out
        for other in rest:
            assert other.code == 0, other.err
            if words[0] in ("cam", "crf"):
                assert "of the photos, RANK and WORLD_SIZE" in other.err
            else:
                assert (other.out, other.err) == ("", "")


def test_the_rest_is_close(alone: Path, together: Together) -> None:
    for name in CLOSE:
        kind = "decoder" if name.startswith("decoder") else "prototypes"
        header, wanted = read_tensors(alone / f"{name}.safetensors", kind)
        own, found = read_tensors(together.work / f"{name}.safetensors", kind)
        assert own.config_hash == header.config_hash
        assert wanted.keys() == found.keys()
        for key, tensor in wanted.items():
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-5, msg=f"{name}: {key}")


def files_of(path: Path) -> dict[str, bytes]:
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {str(file.relative_to(path)): file.read_bytes() for file in paths if file.is_file()}


@pytest.mark.parametrize("name", SAME)
def test_counts_and_single_photos_are_the_same_to_the_byte(alone: Path, together: Together,
                                                           name: str) -> None:
    assert files_of(together.work / name) == files_of(alone / name)


def test_nothing_is_left_over(together: Together) -> None:
    assert not [path for path in together.work.rglob("*") if path.is_file() and (
        path.name.startswith(".part-") or ".shards" in path.parts or "checkpoint" in path.name)]


def test_an_incomplete_set_of_ids_is_refused(layered: Path, tmp_path: Path, tiny_clip: Path
                                             ) -> None:
    """Before anything is written; the process that misses a photo names it, and the others end."""
    base = copy_workspace(layered, tmp_path / "base", tiny_clip)
    (base / "work/features/train/scene2.safetensors").unlink()
    result = run_together(base, 2, (BROKEN,))
    missing = shard_of("scene2", 2)
    said = [rank[0] for rank in result.said]
    assert [one.code for one in said] == [1, 1]
    assert "scene2 is missing" in said[missing].err
    assert ("vpltool extract --split train --keep tokens,patches,attention,layers continues"
            in said[missing].err)
    assert "since another one has ended" in said[1 - missing].err
    assert not (base / "work/prototypes/vision.safetensors").exists()


def test_what_cannot_be_divided_is_refused(run: Run, copied: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any exchange: in one process that believes to be one of four."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    work = copied / "work"
    result = run(*MEANS[:-1], "clusters", work=work)
    assert "one of 4 processes" in result.lines("error:")[0]
    result = run("train-decoder", "--batch-size", 6, work=work)
    assert result.lines("error:") == ["4 processes cannot share --batch-size 6 evenly"]
    assert "--batch-size 8" in result.lines("hint:")[0]
    result = run("run", "demo", work=work)
    assert "a recipe has steps over all photos" in result.lines("error:")[0]
    assert "--dry-run prints its commands" in result.lines("hint:")[0]
    result = run("learn-prototypes", "--iters", 1, work=work)
    assert "no MASTER_ADDR" in result.lines("error:")[0]


def test_what_each_task_of_an_array_would_repeat_is_warned_of(run: Run, copied: Path,
                                                              monkeypatch: pytest.MonkeyPatch
                                                              ) -> None:
    for name, value in {"ID": 1, "COUNT": 4, "MIN": 0, "MAX": 3}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    warning, *_ = run(*MEANS, work=copied / "work").lines("warning:")
    assert "one of 4 tasks" in warning and "each of them does all of seed-prototypes" in warning
    assert not run("cam", "--method", "dense", work=copied / "work").lines("warning:")


LONG: tuple[object, ...] = (
    "train-decoder", "--masks", "text-refined", "--prototypes", "text", "--crop", 3,
    "--batch-size", 2, "--width", 16, "--iters", 30_000, "--checkpoint-every", 5)


def begin_training(work: Path, name: str) -> list[Forked]:
    """Start two ranks of a long training, and wait until it has a checkpoint."""
    ranks = start(2, ["-m", "vpltool", "-C", work, *LONG, "--name", name])
    limit = time.monotonic() + 120
    while not (work / f"decoder/{name}.checkpoint.safetensors").exists():
        assert time.monotonic() < limit
        assert [rank.poll() for rank in ranks] == [None, None]
        time.sleep(0.02)
    return ranks


def test_ctrl_c_ends_all_with_one_line(layered: Path, tmp_path: Path, tiny_clip: Path) -> None:
    """Each process gets it twice: from the terminal, and from torchrun."""
    work = copy_workspace(layered, tmp_path / "base", tiny_clip) / "work"
    ranks = begin_training(work, "stopped")
    for _ in range(2):
        for rank in ranks:
            rank.send_signal(signal.SIGINT)
    said = [rank.communicate(timeout=60) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [130, 130], said
    assert said[0][1].count("interrupted") == 1
    assert said[1] == ("", "")
    header, _ = read_tensors(work / "decoder/stopped.checkpoint.safetensors", "decoder")
    assert header.facts["checkpoint"] > 0
    assert not list(work.rglob(".part-*"))


def test_a_rank_that_is_killed_ends_the_other(layered: Path, tmp_path: Path, tiny_clip: Path
                                              ) -> None:
    work = copy_workspace(layered, tmp_path / "base", tiny_clip) / "work"
    first, second = begin_training(work, "killed")
    second.kill()
    _, said = first.communicate(timeout=60)
    second.communicate()
    assert first.returncode == 1
    assert "error: rank 0 of 2 ends, since another one has ended" in said
    assert (work / "decoder/killed.checkpoint.safetensors").exists()
