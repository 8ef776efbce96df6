"""Making true masks of COCO's instances, in worker processes. They are for scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vpltool import console
from vpltool.datasets.coco import Outlines
from vpltool.datasets.layouts import relative_name
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
from vpltool.parallel.processes import run_jobs


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
    from vpltool.core.instances import label_map

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
