"""`pack`: features of many photos in a few tars, if one file per photo is too many."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool import console, options
from vpltool.engine import photos
from vpltool.engine.features import open_features
from vpltool.errors import VplError, counted
from vpltool.formats import InputFolder, Workspace, packed
from vpltool.parallel import once
from vpltool.settings import Settings, Stage, setting


@dataclass(frozen=True, kw_only=True)
class PackSettings(Settings):
    """Settings of `pack`."""

    to: str = setting("", "Where the tars go; a folder, or an address such as s3://BUCKET/FOLDER. "
                          "Default: .packed in the folder of the features.", metavar="ADDRESS",
                      record="never", by_hand=True)
    size: int = setting(1000, "Size of a tar in megabytes; then the next one is started.", low=1,
                        metavar="MB", record="never")
    split: str = options.split("train")
    features: Path | None = options.features()
    shard: str = options.shard()


STAGE = Stage(order=32, panel="1. Begin", reads=("features",), writes=(), settings=PackSettings)


def run(workspace: Workspace, settings: PackSettings) -> Path:
    """Pack the features of many photos into a few tars; all commands can read them.

    A tar holds the ID.safetensors of several hundred photos. An index in the features folder says
    where each photo is, so that a command reads only the bytes it needs. A photo's own file is
    deleted once its tar and index are complete. To get the files back, unpack the tars into the
    folder and delete its .packed.

    Example: vpltool pack --split train --to s3://BUCKET/features

    Next: vpltool cam --split train

    Returns:
        the folder of the features.

    Raises:
        VplError: there are no features, or a tar cannot be written.
    """
    shard = photos.chosen_shard(settings.shard)
    features = open_features(workspace, settings.features, settings.split)
    ids = photos.assigned([photo.id for photo in workspace.photos(settings.split)], shard)
    once.write_alone(features.path)
    files = _left(features, ids)
    at = settings.to
    if at and "://" not in at:
        at = f"file://{Path(at).resolve()}"
    # Tars are numbered after those of earlier runs of this shard.
    stem = re.compile(rf"{shard.index}-of-{shard.count}-(\d{{6,}})")
    done = [stem.fullmatch(index.stem) for index in (features.path / packed.PACKED).glob("*.json")]
    number = max((int(match[1]) + 1 for match in done if match), default=0)
    with console.progress(f"pack {settings.split}", len(files)) as advance:
        for batch in _batches(files, settings.size * 1_000_000):
            name = f"{shard.index}-of-{shard.count}-{number:06}"
            entry = packed.write_tar(features.path, name, at, batch)
            _delete(batch)
            console.note(f"{counted(len(batch), 'photo is', 'photos are')} in {entry}")
            number += 1
            advance(len(batch))
    return features.path


def _left(features: InputFolder, ids: Sequence[str]) -> dict[str, Path]:
    """Return the files to pack by id, and delete files that a killed run has packed."""
    files = {key: path for key in ids if (path := features.path_of(key)).exists()}
    for key in files.keys() & features.packed.keys():
        entry, path = features.packed[key], files[key]
        if packed.read_packed(entry, key + path.suffix) == path.read_bytes():
            _delete({key: files.pop(key)})
    return files


def _batches(files: Mapping[str, Path], size: int) -> Iterator[dict[str, Path]]:
    """Yield the files of each tar, in order."""
    batch: dict[str, Path] = {}
    held = 0
    for key, path in files.items():
        batch[key] = path
        held += path.stat().st_size
        if held >= size:
            yield batch
            batch, held = {}, 0
    if batch:
        yield batch


def _delete(files: Mapping[str, Path]) -> None:
    try:
        for path in files.values():
            path.unlink(missing_ok=True)
    except OSError as error:
        raise VplError(f"cannot delete {path}, which is packed: {error.strerror}",
                       "run the same command again to delete it") from error
