"""The tables of the VPL paper over a workspace, with the paper's number beside the measured one.

    python benchmarks/tables.py 5 WORK --preset vpl-voc
    python benchmarks/tables.py 1 2 3 WORK --set learn-prototypes.max-pixels=50000

Every row is a chain of `vpltool` commands under one preset. A chain is spelled with all its file
names, so what two rows have in common is one command, run once; what an earlier run left behind is
taken over by the command itself. All of it lies in a workspace of its own, WORK/tables/NAME, and
touches nothing of WORK; there are TABLE.md and TABLE.json, too: numbers, protocol, and the commands
that gave them.

Maps and masks know a photo's tags, predictions do not. Prototypes and decoder learn on --learn;
maps are scored on --split, as the paper's tables 3 to 7 are on VOC's val. CAMs are cut where the
preset says, or, with --threshold-from SPLIT, where the text's CAMs of that split score best.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shlex
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from disk import bytes_a_photo

from vpltool import console
from vpltool.cli import build_app
from vpltool.core.photos import fit_size, photo_size
from vpltool.errors import PhotosFailed, VplError, near_name
from vpltool.formats import Workspace
from vpltool.formats.workspace import open_workspace, relative_to, write_workspace
from vpltool.presets import read_preset
from vpltool.stages._truth import read_truth

Cell = list[float]
"""A measured number for each seed; empty: not measured."""


@dataclass(frozen=True)
class Row:
    """A row: its title, the paper's numbers and the measured ones, by column."""

    title: str
    paper: dict[str, float]
    measured: dict[str, Cell]


@dataclass
class Bench:
    """Runs chains of commands in a workspace; each distinct command once.

    Args:
        work: the workspace.
        preset: the protocol, by name or path.
        learn: split to learn on.
        split: split to score.
        cut: split on which the threshold of CAMs is chosen; empty: the preset's.
        seeds: a run for each; one where chance plays no part.
        given: options that win over the preset, by command; a row's own win over them.
        commands: those that were run.
        failed: what photos failed in which command; the others went on.
    """

    work: Path
    preset: str
    learn: str
    split: str
    cut: str
    seeds: tuple[int, ...]
    given: dict[str, list[str]]
    commands: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.app = build_app()
        from typer.main import get_command

        root: Any = get_command(self.app)
        self.protocol = read_preset(self.preset, root)
        for command, words in self.given.items():
            if command not in root.commands:
                raise VplError(f"--set {command}.…: no such command",
                               near_name(command, root.commands))
            try:
                root.commands[command].make_context(command, list(words))
            except Exception as error:
                # Typer's own errors are not in its public names; all of them can be told.
                if not hasattr(error, "format_message"):
                    raise
                raise VplError(f"--set {command}.…: {error.format_message()}",
                               f"vpltool {command} --help") from error

    def run(self, command: str, *options: str) -> str:
        """Run a command, unless it was run, and give its stdout.

        Raises:
            KeyboardInterrupt: it was interrupted.
        """
        words = [command, *self.given.get(command, ()), *options]
        spelled = shlex.join(["vpltool", *words])
        if spelled in self.commands:
            return ""
        print(f"  {spelled}", file=sys.stderr, flush=True)
        quiet = () if sys.stderr.isatty() else ("-q",)
        told = io.StringIO()
        try:
            with contextlib.redirect_stdout(told):
                # Typer makes this code of Ctrl-C.
                if self.app(["-C", str(self.work), "--preset", self.preset, *words, *quiet],
                            standalone_mode=False) == 130:
                    raise KeyboardInterrupt
        except PhotosFailed as error:
            console.warn(error.message)
            self.failed.append(f"{command}: {error.message}")
        self.commands.append(spelled)
        return told.getvalue()

    def option(self, command: str, name: str, otherwise: Any) -> Any:
        """What the preset, or --set, gives an option."""
        words = self.given.get(command, [])
        if f"--{name}" in words:
            return words[words.index(f"--{name}") + 1]
        return self.protocol.defaults.get(command, {}).get(name.replace("-", "_"), otherwise)

    def text(self, name: str = "text", *options: str) -> str:
        """Text prototypes."""
        self.run("text-prototypes", *options, "--out", f"{self.work}/prototypes/{name}.safetensors")
        return name

    def features(self, split: str) -> None:
        """What the frozen CLIP sees; layers too, where the decoder would read them."""
        self.run("extract", "--split", split)

    def cams(self, prototypes: str, split: str, *options: str) -> str:
        """CAMs of prototypes, refined if the preset has a table for it."""
        self.features(split)
        self.run("cam", "--prototypes", prototypes, *options, "--split", split,
                 "--out", f"{self.work}/cams/{prototypes}/{split}")
        if "refine" not in self.protocol.defaults:
            return prototypes
        self.run("refine", "--cams", prototypes, "--split", split,
                 "--out", f"{self.work}/cams/{prototypes}-refined/{split}")
        return f"{prototypes}-refined"

    def learned(self, name: str, seed: int, *options: str, text: str = "text") -> str:
        """Vision prototypes; the text's CAMs, or the photo's saliency, mark seeds if need be."""
        name = f"{name}-{seed}"
        cams = self.option("learn-prototypes", "cams", "")
        if "--pixels" in options or self.option("learn-prototypes", "pixels", "all") != "all":
            if cams.endswith("salient"):
                self.features(self.learn)
                self.run("cam", "--prototypes", text, "--method", "salient", "--split", self.learn,
                         "--out", f"{self.work}/cams/{cams}/{self.learn}")
            else:
                options = (*options, "--cams", self.cams(text, self.learn))
        self.features(self.learn)
        self.run("learn-prototypes", "--text", text, *options, "--split", self.learn,
                 "--seed", str(seed), "--out", f"{self.work}/prototypes/{name}.safetensors")
        return name

    def seed_score(self, cams: str, split: str) -> float:
        """mIoU of CAMs at the threshold of the protocol."""
        cut = []
        if self.cut:
            chosen = self.cams("text", self.cut)
            self.score(f"cams/{chosen}", self.cut, f"{chosen}-cut", "--alpha", "0")
            cut = ["--threshold-from", str(self._scores(f"{chosen}-cut")), "--alpha", "0"]
        return self.made_score(f"cams/{cams}", split, f"{cams}-{split}", *cut)

    @cached_property
    def workspace(self) -> Workspace:
        """The workspace, read once."""
        return open_workspace(self.work)

    @cached_property
    def made_scored(self) -> str:
        """Where what is made for --learn is scored: on `train` if that is a part of it."""
        inside, whole = (sum("train" in photo.splits for photo in self.workspace.photos(split))
                         for split in (self.learn, ""))
        return "train" if 0 < inside == whole else self.learn

    def masks(self, cams: str, split: str) -> str:
        """Pseudo masks by the CRF: NAME holds 255 where it is unsure, NAME-full none."""
        self.run("crf", "--what", f"cams/{cams}", "--split", split)
        return cams

    def mask_score(self, masks: str, split: str) -> float:
        """mIoU of masks."""
        return self.made_score(f"masks/{masks}-full", split, f"{masks}-masks-{split}")

    def made_score(self, what: str, split: str, name: str, *options: str) -> float:
        """mIoU of maps or masks of a split; of train_aug's, on `train`."""
        if split == self.learn != self.made_scored:
            return self.score(f"{self.work}/{what}/{split}", self.made_scored, name, *options)
        return self.score(what, split, name, *options)

    def segmenter(self, seed: int, rsc: float | None) -> str:
        """A decoder trained on the masks of vision prototypes, and what it predicts."""
        prototypes = self.learned("vision", seed)
        masks = self.masks(self.cams(prototypes, self.learn), self.learn)
        name = f"decoder-{seed}" if rsc is None else f"decoder-ce-{seed}"
        weight = () if rsc is None else ("--lambda-rsc", str(rsc))
        self.run("train-decoder", "--masks", masks, "--prototypes", prototypes, *weight,
                 "--split", self.learn, "--seed", str(seed), "--name", name)
        if self.option("predict", "source", "auto") == "features":
            self.features(self.split)
        self.run("predict", "--decoder", name, "--split", self.split,
                 "--out", f"{self.work}/predictions/{name}/{self.split}")
        return name

    def prediction_score(self, name: str, *, crf: bool) -> float:
        """mIoU of predictions, with the CRF at test or without."""
        name = self.at_test(name) if crf else name
        return self.score(f"predictions/{name}", self.split, f"{name}-{self.split}")

    def at_test(self, name: str) -> str:
        """Predictions after the CRF: WeCLIP's constants, as VPL gives none."""
        self.run("crf", "--what", f"predictions/{name}", "--split", self.split,
                 "--preset", "weclip")
        return f"{name}-crf"

    def score(self, what: str, split: str, name: str, *options: str) -> float:
        """Percent mIoU of anything."""
        path = self._scores(name)
        self.run("eval", "--what", what, "--split", split, *options,
                 "--out", str(path))
        return 100 * float(json.loads(path.read_text())["miou"])

    def gap(self, prototypes: str) -> float:
        """Mean 1 - cosine of prototypes to the regions that the text's CAMs mark, on --learn."""
        regions = self.cams("text", self.learn)
        path = self.work / "tables/scores" / f"gap-{prototypes}.json"
        self.run("gap", "--prototypes", prototypes, "--cams", regions, "--split", self.learn,
                 "--out", str(path))
        return float(json.loads(path.read_text())["prototypes"][prototypes]["cosine"])

    def _scores(self, name: str) -> Path:
        return self.work / "tables/scores" / f"{name}.json"


def table1(bench: Bench) -> Iterator[Row]:
    """Quality of seeds and pseudo masks on the photos that are learned from."""
    made = bench.learn
    text = bench.cams(bench.text(), made)

    def scores(cams: str) -> tuple[float, float]:
        return bench.seed_score(cams, made), bench.mask_score(bench.masks(cams, made), made)

    yield Row("text prototypes (CLIP-ES)", {"seed": 70.8, "mask": 75.0},
              {name: [score] for name, score in zip(("seed", "mask"), scores(text), strict=True)})
    cells = bench_seeds(bench, scores, made)
    yield Row("vision prototypes (VPL)", {"seed": 76.3, "mask": 78.4},
              dict(zip(("seed", "mask"), cells, strict=True)))
    yield Row("CLIP-CPAL (not in vpltool)", {"seed": 71.9, "mask": 75.8}, {})
    yield Row("CLIP-CPAL + VPL (not in vpltool)", {"seed": 77.8, "mask": 80.1}, {})


def table2(bench: Bench) -> Iterator[Row]:
    """The segmenter, with the CRF at test, on the data set of the workspace.

    Where a split has no true masks, as VOC's `test`, the predictions are packed for the server.
    """
    paper = {"voc val": 78.5, "voc test": 77.8, "coco val": 49.2}
    bench.text()
    names = [bench.segmenter(seed, None) for seed in bench.seeds]
    cells: Cell = []
    if unmasked(bench.workspace, bench.split):
        for name in names:
            bench.at_test(name)
            if bench.workspace.name in EXPORTS:
                bench.run("export", EXPORTS[bench.workspace.name], "--what",
                          f"predictions/{name}-crf", "--split", bench.split)
    else:
        cells = [bench.prediction_score(name, crf=True) for name in names]
    yield Row("CLIP-ES + VPL", paper, {"here": cells})
    yield Row("WeCLIP (its paper)", {"voc val": 76.4, "voc test": 77.2, "coco val": 47.1}, {})


def table3(bench: Bench) -> Iterator[Row]:
    """The ladder of components."""
    split = bench.split
    text = bench.cams(bench.text(), split)
    yield _row("I text CAM", 63.3, [bench.seed_score(text, split)])
    seed, mask = bench_seeds(bench, lambda cams: (
        bench.seed_score(cams, split), bench.mask_score(bench.masks(cams, split), split)), split)
    yield _row("II vision CAM", 68.2, seed)
    yield _row("III II + CRF", 71.3, mask)
    ladder: tuple[tuple[str, float, float | None, bool], ...] = (
        ("IV decoder", 75.5, 0, False), ("V IV + RSC", 77.2, None, False),
        ("VI V + CRF at test", 78.5, None, True))
    for title, paper, rsc, crf in ladder:
        yield _row(title, paper, [bench.prediction_score(bench.segmenter(run, rsc), crf=crf)
                                  for run in bench.seeds])


def table4(bench: Bench) -> Iterator[Row]:
    """Single and ensemble prompts: text, text moved along the gap, vision prototypes.

    The ensemble's text and vision prototypes are those of the protocol: the paper's have the
    numbers of its table 3.
    """
    papers = {"single": ((61.7, 0.81), (62.0, 0.77), (66.8, 0.64)),
              "ensemble": ((63.3, 0.76), (63.5, 0.71), (68.2, 0.51))}
    bench.text()
    for prompts, paper in papers.items():
        own = prompts == "ensemble"
        text = "text" if own else bench.text(f"text-{prompts}", "--prompts", prompts)
        yield _gap_row(bench, f"{prompts}: text", paper[0], [text])
        bench.features(bench.learn)
        bench.run("shift-gap", "--text", text, "--split", bench.learn,
                  "--out", f"{bench.work}/prototypes/shifted-{prompts}.safetensors")
        yield _gap_row(bench, f"{prompts}: text moved along the gap", paper[1],
                       [f"shifted-{prompts}"])
        yield _gap_row(bench, f"{prompts}: vision", paper[2], [
            bench.learned("vision" if own else f"vision-{prompts}", seed, text=text)
            for seed in bench.seeds])


def table5(bench: Bench) -> Iterator[Row]:
    """The temperature of the vision prototypes."""
    papers = {"0.01": (66.9, 0.64), "0.02": (67.3, 0.57), "0.03": (68.2, 0.51),
              "0.04": (67.8, 0.49), "0.05": (67.2, 0.47)}
    yield from _sweep(bench, "tau_I", "tau-i", papers)


def table6(bench: Bench) -> Iterator[Row]:
    """The threshold of the seeds. Eq. 7 over all pixels has none, so seeds are learned from."""
    papers = {"0.2": (67.2,), "0.3": (67.7,), "0.4": (68.2,), "0.5": (67.9,), "0.6": (67.3,),
              "0.7": (67.9,)}
    yield from _sweep(bench, "Phi", "phi", papers, "--pixels", "seeds")


def table7(bench: Bench) -> Iterator[Row]:
    """The iterations of phase 1."""
    papers = {"1000": (65.9,), "1500": (66.6,), "2000": (67.5,), "2500": (67.8,), "3000": (68.2,),
              "3500": (68.0,)}
    yield from _sweep(bench, "iterations", "iters", papers)


TABLES: dict[int, Callable[[Bench], Iterator[Row]]] = {
    1: table1, 2: table2, 3: table3, 4: table4, 5: table5, 6: table6, 7: table7}


EXPORTS = {"voc": "voc-server", "coco": "coco-rle"}
"""What a data set's server takes."""


def bench_seeds(bench: Bench, measure: Callable[[str], tuple[float, ...]], split: str
                ) -> list[Cell]:
    """Learn vision prototypes with each seed, and measure their CAMs: a cell a number."""
    bench.text()
    return [list(cell) for cell in zip(
        *(measure(bench.cams(bench.learned("vision", seed), split)) for seed in bench.seeds),
        strict=True)]


def _row(title: str, paper: float, cell: Cell) -> Row:
    return Row(title, {"mIoU": paper}, {"mIoU": cell})


def _gap_row(bench: Bench, title: str, paper: tuple[float, ...], prototypes: list[str]) -> Row:
    measured = {
        "mIoU": [bench.seed_score(bench.cams(name, bench.split), bench.split)
                 for name in prototypes],
        "gap": [bench.gap(name) for name in prototypes]}
    return Row(title, dict(zip(("mIoU", "gap"), paper, strict=False)), measured)


def _sweep(bench: Bench, title: str, option: str, papers: dict[str, tuple[float, ...]],
           *options: str) -> Iterator[Row]:
    bench.text()
    for value, paper in papers.items():
        own = bench.option("learn-prototypes", option, None)
        # What the protocol has anyway is what the other tables learned.
        same = not options and own is not None and float(own) == float(value)
        name = "vision" if same else f"vision-{option}-{value}"
        given = () if same else (f"--{option}", value)
        yield _gap_row(bench, f"{title} {value}", paper, [
            bench.learned(name, seed, *options, *given) for seed in bench.seeds])


def spell(cell: Cell, digits: int = 3) -> str:
    """A number, or mean ± deviation; percent with one digit, a gap (below 2) with more."""
    if not cell:
        return "-"
    mean, digits = statistics.fmean(cell), digits if statistics.fmean(cell) < 2 else 1
    deviation = f" ± {statistics.stdev(cell):.{digits}f}" if len(cell) > 1 else ""
    return f"{mean:.{digits}f}{deviation}"


def markdown(rows: list[Row], source: str = "paper") -> str:
    """The table, two columns a quantity: paper and here."""
    paper = list(dict.fromkeys(name for row in rows for name in row.paper))
    here = list(dict.fromkeys(name for row in rows for name in row.measured))
    lines = [["", *(f"{name}, {source}" for name in paper), *(
        name if name == "here" else f"{name}, here" for name in here)]]
    for row in rows:
        lines.append([row.title, *(spell([row.paper[name]], 2) if name in row.paper else "-"
                                   for name in paper),
                      *(spell(row.measured.get(name, [])) for name in here)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    spelled = ["| " + " | ".join(
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(line, widths, strict=True))) + " |"
        for line in lines]
    rule = "|" + "|".join("-" * (width + 1) + ("-" if column == 0 else ":")
                          for column, width in enumerate(widths)) + "|"
    return "\n".join([spelled[0], rule, *spelled[1:]]) + "\n"


def write(bench: Bench, number: int, rows: list[Row]) -> str:
    """Write TABLE.md and TABLE.json, and give the Markdown."""
    title = (TABLES[number].__doc__ or "").partition("\n")[0]
    seeds = ", ".join(map(str, bench.seeds))
    # Table 2's columns name their data set themselves; all others are VOC's.
    named = number == 2 or bench.workspace.name == "voc"
    protocol = (
        f"preset {bench.protocol.name} ({bench.protocol.identity}); learned on `{bench.learn}`, "
        f"maps scored on `{bench.made_scored if number == 1 else bench.split}`; threshold "
        + (f"chosen on `{bench.cut}`" if bench.cut else "as the preset has it")
        + f"; seeds {seeds}" + "".join(f"; {name} {shlex.join(words)}"
                                        for name, words in sorted(bench.given.items())))
    text = (f"Table {number}. {title}\n\n{markdown(rows, 'paper' if named else 'paper (VOC)')}\n"
            f"Protocol: {protocol}.\n"
            + "".join(f"\nLeft out by {what}\n" for what in bench.failed))
    folder = bench.work
    (folder / f"table{number}.md").write_text(text, encoding="utf-8")
    (folder / f"table{number}.json").write_text(json.dumps({
        "table": number, "title": title, "preset": bench.protocol.name,
        "preset_hash": bench.protocol.identity, "learn": bench.learn, "split": bench.split,
        "threshold_from": bench.cut, "seeds": bench.seeds, "given": bench.given,
        "rows": [vars(row) for row in rows],
        "failed": bench.failed,
        "stages": [command.replace(f"{bench.work}/", "") for command in bench.commands],
    }, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return text


def first_split(workspace: Workspace, wanted: list[str]) -> str:
    """The first of some splits that a workspace has.

    Raises:
        VplError: it has none of them.
    """
    known = {split for photo in workspace.photos() for split in photo.splits}
    for split in wanted:
        if split in known:
            return split
    hint = f"--learn takes one of: {', '.join(sorted(known))}"
    if "train_aug" in wanted:
        hint = ("put the augmented list into ImageSets/Segmentation, or give it to prepare by "
                f"--list FILE; else {hint}")
    raise VplError(f"{workspace.path} has no split {' or '.join(wanted)}", hint)


def own_workspace(work: Path, name: str) -> Path:
    """Make, or find, a workspace of the same photos in WORK/tables, and give its folder."""
    source, path = open_workspace(work), work / "tables" / name
    path.mkdir(parents=True, exist_ok=True)
    weights = work / source.pretrained
    write_workspace(replace(
        source, path=path, root=relative_to(work / source.root, path),
        pretrained=relative_to(weights, path) if weights.exists() else source.pretrained),
        source.photos())
    return path


def unmasked(workspace: Workspace, split: str) -> int:
    """Number of photos of a split without a true mask."""
    return sum(photo.mask is None for photo in workspace.photos(split))


def check(bench: Bench, numbers: list[int]) -> None:
    """Find before the work what would end it: splits without masks, masks of another size, disk.

    Raises:
        VplError: something that a table would score cannot be scored.
    """
    workspace = bench.workspace
    scored = {bench.cut, *(bench.made_scored if number == 1 else bench.split for number in numbers
                           if number != 2 or not unmasked(workspace, bench.split))} - {""}
    for split in sorted(scored):
        photos = workspace.photos(split)
        if without := unmasked(workspace, split):
            masked = sorted({name for photo in workspace.photos() if photo.mask
                             for name in photo.splits})
            raise VplError(f"{without} of {len(photos)} photos of `{split}` have no true mask to "
                           "score with", f"--split takes one of: {', '.join(masked) or 'none'}")
        for photo in photos:
            with contextlib.suppress(OSError):
                read_truth(workspace, photo, photo_size(workspace.image_path(photo)))
    splits = {bench.learn, bench.cut, *([bench.split] if set(numbers) - {1, 2} else [])} - {""}
    photos = [photo for photo in workspace.photos() if splits & {*photo.splits}]
    keep = str(bench.option("extract", "keep", "tokens,patches,attention")).split(",")
    side = int(bench.option("extract", "max-side", 0))
    needed = sum(bytes_a_photo(keep, patches_of(workspace.image_path(photo), side))
                 for photo in photos[:20]) / len(photos[:20]) * len(photos)
    free = shutil.disk_usage(bench.work).free
    told = (f"features of {len(photos):,} photos take about {needed / 1e9:.1f} GB by ViT-B/16; "
            f"{free / 1e9:.0f} GB are free at {bench.work}")
    (console.warn if needed > free else console.note)(told)


def patches_of(path: Path, max_side: int) -> int:
    """Patches of a photo, 16 pixels a side; 0 if it cannot be read."""
    try:
        height, width = fit_size(photo_size(path), 16, max_side=max_side)
    except OSError:
        return 0
    return height * width // 256


def main() -> int:
    """Print the tables that were asked for; 0, or 1 with a line that says what to mend."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tables", nargs="+", type=int, choices=sorted(TABLES), metavar="TABLE")
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--preset", default="", metavar="NAME-OR-FILE",
                        help="by default vpl-coco for a workspace of COCO, else vpl-voc")
    parser.add_argument("--learn", default="train_aug,trainaug,train", metavar="LIST",
                        help="the split to learn on: the first of the list that has photos")
    parser.add_argument("--split", default="val", metavar="SPLIT", help="the split to score")
    parser.add_argument("--threshold-from", default="", metavar="SPLIT",
                        help="cut CAMs where the text's score best on this split")
    parser.add_argument("--seeds", default="0", metavar="LIST", help="a run each: 0,1,2")
    parser.add_argument("--set", action="append", default=[], metavar="COMMAND.OPTION=VALUE",
                        help="an option that wins over the preset")
    parser.add_argument("--name", default="",
                        help="folder in WORK/tables; by default that of preset and --learn")
    words = parser.parse_args()
    os.environ.pop("VPLTOOL_PRESET", None)
    given: dict[str, list[str]] = {}
    for item in words.set:
        command, _, option = item.partition(".")
        option, equals, value = option.partition("=")
        given.setdefault(command, []).extend([f"--{option}", value] if equals else [f"--{option}"])
    name = words.name
    try:
        source = open_workspace(words.work)
        learn = first_split(source, words.learn.split(","))
        preset = words.preset or ("vpl-coco" if source.name == "coco" else "vpl-voc")
        name = name or f"{Path(preset).stem}-{learn}"
        bench = Bench(own_workspace(words.work, name), preset, learn, words.split,
                      words.threshold_from, tuple(int(seed) for seed in words.seeds.split(",")),
                      given)
        check(bench, words.tables)
        for number in dict.fromkeys(words.tables):
            print(f"Table {number}", file=sys.stderr)
            rows = []
            for row in TABLES[number](bench):
                rows.append(row)
                text = write(bench, number, rows)
            print(text, flush=True)
    except VplError as error:
        hint = error.hint
        if "other settings" in f"{error.message} {hint}":
            hint = f"--name {name}-2 begins anew beside it; or take away {words.work}/tables/{name}"
        console.error(error.message, hint)
        return 1
    except KeyboardInterrupt:
        console.error("interrupted; what is written is kept",
                      "run the same command again to go on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
