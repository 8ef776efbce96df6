"""What may be wrong with the results of methods that are not vpltool's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Sized
from functools import partial
from types import ModuleType
from typing import Any, TypeAlias

from vpltool.core import segmenter
from vpltool.errors import counted, first_line
from vpltool.lazy import F, Tensor, np, torch
from vpltool.methods.inputs import SegmenterParts

Arguments: TypeAlias = tuple[Any, ...]
Fault: TypeAlias = Callable[[Arguments, Any], str]
"""What is wrong with what a function made of its arguments; empty if nothing."""

ROLES = {"context_of": "int64", "photo_of": "int64", "scale": "float32", "bias": "float32"}
"""Tensors of rows that a file of prototypes may hold, with their types."""

_GRID = (12, 16)
"""Patches of the photos on which a network is tried."""

_SHARED = ("prototypes", "class_index", "classes", "present", "of_rows", "embeddings", "labels")
"""Fields of what methods are given that other photos, or the rest of the command, see too."""


def shared_tensors(arguments: Arguments, names: Sequence[str]) -> list[tuple[str, Tensor, int]]:
    """Return the tensors that a method may not change in place: names, and torch's count of writes.

    Changes would make results depend on which photos are processed together. `names` are those of
    the arguments.
    """
    given = dict(zip(names, arguments, strict=False))
    for name in _SHARED:
        value = getattr(arguments[0] if arguments else None, name, None)
        items = value.items() if isinstance(value, Mapping) else enumerate(
            value if isinstance(value, list) else ())
        given |= {name: value} | {f"{name}[{key!r}]": item for key, item in items}
    # Tensors of a notebook's inference mode count no writes.
    return [(name, value, value._version) for name, value in given.items()
            if isinstance(value, torch.Tensor) and not value.is_inference()]


def changed_tensor(before: Sequence[tuple[str, Tensor, int]]) -> str:
    """Return the name of the first of `shared_tensors` that was changed since; empty: none was."""
    return next((name for name, tensor, version in before if tensor._version != version), "")


def fault_finder(kind: str, module: ModuleType) -> Fault:
    """Return the function that says what is wrong with a result of a method of a kind."""
    if kind == "segmenters":
        return partial(_fault_of_network, vars(module)["rebuild"])
    return _FAULTS.get(kind, _no_fault)


def _no_fault(_arguments: Arguments, _made: object) -> str:
    return ""


def _shown(made: object) -> str:
    """Describe a value: `a Tensor (5, 2)`, `a list`, `None`."""
    if made is None:
        return "None"
    shape = getattr(made, "shape", None)
    return f"a {type(made).__name__}" + ("" if shape is None else f" {tuple(shape)}")


def _fault_of_many(made: object, ids: Sized, what: str) -> str:
    """Say what is wrong if a value is not a list or tuple with an item for each photo."""
    if not isinstance(made, (list, tuple)):
        return _shown(made)
    return "" if len(made) == len(ids) else (
        f"{counted(len(made), what, f'{what}s')} for {counted(len(ids), 'photo', 'photos')}")


def _fault_of_maps(made: object, count: int, grid: tuple[int, int], key: str) -> str:
    """Say what is wrong if a value is not maps (count, h, w) in [0, 1], of the grid's shape."""
    if (not isinstance(made, torch.Tensor) or made.dim() != 3 or len(made) != count
            or 0 in made.shape[1:] or not _has_aspect(made.shape[1:], grid)):
        return f"{_shown(made)} for {key}, which has {counted(count, 'class', 'classes')} on a " \
               f"grid {grid}"
    low, high = (0.0, 1.0) if not count else (
        float(side) for side in made.detach().float().aminmax())
    # Not the other way round: NaN compares as False.
    inside = low > -1e-3 and high < 1 + 1e-3 and made.is_floating_point()
    return "" if inside else f"values from {low:g} to {high:g} ({made.dtype}) for {key}"


def _has_aspect(shape: Sequence[int], grid: tuple[int, int]) -> bool:
    """Return whether maps of any resolution may be of a grid: their sides differ by a cell."""
    scales = [side / cells for side, cells in zip(shape, grid, strict=True)]
    return abs(scales[0] - scales[1]) * min(grid) < max(scales)


def _fault_of_cams(arguments: Arguments, made: Any) -> str:
    batch = arguments[0]
    return _fault_of_many(made, batch.ids, "map") or next(filter(None, (
        _fault_of_maps(maps, len(present), batch.grid, key)
        for maps, present, key in zip(made, batch.present, batch.ids, strict=True))), "")


def _fault_of_refined(arguments: Arguments, made: object) -> str:
    photo = arguments[0]
    return _fault_of_maps(made, len(photo.cams), tuple(photo.cams.shape[1:]), photo.id)


def _fault_of_patches(arguments: Arguments, made: object) -> str:
    batch = arguments[0]
    if (not isinstance(made, torch.Tensor) or made.dim() != 3 or not made.is_floating_point()
            or made.shape[:2] != (len(batch.ids), batch.grid[0] * batch.grid[1])):
        return f"{_shown(made)} for {counted(len(batch.ids), 'photo', 'photos')} on a grid " \
               f"{batch.grid}"
    norms = made.detach().float().norm(dim=-1)
    return "" if float((norms - 1).abs().max()) < 0.01 else (
        f"patches whose norms are {float(norms.min()):.3g} to {float(norms.max()):.3g}")


def _fault_of_rows(arguments: Arguments, made: object) -> str:
    _, text, text_index = arguments[:3]
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        return _shown(made)
    rows, index, of_rows = *made[:2], (made[2] if len(made) == 3 else {})
    if (not isinstance(rows, torch.Tensor) or rows.dim() != 2 or rows.shape[1] != text.shape[1]):
        return f"{_shown(rows)} as rows, where the text has {tuple(text.shape)}"
    if odd := _fault_of_column(index, len(rows), "int64"):
        return f"{odd} as the classes of {counted(len(rows), 'row', 'rows')}"
    wanted, found = ({*part.tolist()} - {0} for part in (text_index, index))
    if wanted != found:
        odd_class = min(wanted ^ found)
        return (f"no row of class {odd_class}" if odd_class in wanted else
                f"rows of class {odd_class}, which the text does not have")
    for name, tensor in of_rows.items():
        if name not in ROLES:
            return f"`{name}`, which is none of {', '.join(ROLES)}"
        if odd := _fault_of_column(tensor, len(rows), ROLES[name]):
            return f"{odd} as `{name}` of {counted(len(rows), 'row', 'rows')}"
    return _fault_of_norms(rows, index, text, text_index)


def _fault_of_column(made: object, rows: int, dtype: str) -> str:
    """Describe a value that is not a tensor (rows,) of a type; empty if it is one."""
    if not isinstance(made, torch.Tensor) or made.shape != (rows,):
        return _shown(made)
    return "" if made.dtype == getattr(torch, dtype) else f"a Tensor of {made.dtype}, not {dtype},"


def _fault_of_norms(rows: Tensor, index: Tensor, text: Tensor, text_index: Tensor) -> str:
    """Say what is wrong unless rows are float32 and L2-normed.

    A row may be zero if the text has no other row of its class: `tag-prototypes` makes such rows of
    classes without a photo.
    """
    if rows.dtype != torch.float32:
        return f"rows of {rows.dtype}, not float32"
    norms = rows.detach().norm(dim=-1)
    if not bool(norms.isfinite().all()):
        return "rows with values that are not finite"
    unknown = (norms == 0) & ~torch.isin(index, text_index[text.any(dim=-1)])
    return "" if bool((((norms - 1).abs() < 0.01) | unknown).all()) else (
        f"rows whose norms are {float(norms.min()):.3g} to {float(norms.max()):.3g}")


def _fault_of_scores(arguments: Arguments, made: Any) -> str:
    photos = arguments[0]
    if fault := _fault_of_many(made, photos, "result"):
        return fault
    for scores, photo in zip(made, photos, strict=True):
        if not isinstance(scores, np.ndarray) or scores.shape != photo.scores.shape:
            return f"{_shown(scores)} for scores {photo.scores.shape}"
        if not np.isfinite(scores).all():
            return "values that are not finite"
    return ""


def _fault_of_network(rebuild: Callable[..., object], arguments: Arguments, made: object) -> str:
    """Say what is wrong with a network, or with what `rebuild` makes of its `config`.

    Random numbers that are drawn afterwards are as without this check.
    """
    if not isinstance(made, segmenter.SegmenterNetwork):
        return _shown(made)
    config, training = made.config, made.training
    try:
        written = json.loads(json.dumps(config))
    except (TypeError, ValueError) as error:
        return f"a network whose `config` is not JSON: {first_line(error)}"
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        # As `predict` does.
        again = rebuild(written)
    if not isinstance(again, segmenter.SegmenterNetwork):
        return f"a network, and `rebuild(config)` {_shown(again)}"
    if odd := _other_tensor(made.state_dict(), again.state_dict()):
        return f"a network {odd} in that of `rebuild(config)`"
    again.load_state_dict(made.state_dict(), assign=True)
    found = [_logits_of(network.eval(), arguments[0]) for network in (made, again)]
    made.train(training)
    if odd := next((each for each in found if isinstance(each, str)), ""):
        return f"a network whose {odd}"
    logits = [each for each in found if not isinstance(each, str)]
    return "" if torch.allclose(logits[0], logits[1]) else (
        "a network, and `rebuild(config)` one with other logits from the same weights")


def _other_tensor(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Describe the first tensor that has another shape in two state dicts; empty: there is none."""
    for name in dict.fromkeys((*own, *found)):
        shapes = [str(tuple(part[name].shape)) if name in part else "missing"
                  for part in (own, found)]
        if shapes[0] != shapes[1]:
            return f"whose `{name}` is {shapes[0]}, and {shapes[1]}"
    return ""


def _logits_of(network: segmenter.SegmenterNetwork, parts: SegmenterParts
               ) -> Tensor | str:
    """Return the network's logits of two photos of noise, or say what is wrong with its results."""
    noise, patches = torch.Generator().manual_seed(0), _GRID[0] * _GRID[1]
    layers = (torch.randn(2, len(network.layers), patches, parts.input_width, generator=noise)
              if network.layers else None)
    own = (F.normalize(torch.randn(2, patches, parts.prototypes.shape[1], generator=noise), dim=-1)
           if network.reads_patches else None)
    photos = f"for 2 photos on a grid {_GRID}"
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        embeddings = network.embeddings_and_fused(layers, own, _GRID)[0]
        if not isinstance(embeddings, torch.Tensor) or embeddings.shape[:2] != (2, patches):
            return f"embeddings are {_shown(embeddings)} {photos}"
        logits = network.logits(embeddings, _GRID)
    if (not isinstance(logits, torch.Tensor) or logits.dim() != 4
            or logits.shape[:2] != (2, len(network.classes))
            or not _has_aspect(logits.shape[2:], _GRID)):
        return (f"logits are {_shown(logits)} {photos} and "
                f"{counted(len(network.classes), 'class', 'classes')}")
    return logits if bool(logits.isfinite().all()) else "logits are not finite"


_FAULTS: Mapping[str, Fault] = {
    "cams": _fault_of_cams, "refiners": _fault_of_refined, "embeddings": _fault_of_patches,
    "estimators": _fault_of_rows, "label_refiners": _fault_of_scores}
"""Kind of method to a function that says what is wrong with a result, given the arguments."""
