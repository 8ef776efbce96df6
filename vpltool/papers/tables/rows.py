"""The rows of the paper's tables: what each measures, and the paper's numbers; a written table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpltool.datasets.words import COCO, VOC
from vpltool.formats import JsonObject, write_json
from vpltool.formats.atomic import atomic_path
from vpltool.formats.kinds import result_name, result_path
from vpltool.papers.tables.chains import Chains
from vpltool.settings import values_of
from vpltool.shell import command_line
from vpltool.tables import format_mean, format_table

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


def write_table(chains: Chains, number: int, rows: Sequence[Row]) -> str:
    """Write tableN.md and tableN.json with the rows so far, and give the Markdown."""
    title = (TABLES[number].__doc__ or "").partition("\n")[0]
    scored = made_scored(chains) if number == 1 else chains.split
    # Table 2's columns name their data set themselves; all others are VOC's.
    named = number == 2 or chains.source.classes == VOC.classes
    text = (f"Table {number}. {title}\n\n{_markdown(rows, 'paper' if named else 'paper (VOC)')}\n"
            f"Protocol: {_format_protocol(chains, scored)}.\n"
            f"{_QUICK if chains.quick else ''}\n{_why(chains)}\n"
            + "".join(f"\nLeft out by {what}\n" for what in chains.failed))
    with atomic_path(chains.path / f"table{number}.md") as temporary:
        temporary.write_text(text, "utf-8")
    write_json(chains.path / f"table{number}.json", {
        "table": number, "title": title, "preset": chains.preset.name,
        "preset_hash": chains.preset.identity, "learn": chains.learn, "split": chains.split,
        "threshold_from": chains.cut, "seeds": list(chains.seeds), "quick": chains.quick,
        "given": {stage: {name: str(value) if isinstance(value, Path) else value
                          for name, value in values.items()}
                  for stage, values in sorted(chains.given.items())},
        "rows": [{"title": row.title, "paper": dict(row.paper), "measured": dict(row.measured)}
                 for row in rows],
        "failed": chains.failed,
        "stages": [line.replace(f"{chains.path}/", "") for line in chains.made]})
    return text


def _format_protocol(chains: Chains, scored: str) -> str:
    given = "".join(f"; {command_line(stage, values, ())}"
                    for stage, values in sorted(chains.given.items()))
    cut = f"chosen on `{chains.cut}`" if chains.cut else "as the preset has it"
    return (f"preset {chains.preset.name} ({chains.preset.identity}); learned on "
            f"`{chains.learn}`, maps scored on `{scored}`; threshold {cut}; seeds "
            f"{', '.join(map(str, chains.seeds))}{given}")


_QUICK = """
Quick: fewer iterations than the protocol's, as the line above says. The numbers are a first look, \
and stay below what the whole run gives.
"""


def _why(chains: Chains) -> str:
    """Return why these numbers differ from those of another run on the same photos."""
    method = str(values_of(chains.settings("cam"))["method"])
    alpha = float(chains.setting("eval", "alpha"))
    cut = (f"where the text's score best on `{chains.cut}`" if chains.cut
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
    return format_mean(cell, digits if max(cell) < 2 else 1)


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


EXPORTS = {VOC.classes: "voc-server", COCO.classes: "coco-rle"}
"""What the server of a data set takes, by its classes."""


def table1(chains: Chains) -> Iterator[Row]:
    """Quality of seeds and pseudo masks on the photos that are learned from."""
    made = chains.learn

    def scores(cams: str) -> tuple[float, float]:
        return seed_score(chains, cams, made), mask_score(chains, chains.masks(cams, made), made)

    seed, mask = scores(chains.cams(chains.text(), made))
    yield Row("text prototypes (CLIP-ES)", {"seed": 70.8, "mask": 75.0},
              {"seed": [seed], "mask": [mask]})
    seeds, masks = _each_seed(chains, scores, made)
    yield Row("vision prototypes (VPL)", {"seed": 76.3, "mask": 78.4},
              {"seed": seeds, "mask": masks})
    yield Row("CLIP-CPAL (not in vpltool)", {"seed": 71.9, "mask": 75.8}, {})
    yield Row("CLIP-CPAL + VPL (not in vpltool)", {"seed": 77.8, "mask": 80.1}, {})


def table2(chains: Chains) -> Iterator[Row]:
    """The segmenter, with the CRF at test, on the data set of the workspace.

    Where a split has no true masks, as VOC's `test`, the predictions are packed for the server.
    """
    paper = {"voc val": 78.5, "voc test": 77.8, "coco val": 49.2}
    chains.text()
    names = [chains.segmenter(seed, None) for seed in chains.seeds]
    cells: Cell = []
    if unmasked(chains, chains.split):
        for name in names:
            sharp = chains.at_test(name)
            if server := EXPORTS.get(chains.source.classes):
                chains.call("export", method=server, what=result_name("predictions", sharp),
                            split=chains.split)
    else:
        cells = [prediction_score(chains, name, crf=True) for name in names]
    yield Row("CLIP-ES + VPL", paper, {"here": cells})
    yield Row("WeCLIP (its paper)", {"voc val": 76.4, "voc test": 77.2, "coco val": 47.1}, {})


def unmasked(chains: Chains, split: str) -> int:
    """Number of photos of a split without a true mask."""
    return sum(photo.mask is None for photo in chains.source.photos(split))


def table3(chains: Chains) -> Iterator[Row]:
    """The ablation of components."""
    def row(title: str, paper: float, cell: Cell) -> Row:
        return Row(title, {"mIoU": paper}, {"mIoU": cell})

    split = chains.split
    text = chains.cams(chains.text(), split)
    yield row("I text CAM", 63.3, [seed_score(chains, text, split)])
    seeds, masks = _each_seed(chains, lambda cams: (
        seed_score(chains, cams, split),
        mask_score(chains, chains.masks(cams, split), split)), split)
    yield row("II vision CAM", 68.2, seeds)
    yield row("III II + CRF", 71.3, masks)
    steps: tuple[tuple[str, float, float | None, bool], ...] = (
        ("IV decoder", 75.5, 0.0, False), ("V IV + RSC", 77.2, None, False),
        ("VI V + CRF at test", 78.5, None, True))
    for title, paper, rsc, crf in steps:
        yield row(title, paper, [prediction_score(chains, chains.segmenter(seed, rsc), crf=crf)
                                 for seed in chains.seeds])


def table4(chains: Chains) -> Iterator[Row]:
    """Single and ensemble prompts: text, text moved along the gap, vision prototypes.

    The ensemble's text and vision prototypes are those of the protocol: the paper's have the
    numbers of its table 3.
    """
    papers = {"single": ((61.7, 0.81), (62.0, 0.77), (66.8, 0.64)),
              "ensemble": ((63.3, 0.76), (63.5, 0.71), (68.2, 0.51))}
    chains.text()
    for prompts, paper in papers.items():
        own = prompts == "ensemble"
        text = "text" if own else chains.text(f"text-{prompts}", prompts=prompts)
        yield _gap_row(chains, f"{prompts}: text", paper[0], [text])
        shifted = f"shifted-{prompts}"
        chains.call("shift-gap", text=text, split=chains.learn, **chains.features(chains.learn),
                    out=result_path(chains.path, "prototypes", shifted))
        yield _gap_row(chains, f"{prompts}: text moved along the gap", paper[1], [shifted])
        yield _gap_row(chains, f"{prompts}: vision", paper[2], [
            chains.learned("vision" if own else f"vision-{prompts}", seed, text)
            for seed in chains.seeds])


def table5(chains: Chains) -> Iterator[Row]:
    """The temperature of the vision prototypes."""
    yield from _sweep(chains, "tau_I", "tau_i", {
        0.01: (66.9, 0.64), 0.02: (67.3, 0.57), 0.03: (68.2, 0.51), 0.04: (67.8, 0.49),
        0.05: (67.2, 0.47)})


def table6(chains: Chains) -> Iterator[Row]:
    """The threshold of the seeds. Eq. 7 over all pixels has none, so seeds are learned from."""
    yield from _sweep(chains, "Phi", "phi", {
        0.2: (67.2,), 0.3: (67.7,), 0.4: (68.2,), 0.5: (67.9,), 0.6: (67.3,), 0.7: (67.9,)},
        pixels="seeds")


def table7(chains: Chains) -> Iterator[Row]:
    """The iterations of phase 1."""
    yield from _sweep(chains, "iterations", "iters", {
        1000: (65.9,), 1500: (66.6,), 2000: (67.5,), 2500: (67.8,), 3000: (68.2,),
        3500: (68.0,)})


TABLES: dict[int, Callable[[Chains], Iterator[Row]]] = {
    1: table1, 2: table2, 3: table3, 4: table4, 5: table5, 6: table6, 7: table7}


def _each_seed(chains: Chains, measure: Callable[[str], tuple[float, ...]], split: str
               ) -> list[Cell]:
    """Learn vision prototypes with each seed, and measure their CAMs: a cell a number."""
    chains.text()
    return [list(cell) for cell in zip(
        *(measure(chains.cams(chains.learned("vision", seed), split)) for seed in chains.seeds),
        strict=True)]


def _gap_row(chains: Chains, title: str, paper: tuple[float, ...], prototypes: list[str]) -> Row:
    split = chains.split
    measured = {
        "mIoU": [seed_score(chains, chains.cams(name, split), split) for name in prototypes],
        "gap": [gap(chains, name) for name in prototypes]}
    return Row(title, dict(zip(("mIoU", "gap"), paper, strict=False)), measured)


def _sweep(chains: Chains, title: str, name: str, papers: Mapping[float, tuple[float, ...]],
           **values: Any) -> Iterator[Row]:
    chains.text()
    for value, paper in papers.items():
        # What the protocol has anyway is what the other tables learned.
        same = not values and chains.setting("learn-prototypes", name) == value
        prototypes = "vision" if same else f"vision-{name.replace('_', '-')}-{value}"
        own = values if same else values | {name: value}
        yield _gap_row(chains, f"{title} {value}", paper, [
            chains.learned(prototypes, seed, **own) for seed in chains.seeds])


def seed_score(chains: Chains, cams: str, split: str) -> float:
    """Percent mIoU of CAMs at the threshold of the protocol."""
    cut: JsonObject = {}
    if chains.cut:
        chosen = chains.cams("text", chains.cut)
        # No alpha: the best threshold is looked for.
        _score(chains, result_name("cams", chosen), chains.cut, f"{chosen}-cut", alpha=0.0)
        cut = {"threshold_from": _path(chains, f"{chosen}-cut"), "alpha": 0.0}
    return _made_score(chains, result_name("cams", cams), split, f"{cams}-{split}", **cut)


def mask_score(chains: Chains, masks: str, split: str) -> float:
    """Percent mIoU of masks."""
    return _made_score(chains, result_name("masks", f"{masks}-full"), split,
                       f"{masks}-masks-{split}")


def prediction_score(chains: Chains, name: str, *, crf: bool) -> float:
    """Percent mIoU of predictions, with the CRF at test or without."""
    name = chains.at_test(name) if crf else name
    return _score(chains, result_name("predictions", name), chains.split, f"{name}-{chains.split}")


def gap(chains: Chains, prototypes: str) -> float:
    """Mean 1 - cosine of prototypes to the regions that the text's CAMs mark, on --learn."""
    regions = chains.cams("text", chains.learn)
    report = chains.call("gap", prototypes=(prototypes,), cams=regions, split=chains.learn,
                         out=_path(chains, f"gap-{prototypes}"), **chains.features(chains.learn))
    return float(report["prototypes"][prototypes]["cosine"])


def made_scored(chains: Chains) -> str:
    """Where what is made for --learn is scored: on `train` if that is a part of it."""
    inside, whole = (sum("train" in photo.splits for photo in chains.source.photos(split))
                     for split in (chains.learn, ""))
    return "train" if 0 < inside == whole else chains.learn


def _made_score(chains: Chains, what: str, split: str, name: str, **values: Any) -> float:
    """Percent mIoU of maps or masks of a split; of train_aug's, on `train`."""
    scored = made_scored(chains) if split == chains.learn else split
    if scored != split:
        return _score(chains, str(chains.path / what / split), scored, name, **values)
    return _score(chains, what, split, name, **values)


def _score(chains: Chains, what: str, split: str, name: str, **values: object) -> float:
    report = chains.call("eval", what=what, split=split, **values, out=_path(chains, name))
    return 100 * float(report["miou"])


def _path(chains: Chains, name: str) -> Path:
    return chains.path / "tables/scores" / f"{name}.json"
