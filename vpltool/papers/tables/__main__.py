"""The tables of the VPL paper over a workspace, with the paper's number beside the measured one.

    python -m vpltool.papers.tables 5 WORK --preset vpl-voc
    python -m vpltool.papers.tables 1 2 3 WORK --quick --set learn-prototypes.max-pixels=50000

Every row is a chain of stages under one preset. A call is spelled with all its names, so what two
rows have in common is one call, made once; what an earlier run left behind is taken over. All that
is made lies in a workspace of its own, WORK/tables/NAME, and touches nothing of WORK; features of
WORK are read where they are those of the protocol. TABLE.md and TABLE.json hold numbers, protocol,
and the calls that gave them.

Maps and masks know a photo's tags, predictions do not. Prototypes and decoder learn on --learn;
maps are scored on --split, as the paper's tables 3 to 7 are on VOC's val. CAMs are cut where the
preset says, or, with --threshold-from SPLIT, where the text's CAMs of that split score best.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

from vpltool import console
from vpltool.command import parse_line
from vpltool.datasets.words import COCO
from vpltool.errors import VplError
from vpltool.formats import JsonObject, open_workspace
from vpltool.papers.program import parser_of, run_program, works_in
from vpltool.papers.tables import setup
from vpltool.papers.tables.chains import Chains
from vpltool.papers.tables.rows import TABLES, write_table
from vpltool.preset import read_preset


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = parser_of("tables", __doc__)
    parser.add_argument("tables", nargs="+", type=int, choices=sorted(TABLES), metavar="TABLE")
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--preset", default="", metavar="NAME-OR-FILE",
                        help="by default vpl-coco for a workspace of COCO, else vpl-voc")
    parser.add_argument("--learn", default="train_aug,trainaug,train", metavar="LIST",
                        help="the split to learn on: the first of the list that has photos")
    parser.add_argument("--split", default="val", metavar="SPLIT", help="the split to score")
    parser.add_argument("--threshold-from", default="", metavar="SPLIT",
                        help="cut CAMs where the text's score best on this split")
    parser.add_argument("--seeds", default=(0,), type=_seeds, metavar="LIST",
                        help="a run each: 0,1,2")
    parser.add_argument("--quick", action="store_true",
                        help="fewer iterations, which the table says: "
                             + "; ".join(f"{stage} " + ", ".join(
                                 f"{name}={value:,}" for name, value in values.items())
                                 for stage, values in setup.QUICK.items()))
    parser.add_argument("--set", action="append", default=[], metavar="COMMAND.OPTION=VALUE",
                        help="an option that wins over the preset")
    parser.add_argument("--name", default="",
                        help="folder in WORK/tables; by default that of preset and --learn")
    return parser.parse_intermixed_args(argv)


def _seeds(text: str) -> tuple[int, ...]:
    """Type of `--seeds`: whole numbers."""
    return tuple(int(seed) for seed in text.split(","))


def _given(items: list[str], preset: str) -> dict[str, JsonObject]:
    """Stage to setting to value, of all `--set`."""
    read = read_preset(preset)
    words: dict[str, list[str]] = {}
    for item in items:
        command, _, option = item.partition(".")
        option, equals, value = option.partition("=")
        words.setdefault(command, [command]).extend(
            [f"--{option}", value] if equals else [f"--{option}"])
    given = {}
    for command, line in words.items():
        try:
            call = parse_line(line, read)
        except VplError as error:
            raise VplError(f"--set {shlex.join(line)}: {error.message}", error.hint) from error
        given[command] = {name: call.values[name] for name in call.given}
    return given


def _chains(options: argparse.Namespace) -> Chains:
    """Make the workspace of the tables, and check all that can be checked before the work."""
    source = open_workspace(options.work)
    learn = setup.first_split(source, options.learn.split(","))
    preset = options.preset or ("vpl-coco" if source.classes == COCO.classes else "vpl-voc")
    given = _given(options.set, preset)
    name = options.name or f"{Path(preset).stem}-{learn}{'-quick' * options.quick}"
    if options.quick:
        given = {stage: {**setup.QUICK.get(stage, {}), **given.get(stage, {})}
                 for stage in {*setup.QUICK, *given}}
    chains = Chains(
        setup.own_workspace(options.work, name, preset), source, preset=read_preset(preset),
        learn=learn, split=options.split, cut=options.threshold_from, seeds=options.seeds,
        given=given, quick=options.quick)
    setup.check(chains, options.tables)
    setup.keep_protocol(chains)
    return chains


def main(argv: list[str] | None = None) -> int:
    """Print the tables that were asked for; 0, or 1 with a line that says what to do."""
    options = _options(argv)

    def tables() -> None:
        chains = _chains(options)
        with works_in(chains.path):
            for number in dict.fromkeys(options.tables):
                console.note(f"Table {number}")
                print(_measure(chains, number), flush=True)

    return run_program(options.work, tables)


def _measure(chains: Chains, number: int) -> str:
    """Measure a table row by row, each of which is written down at once; give the Markdown."""
    rows, text, started = [], "", time.monotonic()
    for row in TABLES[number](chains):
        rows.append(row)
        text = write_table(chains, number, rows)
        console.note(f"{row.to_line()}  (table {number}, after "
                     f"{console.duration(time.monotonic() - started)})")
    return text


if __name__ == "__main__":
    sys.exit(main())
