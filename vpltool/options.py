"""Options that several commands share: one spelling, one help text, one meaning.

And what is said of one that was given and does nothing.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from vpltool import console
from vpltool.presets import flags_of

_RUN = "Running"

Split = Annotated[str, typer.Option("--split", help="Split of the data set.", metavar="NAME")]
Device = Annotated[str, typer.Option(
    "--device", help="auto, cpu, cuda or cuda:N.", rich_help_panel=_RUN)]
Precision = Annotated[str, typer.Option(
    "--precision", help="fp32, bf16 or fp16, for the network.", rich_help_panel=_RUN)]
STORES = ("fp16", "fp32")
Store = Annotated[str, typer.Option(
    "--store", help="fp16 or fp32, for what is written: half the size, or a few more digits.",
    rich_help_panel=_RUN)]
BatchSize = Annotated[int, typer.Option(
    "--batch-size", min=1, help="Photos at a time.", rich_help_panel=_RUN)]
Workers = Annotated[int, typer.Option(
    "--workers", min=-1, help="Processes that read photos; -1: by the number of cores.",
    rich_help_panel=_RUN)]
Seed = Annotated[int, typer.Option("--seed", help="Where chance begins.")]
Limit = Annotated[int, typer.Option(
    "--limit", min=0, help="Only the first N photos of the split; 0: all.", metavar="N",
    rich_help_panel=_RUN)]
Overwrite = Annotated[bool, typer.Option(
    "--overwrite", help="Replace what is there, even if it was made otherwise.",
    rich_help_panel=_RUN)]
Quiet = Annotated[bool, typer.Option(
    "--quiet", "-q", help="No notes and no progress on stderr.", rich_help_panel=_RUN)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a table.")]
Out = Annotated[Path | None, typer.Option(
    "--out", "-o", help="Write here instead of the default place.", metavar="PATH")]


@dataclass(frozen=True)
class NoEffect:
    """An option that does nothing where others have certain values.

    Args:
        option: its parameter's name.
        where: name to values, of parameters or of what else the command knows; all must hold.
        why: the reason, in a few words.
    """

    option: str
    where: Mapping[str, Container[Any]]
    why: str


def warn_about_no_effect(ctx: typer.Context, table: Iterable[NoEffect], values: Mapping[str, Any]) -> None:
    """Warn of each option that was given on the command line and does nothing, in one line.

    A preset's values and defaults are not meant for this very run: they are passed over.

    Args:
        ctx: of the command.
        table: when which option does nothing; of several reasons the first is told.
        values: of the names in the table.
    """
    told = set()
    for row in table:
        source = ctx.get_parameter_source(row.option)
        if (source is None or source.name != "COMMANDLINE" or row.option in told
                or not all(values[name] in known for name, known in row.where.items())):
            continue
        told.add(row.option)
        option = flags_of(ctx.command, {row.option: ctx.params[row.option]})
        others = flags_of(ctx.command, {name: values[name] for name in row.where
                                        if name != row.option})
        console.warn(f"{option} has no effect{f' with {others}' if others else ''}: {row.why}")
