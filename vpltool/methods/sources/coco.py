"""Import photos, splits and tags from a COCO 2014 folder.

Tags are the categories of a photo's instances, or those of labels.csv in the folder.

True masks go to ground-truth/ in the workspace; the same command continues an interrupted run.

Example: vpltool prepare coco COCO2014

Next: vpltool text-prototypes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vpltool import console, options, settings
from vpltool.core.instances import check_pycocotools, label_map
from vpltool.datasets.coco import Outlines, read_coco
from vpltool.datasets.layouts import relative_name
from vpltool.datasets.words import COCO
from vpltool.errors import OtherSettings, VplError
from vpltool.formats import (
    Header,
    OutputFolder,
    Photo,
    Workspace,
    identity_of_file,
    open_output,
    write_labels,
)
from vpltool.formats.json_stream import read_span
from vpltool.methods.inputs import Source, SourceRequest
from vpltool.parallel.device import worker_count
from vpltool.parallel.processes import run_jobs
from vpltool.settings import NoEffect, setting, warn_without_effect

READS = ()

_NO_MASKS = NoEffect({"truth": (False,)}, "no true masks are made")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of a COCO 2014 folder."""

    root: Path = setting(help="The folder that holds train2014, val2014 and annotations.",
                         metavar="ROOT", positional=True)
    truth: bool = setting(True, "Make true masks from the instances, for eval, show and report "
                                "only. Needs pycocotools.")
    overlap: str = setting(
        "smallest", "In true masks, where instances overlap: the smallest wins, or pixels of two "
                    "classes are not scored.", choices=("smallest", "ignore"), source="coco2voc",
        no_effect=[_NO_MASKS])
    crowd: str = setting(
        "class", "In true masks, pixels of a crowd: its class, or not scored.",
        choices=("class", "ignore"), source="coco2voc", no_effect=[_NO_MASKS])
    empty: bool = setting(False, "Keep photos without any instance.")
    workers: int = options.workers()


def read(workspace_path: Path, settings: Settings, shared: SourceRequest) -> Source:
    """Read the annotations; the true masks are painted later, from what is noted here."""
    if settings.truth:
        _check_pycocotools()
    warn_without_effect(settings)
    annotations = settings.root / "annotations"
    if annotations.is_dir():
        console.note(f"reading {annotations}")
    classes = shared.classes or COCO.classes
    photos, remarks, outlines = read_coco(settings.root, classes, empty=settings.empty)
    if settings.truth and not outlines:
        raise VplError(f"{annotations} has no instances to make true masks from", "`truth=False`")

    def paint(workspace: Workspace, photos: Sequence[Photo]
              ) -> tuple[list[Photo], list[OutputFolder]]:
        return _paint(workspace, photos, settings, outlines, shared.overwrite)

    return Source(settings.root.resolve().name if shared.classes else "coco", settings.root,
                  photos, classes, COCO.background, remarks=remarks,
                  paint=paint if settings.truth else None)


def _check_pycocotools() -> None:
    try:
        check_pycocotools()
    except VplError as error:
        raise VplError(f"{error.message}; it makes the true masks",
                       f"{error.hint}, or `truth=False` to do without them") from error


def _paint(workspace: Workspace, photos: Sequence[Photo], settings: Settings,
           outlines: Mapping[str, Outlines], overwrite: bool
           ) -> tuple[list[Photo], list[OutputFolder]]:
    # The main process only waits for the workers.
    count = (settings.workers if settings.workers >= 0
             else worker_count(settings.workers) + 1)
    known, made = {photo.id: photo for photo in photos}, []
    for split in outlines:
        output, masked = make_masks(
            workspace, [photo for photo in photos if split in photo.splits], split,
            outlines[split], overlap=settings.overlap, crowd=settings.crowd, workers=count,
            overwrite=overwrite)
        known |= {photo.id: photo for photo in masked}
        made.append(output)
    return [known[photo.id] for photo in photos], made


@dataclass(frozen=True)
class _Task:
    output: OutputFolder
    outlines: Outlines
    overlap: str
    crowd: str


_Job = tuple[str, tuple[int, int], tuple[int, ...]]
_task: list[_Task] = []


def make_masks(
    workspace: Workspace, photos: Sequence[Photo], split: str, outlines: Outlines, *,
    overlap: str, crowd: str, workers: int, overwrite: bool,
) -> tuple[OutputFolder, list[Photo]]:
    """Make the true masks of a split's photos in `ground-truth/SPLIT`; what is there is kept.

    Returns:
        the folder, not finished yet, and the photos with their masks named.

    Raises:
        VplError: the folder was made with other settings, or of other annotations.
    """
    header = Header(
        kind="masks", command="prepare",
        options={"method": "coco", "split": split, "overlap": overlap, "crowd": crowd},
        inputs={"annotations": identity_of_file(outlines.path),
                "classes": workspace.classes_identity})
    folder, ids = workspace.path / "ground-truth" / split, [photo.id for photo in photos]
    try:
        output = open_output(folder, header, ids, overwrite=overwrite)
    except OtherSettings as error:
        if not error.stale:
            raise VplError(error.message, "`overwrite=True` replaces it; another workspace folder "
                                          "keeps both") from error
        # Masks of other annotations are recomputed: nothing but scores depends on them.
        output = open_output(folder, header, ids, update=True)
    output.begin()
    task = _Task(output, replace(outlines, sizes={}, spans={}), overlap, crowd)
    jobs = [(key, outlines.sizes[key], tuple(outlines.spans.get(key, ()))) for key in output.todo]
    with console.progress(f"ground-truth {split}", len(jobs)) as advance:
        for key, reason in run_jobs(_make_one, jobs, workers, _start, task):
            if reason:
                output.fail(key, reason)
            advance()
    root = workspace.path / workspace.root
    return output, [
        photo if photo.id in output.failed
        else replace(photo, mask=relative_name(output.path_of(photo.id), root))
        for photo in photos]


def _start(task: _Task) -> None:
    _task[:] = [task]


def _make_one(job: _Job) -> tuple[str, str]:
    """Make a photo's mask: its id, and the reason why not."""
    key, size, spans = job
    task = _task[0]
    try:
        instances = [read_span(task.outlines.path, first, length)
                     for first, length in zip(spans[::2], spans[1::2], strict=True)]
        labels = label_map(instances, task.outlines.labels, size, overlap=task.overlap,
                           crowd=task.crowd)
    # pycocotools raises bare exceptions at outlines that are none.
    except Exception as error:
        return key, f"{task.outlines.path.name}: {str(error) or type(error).__name__}"
    write_labels(task.output.path_of(key), labels, task.output.header)
    return key, ""
