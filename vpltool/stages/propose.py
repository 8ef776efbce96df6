"""`propose`: masks without classes, made from photos or imported from another tool."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vpltool import options
from vpltool.core.classes import paint
from vpltool.core.proposals import Proposals, plain_word, to_tensors
from vpltool.engine import labelling, opening, photo_work
from vpltool.formats import OutputFolder, Workspace, kinds
from vpltool.formats.header import join_supervision
from vpltool.lazy import np, npt, torch
from vpltool.methods import KINDS, Proposer, inputs, load_method
from vpltool.parallel import device, processes
from vpltool.settings import Settings, Stage, Values, make, setting, values_of


@dataclass(frozen=True, kw_only=True)
class ProposeSettings(options.PerPhoto):
    """Settings of `propose`."""

    method: str = setting(KINDS["proposers"].default, "Method that makes the proposals.",
                          metavar="NAME")
    name: str = setting("", "Name of the result; default: the method.", record="never", inside=True)
    paint: bool = setting(False, "Also paint the class words, the smallest on top, as "
                                 "predictions/NAME: the other tool's masks alone, which `eval "
                                 "--against tags` can check, since no tag was used.", off="-",
                          record="changed")
    workers: int = options.workers()


STAGE = Stage(order=58, panel="3. Masks and segmenter", reads=("workspace", "images"),
              writes=("proposals", "predictions"), settings=ProposeSettings, methods="proposers")


def run(workspace: Workspace, settings: ProposeSettings) -> list[Path]:
    """Make or import proposals: masks without classes that show where things end.

    They may overlap, and need not cover a photo. `crf --method proposals` gives them classes.
    The method `files` imports those of other tools: COCO, SAM, YOLO, Label Studio, PNGs.

    Example: vpltool propose --method felzenszwalb

    Example: vpltool propose --method files --path DIR --format soft

    Next: vpltool crf --method proposals

    Returns:
        the folder of proposals; with --paint that of predictions first.

    Raises:
        VplError: the files are in no known format, or a package is missing.
        PhotosFailed: some photos failed.
    """
    method = load_method(Proposer, settings.method)
    opened = opening.open_inputs(workspace, settings, ("photo",))
    header = opened.header("proposals", "propose", model={},
                           inputs=method.identities(settings.of_method))
    header = replace(header, supervision=join_supervision([header.supervision, method.SUPERVISION]))
    name = settings.name or settings.method
    folder = settings.out or kinds.result_path(workspace.path, "proposals", name, settings.split)
    folders = {folder: header}
    if settings.method != "files":
        opened = opened.without_effect({"paint": f"`{settings.method}` gives no words"})
    elif settings.paint:
        painted = (folder.parent / f"{folder.name}-painted" if settings.out
                   else kinds.result_path(workspace.path, "predictions", name, settings.split))
        folders[painted] = replace(header, kind="predictions", format=0, inputs={
            **header.inputs, "classes": workspace.classes_identity})
    request = inputs.ProposalRequest((), torch.device("cpu"), workspace.path / workspace.root,
                                     labelling.by_name(workspace.photos()), workspace.classes)

    def write(output: OutputFolder, key: str, made: Proposals) -> None:
        if output.header.kind == "predictions":
            output.write_labels(key, _painted(made, workspace.classes))
        else:
            output.write_tensors(key, to_tensors(made))

    return opened.make(f"propose {name} {settings.split}", folders, lambda todo: _start(
        method, settings, request, list(opened.paths(todo).items())), write=write)


def _start(method: Proposer, settings: ProposeSettings, request: inputs.ProposalRequest,
           jobs: list[tuple[str, Path]]) -> Iterator[photo_work.Made]:
    """Check and load everything; return an iterator over each photo's proposals."""
    if not method.PROCESSES:
        request = replace(request, jobs=jobs, device=device.find_device(settings.device))
        return map(_made, method.propose(request, settings.of_method))
    # Raises errors before other processes start.
    method.propose(replace(request, jobs=()), settings.of_method)
    count = settings.workers if settings.workers >= 0 else device.worker_count(-1) + 1
    worker = _Worker(settings.method, values_of(settings.of_method or Settings()))
    return processes.run_jobs(worker.propose, jobs, count)


def _made(found: tuple[str, Any]) -> photo_work.Made:
    key, proposals = found
    return key, photo_work.Failed(proposals) if isinstance(proposals, str) else proposals


def _painted(proposals: Proposals, classes: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Paint labels (H, W) of those words that are classes; the rest is background."""
    labels = {plain_word(name): label for label, name in enumerate(classes, 1)}
    named = ((labels[plain_word(word)], inside) for word, inside in zip(
        proposals.words, proposals.masks(), strict=True) if plain_word(word) in labels)
    return paint(proposals.size, named, smallest_on_top=True)


@dataclass(frozen=True)
class _Worker:
    """A method and its settings, which a worker process loads before its first photo."""

    method: str
    values: Values

    @cached_property
    def loaded(self) -> tuple[Proposer, Settings]:
        """The method, and its settings."""
        if multiprocessing.parent_process() is not None:
            torch.set_num_threads(1)
        method = load_method(Proposer, self.method)
        return method, make(method.Settings, self.values, ())

    def propose(self, job: tuple[str, Path]) -> photo_work.Made:
        """Make the proposals of a photo."""
        method, settings = self.loaded
        (found,) = method.propose(inputs.ProposalRequest([job], torch.device("cpu")), settings)
        return _made(found)
