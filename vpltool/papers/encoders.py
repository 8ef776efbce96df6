"""Encoders side by side: the same recipe on the same photos with each, beside its own ceiling.

    python -m vpltool.papers.encoders WORK --photos DIR --tags FILE --masks DIR \\
        timm:vit_small_patch14_reg4_dinov2.lvd142m timm:vit_tiny_patch16_224,FILE

Runs `own-photos` with each encoder in WORK/1, WORK/2, …, in the order given. The table has the mIoU
of the CAMs and of the masks on the training photos, with their tags; of the segmenter on `val`,
without tags; each of CAMs and segmenter beside its ceiling, the same from true masks, and the share
that is reached; and the seconds that a photo takes in the encoder. Run it again to continue.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vpltool import api
from vpltool.errors import VplError
from vpltool.formats import JsonObject, open_workspace, write_json
from vpltool.formats.kinds import result_name
from vpltool.papers.ceiling import cam_ceiling, ceiling
from vpltool.papers.program import parser_of, run_program
from vpltool.tables import markdown_table

_COLUMNS = ("encoder", "CAMs, train", "ceiling", "share", "masks, train", "segmenter, val",
            "ceiling", "share", "seconds a photo")


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = parser_of("encoders", __doc__)
    parser.add_argument("work", type=Path, metavar="WORK", help="folder of the workspaces")
    parser.add_argument("encoders", nargs="+", metavar="ENCODER", help="as `prepare --encoder`")
    for name in ("photos", "tags", "masks"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--classes", type=Path, help="class names, one per line")
    parser.add_argument("--side", type=int, default=512, help="as in own-photos")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def measure(work: Path, encoder: str, values: Mapping[str, object]) -> JsonObject:
    """Run `own-photos` with an encoder, and score what it made.

    `encoder` is as `prepare --encoder` takes it; `values` are the recipe's others, with `masks`.

    Returns:
        `encoder`, its name without folders; the mIoU of `cams`, `cams_ceiling`, `masks`,
        `segmenter` and `ceiling`; and `seconds` in the encoder for each photo.

    Raises:
        VplError: a step failed, or no photo is held out.
    """
    run = api.Workspace(work)
    run.run("own-photos", *(f"{name}={value}" for name, value in values.items()),
            f"encoder={encoder}")
    if not any("val" in photo.splits for photo in open_workspace(work).photos()):
        raise VplError(f"{work} has no split `val`", "give it in the tags, or `held=10`")
    scores = {"cams": run.eval(what=result_name("cams", "seeds-refined"), split="train")["miou"],
              "cams_ceiling": cam_ceiling(work),
              "masks": run.eval(what=result_name("masks", "seeds-refined-full"),
                                split="train")["miou"]}
    bound = ceiling(work, "segmenter", "val")
    spent = run.estimate()
    return {"encoder": open_workspace(work).main_encoder, **scores,
            "segmenter": bound["from_tags"], "ceiling": bound["from_true_masks"],
            "seconds": spent["seconds"]["extract"] / spent["photos"]}


def table(rows: Sequence[JsonObject]) -> str:
    """Format what `measure` has found as a table of Markdown."""
    lines = []
    for row in rows:
        cells = [f"`{row['encoder']}`"]
        for found, bound in (("cams", "cams_ceiling"), ("masks", ""), ("segmenter", "ceiling")):
            cells.append(f"{100 * row[found]:.1f}")
            if bound:
                cells += [f"{100 * row[bound]:.1f}",
                          f"{100 * row[found] / max(row[bound], 1e-9):.0f} %"]
        lines.append([*cells, f"{row['seconds']:.2f}"])
    return markdown_table(_COLUMNS, lines, right=range(1, len(_COLUMNS)))


def main(argv: list[str] | None = None) -> int:
    """Measure, and print a table of Markdown; 0, or 1 with a line that says what to do."""
    options = _options(argv)
    values = {name: getattr(options, name) for name in (
        "photos", "tags", "masks", "classes", "side", "seed") if getattr(options, name) is not None}

    def compare() -> None:
        rows = [measure(options.work / str(number), encoder, values)
                for number, encoder in enumerate(options.encoders, 1)]
        write_json(options.work / "encoders.json", {"rows": rows})
        print(table(rows))

    return run_program(options.work, compare)


if __name__ == "__main__":
    sys.exit(main())
