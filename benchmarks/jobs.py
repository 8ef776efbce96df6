"""Whole jobs as users run them, how long a command takes to start, and attention alone.

The jobs take minutes: `make bench OPTIONS=--whole` measures them after all stages, `--only demo`
one of them. Where their time goes is told by their own output, whose lines are timed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import torch
from measure import Pair, Row, Side, Work, compared, fastest
from stages import Bench, Shape

from vpltool.core.blocks import Block, BlockShape
from vpltool.parallel.processes import core_count

ROOT = Path(__file__).parents[1]

REALDATA = "REALDATA"
"""Environment variable with the folder of real photos, as in the Makefile."""

TRAINED, PREDICTED = 1270, 406
"""Photos of `animals`: in train, and in val."""

_SMALL = Shape(patches=26 * 26, width=384, depth=12, dim=384, heads=6)
"""Of DINOv2's ViT-S/14 over photos of 364 pixels, the largest that are there."""


def attention(bench: Bench) -> Iterator[Row]:
    """Attention of a block of ViT-B/16 over 769 tokens, whose map is not stored."""
    toy = bench.sizes.data == "toy"
    tokens, width, heads = (17, 32, 2) if toy else (769, 768, 12)
    block = Block(BlockShape(width, 4 * width, heads, 1e-5, "gelu"))
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        query = torch.rand(1, heads, tokens, width // heads, device=bench.device).to(dtype)
        weights = torch.rand(tokens, tokens, device=bench.device).to(dtype)

        def products(query: torch.Tensor = query, weights: torch.Tensor = weights) -> None:
            for head in query[0]:
                head @ head.mT
                weights @ head

        with torch.no_grad():
            theirs, ours, bare = (fastest(job, 0.01 if toy else 1) for job in (
                partial(torch.nn.functional.scaled_dot_product_attention, query, query, query),
                partial(block.attend, query, query, query), products))
        work = Work(4.0 * tokens**2 * width, precision=name)
        yield compared(
            f"attention, {name}, {tokens} tokens, {heads} heads (block)",
            Pair(Side([theirs]), Side([ours])), {}, share=bench.share(work, ours),
            bare=bare / ours, check=f"{1000 * ours:.3g} ms, {work.flops / ours / 1e9:.0f} GFLOP/s, "
                                    f"against torch's fused attention; the products alone "
                                    f"{1000 * bare:.3g} ms")


def starts(bench: Bench) -> Iterator[Row]:
    """Commands on one photo or none, as processes of their own."""
    world = bench.world
    python, rounds = [sys.executable], 1 + min(bench.sizes.rounds, 2)
    vpltool = [*python, "-m", "vpltool", "-C", str(world.work)]
    some = ["--overwrite", "--limit", "1"]
    torch_alone = min(_seconds([*python, "-c", "import torch"]) for _ in range(rounds))
    file = str(world.work / "prototypes/text.safetensors")
    for words, most in ((["extract", *some], 4.5), (["cam", *some], 2.6),
                        (["inspect", file], 0.3), (["--help"], 0.3)):
        seconds = [_seconds([*vpltool, *words]) for _ in range(rounds)]
        yield _job(f"start: vpltool {words[0]} (command)", seconds, most,
                   f"Python alone takes {_seconds([*python, '-c', '']):.2f} s, with torch "
                   f"{torch_alone:.2f}")


def own_photos(bench: Bench) -> Iterator[Row]:
    """The recipe `own-photos` on the real photos of `animals`, at its defaults but for size."""
    data = Path(os.environ.get(REALDATA) or ROOT.parent / "shared/realdata")
    photos, encoder = data / "animals", data / "dav2-s14/model.safetensors"
    spent = timed_lines([
        sys.executable, "-m", "vpltool", "-C", str(bench.folder / "own-photos"), "run",
        "own-photos", f"photos={photos / 'photos'}", f"tags={photos / 'tags.csv'}",
        f"masks={photos / 'masks'}", f"classes={photos / 'classes.txt'}", "side=364",
        f"encoder=timm:vit_small_patch14_dinov2,{encoder}"])
    bare = bench.products_seconds(
        Work(_SMALL.depth * _SMALL.block, precision=bench.precision), _SMALL)
    yield _job(f"own-photos, {TRAINED:,} photos of 364 px, {PREDICTED} predicted, ViT-S/14 (run)",
               [sum(spent.values())], 300,
               f"{longest(spent)}; a bare loop of the encoder's products takes "
               f"{TRAINED * bare:.0f} s for extract")
    each = spent.get("predict", 0) / PREDICTED
    yield _job("own-photos: predict, one scale, ViT-S/14 at 364 px (photo)", [each], 0.25,
               f"a bare loop of the encoder's products takes {bare:.3f} s")


def demo(bench: Bench) -> Iterator[Row]:
    """`make demo` with its set-up: an environment is made and torch downloaded."""
    where = bench.folder / "demo"
    spent = timed_lines(["make", "demo", f"VENV={where}/venv", f"DEMO={where}/work"])
    yield _job("make demo with set-up (run)", [sum(spent.values())], 240, longest(spent))


def tests(bench: Bench) -> Iterator[Row]:
    """`make test`, set up before: where the time goes is told by the tests' own report."""
    report = bench.folder / "tests.xml"
    seconds = _seconds(["make", "test"], PYTEST_ADDOPTS=f"--junitxml={report}")
    spent: dict[str, float] = defaultdict(float)
    cases = list(ElementTree.parse(report).iter("testcase"))
    for case in cases:
        spent[case.get("classname", "").removeprefix("tests.")] += float(case.get("time", 0))
    total = sum(spent.values())
    yield _job("make test (run)", [seconds], 300,
               f"{len(cases):,} tests take {total:.0f} s of a core, {total / core_count():.0f} s "
               f"of {core_count()}: {longest(spent)}")


JOBS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "own-photos": own_photos, "demo": demo, "tests": tests}
"""Those that take minutes."""


def _job(name: str, seconds: Sequence[float], most: float, reason: str) -> Row:
    return Row(name, min(seconds), (min(seconds), max(seconds)), {"cpu": most}, (0, 0), (0, 0),
               reason=reason, unit="s")


def _seconds(command: Sequence[str], **environment: str) -> float:
    """Seconds of a process, which must not fail.

    Raises:
        subprocess.CalledProcessError: it did.
    """
    begun = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **environment},
                   capture_output=True)
    return time.perf_counter() - begun


def timed_lines(command: Sequence[str]) -> dict[str, float]:
    """Seconds of a process by the command of vpltool at work, as its output names them.

    What comes before the first is the start. Commands that run side by side share their time.

    Raises:
        subprocess.CalledProcessError: the process failed.
    """
    spent: dict[str, float] = defaultdict(float)
    now, begun = "the start", time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        tail: list[str] = []
        for line in process.stdout:
            tail = [*tail[-20:], line]
            if found := re.match(r"(?:\S.*: |  )vpltool ([a-z][a-z-]*)", line):
                spent[now] += time.perf_counter() - begun
                now, begun = found[1], time.perf_counter()
    spent[now] += time.perf_counter() - begun
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, "".join(tail))
    return spent


def longest(spent: Mapping[str, float], count: int = 4) -> str:
    """`extract 240 s, predict 52 s`: those that take most."""
    most = sorted(spent.items(), key=lambda entry: -entry[1])[:count]
    return ", ".join(f"{name} {seconds:.0f} s" for name, seconds in most)
