"""The same seed gives the same bytes of every artifact: the whole demo, divided in three ways."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Run

from vpltool.shell import settings_with
from vpltool.stages import find_stages

# A GPU sums in other orders for other batches.
pytestmark = pytest.mark.cpu

Lines = list[list[str]]

_WORKERS = {"extract", "predict", "train-decoder"}
"""Commands whose workers are a matter of milliseconds; those of `crf` begin with an import."""


@pytest.fixture(scope="module")
def lines(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Lines:
    """The lines of the recipe `demo`: few scenes, few steps, a CRF over small photos."""
    work = tmp_path_factory.mktemp("lines")
    said = run("run", "demo", "seeds=0", "--dry-run", work=work)
    assert said.code == 0
    found = []
    for line in said.out.splitlines():
        if line.startswith("#"):
            continue
        quick = re.sub(r"--(iters|limit) \d+", r"--\1 3", line.replace(str(work), "WORK"))
        words = shlex.split(quick)
        words = words[words.index("-C") + 2:]
        if "decoder-0" in line and words[0] != "scores":
            # Of the two segmenters one is enough.
            continue
        words = [word for word in words if "decoder-0" not in word]
        more = {"demo": ["--images", "12"], "crf": ["--max-side", "40"]}.get(words[0], [])
        found.append([*words, *more])
    assert {words[0] for words in found} >= {
        "demo", "text-prototypes", "extract", "cam", "learn-prototypes", "seed-prototypes", "crf",
        "train-decoder", "predict", "eval", "scores", "show"}
    return found


def is_per_photo(command: str) -> bool:
    return "shard" in settings_with(find_stages()[command], None)


def identities(work: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(work.rglob("*")):
        if file.is_file():
            yield (file.relative_to(work).as_posix(),
                   hashlib.sha256(file.read_bytes()).hexdigest())


def run_demo(run: Run, lines: Lines, work: Path, *, workers: int = 0, shards: int = 1,
             ranks: int = 1) -> dict[str, str]:
    """Run the lines, those on single photos in parts; name to hash of every file.

    Args:
        run: runs a line.
        lines: words of each.
        work: the workspace folder.
        workers: processes or threads that read photos.
        shards: number of parts, as `--shard` says.
        ranks: number of parts, as torchrun's variables say.
    """
    for words in lines:
        spelled = [word.replace("WORK", str(work)) for word in words]
        parts = max(shards, ranks) if is_per_photo(words[0]) else 1
        if words[0] in _WORKERS:
            spelled += ["--workers", str(workers)]
        # The last part first: nothing may depend on which one begins the folder.
        for index in reversed(range(parts)):
            with pytest.MonkeyPatch.context() as patch:
                if parts > 1 and ranks > 1:
                    patch.setenv("RANK", str(index))
                    patch.setenv("WORLD_SIZE", str(ranks))
                shard = ["--shard", f"{index}/{shards}"] if parts > 1 and shards > 1 else []
                result = run(*spelled, *shard, work=work)
            assert result.code == 0, f"{words}: {result.err}"
    return dict(identities(work))


@pytest.fixture(scope="module")
def alone(run: Run, lines: Lines, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run_demo(run, lines, tmp_path_factory.mktemp("alone") / "work")


@pytest.mark.parametrize("divided", [{"shards": 3, "workers": 1}, {"ranks": 2, "workers": 2}],
                         ids=["shards", "ranks"])
def test_the_whole_demo(run: Run, lines: Lines, tmp_path: Path, alone: dict[str, str],
                        divided: dict[str, int]) -> None:
    found = run_demo(run, lines, tmp_path / "work", **divided)
    assert sorted(found) == sorted(alone)
    assert [name for name in found if found[name] != alone[name]] == []


def test_what_was_compared(alone: dict[str, str]) -> None:
    kinds = {name.split("/")[0] for name in alone}
    assert kinds >= {"features", "prototypes", "cams", "masks", "decoder", "predictions", "scores",
                     "photos", "truth", "images.jsonl", "workspace.json", "ablation.md",
                     "sheet.png"}
    assert len(alone) > 120


def test_another_seed_gives_other_bytes(run: Run, lines: Lines, tmp_path: Path,
                                        alone: dict[str, str]) -> None:
    """So the comparison above compares something."""
    demo = next(words for words in lines if words[0] == "demo")
    assert run(*demo, "--seed", 1, work=tmp_path).code == 0
    found = dict(identities(tmp_path))
    assert found["truth/s1-0000.png"] not in alone.values()
