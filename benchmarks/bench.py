"""Speed of every stage against the plain way of doing it, on two cores: `make bench`.

    python benchmarks/bench.py [--quick] [--only features,crf] [--data coco] [--model ViT-S-16]
    python benchmarks/bench.py --whole
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from unittest import mock

import torch
from goals import budget, goals
from groups import groups
from jobs import JOBS, attention, starts
from measure import Row, failed, table
from methods import Cost, costs, methods
from safety import Trust, trust, trust_table
from stages import FULL, QUICK, STAGES, TOY, Bench, Sizes

from vpltool import file_hashes
from vpltool.parallel.device import settle_precision

ALL = {**STAGES, "attention": attention, "starts": starts, "groups": groups, "trust": trust,
       "methods": methods}
"""Each stage, attention alone, the start of commands, the cost of trust, each method."""

_HEAD = """# On a CPU

Written by `make bench`, one section for each kind of CPU; a run replaces its own.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the stages, print the table, and write it to a file."""
    options = _options(argv)
    sizes = TOY if options.toy else QUICK if options.quick else FULL
    if options.model:
        sizes = replace(sizes, model=options.model)
    if options.data:
        sizes = replace(sizes, data=options.data)
    device = torch.device("cpu")
    names = options.only.split(",") + (list(JOBS) if options.whole else [])
    chosen = {name: (ALL | JOBS)[name] for name in names}
    rows, head = run(chosen, sizes, device, options.precision)
    text = page(head, rows, device.type, sizes)
    print(text)
    if options.out and sizes == FULL and chosen.keys() >= ALL.keys():
        before = options.out.read_text("utf-8") if options.out.exists() else ""
        options.out.write_text(with_section(before, machine_kind(), text), "utf-8")
    return int(any(row.error for row in rows))


def page(head: str, rows: Sequence[Row], kind: str, sizes: Sizes) -> str:
    """The tables: of the stages, with what a whole data set would take; and of the methods."""
    of_methods = [row for row in rows if isinstance(row, Cost)]
    of_trust = [row for row in rows if isinstance(row, Trust)]
    of_stages = [row for row in rows if not isinstance(row, Cost | Trust)]
    parts = [head]
    if of_stages:
        parts += [table(of_stages, kind), budget(of_stages, kind, sizes.product_pixels)]
    if kind == "cpu" and (of_goals := goals(of_stages)):
        parts.append(of_goals)
    if of_trust:
        parts.append(trust_table(of_trust))
    if of_methods:
        parts.append(costs(of_methods, kind))
    return "\n\n".join(parts) + "\n"


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, fewer photos")
    parser.add_argument("--toy", action="store_true", help="seconds; the numbers mean nothing")
    parser.add_argument("--only", default=",".join(ALL),
                        help=f"comma-separated: {', '.join(ALL | JOBS)}")
    parser.add_argument("--whole", action="store_true",
                        help=f"whole jobs, too, which take minutes: {', '.join(JOBS)}")
    parser.add_argument("--model", default="", help="of the encoder; ViT-B-16-quickgelu")
    parser.add_argument("--data", default="", help="photo sizes and tags: voc or coco")
    parser.add_argument("--precision", default=default_precision(), help="of our commands")
    parser.add_argument("--out", type=Path, help="also write the table of a whole run here")
    return parser.parse_args(argv)


def default_precision() -> str:
    """bf16 where the CPU is faster in it, as `--precision auto` has it; else float32.

    Instructions do not tell: an Intel Xeon whose AMX is hidden has avx512_bf16, and computes in it
    at half the speed of float32.
    """
    return settle_precision("auto", torch.device("cpu"))


def machine_kind(cpuinfo: str = "") -> str:
    """The CPU, its family, its cores, and those of its instructions that our products gain by.

    Args:
        cpuinfo: text of /proc/cpuinfo; by default, that of this machine.
    """
    told = cpuinfo or _cpuinfo()
    model = re.search(r"^model name\s*: (.+)$", told, re.MULTILINE)
    # A host may hide the model, and say "AMD EPYC" of machines that differ by half.
    family = re.search(r"^cpu family\s*: (.+)$", told, re.MULTILINE)
    flags = set(told.split())
    has = [name for name, flag in (("AVX2", "avx2"), ("AVX-512", "avx512f"),
                                   ("bf16", "avx512_bf16"), ("AMX", "amx_bf16")) if flag in flags]
    return (f"{model[1] if model else platform.machine()}"
            f"{f' (family {family[1]})' if family else ''}, {os.cpu_count()} cores: "
            f"{', '.join(has) or 'none of AVX2, AVX-512, bf16 and AMX'}")


def with_section(page: str, kind: str, text: str) -> str:
    """A page of results with the section of one kind of CPU replaced; the others stay as they are.

    Args:
        page: the page, or nothing.
        kind: heading of the section.
        text: its content, without headings of the same level.
    """
    head, *sections = re.split(r"^(?=## )", page or _HEAD, flags=re.MULTILINE)
    new = f"## {kind}\n\n{datetime.now(timezone.utc).date()}: {text.strip()}\n"
    kept = [section.strip() + "\n" for section in sections
            if section.partition("\n")[0] != f"## {kind}"]
    return "\n".join([head.strip() + "\n", new, *kept])


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def run(stages: Mapping[str, Callable[[Bench], Iterator[Row]]], sizes: Sizes,
        device: torch.device, precision: str,
        told: Callable[[str, list[Row]], None] = lambda _head, _rows: None
        ) -> tuple[list[Row], str]:
    """Run stages in a temporary folder: their lines, and a line on the machine.

    A stage that ends in an error is a line, too, and the others go on.

    Args:
        stages: by name.
        sizes: how much.
        device: where.
        precision: of our commands.
        told: called after each line, with what there is so far.
    """
    started = time.perf_counter()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, \
            mock.patch.dict(os.environ, {file_hashes.FOLDER: str(Path(folder) / "cache")}):
        bench = Bench(sizes, device, precision, Path(folder))
        for name, stage in stages.items():
            begun = time.perf_counter()
            for row in _guarded(name, stage, bench):
                rows.append(row)
                told(_head(bench, started), rows)
            print(f"{name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
        return rows, _head(bench, started)


def _guarded(name: str, stage: Callable[[Bench], Iterator[Row]], bench: Bench) -> Iterator[Row]:
    """The lines of a stage, and one more if it ends in an error."""
    try:
        yield from stage(bench)
    except Exception as error:
        traceback.print_exc()
        yield failed(name, error)


def _head(bench: Bench, started: float) -> str:
    """What was measured, and on what."""
    sizes, peaks = bench.sizes, bench.peaks
    return (f"{sizes.model}, photos of {sizes.data}'s size, {sizes.rounds} rounds, "
            f"{bench.precision}; {_machine(bench.device)}; at most "
            f"{peaks.flops['fp32'] / 1e9:.0f} GFLOP/s in float32, "
            f"{peaks.flops['bf16'] / 1e9:.0f} in bf16, {peaks.bandwidth / 1e9:.0f} GB/s copied; "
            f"{time.perf_counter() - started:.0f} s in all.")


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads"


if __name__ == "__main__":
    sys.exit(main())
