"""`tag-prototypes`: from features and tags to prototypes, without words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vpltool import console, options
from vpltool.core.affinity import salient_means
from vpltool.engine import headers, opening
from vpltool.errors import VplError
from vpltool.formats import InputFolder, Workspace, kinds, write_tensors
from vpltool.lazy import Tensor, torch
from vpltool.parallel import batches
from vpltool.parallel.device import find_device
from vpltool.settings import Stage, setting


@dataclass(frozen=True, kw_only=True)
class TagPrototypesSettings(options.WholeSplit):
    """Settings of `tag-prototypes`."""

    share: float = setting(0.1, "Share of each photo's patches that is used, the most salient "
                                "ones.", low=0.001, high=1, source="vpltool")
    batch_size: int = options.batch_size(8)


STAGE = Stage(order=36, panel="2. Maps and prototypes", reads=("features",),
              writes=("prototypes",), settings=TagPrototypesSettings)


def run(workspace: Workspace, settings: TagPrototypesSettings) -> Path:
    """Make a prototype of each class from salient patches of the photos tagged with it.

    If a photo has several tags, each gets an equal share of its patches. What belongs to a class
    adds up over its photos; what is only sometimes beside it does not. These prototypes replace
    text prototypes where the encoder knows no words.

    Example: vpltool tag-prototypes

    Next: vpltool cam --prototypes tags --method salient

    Raises:
        VplError: there are no features, a file of theirs is damaged, or no photo has a tag.
    """
    opened = opening.open_inputs(workspace, settings, ("patches",), ("features",))
    header = opened.header_of_split("tag-prototypes", classes=workspace.classes_identity,
                                    tags=workspace.tags_identity(settings.split))
    path = settings.out or kinds.result_path(workspace.path, "prototypes", "tags")
    if headers.check_file(path, header, settings):
        return path
    tags = {photo.id: workspace.indices_of(photo)
            for photo in workspace.photos(settings.split, settings.limit) if photo.tags}
    tagged = [key for key in opened.available().ids if key in tags]
    if not tagged:
        raise VplError(f"no photo of the split `{settings.split}` has a tag",
                       "give tags to `prepare('folder', images='IMAGES', labels='FILE.csv')`")
    rows = _class_means(opened.features, tagged, tags, len(workspace.classes), settings)
    without = [name for name, row in zip(workspace.classes, rows, strict=True)
               if not row.any() and name != kinds.RESERVED]
    if without:
        console.warn(f"no photo is tagged with {', '.join(without)}: their prototypes are zero, "
                     "and nothing resembles them")

    write_tensors(path, replace(header, facts={"space": "vision", "rows": [*workspace.classes]}),
                  {"prototypes": rows, "class_index": torch.arange(1, len(rows) + 1)})
    return path


def _class_means(features: InputFolder, ids: Sequence[str], tags: Mapping[str, Sequence[int]],
                 classes: int, settings: TagPrototypesSettings) -> Tensor:
    """Average the salient patches of each class's photos: L2-normed rows (classes, dim)."""
    device = find_device(settings.device)
    total = torch.zeros(0)
    with console.progress("tag-prototypes", len(ids)) as advance:
        for batch in batches.feature_batches(features, ids, ("patches",), settings.batch_size,
                                             device=device, complete=True):
            means = salient_means(batch.tensors["patches"].to(device).float(), batch.grid,
                                  settings.share).cpu().double()
            if not len(total):
                total = torch.zeros(classes, means.shape[-1], dtype=torch.float64)
            for key, mean in zip(batch.ids, means, strict=True):
                own = torch.tensor(tags[key]) - 1
                total[own] += mean / len(own)
                advance()
    return torch.nn.functional.normalize(total, dim=-1).float()
