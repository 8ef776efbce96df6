"""Inputs of the stages of phase 1: text prototypes, and the pixels and regions of many photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial

from vpltool import console, options
from vpltool.core import alignment, grids
from vpltool.core.gap import Gap, photo_regions
from vpltool.core.phase_one import Pixels, gaps
from vpltool.core.seeds import UNSURE, region_features, seed_labels
from vpltool.engine import opening, photo_work, prototypes
from vpltool.engine.features import SEEDING
from vpltool.engine.opening import Opened
from vpltool.errors import VplError
from vpltool.formats import JsonObject, Workspace
from vpltool.lazy import F, Tensor, torch
from vpltool.parallel import memory
from vpltool.parallel.ranks import Ranks
from vpltool.settings import NoEffect, Settings, setting

# Settings that stages share, as in `options`.
phi = partial(
    setting, 0.4, "Seed threshold; a pixel belongs to a class where its CAM reaches this.", low=0,
    high=1, source="VPL, table 6")

phi_background = partial(
    setting, 0.15, "Background seed threshold; a pixel is background where all CAMs are below "
    "this.", low=0, high=1, source="vpltool")

max_pixels = partial(
    setting, 500_000, "Use this many pixels at most, the same share of each photo, to limit memory "
    "and time.", low=1, metavar="N", source="vpltool")

cams = partial(setting, "", "CAMs that give seeds or regions; default: text-refined, else text.",
               metavar="NAME-OR-PATH", record="never", reads="cams")

text = partial(setting, "text", "Text prototypes.", metavar="NAME-OR-PATH", record="never",
               reads="text")

_REGIONS = [NoEffect({"pixels": ("regions",)}, "regions need no threshold")]


@dataclass(frozen=True, kw_only=True)
class PixelSettings(options.WholeSplit, shared=True):
    """Settings that choose the pixels from which prototypes are made."""

    cams: str = cams()
    phi: float = phi(no_effect=_REGIONS)
    phi_background: float = phi_background(no_effect=_REGIONS)
    pixels: str = setting(
        "seeds", "What prototypes are made of; seeds: the seed pixels; regions: a CAM-weighted "
                 "mean per class and photo.", choices=("seeds", "regions"))
    max_pixels: int = max_pixels()
    seed: int = options.seed()


def open_inputs(workspace: Workspace, settings: Settings, *required: str) -> Opened:
    """Open the features and further inputs of a stage; CAMs are those that give seeds."""
    return opening.open_inputs(workspace, settings, ("patches",), ("features", *required),
                               preferred=SEEDING)


def text_of(opened: Opened, *, or_tags: bool = False) -> prototypes.Prototypes:
    """Return the opened prototypes; VplError unless they are of text, or `or_tags` of tags."""
    found = opened.prototypes
    assert found is not None
    space = found.header.facts.get("space", "text")
    if space not in ("text", "text shifted") and not (
            or_tags and found.path.stem == prototypes.OF_TAGS):
        raise VplError(f"{found.path} holds {space} prototypes, and text prototypes are needed",
                       "`text='text'`, which `text_prototypes()` makes")
    return found


def gather(opened: Opened, settings: PixelSettings, ranks: Ranks, text: prototypes.Prototypes, *,
           unlabelled: bool = False) -> Pixels:
    """Read the pixels from which prototypes are made, with labels from the maps.

    The pixels are in the space of the text. Without maps, all pixels are read, unlabelled; with
    maps only seeds, unless `unlabelled`. Each of several processes reads its own shard of the
    photos. The sample depends on all photos, so together they read what one process would.
    """
    workspace, device, space = opened.workspace, ranks.device, prototypes.space_of(text)
    photos = {photo.id: photo for photo in workspace.photos(settings.split, settings.limit)}
    found = set().union(*ranks.collect(list(opened.available(ranks.shard).ids)))
    ids, share = pixels_per_photo([key for key in photos if key in found], settings.max_pixels)
    mine = [(number, key) for number, key in enumerate(ids) if ranks.shard.holds(key)]
    # On a CPU, converting half precision to float32 at each step takes too long.
    half = device.type == "cuda" and settings.pixels != "regions"
    store = torch.empty(0)
    photo_of = [torch.empty(0, dtype=torch.long)]
    labels = [torch.empty(0, dtype=torch.long)]
    total = count = 0
    for number, key in photo_work.tracked("read features", mine, len(mine)):
        patches = prototypes.read_patches(opened.features, key, space)
        total += len(patches)
        patches, label = _labelled(opened, key, patches, settings, unlabelled)
        patches, label = sample_pixels(patches, label, share, settings.seed * 1_000_003 + number)
        if not count:
            # Joining a list of parts would take twice the memory; untouched rows take none.
            store = torch.empty(share * len(mine), patches.shape[1],
                                dtype=torch.float16 if half else torch.float32)
        store[count : count + len(patches)] = patches
        count += len(patches)
        photo_of.append(torch.full((len(patches),), number))
        labels.append(label)
    total, used = (sum(parts) for parts in zip(*ranks.collect((total, count)), strict=True))
    store = store.reshape(-1, max(ranks.collect(store.shape[-1])))
    seeds = any(ranks.collect(any(bool((part >= 0).any()) for part in labels)))
    if not used or (unlabelled and not seeds):
        raise VplError(f"no pixel reaches `phi={settings.phi}`",
                       f"lower it: `phi={round(settings.phi / 2, 3)}`")
    console.note(f"{used} of {total} patches of {len(ids)} photos are used")
    shown = [workspace.indices_of(photos[key]) for key in ids]
    if "cams" in opened.folders and not any(shown):
        # Photos without tags have the classes of their maps, if groups made these.
        own = {key: sorted(set(part[part > 0].tolist()))
               for (_, key), part in zip(mine, labels[1:], strict=True)}
        of_all = {key: part for some in ranks.collect(own) for key, part in some.items()}
        shown = [of_all[key] for key in ids]
    if not any(shown):
        raise VplError(f"no photo of the split `{settings.split}` has a tag",
                       "give tags to `prepare('folder', images='IMAGES', labels='FILE.csv')`, or "
                       "choose another split")
    with memory_for(count):
        pixels = store[:count].to(device)
        length = torch.linalg.vector_norm(pixels, dim=-1, keepdim=True, dtype=torch.float32)
        pixels /= length.clamp_min(1e-12)
        # Photos with the same tags share a tensor.
        tensor_of = cache(lambda tags: torch.tensor(tags, dtype=torch.long, device=device))
        return Pixels(pixels, torch.cat(photo_of).to(device), torch.cat(labels).to(device),
                      [tensor_of(tuple(classes)) for classes in shown], ids)


def pixels_per_photo(ids: list[str], most: int) -> tuple[list[str], int]:
    """Choose the photos to sample, and the maximum per photo, for at most `most` pixels."""
    if most < len(ids):
        console.warn(f"`max_pixels={most}` is below the number of photos: {most} of {len(ids)} "
                     "photos are used, spread evenly, and one pixel of each")
        ids = [ids[number * len(ids) // most] for number in range(most)]
    return ids, most // len(ids)


def _labelled(opened: Opened, key: str, patches: Tensor, settings: PixelSettings,
              unlabelled: bool) -> tuple[Tensor, Tensor]:
    """Select a photo's patches (N, dim), and label them (N,)."""
    if "cams" not in opened.folders:
        return patches, torch.full((len(patches),), UNSURE)
    cam = read_maps(opened, key, len(patches))
    if settings.pixels == "regions":
        regions, labels = region_features(patches, cam["cam"], cam["classes"])
        # An empty map gives no region.
        there = regions.any(dim=-1)
        return regions[there], labels[there]
    labels = seed_labels(cam["cam"], cam["classes"], settings.phi, settings.phi_background)
    if unlabelled:
        return patches, labels
    return patches[labels != UNSURE], labels[labels != UNSURE]


def read_maps(opened: Opened, key: str, count: int) -> dict[str, Tensor]:
    """Read a photo's maps (K, h, w) and classes, resampled to the `count` patches of its features.

    Maps of groups are on another grid.
    """
    found = opened.folders["cams"].read_tensors(key)
    if found["cam"].shape[1] * found["cam"].shape[2] != count:
        height, width = opened.features.read_tensors(key, "grid")["grid"].tolist()
        found["cam"] = grids.resample_maps(found["cam"], (height, width))
    return found


def read_regions(opened: Opened, ids: Sequence[str], phi: float,
                 space: alignment.AlignedSpace | None) -> tuple[Tensor, Tensor]:
    """Read the regions of photos: L2-normed mean features (R, dim), and their classes (R,).

    A class's region is where its CAM is the strongest and reaches Φ, in the given space.
    """
    parts = []
    for key in photo_work.tracked("read regions", ids, len(ids)):
        patches = prototypes.read_patches(opened.features, key, space).float()
        cam = read_maps(opened, key, len(patches))
        labels = seed_labels(cam["cam"], cam["classes"], phi, phi_background=0)
        parts.append(photo_regions(F.normalize(patches, dim=-1), labels.new_zeros(len(labels)),
                                   labels)[:2])
    regions, classes = (torch.cat(part) for part in zip(*parts, strict=True))
    if not len(regions):
        raise VplError(f"no CAM in {opened.folders['cams'].path} reaches `phi={phi}`",
                       f"lower it: `phi={round(phi / 2, 3)}`; or name other CAMs by `cams='NAME'`")
    return regions, classes


def sample_pixels(pixels: Tensor, labels: Tensor, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw at most `most` of the pixels, in order."""
    if len(pixels) <= most:
        return pixels, labels
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randperm(len(pixels), generator=generator)[:most].sort().values
    return pixels[kept], labels[kept]


def memory_for(count: int) -> AbstractContextManager[None]:
    """Explain an error if memory does not suffice for so many pixels."""
    return memory.explain_out_of_memory(f"{count} pixels", f"`max_pixels={max(count // 2, 1)}`")


_MEASURED_TO = {"all": "each photo's patches, divided among its tags by the text",
                "seeds": "each photo's seeds", "regions": "each photo's CAM-weighted means"}
"""What the gap of `facts_of` is measured to, by the setting `pixels`; see `gaps`."""


def facts_of(workspace: Workspace, pool: Pixels, pixels: str, text: prototypes.Prototypes,
             rows: Tensor, index: Tensor, ranks: Ranks) -> JsonObject:
    """Return facts for the header of vision prototypes: names of rows, and modality gaps.

    The gaps to the pool are those of the rows (rows, dim) of classes `index` (rows,), and of the
    text or tags from which they are made.
    """
    start = prototypes.OF_TAGS if text.header.command == "tag-prototypes" else "text"
    device = pool.embeddings.device
    found: Mapping[str, Gap] = dict(zip((start, "vision"), gaps(
        pool, text.rows.to(device), text.class_index.to(device), rows, index, ranks), strict=True))
    console.note(f"modality gap (1 - cosine) to {_MEASURED_TO[pixels]}: "
                 + ", ".join(f"{name} {gap.cosine:.3f}" for name, gap in found.items()))
    return {"space": "vision", "rows": [workspace.class_name(item) for item in index.tolist()],
            "gap": {name: {"cosine": round(gap.cosine, 5), "centroid": round(gap.centroid, 5)}
                    for name, gap in found.items()}}
