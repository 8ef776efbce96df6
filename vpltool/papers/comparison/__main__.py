"""Compare all methods over one workspace: the same photos, encoder, cut and evaluation.

    python -m vpltool.papers.comparison WORK
    python -m vpltool.papers.comparison WORK --seeds 0 --only "CLIP-ES" "seeds"
    python -m vpltool.papers.comparison WORK --rows mine.recipe

What is made lies in WORK/tables/compare, and is taken over by the next run. Every method's maps are
cut where they score best on --cut, which is a half of --learn where there is one; nothing is chosen
on --score. Tags are known on both splits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from vpltool import console
from vpltool.core.metrics import labels_at
from vpltool.core.photos import read_photo
from vpltool.engine.reports import CHANGED
from vpltool.errors import VplError, first_few, near_name
from vpltool.formats import JsonObject, Photo, find_folder, open_workspace, read_json, write_json
from vpltool.formats.atomic import atomic_path
from vpltool.lazy import F, Image
from vpltool.papers.comparison import methods
from vpltool.papers.program import parser_of, run_program, works_in
from vpltool.papers.tables.setup import own_workspace
from vpltool.pictures.overlays import Rgb, SheetPanel, classes_in, fit_panel, labels_over, sheet
from vpltool.recipes.parse import commands_of
from vpltool.state import read_state
from vpltool.tables import format_mean, markdown_table


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = parser_of("comparison", __doc__)
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--learn", default="train", metavar="SPLIT",
                        help="the split that prototypes are learned from")
    parser.add_argument("--score", default="val", metavar="SPLIT", help="another split to score")
    parser.add_argument("--cut", default="", metavar="SPLIT",
                        help="where thresholds are chosen; default: LEARN-a if there is one, "
                             "else LEARN")
    parser.add_argument("--seeds", default=(0, 1, 2), metavar="LIST",
                        type=lambda text: tuple(int(seed) for seed in text.split(",")),
                        help="a run each for methods with anything random: 0,1,2")
    parser.add_argument("--masks", default="all", choices=("all", "score", "none"),
                        help="of which splits the CRF makes masks: both, --score, or none; it "
                             "takes most of the time")
    parser.add_argument("--second", default="", metavar="NAME-OR-FILE",
                        help="a second encoder, as `vpltool extract --encoder` takes it; without "
                             "one, rows that read it are skipped")
    parser.add_argument("--rows", type=Path, default=methods.BUNDLED, metavar="FILE",
                        help="a recipe of your own; its methods join those in compare.md, and are "
                             "measured alone")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these rows")
    parser.add_argument("--ids", default=(), metavar="LIST", type=lambda text: text.split(","),
                        help="photos of --score that the picture shows; default: three of several "
                             "classes")
    parser.add_argument("--list", action="store_true", help="list the rows, and stop")
    return parser.parse_args(argv)


def _setup(options: argparse.Namespace) -> methods.Setup:
    """Check splits and masks, and make the workspace of the comparison."""
    source = open_workspace(options.work)
    splits = {split for photo in source.photos() for split in photo.splits}
    half = f"{options.learn}-a"
    cut = options.cut or (half if half in splits else options.learn)
    for split in (options.learn, options.score, cut):
        if without := sum(photo.mask is None for photo in source.photos(split)):
            raise VplError(f"{without} photos of `{split}` have no true mask to score with",
                           "prepare the workspace with masks, or choose other splits by --learn, "
                           "--score and --cut")
    masked = {"all": (options.learn, options.score), "score": (options.score,), "none": ()}
    return methods.Setup(own_workspace(options.work, "compare", ""), options.learn, options.score,
                         cut, options.seeds, masked[options.masks])


def compare(setup: methods.Setup, begin: methods.Steps, chosen: Sequence[methods.Method],
            order: Sequence[str] = (), ids: Sequence[str] = ()) -> str:
    """Measure method by method; the table is written after each, the picture at the end.

    `order` names all methods, those that were measured earlier too; the picture shows the photos
    `ids`, see `draw_methods`.

    Returns:
        the table as Markdown.
    """
    for step in commands_of(begin):
        setup.run(step)
    made = _measured_before(setup)
    order = [*(name for name in made if name not in order), *order]
    text, changed = "", dict[str, str]()
    for method in chosen:
        console.note(f"\n{method.name}")
        found, before = methods.measure(setup, method), made.get(method.name)
        if found.seconds is None and before and before.made_from == found.made_from:
            found = replace(found, seconds=before.seconds)
        made[method.name] = found
        made = {name: made[name] for name in order if name in made}
        changed = _changed(setup, made)
        text = format_table(setup, made, changed)
        with atomic_path(setup.work.path / "compare.md") as temporary:
            temporary.write_text(text, "utf-8")
        write_json(setup.work.path / "compare.json", _protocol(setup) | {
            "rows": {name: vars(item) for name, item in made.items()}})
    if changed:
        console.warn(f"{first_few(changed)}{CHANGED}: {first_few(dict.fromkeys(changed.values()))};"
                     " a call with the recipe of these rows measures them again")
    if made:
        # Their maps are not those that were scored, or stay from other features.
        kept = {name: item for name, item in made.items() if name not in changed}
        with atomic_path(setup.work.path / "compare.png") as temporary:
            draw_methods(setup, kept, ids).save(temporary, format="PNG")
    return text


def _changed(setup: methods.Setup, made: Mapping[str, methods.Measured]) -> dict[str, str]:
    """Why rows are not of the present features and methods, by name; the others are."""
    state = read_state(open_workspace(setup.work.path), passes_over=True)
    reasons = {name: methods.why_changed(state, measured) for name, measured in made.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def _protocol(setup: methods.Setup) -> JsonObject:
    """What rows of one table have in common."""
    return {"format": 3, "learn": setup.learn, "score": setup.score, "cut": setup.cut,
            "seeds": list(setup.seeds), "masked": list(setup.masked)}


def _measured_before(setup: methods.Setup) -> dict[str, methods.Measured]:
    """What an earlier run of the same protocol has measured, by method."""
    record = setup.work.path / "compare.json"
    found: JsonObject = read_json(record, "") if record.exists() else {}
    differs = [name for name, value in _protocol(setup).items() if found.get(name) != value]
    if differs:
        if found:
            console.warn(f"{record.with_suffix('.md')} begins anew: another choice of "
                         f"{', '.join(differs)}")
        return {}
    return {name: methods.Measured(**row) for name, row in found["rows"].items()}


def format_table(setup: methods.Setup, made: Mapping[str, methods.Measured],
                 changed: Collection[str]) -> str:
    """Format what was measured as a table in Markdown, and what it was measured on below it.

    Rows that have `changed` are marked.
    """
    columns = [name for what in ("CAM", "refined", "mask") for split in (setup.learn, setup.score)
               if any((name := f"{what}, {split}") in found.miou for found in made.values())]
    rows = []
    for name, found in made.items():
        seconds = "" if found.seconds is None else f"{found.seconds:.3f}"
        means = (format_mean(found.miou[column], 1) if column in found.miou else ""
                 for column in columns)
        rows.append([name + CHANGED * (name in changed), *means, seconds,
                     f"{found.size / 1e3:.1f}", found.published])
    table = markdown_table(["method", *columns, "s/photo", "kB/photo", "published"], rows,
                           right=range(1, len(columns) + 3))
    source = open_workspace(setup.work.path)
    counts = ", ".join(f"{len(source.photos(split)):,} of `{split}`"
                       for split in (setup.learn, setup.score))
    mark = (f"{CHANGED.strip()}: measured before its features, methods or photos changed, so not "
            "comparable with the other rows. ") * bool(changed)
    return (f"{table}\n\n{mark}mIoU in percent with the background, tags known, {counts}; learned "
            f"on `{setup.learn}`; each method cut where it scores best on `{setup.cut}`; seeds "
            f"{', '.join(map(str, setup.seeds))} where anything is random. s/photo: maps and "
            "refinement, in the run that made them, without the encoder and what is learned once."
            "\n")


def _read(options: argparse.Namespace, work: Path, words: bool, encoder: str
          ) -> tuple[methods.Steps, list[methods.Method]]:
    """The steps that all methods build on, and the methods, with words and a second encoder."""
    return methods.read_methods(options.rows, {
        "learn": options.learn, "score": options.score, "encoder": encoder,
        "words": "yes" if words else "", "salient": f"{'text' if words else 'tags'}-salient",
    }, options.seeds, work)


PHOTOS = 3
"""How many photos each method is shown on."""

_ACROSS = 2
"""Methods side by side."""

_WIDTH = 150
"""Width of a photo in the picture, in pixels."""


def choose_photos(photos: Sequence[Photo], ids: Sequence[str]) -> list[Photo]:
    """The photos that are named; else photos spread over all, of several classes where there are.

    Raises:
        VplError: none has one of these ids.
    """
    if ids:
        known = {photo.id: photo for photo in photos}
        if strange := [name for name in ids if name not in known]:
            raise VplError(f"no photo `{strange[0]}` in the split that is scored",
                           f"such as `{photos[0].id}`")
        return [known[name] for name in ids]
    mixed = [photo for photo in photos if len(photo.tags) > 1]
    found = mixed if len(mixed) >= PHOTOS else list(photos)
    return found[::max(1, len(found) // PHOTOS)][:PHOTOS]


def draw_methods(setup: methods.Setup, made: Mapping[str, methods.Measured], ids: Sequence[str] = ()
                 ) -> Image.Image:
    """Draw each method's last maps as labels, cut as they were scored; the photos come first.

    A method without CAMs is left out. The photos are those named by `ids`, else some of several
    classes.

    Returns:
        a sheet with two methods side by side, and the colours of the classes below.

    Raises:
        VplError: a photo that is named is not there, or maps cannot be read.
    """
    workspace = open_workspace(setup.work.path)
    photos = choose_photos(workspace.photos(setup.score), ids)
    pictures = {photo.id: fit_panel(read_photo(workspace.image_path(photo)), _WIDTH)
                for photo in photos}
    blocks = [[SheetPanel("photos" if not number else "", picture)
               for number, picture in enumerate(pictures.values())]]
    blocks += [list(_panels(setup, name, measured, pictures))
               for name, measured in made.items() if measured.cams]
    return sheet((sum(blocks[start:start + _ACROSS], []) for start in
                  range(0, len(blocks), _ACROSS)),
                 dict(enumerate(("background", *workspace.classes))), _WIDTH)


def _panels(setup: methods.Setup, name: str, measured: methods.Measured, pictures: Mapping[str, Rgb]
            ) -> Iterator[SheetPanel]:
    """A method's labels of each photo, by its first seed."""
    threshold = methods.threshold_of(setup, measured.cams)
    source = find_folder(setup.work.path, ("cams",), measured.cams, setup.score,
                         "run the comparison again")
    column = next(name for name in (f"refined, {setup.score}", f"CAM, {setup.score}")
                  if name in measured.miou)
    title = f"{name}: {fmean(measured.miou[column]):.1f}"
    for key, picture in pictures.items():
        tensors = source.read_tensors(key)
        maps = F.interpolate(tensors["cam"].float()[None], size=picture.shape[:2], mode="bilinear",
                             align_corners=False)[0]
        labels = labels_at(maps.numpy(), tensors["classes"].tolist(), threshold)
        yield SheetPanel(title, labels_over(picture, labels), classes_in(labels))
        title = ""


def main(argv: list[str] | None = None) -> int:
    """Print the table; 0, or 1 with a line that says what to do."""
    options = _options(argv)

    def table() -> None:
        listed = _read(options, options.work, True, options.second or "FILE")[1]
        names = [method.name for method in listed]
        if unknown := [name for name in options.only if name not in names]:
            raise VplError(f"no method `{unknown[0]}` is compared", near_name(unknown[0], names))
        wanted = options.only or names
        if options.list:
            for method in listed:
                if method.name in wanted:
                    print(f"{method.name:28} {method.source}")
            return
        setup, source = _setup(options), open_workspace(options.work)
        begin, known = _read(options, setup.work.path, not source.encoder, options.second)
        there = {method.name for method in known}
        if left_out := [name for name in wanted if name not in there]:
            console.note(f"left out, since they need {'words, or ' if source.encoder else ''}"
                         f"a second encoder (--second FILE): {', '.join(left_out)}")
        choose_photos(source.photos(options.score), options.ids)
        with works_in(setup.work.path):
            print(compare(setup, begin, [method for method in known if method.name in wanted],
                          names, options.ids), flush=True)

    return run_program(options.work, table)


if __name__ == "__main__":
    sys.exit(main())
