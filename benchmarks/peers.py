"""Ours against a peer's own code, on the same photos and weights, in turn: `make peers`.

    python benchmarks/peers.py CLIP-ES [--photos 24] [--rounds 3] [--voc VOC2012 --weights FILE]

CLIP-ES is a checkout of github.com/linyq2117/CLIP-ES; nothing of it is in this repository. Theirs
runs `generate_cams_voc12.py`; ours `extract`, `cam` and `refine` with the options of
docs/protocols.md. Both write CAMs for the same photos, tags and weights; that the CAMs are equal is
checked. Photos are drawn, and weights random in the form of OpenAI's state dicts, unless given.

Theirs needs packages that ours does not, such as lxml, ttach and setuptools before 81; `--python`
names an environment that has them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from bench import default_precision
from measure import Pair, Side
from PIL import Image
from world import DATA, World, draw_photo, size_of

from vpltool.clip.catalogue import import_open_clip
from vpltool.datasets.words import VOC
from vpltool.formats import open_input

HERE = Path(__file__).parent
SCRIPT = "generate_cams_voc12.py"

CLOSE = 1e-3
"""How far CAMs may be apart, but for the float16 in which theirs are kept."""

EXACT = {
    "extract": ("--max-side", 0, "--keep", "tokens,attention", "--store", "fp32"),
    "cam": ("--target", "softmax", "--store", "fp32"),
    "refine": ("--cams", "text", "--box", "exclusive", "--store", "fp32")}
"""The commands that equal CLIP-ES, in float32 with its quirks."""

USUAL: dict[str, tuple[object, ...]] = {
    "extract": ("--keep", "tokens,attention"), "cam": (), "refine": ("--cams", "text")}
"""The same stages as a user has them."""


@dataclass(frozen=True)
class Task:
    """What both sides work on.

    Args:
        checkout: of CLIP-ES.
        python: that runs theirs.
        voc: folder in VOC's layout.
        weights: a state dict as CLIP's own.
        keys: ids of the photos.
        folder: for results.
        world: our workspace.
    """

    checkout: Path
    python: str
    voc: Path
    weights: Path
    keys: Sequence[str]
    folder: Path
    world: World

    def host(self, rounds: int) -> list[str]:
        """The command line of theirs."""
        return [self.python, str(HERE / "peer_host.py"), str(self.checkout), SCRIPT, str(rounds),
                "--img_root", str(self.voc / "JPEGImages"), "--model", str(self.weights),
                "--split_file", str(self.folder / "list.txt"),
                "--cam_out_dir", str(self.folder / "theirs")]


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, and check that the CAMs are equal."""
    options = _options(argv)
    with tempfile.TemporaryDirectory() as folder:
        task = make_task(options, Path(folder))
        apart = equal_cams(task)
        print(f"{len(task.keys)} photos, {torch.get_num_threads()} threads; "
              f"CAMs differ by {apart:.1e} at most, allowed {allowed():.1e}")
        print("\n| what | theirs, s a photo | ours, s a photo | times theirs |\n"
              "| --- | ---: | ---: | ---: |")
        for title, pair in measured(task, options):
            ratios = sorted(pair.ratios)
            print(f"| {title} | {pair.plain.best:.3g} | {pair.ours.best:.3g} | {pair.ratio:.3g}x "
                  f"({ratios[0]:.3g} to {ratios[-1]:.3g}) |", flush=True)
    return 0


def allowed() -> float:
    """How far CAMs may be apart."""
    return CLOSE + torch.finfo(torch.float16).eps / 4


def measured(task: Task, options: argparse.Namespace) -> Iterator[tuple[str, Pair]]:
    """Each comparison: a photo without the starts, in three readings; and whole commands."""
    fast = ("--precision", options.precision)
    lines: dict[str, Mapping[str, Sequence[object]]] = {
        "the same CAMs, float32": EXACT, "default options, float32": USUAL}
    if options.precision != "fp32":
        lines[f"default options, {options.precision}"] = USUAL | {
            "extract": (*USUAL["extract"], *fast), "cam": fast}
    for title, commands in lines.items():
        pair = Pair(Side(), Side())
        with started(task, options.rounds) as theirs:
            for _ in range(options.rounds):
                pair.plain.seconds.append(theirs() / len(task.keys))
                pair.ours.seconds.append(ours(task, commands) / len(task.keys))
        yield f"a photo, {title}", pair
    pair = Pair(Side(), Side())
    for _ in range(options.rounds):
        pair.plain.seconds.append(_timed([task.host(0)]) / len(task.keys))
        own = [[sys.executable, "-m", "vpltool", "-C", str(task.world.work), name,
                *map(str, more), "--overwrite"] for name, more in EXACT.items()]
        pair.ours.seconds.append(_timed(own) / len(task.keys))
    yield "as commands with their starts, float32", pair


def _timed(commands: Sequence[Sequence[str]]) -> float:
    begun = time.perf_counter()
    for command in commands:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return time.perf_counter() - begun


@contextlib.contextmanager
def started(task: Task, rounds: int) -> Iterator[Callable[[], float]]:
    """Start theirs up to its first photo; the call does all photos and gives the seconds."""
    with subprocess.Popen(task.host(rounds), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True, env=os.environ) as process:
        assert process.stdin and process.stdout

        def heard() -> str:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise RuntimeError(f"{SCRIPT} ended: what it said is above")
            return line

        def once() -> float:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
            seconds = float(heard())
            waiting[0] -= 1
            if waiting[0]:
                heard()
            return seconds

        waiting = [rounds]
        heard()
        try:
            yield once
        finally:
            if waiting[0]:
                process.kill()


def ours(task: Task, commands: Mapping[str, Sequence[object]]) -> float:
    """Run our commands in this process, files and all; their seconds."""
    return sum(task.world.run(name, *more, "--overwrite") for name, more in commands.items())


def equal_cams(task: Task) -> float:
    """Run both once; the largest difference of their CAMs.

    Raises:
        AssertionError: it is more than is allowed.
    """
    with started(task, 1) as theirs:
        theirs()
    ours(task, EXACT)
    refined = open_input(task.world.work / "cams/text-refined/train", ("cams",))
    worst = 0.0
    for key in task.keys:
        theirs_of: dict[str, Any] = np.load(task.folder / f"theirs/{key}.npy",
                                            allow_pickle=True).item()
        kept, entry = torch.from_numpy(theirs_of["attn_highres"]).float(), refined.read_tensors(key)
        order = [(theirs_of["keys"] + 1).tolist().index(index)
                 for index in entry["classes"].tolist()]
        full = F.interpolate(entry["cam"][None], kept.shape[1:], mode="bilinear")[0]
        worst = max(worst, float((full - kept[order]).abs().max()))
    assert worst <= allowed(), f"CAMs differ by {worst}, allowed {allowed()}"
    return worst


def make_task(options: argparse.Namespace, folder: Path) -> Task:
    """Draw photos and weights where none are given, and prepare our workspace."""
    voc = options.voc or draw_voc(folder / "VOC", options.photos)
    weights = options.weights or random_weights(folder / "ViT-B-16.pt")
    lists = sorted((voc / "ImageSets/Segmentation").glob("train.txt"))
    keys = [line.split()[0] for line in lists[0].read_text().splitlines()][:options.photos]
    (folder / "list.txt").write_text("\n".join(keys) + "\n")
    world = World(folder, folder / "work", {}, {}, {}, torch.device("cpu"), "")
    world.run("prepare", "voc", _first_of(voc, keys, folder / "some"), "--pretrained", weights)
    world.run("text-prototypes", "--prompts", "origami", "--synonyms")
    return Task(options.checkout, options.python, voc, weights, keys, folder, world)


def _first_of(voc: Path, keys: Sequence[str], folder: Path) -> Path:
    """A folder in VOC's layout with some photos of another one."""
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / "ImageSets/Segmentation/train.txt").write_text("\n".join(keys) + "\n")
    for part in ("JPEGImages", "Annotations"):
        (folder / part).symlink_to((voc / part).resolve())
    return folder


def draw_voc(folder: Path, count: int) -> Path:
    """Draw photos of VOC's sizes in its layout, with 1.8 random tags each in the mean."""
    rng = np.random.default_rng(0)
    for part in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    keys = [f"p{number:05}" for number in range(count)]
    for number, key in enumerate(keys):
        width, height = size_of(number, DATA["voc"][0])
        _, grainy = draw_photo(number, (height, width), rng)
        Image.fromarray(grainy).save(folder / f"JPEGImages/{key}.jpg", quality=90)
        tags = rng.choice(VOC.classes, (2, 1, 2, 2, 2)[number % 5], replace=False)
        objects = "".join(f"<object><name>{name}</name></object>" for name in tags)
        (folder / f"Annotations/{key}.xml").write_text(
            f"<annotation><size><width>{width}</width><height>{height}</height></size>"
            f"{objects}</annotation>")
    (folder / "ImageSets/Segmentation/train.txt").write_text("\n".join(keys) + "\n")
    return folder


def random_weights(path: Path) -> Path:
    """Write a random ViT-B/16 as CLIP's own state dict: half precision's values, its scale 100."""
    open_clip = import_open_clip()
    torch.manual_seed(0)
    model = open_clip.CLIP(**open_clip.get_model_config("ViT-B-16-quickgelu"))
    with torch.no_grad():
        model.token_embedding.weight.normal_(std=1.0)
        model.logit_scale.fill_(np.log(100))
        # Attention that tells patches apart: a refined CAM that is nearly even is rounding alone.
        for block in model.visual.transformer.resblocks:
            block.attn.in_proj_weight[: 2 * block.attn.embed_dim] *= 3
    torch.save({key: value.half() for key, value in model.state_dict().items()}, path)
    return path


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a checkout of CLIP-ES")
    parser.add_argument("--python", default=sys.executable, help="that runs theirs")
    parser.add_argument("--photos", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default=default_precision(), help="of the third line")
    parser.add_argument("--voc", type=Path, help="a VOC2012 folder; drawn photos")
    parser.add_argument("--weights", type=Path, help="OpenAI's ViT-B-16.pt; random ones")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
