"""Figure 4: regions as two decoders see them, without and with the contrast; the modality gap."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vpltool import console, formats
from vpltool.core import grids, segmenter, training
from vpltool.engine.features import open_features
from vpltool.engine.headers import check_same_model
from vpltool.engine.segmenters import find_segmenter
from vpltool.errors import VplError
from vpltool.formats.atomic import atomic_path
from vpltool.formats.kinds import result_path, results_of
from vpltool.formats.manifest import MANIFEST
from vpltool.lazy import F, Tensor, np, torch
from vpltool.pictures import scatter
from vpltool.shell import command_line
from vpltool.stages import gap
from vpltool.tables import format_table

MOST_POINTS = 3000

DECODERS = (("decoder-0-0", "decoder-1-0"), ("decoder-ce-0", "decoder-0"))
"""Without and with the contrast, as the recipe `demo` and the tables name them."""


@dataclass(frozen=True)
class Trained:
    """A decoder that was read: its name, file, header and network."""

    name: str
    path: Path
    header: formats.Header
    network: segmenter.SegmenterNetwork


def figure4(options: argparse.Namespace) -> str:
    """Draw region embeddings without and with the regional contrast, and the modality gap.

    Returns:
        the paths of the picture and of its numbers, and the numbers.

    Raises:
        VplError: scikit-learn, matplotlib or an input is missing, or inputs do not fit each other.
    """
    scatter.check_matplotlib("figure4")
    try:
        import sklearn  # noqa: F401 - asked for before the work begins
    except ImportError:
        raise VplError("figure4 needs scikit-learn for t-SNE",
                       "pip install 'vpltool[figures]'") from None
    workspace = formats.open_workspace(options.work)
    decoders = [_read(options.work, name) for name in pair_of(options.work, options.decoders)]
    masks = find_masks(options.work, options.masks, options.split, decoders[0].header)
    workspace.check_classes(masks.header, masks.path)
    features = open_features(workspace, options.features, options.split)
    ids = masks.available(features.available(photo.id for photo in workspace.photos(options.split)))
    for decoder in decoders:
        workspace.check_classes(decoder.header, decoder.path)
        check_same_model(features.header.model, decoder.header.model,
                         f"{features.path} and {decoder.path}")
        _check_layers(options, features, decoder, decoders)
    panels, rows = [], {}
    for letter, decoder in zip("ab", decoders, strict=True):
        embeddings, classes = region_embeddings(decoder.network, features, masks, ids)
        numbers = compactness(embeddings, classes)
        weight = decoder.header.options["lambda_rsc"]
        rows[decoder.name] = {"lambda_rsc": weight, "regions": len(classes),
                              **{key: round(value, 6) for key, value in numbers.items()}}
        contrast = f"with RSC, weight {weight:g}" if weight else "without RSC"
        panels.append(_tsne_panel(f"({letter}) {contrast}", embeddings, classes, numbers))
    panels.append(_gap_panel(workspace, options, decoders[1].header, masks))
    report = {"split": options.split, "masks": masks.name, "photos": len(ids), "decoders": rows}
    return _write(workspace, options, panels, report)


def _write(workspace: formats.Workspace, options: argparse.Namespace,
           panels: Sequence[scatter.Panel], report: formats.JsonObject) -> str:
    out: Path = options.out or options.work / "figures/figure4.png"
    shown = sorted({owner for panel in panels for marks in panel.marks for owner in marks.classes})
    names = {owner: workspace.class_name(owner) for owner in shown}
    with atomic_path(out) as temporary:
        scatter.draw_panels(panels, names, temporary)
    formats.write_json(out.with_suffix(".json"), report)
    cells = [["", "lambda", "regions", "silhouette", "within", "between"]]
    cells += [[name, f"{row['lambda_rsc']:g}", str(row["regions"]), f"{row['silhouette']:.3f}",
               f"{row['within']:.3f}", f"{row['between']:.3f}"]
              for name, row in report["decoders"].items()]
    return "\n".join([str(out), str(out.with_suffix(".json")), format_table(cells, left=1)])


def _read(work: Path, name: str) -> Trained:
    found = find_segmenter(work, name)
    path, network = found.path, found.network()
    if not network.in_joint_space:
        raise VplError(f"{path} has no embeddings to draw: it is of the method "
                       f"{found.method}", "name decoders of `train_decoder()`")
    return Trained(name, path, found.header, network)


def pair_of(work: Path, named: str | None) -> list[str]:
    """The two decoders: named, or the first usual pair that is there."""
    if named:
        return named.split(",")
    for pair in DECODERS:
        if all(result_path(work, "decoder", name).exists() for name in pair):
            return list(pair)
    return list(DECODERS[0])


def find_masks(work: Path, name: str, split: str, decoder: formats.Header) -> formats.InputFolder:
    """Pseudo masks of a split: named, or of the name that the decoder learned from.

    Raises:
        VplError: they are not there.
    """
    learned = Path(decoder.sources.get("masks", "")).parts
    if not name and learned[:1] == ("masks",):
        name = learned[1]
    if name and not (result_path(work, "masks", name, split) / MANIFEST).exists():
        raise VplError(f"no masks/{name} for the split `{split}`",
                       f"`crf(what={name!r}, split={split!r})`, or another --split")
    return formats.find_folder(work, ("masks",), name, split, f"`crf(split={split!r})`")


def _check_layers(options: argparse.Namespace, features: formats.InputFolder, decoder: Trained,
                  decoders: Sequence[Trained]) -> None:
    """Refuse features without what a decoder reads; the hint makes others beside them."""
    held, network = features.header.options, decoder.network
    if set(network.reads) <= set(held["keep"]) and set(network.layers) <= set(held["layers"]):
        return
    wanted = sorted({layer for other in decoders for layer in other.network.layers})
    folder = options.work / "layers" / options.split
    line = command_line("extract", {
        "split": options.split, "keep": "tokens,patches,attention,layers",
        "layers": ",".join(map(str, wanted)), "out": folder}, ("vpltool", "-C", str(options.work)))
    raise VplError(f"{features.path} lacks layers or patches that {decoder.name} reads",
                   f"{line}, and --features {folder}")


def region_embeddings(network: segmenter.SegmenterNetwork, features: formats.InputFolder,
                      masks: formats.InputFolder, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Mean embedding of each class of each pseudo mask, as a decoder has them.

    255 and the background are left out; features and masks have all photos of `ids`.

    Returns:
        L2-normed (R, dim), and the class of each (R,). Regions smaller than a patch do not count.

    Raises:
        VplError: there are regions of fewer than two classes.
    """
    embeddings, classes = [], []
    reads = network.reads
    names = ("grid", *reads, *(("layer_index",) if "layers" in reads else ()))
    with console.progress("read regions", len(ids)) as advance, torch.no_grad():
        for key in ids:
            tensors = features.read_tensors(key, *names)
            grid = tuple(tensors["grid"].tolist())
            layers = (grids.layers_of(tensors["layers"], tensors["layer_index"].tolist(),
                                network.layers)[None].float() if "layers" in reads else None)
            patches = tensors["patches"][None].float() if "patches" in reads else None
            seen = network.embeddings(layers, patches, grid)[0]
            labels = training.labels_at(masks.read_labels(key), grid)
            for owner in labels.unique().tolist():
                inside = F.avg_pool2d((labels == owner)[None].float(), 4).flatten()
                if owner not in (0, 255) and float(inside.sum()) >= 1:
                    embeddings.append(F.normalize(inside @ seen, dim=0))
                    classes.append(owner)
            advance()
    if len(set(classes)) < 2:
        raise VplError(f"{masks.path} shows regions of {len(set(classes))} classes",
                       "two are needed: other --masks, or another --split")
    return torch.stack(embeddings), torch.tensor(classes)


def compactness(embeddings: Tensor, classes: Tensor) -> dict[str, float]:
    """How compact and how far apart the classes are, in the space of the embeddings.

    Embeddings are L2-normed (R, dim), of classes (R,), two at least.

    Returns:
        `silhouette` (Rousseeuw 1987, of cosine distances, mean over the regions), `within` and
        `between`: mean cosine of pairs of one class, and of two.
    """
    from sklearn.metrics import silhouette_score

    cosines = embeddings @ embeddings.T
    same = classes[:, None] == classes
    others = ~torch.eye(len(classes), dtype=torch.bool)
    return {"silhouette": float(silhouette_score(embeddings.numpy(), classes.numpy(),
                                                 metric="cosine")),
            "within": float(cosines[same & others].mean()), "between": float(cosines[~same].mean())}


def _tsne_panel(title: str, embeddings: Tensor, classes: Tensor, numbers: Mapping[str, float]
                ) -> scatter.Panel:
    """t-SNE from a PCA start: the same picture each time."""
    from sklearn.manifold import TSNE

    # Evenly thinned: the numbers are of all, the picture of a part.
    kept = torch.linspace(0, len(classes) - 1, min(len(classes), MOST_POINTS)).round().long()
    perplexity = min(30.0, (len(kept) - 1) / 3)
    points = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(
        embeddings[kept].numpy())
    note = ",  ".join(f"{name} {value:.2f}" for name, value in numbers.items())
    return scatter.Panel(title, note.replace("within", "cosine within"), [scatter.Marks(
        "region of a photo", "dot", points.astype(np.float64), classes[kept].tolist())])


def _gap_panel(workspace: formats.Workspace, options: argparse.Namespace, decoder: formats.Header,
               masks: formats.InputFolder) -> scatter.Panel:
    """The modality gap of the text and of the decoder's prototypes."""
    own = [path.stem for path in results_of(options.work, "prototypes")
           if formats.identity_of_file(path) == decoder.inputs["prototypes"]]
    choices = (options.prototypes.split(",") if options.prototypes
               else ["text", *(name for name in own[:1] if name != "text")])
    cams = options.cams
    beside = result_path(options.work, "cams", masks.name, options.split)
    if not cams and (beside / MANIFEST).exists():
        cams = masks.name
    panel = gap.panel(workspace, gap.GapSettings(
        prototypes=tuple(choices), cams=cams, phi=options.phi, features=options.features,
        split=options.split))
    return replace(panel, title=f"(c) {panel.title}")
