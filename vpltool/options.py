"""Options that several commands share: one spelling, one help text, one meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
