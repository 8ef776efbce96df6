"""`align`: a new joint space of patches and text (CMPA of SSR)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vpltool import console, options
from vpltool.core import alignment, seeds
from vpltool.core.gap import modality_gap
from vpltool.engine import checkpoints, headers, models, photo_work
from vpltool.engine.opening import Opened
from vpltool.engine.prototypes import Prototypes, patch_source
from vpltool.errors import VplError
from vpltool.formats import Header, JsonObject, Workspace, kinds
from vpltool.lazy import Tensor, torch
from vpltool.parallel import device, ranks
from vpltool.settings import NoEffect, Stage, setting, warn_without_effect
from vpltool.stages import _phase_one

_NO_REGIONS = NoEffect({"background": ("words", "none")}, "the background has no regions")


@dataclass(frozen=True, kw_only=True)
class AlignSettings(options.WholeSplit):
    """Settings of `align`; what the paper leaves open says so in its source."""

    cams: str = _phase_one.cams()
    width: int = setting(256, "Width of the aligned space and its layers.", low=2,
                         source="vpltool; SSR does not say")
    depth: int = setting(2, "Layers of each stack: Linear, BatchNorm, ReLU.", low=1,
                         source="vpltool; SSR does not say")
    last_relu: bool = setting(False, "Also put a ReLU after the last layer; then no cosine is "
                                     "below 0.", source="vpltool; SSR does not say")
    init: str = setting("shared", "Initial weights; shared: the same for both stacks, which keeps "
                                  "what CLIP has aligned; or independent.",
                        choices=("shared", "independent"), source="vpltool; SSR does not say")
    iters: int = setting(600, "Training steps.", low=1,
                         source="vpltool; SSR: 30000, with its decoder")
    batch_size: int = setting(128, "Regions per step; a region is a class of a photo, or its "
                                   "background.", low=2, source="SSR: 128 photos")
    patches: int = setting(16, "Patches per region in a step; drawn with the CAM as probability.",
                           low=1, source="vpltool")
    refresh: int = setting(
        100, "Steps between updates of the prototypes; over the whole split, by K-means or as the "
             "tags' means.", low=1, source="as SSR: a sixth of the steps")
    lr: float = setting(1e-3, "Learning rate of AdamW.", low=0,
                        source="vpltool; SSR: 1e-5, in 30000 steps")
    weight_decay: float = setting(2e-3, "Weight decay of AdamW.", low=0, source="SSR")
    tau: float = setting(0.05, "Temperature of the contrast; the initial one, if it is learned.",
                         low=0.01, source="SSR")
    learn_tau: bool = setting(True, "Learn the temperature.", off="--fixed-tau", source="SSR")
    labels: str = setting(
        "tags", "Class of a region: tags, its own; or clusters, that of the K-means cluster it "
                "falls into, which may drift.", choices=("tags", "clusters"),
        source="vpltool, since tags are known; SSR: clusters")
    background: str = setting(
        "regions", "Words of the background; regions: aligned with where all CAMs are low; words: "
                   "only repelled; none: not used.", choices=("regions", "words", "none"),
        source="vpltool; SSR does not say")
    rows: str = setting(
        "text", "Prototypes of the classes in the result: text, mapped; or regions, the last "
                "prototypes of the regions.", choices=("text", "regions"), source="SSR, eq. 3")
    phi: float = setting(0.4, "A patch counts for a class where its CAM reaches this, with the CAM "
                              "as weight; 0: everywhere.", low=0, high=1, source="as VPL, table 6")
    phi_background: float = setting(
        0.15, "A patch counts for the background where all CAMs are at most this, with 1 - CAM as "
              "weight; 1: everywhere.", low=0, high=1, source="vpltool", no_effect=[_NO_REGIONS])
    max_pixels: int = _phase_one.max_pixels()
    checkpoint_every: int = options.checkpoint_every(500)
    seed: int = options.seed()
    text: str = _phase_one.text(brief=False, reads="words")


STAGE = Stage(order=47, panel="2. Maps and prototypes", reads=("features", "prototypes", "cams"),
              writes=("prototypes", "alignment"), settings=AlignSettings)


def run(workspace: Workspace, settings: AlignSettings) -> Path:
    """Align patches and text prototypes in a new joint space (SSR's CMPA).

    Two small networks map both; they are trained on the regions that CAMs mark. The result holds
    prototypes in that space and the mapping of patches into it: cam, gap and seed-prototypes accept
    it like any other prototypes.

    Example: vpltool align --cams text-refined --iters 600

    Next: vpltool cam --prototypes aligned --method dense

    Raises:
        VplError: an input is missing or does not fit the others, or there are too few tags.
    """
    models.check_words(workspace)
    warn_without_effect(settings)
    opened = _phase_one.open_inputs(workspace, settings, "text", "cams")
    text = _phase_one.text_of(opened)
    header = opened.header_of_split("align", tags=workspace.tags_identity(settings.split))
    target = settings.out or kinds.result_path(workspace.path, "prototypes", "aligned")
    if not headers.check_file(target, header, settings):
        start = checkpoints.read_checkpoint(target, replace(header, kind="alignment"), settings,
                                            keep="`out='FILE'` keeps it")
        regions = _gather(opened, settings)
        with _phase_one.memory_for(len(regions.embeddings)):
            curve = _align(settings, regions, text, patch_source(opened.features), header, target,
                           start)
        console.note(f"loss of patches {curve[0][1]:.3f} → {curve[-1][1]:.3f}, of text "
                     f"{curve[0][2]:.3f} → {curve[-1][2]:.3f}; tau {curve[-1][3]:.3f}")
    return target


def _gather(opened: Opened, settings: AlignSettings) -> alignment.Regions:
    """Read patches and their regions."""
    workspace, ids = opened.workspace, list(opened.available().ids)
    wanted = {*ids}
    tagged = {name for photo in workspace.photos(settings.split) if photo.id in wanted
              for name in photo.tags}
    if len(tagged) < 2:
        found = f"only the tag `{min(tagged)}`" if tagged else "no tag"
        raise VplError(f"the photos of the split `{settings.split}` have {found}; alignment "
                       "needs two classes", "choose a split with more tags: `split='NAME'`")
    ids, share = _phase_one.pixels_per_photo(ids, settings.max_pixels)
    low = settings.phi_background if settings.background == "regions" else None
    pixels, entries, counts, classes = [], [], [], []
    held = 0
    for number, key in enumerate(photo_work.tracked("read features", ids, len(ids))):
        patches = opened.features.read_tensors(key, "patches")["patches"]
        cam = _phase_one.read_maps(opened, key, len(patches))
        weights, class_of = seeds.region_weights(cam["cam"], cam["classes"], settings.phi, low)
        patches, weights = _phase_one.sample_pixels(patches, weights.T, share,
                                                    settings.seed * 1_000_003 + number)
        for weight, index in zip(weights.T, class_of.tolist(), strict=True):
            inside = weight.nonzero()[:, 0]
            if len(inside):
                entries.append((inside + held, weight[inside]))
                counts.append(len(inside))
                classes.append(index)
        pixels.append(patches)
        held += len(patches)
    shown = {*classes} - {0}
    if len(shown) < 2:
        raise VplError(f"no CAMs in {opened.folders['cams'].path} reach `phi={settings.phi}` for "
                       "two classes; alignment needs two",
                       f"lower it: `phi={round(settings.phi / 2, 3)}`")
    absent = [name for index, name in enumerate(workspace.classes, 1) if index not in shown]
    if absent:
        console.warn(f"no regions of {', '.join(absent)}: the text is mapped, not aligned")
    console.note(f"{len(counts)} regions of {len(ids)} photos, {held} patches")
    embeddings = torch.nn.functional.normalize(torch.cat(pixels).float(), dim=-1)
    return alignment.Regions(embeddings.to(device.find_device(settings.device, double=True)),
                             torch.cat([pixel for pixel, _ in entries]),
                             torch.cat([weight for _, weight in entries]), torch.tensor(counts),
                             torch.tensor(classes))


def _align(
    chosen: AlignSettings, regions: alignment.Regions, text: Prototypes, patches: str,
    header: Header, target: Path, start: checkpoints.Start,
) -> list[list[float]]:
    """Train both networks, write prototypes and the map of patches, and return the loss curve."""
    training = alignment.AlignmentSettings(
        iterations=chosen.iters, batch_size=chosen.batch_size, patches=chosen.patches,
        refresh=chosen.refresh, lr=chosen.lr, weight_decay=chosen.weight_decay,
        clusters=chosen.labels == "clusters", seed=chosen.seed)
    where = regions.embeddings.device
    kept = torch.ones_like(text.class_index, dtype=torch.bool)
    if chosen.background == "none":
        kept = text.class_index != 0
    # Initial weights depend only on the seed.
    torch.manual_seed(chosen.seed)
    aligner = alignment.Aligner(
        width=chosen.width, depth=chosen.depth, last_relu=chosen.last_relu,
        shared_start=chosen.init == "shared", tau=chosen.tau, learn_tau=chosen.learn_tau,
        text=text.rows[kept], class_index=text.class_index[kept], regions=regions).to(where)
    optimizer = alignment.make_optimizer(aligner, training)

    def finish() -> tuple[Header, Mapping[str, Tensor]]:
        alignment.refresh(aligner, regions, training)
        space = alignment.AlignedSpace.folded(aligner.vision)
        rows = alignment.AlignedSpace.folded(aligner.text)(text.rows.to(where))
        if chosen.rows == "regions":
            for centre, index in zip(aligner.vision_prototypes, regions.classes.tolist(),
                                     strict=True):
                if index:
                    rows[text.class_index == index] = centre
        facts = {"space": "vision" if chosen.rows == "regions" else "text",
                 "rows": text.header.facts["rows"],
                 "aligned": {"last_relu": chosen.last_relu, "patches": patches},
                 **_changes(regions, text, space, rows)}
        return replace(header, facts=facts), {
            "prototypes": rows.cpu(), "class_index": text.class_index, **space.tensors}

    return checkpoints.take_steps(
        checkpoints.Steps(replace(header, kind="alignment"), target, chosen.iters, aligner,
                          optimizer, ("patches", "text"), chosen.checkpoint_every),
        alignment.train(aligner, optimizer, regions, training, start=start.step), start,
        ranks.Ranks(0, 1, where), finish)


def _changes(regions: alignment.Regions, text: Prototypes, space: alignment.AlignedSpace,
             rows: Tensor) -> JsonObject:
    """Report and return modality gap and class accuracy of the regions, before and after."""
    facts = dict[str, Any](gap={}, accuracy={})
    named = regions.class_of != 0
    owner = regions.class_of[named].to(rows.device)
    index = text.class_index.to(rows.device)
    for name, means, prototypes in (("text", regions.means(), text.rows.to(rows)),
                                    ("aligned", regions.means(space), rows)):
        means = means[named.to(means.device)]
        gap = modality_gap(prototypes, index, means, owner)
        accuracy = alignment.class_accuracy(means, owner, prototypes, index)
        facts["gap"][name] = {"cosine": round(gap.cosine, 5), "centroid": round(gap.centroid, 5)}
        facts["accuracy"][name] = round(accuracy, 5)
        console.note(f"{name}: modality gap (1 - cosine to the regions) {gap.cosine:.3f}, "
                     f"{100 * round(accuracy, 5):.1f} % of the regions nearest to their tag")
    return facts
