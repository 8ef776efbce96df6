"""A table as Markdown and as JSON, with the protocol that gave it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool.datasets.words import VOC
from vpltool.engine.reports import format_table
from vpltool.formats import write_json
from vpltool.formats.atomic import atomic_path
from vpltool.papers.tables.chains import Chains
from vpltool.settings import values_of
from vpltool.shell import command_line

Cell = list[float]
"""A measured number for each seed; empty: not measured."""


@dataclass(frozen=True)
class Row:
    """A row: its title, the paper's numbers and the measured ones, by column."""

    title: str
    paper: Mapping[str, float]
    measured: Mapping[str, Cell]

    def to_line(self) -> str:
        """Format it as a line: what was measured, and the paper's numbers."""
        here = ", ".join(f"{name} {format_cell(cell)}" for name, cell in self.measured.items())
        paper = ", ".join(f"{name} {format_cell([value], 2)}" for name, value in self.paper.items())
        return f"{self.title}: {here or 'not measured'} (paper: {paper})"


def write_table(chains: Chains, number: int, title: str, scored: str, rows: Sequence[Row]) -> str:
    """Write tableN.md and tableN.json, and give the Markdown.

    Args:
        chains: what made the numbers, under which protocol.
        number: of the table.
        title: what it is about.
        scored: split on which maps were scored.
        rows: those that there are so far.
    """
    protocol = chains.protocol
    # Table 2's columns name their data set themselves; all others are VOC's.
    named = number == 2 or chains.source.classes == VOC.classes
    text = (f"Table {number}. {title}\n\n{_markdown(rows, 'paper' if named else 'paper (VOC)')}\n"
            f"Protocol: {_format_protocol(chains, scored)}.\n{_quick(chains)}\n{_why(chains)}\n"
            + "".join(f"\nLeft out by {what}\n" for what in chains.failed))
    with atomic_path(chains.path / f"table{number}.md") as temporary:
        temporary.write_text(text, "utf-8")
    write_json(chains.path / f"table{number}.json", {
        "table": number, "title": title, "preset": protocol.preset.name,
        "preset_hash": protocol.preset.identity, "learn": protocol.learn, "split": protocol.split,
        "threshold_from": protocol.cut, "seeds": list(protocol.seeds), "quick": protocol.quick,
        "given": {stage: {name: str(value) if isinstance(value, Path) else value
                          for name, value in values.items()}
                  for stage, values in sorted(protocol.given.items())},
        "rows": [{"title": row.title, "paper": dict(row.paper), "measured": dict(row.measured)}
                 for row in rows],
        "failed": chains.failed,
        "stages": [line.replace(f"{chains.path}/", "") for line in chains.made]})
    return text


def _format_protocol(chains: Chains, scored: str) -> str:
    protocol = chains.protocol
    given = "".join(f"; {command_line(stage, values, ())}"
                    for stage, values in sorted(protocol.given.items()))
    cut = f"chosen on `{protocol.cut}`" if protocol.cut else "as the preset has it"
    return (f"preset {protocol.preset.name} ({protocol.preset.identity}); learned on "
            f"`{protocol.learn}`, maps scored on `{scored}`; threshold {cut}; seeds "
            f"{', '.join(map(str, protocol.seeds))}{given}")


def _quick(chains: Chains) -> str:
    if not chains.protocol.quick:
        return ""
    return ("\nQuick: fewer iterations than the protocol's, as the line above says. The numbers "
            "are a first look, and stay below what the whole run gives.\n")


def _why(chains: Chains) -> str:
    """Return why these numbers differ from those of another run on the same photos."""
    method = str(values_of(chains.settings("cam"))["method"])
    alpha = float(chains.setting("eval", "alpha"))
    cut = (f"where the text's score best on `{chains.protocol.cut}`" if chains.protocol.cut
           else f"where (1 - max)^{alpha:g}, the background's score, is the higher one" if alpha
           else "where they score best")
    return (f"Only numbers of one protocol can be compared. Here CAMs are made by `{method}`"
            f"{', refined,' if chains.refines else ''} and cut {cut}. A recipe has its "
            "own method and threshold, such as dense CAMs at 0.32 in the README: so row I of two "
            "ablations differs for the same photos and the same CLIP.\n")


def format_cell(cell: Cell, digits: int = 3) -> str:
    """Format a number, or mean ± deviation; percent with one digit, a gap (below 2) with more."""
    if not cell:
        return "-"
    mean, digits = statistics.fmean(cell), digits if statistics.fmean(cell) < 2 else 1
    deviation = f" ± {statistics.stdev(cell):.{digits}f}" if len(cell) > 1 else ""
    return f"{mean:.{digits}f}{deviation}"


def _markdown(rows: Sequence[Row], source: str) -> str:
    """The table, two columns a quantity: paper and here."""
    paper = list(dict.fromkeys(name for row in rows for name in row.paper))
    here = list(dict.fromkeys(name for row in rows for name in row.measured))
    lines = [["", *(f"{name}, {source}" for name in paper), *(
        name if name == "here" else f"{name}, here" for name in here)]]
    for row in rows:
        lines.append([row.title, *(format_cell([row.paper[name]], 2) if name in row.paper else "-"
                                   for name in paper),
                      *(format_cell(row.measured.get(name, [])) for name in here)])
    return format_table(lines, markdown=True, left=1) + "\n"
