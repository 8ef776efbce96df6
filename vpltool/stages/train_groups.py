"""`train-groups`: a segmenter from photos and captions, open to any word (GroupViT, PGSeg)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vpltool.core import groups
from vpltool.engine import checkpoints, headers, models
from vpltool.engine.groups import MEAN, STD, take_weights
from vpltool.errors import VplError
from vpltool.formats import Header, Workspace
from vpltool.formats.kinds import place
from vpltool.formats.shards import check_even
from vpltool.lazy import torch
from vpltool.parallel.ranks import joined
from vpltool.settings import warn_without_effect
from vpltool.stage import Stage
from vpltool.stages import _pairs
from vpltool.stages._group_run import GroupRun, TrainGroupsSettings, run_training, words_of
from vpltool.stages._tar_pairs import TarPairs

STAGE = Stage(order=72, panel="3. Masks and segmenter", reads=("workspace", "images"),
              writes=("groups",), settings=TrainGroupsSettings, together=True)


def run(workspace: Workspace, settings: TrainGroupsSettings) -> Path:
    """Train an encoder that divides photos into groups, from captions alone.

    Any words can name the groups. Neither tags nor masks are needed. Under torchrun, several
    processes share each step.

    Example: vpltool train-groups --npr both --iters 30000

    Example: vpltool train-groups --pairs 'tars/{000..331}.tar' --text own --batch-size 1024

    Next: vpltool show

    Args:
        workspace: its photos and captions; its CLIP, whose text tower names the groups.
        settings: which prototypes, how large a network, how long.

    Returns:
        the file of the groups.

    Raises:
        VplError: there are no captions, a size does not fit, or a setting is refused.
    """
    if settings.text == "clip":
        models.check_words(workspace, "`text='own'`")
    of_tars = "the pairs are those of tars"
    warn_without_effect(settings, without={"split": of_tars, "limit": of_tars} if settings.pairs
                        else {"window": "only pairs of tars are shuffled so"})
    allowed = settings.allow_pipe and "pairs" in settings.given
    source = (TarPairs.of(settings.pairs, settings.window, allow_pipe=allowed) if settings.pairs
              else _pairs.WorkspacePairs(workspace, settings.split, settings.limit))
    shape = shape_of(settings)
    check_even(settings.batch_size)
    if settings.precision == "fp16":
        raise VplError("`precision='fp16'`: gradients underflow", "`precision='bf16'`")
    if settings.begin and not settings.begin.is_file():
        raise VplError(f"{settings.begin}: there is no such file",
                       "a .safetensors of `train_groups()`, or GroupViT's")
    target = settings.out or place(workspace.path, "groups", settings.name)
    with joined(settings.device) as process:
        words = words_of(workspace, settings, process)
        shape = replace(shape, dim=words.dim or settings.dim)
        header = _make_header(workspace, settings, shape, words.model, process.count, source)
        if not headers.check_file(target, header, settings):
            start = checkpoints.read_checkpoint(
                checkpoints.checkpoint_of(target), header, overwrite=settings.overwrite,
                update=settings.update)
            network = _build(settings, shape)
            run_training(GroupRun(settings, source, words, process, header, target), network,
                         start)
    return target


def _numbers(settings: TrainGroupsSettings, name: str, count: int) -> tuple[int, ...]:
    """Read a list of whole numbers.

    Raises:
        VplError: it is none, or of another length.
    """
    text = getattr(settings, name)
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count or min(numbers) < 1:
        raise VplError(f"`{name}={text!r}`: expected {count} whole numbers from 1 on",
                       f"`{name}={TrainGroupsSettings.__dataclass_fields__[name].default!r}`")
    return numbers


def shape_of(settings: TrainGroupsSettings) -> groups.GroupShape:
    """Sizes of the network; the joint space of a CLIP is not known yet.

    Raises:
        VplError: they do not fit each other.
    """
    for name, value, of, divisor in (
            ("side", settings.side, "patch", settings.patch),
            ("width", settings.width, "heads", settings.heads),
            ("text_width", settings.text_width, "text_heads", settings.text_heads)):
        if value % divisor:
            raise VplError(f"`{name}={value}` is not a multiple of `{of}={divisor}`",
                           f"`{name}={-(-value // divisor) * divisor}`")
    first, second, last = _numbers(settings, "depths", 3)
    many, few = _numbers(settings, "groups", 2)
    return groups.GroupShape(
        side=settings.side, patch=settings.patch, width=settings.width, heads=settings.heads,
        depths=(first, second, last), groups=(many, few), dim=settings.dim,
        hidden=settings.hidden, drop_path=settings.drop_path,
        caption=groups.CaptionShape(settings.text_width, settings.text_depth, settings.text_heads,
                                    settings.context) if settings.text == "own" else None,
        npr=groups.NprShape(settings.em_rounds, settings.momentum, settings.tau, settings.text_tau,
                            settings.reconstruct, settings.npr_hidden),
        of_photos=settings.npr in ("both", "photos"), of_text=settings.npr in ("both", "text"))


def _make_header(workspace: Workspace, settings: TrainGroupsSettings, shape: groups.GroupShape,
                 model: dict[str, str], ranks: int, source: TarPairs | _pairs.WorkspacePairs
                 ) -> Header:
    header = headers.make_header(
        workspace, "groups", "train-groups", settings,
        inputs={**({"pairs": source.identity} if isinstance(source, TarPairs) else
                   {"captions": workspace.captions_identity(settings.split)}),
                **({"begin": settings.begin} if settings.begin else {})},
        # BatchNorm's statistics are a process's own.
        model=model, options={"processes": ranks} if ranks > 1 else {},
        skip=("split",) if settings.pairs else ())
    return replace(header, facts={"config": shape.to_config(), "mean": list(MEAN),
                                  "std": list(STD)})


def _build(settings: TrainGroupsSettings, shape: groups.GroupShape) -> groups.GroupNetwork:
    """Build the network, always the same one for a seed, and give it the weights to begin with.

    Raises:
        VplError: the weights cannot be read, or are of another shape.
    """
    torch.manual_seed(settings.seed)
    network = groups.GroupNetwork(shape)
    if settings.begin:
        take_weights(network, settings.begin)
    return network
