"""`vpltool crf`: CAMs or predictions sharpened by a dense CRF."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vpltool import console
from vpltool.errors import VplError, check_choice, is_out_of_memory, near_name
from vpltool.formats import (
    Header,
    InputFolder,
    OutputFolder,
    find_folder,
    finish_all,
    open_input,
    open_output,
    open_workspace,
    read_json,
)
from vpltool.options import (
    BatchSize,
    Device,
    Limit,
    NoEffect,
    Out,
    Overwrite,
    Quiet,
    Split,
    Workers,
    warn_about_no_effect,
)
from vpltool.parallel.batches import bucketed
from vpltool.parallel.processes import run_jobs
from vpltool.parallel.threads import read_ahead, write_behind
from vpltool.presets import preset_files
from vpltool.stage import Stage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from vpltool.core.crf import CrfSettings

STAGE = Stage(order=60, panel="3. Masks and segmenter",
              reads=("cams", "probabilities", "predictions"), writes=("masks", "predictions"))

NO_EFFECT = (
    NoEffect("alpha", {"kind": ("predictions", "probabilities")}, "predictions have a background"),
    NoEffect("confidence", {"kind": ("predictions", "probabilities")}, "predictions keep every pixel"),
)


def crf(
    ctx: typer.Context,
    what: Annotated[str, typer.Option(
        metavar="PATH-OR-NAME", help="CAMs, or predictions/NAME; default: the best CAMs there "
                                     "are: vision-refined, vision, text-refined, text.")] = "",
    preset: Annotated[str, typer.Option(
        metavar="NAME-OR-FILE", help="Of the CRF: clip-es, weclip, or a JSON file.")] = "clip-es",
    backend: Annotated[str, typer.Option(
        help="auto, torch or pydensecrf: the same result.")] = "auto",
    confidence: Annotated[float, typer.Option(
        min=0, max=1, help="For CAMs: pixels less sure than this become 255, ignored in "
                           "training.")] = 0.95,
    alpha: Annotated[float, typer.Option(
        min=0, help="For CAMs: background score (1 - max)^ALPHA.")] = 1.0,
    wrap_image: Annotated[bool, typer.Option(
        "--wrap-image/--plain-image",
        help="Show the CRF the photo as CLIP-ES's code does: less ImageNet's mean, modulo 256.",
    )] = False,
    split: Split = "train",
    device: Device = "auto",
    batch_size: BatchSize = 8,
    workers: Workers = -1,
    limit: Limit = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Turn CAMs into pseudo masks, or sharpen predictions, by a dense CRF.

    Over the classes present alone. On a CPU a photo at a time in each worker process; on a GPU
    photos of one size together.

    CAMs give two folders: masks/NAME, with 255 where it is unsure, to train on; and
    masks/NAME-full, without, to score. Predictions give predictions/NAME-crf.

    Example: vpltool crf --what vision-refined --split train

    Next: vpltool train-decoder, or vpltool eval
    """
    console.set_quiet(quiet)
    workspace = open_workspace(ctx.obj)
    settings = _settings(preset)
    check_choice("backend", backend, ("auto", "torch", "pydensecrf"))
    photos = workspace.photos(split, limit)
    source = _find_source(ctx.obj, what, split)
    workspace.check_classes(source.header, source.path)
    warn_about_no_effect(ctx, NO_EFFECT, {"kind": source.kind})
    ids = source.available(photo.id for photo in photos)
    outputs = _open_outputs(ctx.obj, source, split, out, ids, overwrite, {
        "split": split, "crf": asdict(settings), "alpha": alpha, "confidence": confidence,
        **({"wrap_image": True} if wrap_image else {})})
    todo = {key for output in outputs for key in output.todo}
    jobs = [(photo.id, workspace.image_path(photo)) for photo in photos if photo.id in todo]

    from vpltool.parallel.device import find_device, worker_count

    place = find_device(device)
    backend = _choose_backend(backend, on_cpu=place.type == "cpu")
    # Both backends keep one core busy and hold the interpreter's lock: processes, not threads.
    count = worker_count(workers) if workers >= 0 else worker_count(-1) + 1
    task = _Task(source, settings, backend, alpha, wrap_image, str(place),
                 tuple(output.header.options.get("confidence", 0.0) for output in outputs))
    on_device = place.type != "cpu" and backend == "torch"
    with (console.progress(f"crf {source.name} {split} ({backend})", len(jobs)) as advance,
          write_behind(_write, batch_size if on_device else 0) as write):
        for key, result in (_run_batches(task, jobs, batch_size) if on_device
                            else run_jobs(_one_photo, jobs, count, _start, task)):
            write(outputs, key, result)
            advance()
    finish_all(outputs)


def _write(outputs: Sequence[OutputFolder], key: str,
           result: list[npt.NDArray[np.uint8]] | str) -> None:
    for index, output in enumerate(outputs):
        if isinstance(result, str):
            output.fail(key, result)
        else:
            output.write_labels(key, result[index])


def _find_source(work: Path, what: str, split: str) -> InputFolder:
    """CAMs; or a prediction's probabilities where they were stored with it, else its labels."""
    source = find_folder(work, ("cams", "predictions"), what, split,
                         ("cams", "probabilities", "predictions"), f"vpltool cam --split {split}",
                         preferred=("vision-refined", "vision", "text-refined", "text"))
    if source.kind == "predictions":
        soft = source.path.parent.parent.parent / "probabilities" / source.name / source.path.name
        if (soft / "artifact.json").exists():
            found = open_input(soft, ("probabilities",))
            # Those of an earlier run with other settings are not these predictions' own.
            if replace(found.header, kind=source.kind).config_hash == source.identity:
                return found
    return source


def _open_outputs(
    work: Path, source: InputFolder, split: str, out: Path | None, ids: Sequence[str],
    overwrite: bool, options: dict[str, object],
) -> list[OutputFolder]:
    name = source.name
    if source.kind == "cams":
        folder = out or work / "masks" / name / split
        full = (folder.parent / f"{folder.name}-full" if out
                else work / "masks" / f"{name}-full" / split)
        places = {folder: options, full: {**options, "confidence": 0.0}}
    else:
        used = {key: value for key, value in options.items()
                if key not in ("alpha", "confidence")}
        places = {out or work / "predictions" / f"{name}-crf" / split: used}
    kind = "masks" if source.kind == "cams" else "predictions"
    return [
        open_output(place, Header(kind=kind, command="crf", options=used, model=source.header.model,
                                  inputs={source.kind: source.identity,
                                          **_classes_of(source)}), ids, overwrite=overwrite,
                    left_out=source.failed)
        for place, used in places.items()
    ]


def _classes_of(source: InputFolder) -> dict[str, str]:
    return {key: value for key, value in source.header.inputs.items() if key == "classes"}


def _settings(preset: str) -> CrfSettings:
    from vpltool.core.crf import PRESETS, CrfSettings

    if preset in PRESETS:
        return PRESETS[preset]
    if not Path(preset).exists():
        raise VplError(f"--preset {preset}: neither a preset of the CRF nor a file",
                       f"a protocol stands before the command: vpltool --preset {preset} crf"
                       if preset in preset_files() else near_name(preset, PRESETS))
    try:
        return CrfSettings(**read_json(Path(preset), ""))
    except TypeError as error:
        raise VplError(f"{preset}: {error}", "it takes what a preset has: " + ", ".join(
            asdict(PRESETS["clip-es"]))) from error


def _choose_backend(choice: str, *, on_cpu: bool) -> str:
    installed = importlib.util.find_spec("pydensecrf") is not None
    if choice == "pydensecrf" and not installed:
        raise VplError("pydensecrf is not installed",
                       "pip install pydensecrf2, or --backend torch")
    if choice == "auto":
        return "pydensecrf" if installed and on_cpu else "torch"
    return choice


@dataclass(frozen=True)
class _Task:
    """What each worker needs to know; sent to it once."""

    source: InputFolder
    settings: CrfSettings
    backend: str
    alpha: float
    wrap_image: bool
    device: str
    confidences: tuple[float, ...]


_Result = tuple[str, "list[npt.NDArray[np.uint8]] | str"]
_task: list[_Task] = []
_LOWER = "try --device cpu --workers 1"


def _start(task: _Task) -> None:
    import multiprocessing

    import torch

    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)
    _task[:] = [task]


def _one_photo(job: tuple[str, Path]) -> _Result:
    """Run the CRF on a photo: labels for each confidence, or the reason why not."""
    return _solve(_task[0], [_read(_task[0], job)])[0]


def _run_batches(task: _Task, jobs: Sequence[tuple[str, Path]], size: int) -> Iterator[_Result]:
    """Do the jobs on a device, photos of one size and number of labels together."""
    from vpltool.parallel.memory import run_within_memory

    read = (_read(task, job) for job in jobs)
    batches = read_ahead(map(_Batch, bucketed(read, lambda photo: photo.scores.shape, size)))
    for _, results in run_within_memory(batches, lambda batch: _solve(task, batch.photos),
                              warn=console.warn, lower=lambda _: _LOWER):
        yield from results


@dataclass(frozen=True)
class _Read:
    """A photo (H, W, 3), the scores of its labels (L, H, W), their classes (L,); or why not."""

    key: str
    path: Path
    photo: npt.NDArray[np.uint8]
    scores: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    failure: str = ""

    @property
    def size(self) -> str:
        return f"{self.photo.shape[1]}×{self.photo.shape[0]} pixels"


@dataclass(frozen=True)
class _Batch:
    """Photos of one size and number of labels; see `halving`."""

    photos: list[_Read]

    def __len__(self) -> int:
        return len(self.photos)

    @property
    def each(self) -> str:
        return self.photos[0].size

    def split(self, size: int) -> list[_Batch]:
        return [_Batch(self.photos[start : start + size]) for start in range(0, len(self), size)]


def _read(task: _Task, job: tuple[str, Path]) -> _Read:
    import numpy as np

    from vpltool.core import crf as core
    from vpltool.core.photos import describe_failure, read_photo

    key, path = job
    try:
        photo = read_photo(path)
        if task.wrap_image:
            photo = core.wrap_image(photo)
        scores, classes = _scores(task, key, (photo.shape[0], photo.shape[1]))
    except (OSError, ValueError, RuntimeError, MemoryError, VplError) as error:
        return _Read(key, path, np.empty((0, 0, 3), np.uint8), np.empty(0, np.float32),
                     np.empty(0, np.int64), describe_failure(path, error))
    return _Read(key, path, photo, scores.numpy(), classes.numpy())


def _solve(task: _Task, batch: Sequence[_Read]) -> list[_Result]:
    """Run the CRF on photos of one size and number of labels.

    Raises:
        RuntimeError: the memory does not suffice for so many; for a single one it is its result.
    """
    import torch

    from vpltool.core import crf as core
    from vpltool.core.photos import describe_failure

    if batch[0].failure:
        return [(read.key, read.failure) for read in batch]
    try:
        marginals = core.mean_fields(
            [read.photo for read in batch], [read.scores for read in batch], task.settings,
            backend=task.backend, device=torch.device(task.device))
    except (ValueError, RuntimeError, MemoryError) as error:
        if len(batch) == 1:
            read = batch[0]
            if is_out_of_memory(error):
                return [(read.key, f"out of memory with {read.size} of {read.path.name}; {_LOWER}")]
            return [(read.key, describe_failure(read.path, error))]
        if is_out_of_memory(error):
            raise
        # One of them is to blame.
        return [result for read in batch for result in _solve(task, [read])]
    return [(read.key, [core.to_labels(field, read.classes, confidence)
                        for confidence in task.confidences])
            for read, field in zip(batch, marginals, strict=True)]


def _scores(task: _Task, key: str, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of the present labels at the photo's size (L, H, W), and their classes (L,)."""
    import torch
    import torch.nn.functional as F

    from vpltool.core import crf as core

    if task.source.kind == "predictions":
        return core.scores_of_labels(task.source.read_labels(key))
    tensors = task.source.read_tensors(key)
    scores, classes = tensors["cam"].float(), tensors["classes"]
    if len(scores):
        scores = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
    else:
        scores = scores.new_zeros((0, *size))
    if task.source.kind == "cams":
        scores = core.with_background(scores, task.alpha)
        classes = torch.cat([classes.new_zeros(1), classes])
    return scores, classes
