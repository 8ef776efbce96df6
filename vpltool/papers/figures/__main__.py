"""Figures 1 and 4 of VPL (AAAI 2025) from any workspace; no true mask is opened.

`figure1` sets text CAMs beside vision CAMs: of each class the photo in which the text lights up
most that the vision CAM leaves dark, such as the water around a boat, and of these the clearest.
`figure4` shows region embeddings of two decoders, without and with the regional semantic contrast,
by t-SNE (needs scikit-learn), and the modality gap. Regions are those of the pseudo masks. What the
pictures suggest is also measured, before t-SNE, printed, and stored beside them.

    python -m vpltool.papers.figures figure1 work/demo
    python -m vpltool.papers.figures figure4 work/demo --decoders decoder-0-0,decoder-1-0
    python -m vpltool.papers.figures figure4 work/voc --features work/voc/layers/val
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vpltool.papers.figures.figure1 import figure1
from vpltool.papers.figures.figure4 import figure4
from vpltool.papers.program import run_program


def _pair_of_names(text: str) -> str:
    """Type of `--decoders`: two names."""
    if len(text.split(",")) != 2:
        raise argparse.ArgumentTypeError("two names with a comma between them")
    return text


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m vpltool.papers.figures",
                                     description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="FIGURE")
    first = commands.add_parser("figure1", help="text CAM against vision CAM")
    first.set_defaults(draw=figure1)
    first.add_argument("--text", default="", help="text CAMs; default: text-dense, text-refined or "
                                                  "text, with vision CAMs of the same method")
    first.add_argument("--vision", default="", help="vision CAMs")
    first.add_argument("--id", default="", metavar="LIST",
                       help="photos ID or ID:CLASS, separated by commas, instead of the clearest")
    first.add_argument("--limit", type=int, default=6, help="number of photos")
    fourth = commands.add_parser("figure4", help="region embeddings by t-SNE, and the modality gap")
    fourth.set_defaults(draw=figure4)
    fourth.add_argument("--decoders", type=_pair_of_names,
                        help="two decoders, without and with RSC; default: those of make demo, or "
                             "of the tables")
    fourth.add_argument("--features", type=Path, metavar="DIR",
                        help="features of the split, with layers; default: WORK/features/SPLIT")
    fourth.add_argument("--masks", default="", help="pseudo masks; default: those learned from")
    fourth.add_argument("--prototypes", default="", help="of the gap; default: text and those of "
                                                         "the second decoder")
    fourth.add_argument("--cams", default="", help="that mark the gap's regions; default: those of "
                                                   "the masks' name")
    fourth.add_argument("--phi", type=float, default=0.4, help="as vpltool gap has it")
    for command in (first, fourth):
        command.add_argument("work", type=Path, help="the workspace")
        command.add_argument("--split", default="val")
        command.add_argument("--out", type=Path, help="default: WORK/figures/FIGURE.png")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Draw, and print what was written; 0, or 1 with a line that says what to do."""
    options = _options(argv)
    return run_program(options.work, lambda: print(options.draw(options)))


if __name__ == "__main__":
    sys.exit(main())
