"""Setup of the tables: their workspace, and checks before the first row."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vpltool import api, console
from vpltool.clip import encoders
from vpltool.core.photos import fit_size, photo_size
from vpltool.errors import OtherSettings, VplError
from vpltool.formats import Photo, Workspace, open_workspace, read_json, write_json
from vpltool.formats.changes import differing
from vpltool.formats.workspace import relative_to, write_workspace
from vpltool.papers.tables.chains import Chains, listed
from vpltool.papers.tables.rows import made_scored, unmasked
from vpltool.settings import Settings, values_of
from vpltool.stages._truth import check_truth

QUICK: Mapping[str, Mapping[str, object]] = {
    "learn-prototypes": {"iters": 300, "max_pixels": 20_000},
    "train-decoder": {"iters": 100}}
"""What `--quick` sets, by stage; `--set` wins over it, and so does what a row is about."""


def first_split(workspace: Workspace, wanted: Sequence[str]) -> str:
    """The first of some splits that a workspace has.

    Raises:
        VplError: it has none of them.
    """
    known = {split for photo in workspace.photos() for split in photo.splits}
    for split in wanted:
        if split in known:
            return split
    hint = f"--learn takes one of: {', '.join(sorted(known))}"
    if "train_aug" in wanted:
        hint = ("put the augmented list into ImageSets/Segmentation, or give it to prepare by "
                f"--list FILE; else {hint}")
    raise VplError(f"{workspace.path} has no split {' or '.join(wanted)}", hint)


def own_workspace(work: Path, name: str, preset: str) -> api.Workspace:
    """Make, or find, a workspace of the same photos in WORK/tables."""
    source, path = open_workspace(work), work / "tables" / name
    path.mkdir(parents=True, exist_ok=True)
    weights = work / source.pretrained
    found = encoders.find_encoder(source.encoder, (work,)) if source.encoder else None
    write_workspace(replace(
        source, path=path, root=relative_to(work / source.root, path),
        pretrained=relative_to(weights, path) if weights.exists() else source.pretrained,
        encoder=(found.setting(relative_to(found.path, path)) if found and found.path
                 else source.encoder)), source.photos())
    return api.Workspace(path, preset=preset)


def keep_protocol(chains: Chains) -> None:
    """Write down the protocol of a folder; if one is there, check that it is the same.

    Otherwise what a first run made would be recomputed under a second protocol, file by file.

    Raises:
        OtherSettings: the folder was made under another one.
    """
    path, now = chains.path, chains.protocol()
    file = path / "protocol.json"
    before = read_json(file, "") if file.exists() else now
    changes = [f"{name} was {before.get(name, 'the default')}, now {now.get(name, 'the default')}"
               for name in differing(before, now)]
    if changes:
        raise OtherSettings(f"{path} was made under another protocol: {'; '.join(changes)}",
                            f"--name {path.name}-2 starts over beside it; or take away {path}")
    write_json(file, now)


def check(chains: Chains, numbers: Collection[int]) -> None:
    """Find before the work what would end it: splits without masks, masks of another size, disk.

    Raises:
        VplError: something that a table would score cannot be scored.
    """
    source = chains.source
    scored = {chains.cut, *(made_scored(chains) if number == 1 else chains.split
                              for number in numbers
                              if number != 2 or not unmasked(chains, chains.split))} - {""}
    for split in sorted(scored):
        photos = source.photos(split)
        if without := unmasked(chains, split):
            masked = sorted({name for photo in source.photos() if photo.mask
                             for name in photo.splits})
            raise VplError(f"{without} of {len(photos)} photos of `{split}` have no true mask to "
                           "score with", f"--split takes one of: {', '.join(masked) or 'none'}")
        check_truth(source, photos)
    splits = {chains.learn, chains.cut, *([chains.split] if {*numbers} - {1, 2} else [])} - {""}
    splits = {split for split in splits if not chains.stored_features(split)}
    photos = [photo for photo in source.photos() if splits & {*photo.splits}]
    if not photos:
        return
    needed = expected_bytes(source, photos, chains.settings("extract"))
    free = shutil.disk_usage(chains.path).free
    message = (f"features of {len(photos):,} photos take about {needed / 1e9:.1f} GB by ViT-B/16; "
               f"{free / 1e9:.0f} GB are free at {chains.path}")
    (console.warn if needed > free else console.note)(message)


def bytes_a_photo(keep: Sequence[str], patches: int, *, width: int = 768, dim: int = 512,
                  layers: int = 11) -> int:
    """Bytes of a features file of so many patches h·w, but for its header of about a kilobyte.

    `keep` is what is stored; `width` is the encoder's, by default ViT-B/16's, and `dim` the joint
    space's; `layers` is the number of layers, if they are stored.
    """
    values = {"tokens": (1 + patches) * width, "patches": patches * dim, "attention": patches**2,
              "layers": layers * patches * width}
    numbers = 8 * (2 + layers * ("layers" in keep))
    return 2 * sum(values[name] for name in keep) + numbers


def expected_bytes(workspace: Workspace, photos: Sequence[Photo], wanted: Settings) -> float:
    """About how many bytes the features of photos take, for ViT-B/16, from the first of them."""
    values = values_of(wanted)
    some = photos[:20]
    sizes = [bytes_a_photo(listed(values["keep"]),
                           _patches_of(workspace.image_path(photo), values["max_side"]))
             for photo in some]
    return sum(sizes) / max(len(some), 1) * len(photos)


def _patches_of(path: Path, max_side: int) -> int:
    """Patches of a photo, 16 pixels a side; 0 if it cannot be read."""
    try:
        height, width = fit_size(photo_size(path), 16, max_side=max_side)
    except OSError:
        return 0
    return height * width // 256
