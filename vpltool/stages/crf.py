"""`crf`: labels from CAMs or predictions, refined by the colours of the photo."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from vpltool import console, options
from vpltool.core.crf import labels_at
from vpltool.core.photos import describe_failure, photo_size
from vpltool.engine import opening, photo_work, scored
from vpltool.errors import is_out_of_memory
from vpltool.formats import Header, OutputFolder, Workspace, kinds
from vpltool.lazy import np, npt, torch
from vpltool.methods import KINDS, LabelRefiner, load_method
from vpltool.methods.inputs import ScoredPhoto
from vpltool.parallel import memory, threads
from vpltool.parallel.batches import bucketed
from vpltool.parallel.device import find_device, worker_count
from vpltool.parallel.processes import run_jobs
from vpltool.settings import Settings, Stage, Values, make, setting, values_of


@dataclass(frozen=True, kw_only=True)
class CrfSettings(options.PerPhoto):
    """Settings of `crf`."""

    what: str = setting("", "What to refine: CAMs, or predictions/NAME; default: the first CAMs "
                            "found of vision-refined, vision, text-refined, text.",
                        metavar="PATH-OR-NAME", record="never", reads="what")
    method: str = setting(KINDS["label_refiners"].default, "Method that refines the labels.",
                          metavar="NAME")
    proposals: str = setting("", "Proposals, for a method that reads them; default: the only ones "
                                 "of the split.", metavar="NAME-OR-PATH", record="never",
                             brief=False, reads="proposals")
    confidence: float | None = setting(
        None, "For CAMs: minimum confidence; pixels below it become 255, ignored in training. "
              "Default: 0.95 for densecrf, 0 for par, 0.6 for proposals.", low=0, high=1,
        source="CLIP-ES and WeCLIP, official code")
    alpha: float = setting(1.0, "For CAMs: background score (1 - max)^ALPHA.", low=0,
                           source="CLIP-ES, official code")
    max_side: int = setting(
        2048, "Scale longer photos down to this; labels keep the photo's own size. 0: never.",
        low=0, metavar="PIXELS", record="changed")
    tile: int = setting(
        0, "Refine photos with a longer side in overlapping tiles of this side, not scaled down; "
           "0: none.", low=0, metavar="PIXELS", record="changed")
    workers: int = options.workers()


STAGE = Stage(order=60, panel="3. Masks and segmenter",
              reads=("cams", "probabilities", "predictions", "proposals"),
              writes=("masks", "predictions"),
              settings=CrfSettings, methods="label_refiners")

_THREADS = 8
"""Number of threads that read the sizes of photos."""

_LOWER = "try `device='cpu', workers=1`, or `max_side=1024`"


def run(workspace: Workspace, settings: CrfSettings) -> list[Path]:
    """Turn CAMs into pseudo masks, or sharpen predictions, with a dense CRF or PAR.

    It runs over the classes present only. On a CPU, each worker handles one
    photo at a time; on a GPU, photos of the same size run together.

    CAMs become two folders: masks/NAME, for training, with 255 where the
    CRF is unsure; and masks/NAME-full, for scoring, without 255. With
    --confidence 0, the default of par, they are the same. Predictions become
    predictions/NAME-crf. With --tile, photos of any size keep their detail.

    Example: vpltool crf --what vision-refined --split train

    Next: vpltool train-decoder, or vpltool eval

    Returns:
        the folders of masks, that to train on last; or the folder of predictions.

    Raises:
        VplError: an input is missing, or a setting is refused.
        PhotosFailed: some photos failed.
    """
    method = load_method(LabelRefiner, settings.method)
    opened = opening.open_inputs(workspace, settings, ("photo", *method.READS), ("what",))
    source = opened.folders["what"]
    if source.kind != "cams":
        opened = opened.without_effect({"alpha": "predictions have a background",
                                        "confidence": "predictions keep every pixel"})
    proposals = opened.folders.get("proposals")
    if proposals:
        opened = opened.without_effect({"tile": "proposals are of whole photos"})
    folders = _folders(opened, settings, method)
    confidences = [header.options.get("confidence", 0.0) for header in folders.values()]
    scores = scored.Scores(source, settings.alpha, settings.max_side, workspace.classes, proposals,
                           0 if proposals else settings.tile)

    def start(todo: list[str]) -> Iterator[photo_work.Made]:
        tags = {photo.id: photo.tags for photo in workspace.photos(settings.split)}
        worker = _Worker(scores, settings.method, values_of(settings.of_method or Settings()),
                         settings.device, tuple(confidences),
                         1 + max(len(tags[key]) for key in todo))
        return _start(worker, settings, list(opened.paths(todo).items()))

    def write(output: OutputFolder, key: str, made: list[npt.NDArray[np.uint8]]) -> None:
        output.write_labels(key, made[list(folders).index(output.path)])

    return opened.make(f"crf {source.name} {settings.split}", folders, start, write=write)


def _folders(opened: opening.Opened, settings: CrfSettings, method: LabelRefiner
             ) -> dict[Path, Header]:
    """Return the output folders and their headers, the masks to train on first."""
    work, name, split = opened.workspace.path, opened.folders["what"].name, settings.split
    options = method.recorded(settings.of_method)
    if opened.folders["what"].kind != "cams":
        return {settings.out or kinds.result_path(work, "predictions", f"{name}-crf", split):
                opened.header("predictions", "crf", options=options)}
    # The method's default is CLIP-ES's unless it has its own.
    options["confidence"] = (method.CONFIDENCE if settings.confidence is None
                             else settings.confidence)
    header = opened.header("masks", "crf", options=options)
    out = settings.out or kinds.result_path(work, "masks", name, split)
    # The usual form is NAME/SPLIT; a path that was given may be of NAME alone.
    named = out.parent if out.name == split and out.parent.name not in ("", "..") else out
    full = named.with_name(f"{named.name}-full") / out.relative_to(named)
    return {out: header, full: replace(header, options={**header.options, "confidence": 0.0})}


@dataclass(frozen=True)
class _Worker:
    """Refines the labels of photos; a worker process loads the method before its first photo."""

    scores: scored.Scores
    method_name: str
    values: Values
    device_name: str
    confidences: tuple[float, ...]
    labels: int

    @cached_property
    def method(self) -> LabelRefiner:
        """The method."""
        return load_method(LabelRefiner, self.method_name)

    @cached_property
    def settings(self) -> Settings:
        """The method's settings."""
        return make(self.method.Settings, self.values, ())

    @cached_property
    def device(self) -> torch.device:
        """The device that the work is done on."""
        return self.method.runs_on(self.settings, find_device(self.device_name))

    def refine(self, job: scored.Job) -> photo_work.Made:
        """Refine the labels of a photo."""
        return _solve(self, [scored.read_scored(self.scores, job)])[0]

    def refine_alone(self, job: scored.Job) -> photo_work.Made:
        """Refine the labels of a photo, in a worker process."""
        if multiprocessing.parent_process() is not None:
            torch.set_num_threads(1)
        return self.refine(job)


def _start(worker: _Worker, settings: CrfSettings, jobs: Sequence[scored.Job]
           ) -> Iterator[photo_work.Made]:
    """Check that the method can run; return an iterator over labels, one for each confidence."""
    if worker.device.type != "cpu":
        return _run_batches(worker, jobs, settings.batch_size)
    worker.method.warm_up(worker.settings, worker.device, worker.labels)
    # A method keeps one core busy; this thread only distributes work.
    count = settings.workers if settings.workers >= 0 else worker_count(-1) + 1
    _warn_of_memory(worker, jobs, max(count, 1))
    if worker.method.frees_lock(worker.settings, worker.device):
        # A thread starts at once; a process would have to import torch first.
        return threads.in_threads(worker.refine, jobs, count if count > 1 else 0)
    # A copy that has loaded nothing: a process can read the settings once it has the method.
    return run_jobs(replace(worker).refine_alone, jobs, count)


def _warn_of_memory(worker: _Worker, jobs: Sequence[scored.Job], processes: int) -> None:
    """Warn if the largest photos of all processes together may exceed the memory."""
    def needed(job: scored.Job) -> int:
        try:
            size = worker.scores.size_at_once(photo_size(job[1]))
        except OSError:
            return 0
        return worker.method.memory_of(worker.settings, worker.device, size, worker.labels)

    needs = sorted(threads.in_threads(needed, jobs, _THREADS))[-processes:]
    if sum(needs) > 0.8 * memory.physical_memory():
        console.warn(f"the largest photos need about {needs[-1] / 1e9:.1f} GB each, and "
                     f"{len(needs)} are processed at a time; if that is too much, "
                     "`workers=1` or `max_side=1024`")


def _run_batches(worker: _Worker, jobs: Sequence[scored.Job], size: int
                 ) -> Iterator[photo_work.Made]:
    """Run photos of the same size and number of labels together on a device."""
    read = (scored.read_scored(worker.scores, job) for job in jobs)
    alike = bucketed(read, lambda photo: (photo.scored.scores.shape, photo.stored is None), size)
    batches = threads.read_ahead(map(scored.ReadBatch, alike))
    return photo_work.run_batches(batches, lambda batch: _solve(worker, batch.photos),
                                  lambda _: _LOWER)


def _solve(worker: _Worker, batch: Sequence[scored.ReadPhoto]) -> list[photo_work.Made]:
    """Refine the labels of photos of the same size and number of labels.

    Insufficient memory is an error for several photos, and the result of a single one.
    """
    if batch[0].failure:
        return [(read.key, photo_work.Failed(read.failure)) for read in batch]
    try:
        if batch[0].stored:
            return [(read.key, _in_tiles(worker, read)) for read in batch]
        marginals = _marginals(worker, [read.scored for read in batch])
    except (ValueError, RuntimeError, MemoryError) as error:
        if len(batch) == 1:
            read = batch[0]
            reason = (f"out of memory with {read.each} of {read.path.name}; {_LOWER}"
                      if is_out_of_memory(error) else describe_failure(read.path, error))
            return [(read.key, photo_work.Failed(reason))]
        if is_out_of_memory(error):
            raise
        # Find the photo that caused the error.
        return [result for read in batch for result in _solve(worker, [read])]
    return [(read.key, [labels_at(field, read.classes, read.size, confidence)
                        for confidence in worker.confidences])
            for read, field in zip(batch, marginals, strict=True)]


def _in_tiles(worker: _Worker, read: scored.ReadPhoto) -> list[npt.NDArray[np.uint8]]:
    """Refine a large photo in the memory of a row of tiles; one label image per confidence."""
    rows = [[labels_at(field, read.classes, confidence=each) for each in worker.confidences]
            for field in scored.refined_in_tiles(read, worker.scores.tile,
                                                 lambda photo: _marginals(worker, [photo])[0])]
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


def _marginals(worker: _Worker, photos: Sequence[ScoredPhoto]) -> list[npt.NDArray[np.float32]]:
    """Refine the scores of photos, skipping those whose labels cannot change."""
    known = [worker.method.decided(photo, max(worker.confidences)) for photo in photos]
    left = [photo for photo, field in zip(photos, known, strict=True) if field is None]
    made = iter(worker.method.refine_labels(left, worker.settings, worker.device) if left else ())
    return [next(made) if field is None else field for field in known]
