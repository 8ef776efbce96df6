"""Splits that `prepare` makes: halves, and photos held out from training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vpltool.errors import VplError, near_name
from vpltool.formats import Photo


def halve(photos: Sequence[Photo], split: str, before: Sequence[Photo]) -> list[Photo]:
    """Divide the photos of a split, unless it is empty, between the halves SPLIT-a and SPLIT-b.

    Photos that were in a half before stay there.

    Raises:
        VplError: there is no such split.
    """
    if not split:
        return list(photos)
    if not any(split in photo.splits for photo in photos):
        known = {name for photo in photos for name in photo.splits}
        raise VplError(f"`halve={split!r}`: no such split", near_name(split, known))
    halves = (f"{split}-a", f"{split}-b")
    chosen = {photo.id: name for photo in before for name in halves if name in photo.splits}
    wanted = [photo.id for photo in photos if split in photo.splits]
    sizes = Counter(chosen[key] for key in wanted if key in chosen)
    for key in wanted:
        if key not in chosen:
            chosen[key] = min(halves, key=lambda name: sizes[name])
            sizes[chosen[key]] += 1
    return [replace(photo, splits=(*photo.splits, chosen[photo.id]))
            if split in photo.splits else photo for photo in photos]


def hold_out(photos: Sequence[Photo], every: int, before: Sequence[Photo], *,
             unlisted: bool = False) -> list[Photo]:
    """Move every Nth tagged photo from `train` to `val`, unless the data set has a `val`.

    So is one of each class of at least N photos that has none there; and every Nth photo without a
    tag, unless some are `unlisted`: nobody has said that these show no class.

    The last photo of a class in `train` stays, since a class without photos there has no seeds; the
    next photo is moved instead. Photos of `before` keep their split, and new ones fill up `val`; if
    a class has lost its last photo in `train` since, one goes back. If `every` is 0, none is moved.
    """
    if not every or any("val" in photo.splits for photo in photos):
        return list(photos)
    earlier = {photo.id: photo for photo in before}
    wanted = [photo for photo in photos if "train" in photo.splits and photo.tags]
    if len(wanted) < 2:
        return list(photos)
    held = {photo.id for photo in wanted
            if photo.id in earlier and "val" in earlier[photo.id].splits}
    left = Counter(label for photo in wanted if photo.id not in held for label in photo.tags)
    for photo in wanted:
        if photo.id in held and any(not left[label] for label in photo.tags):
            held.remove(photo.id)
            left.update(photo.tags)
    new = [photo for photo in wanted if photo.id not in earlier] if held else wanted
    for start in range(0, len(new), every)[:max(0, -(-len(wanted) // every) - len(held))]:
        free = (photo for photo in new[start : start + every]
                if all(left[label] > 1 for label in photo.tags))
        if chosen := next(free, None):
            held.add(chosen.id)
            left.subtract(chosen.tags)
    # A class without a photo in `val` would have no score.
    counts = Counter(label for photo in wanted for label in photo.tags)
    for label, count in sorted(counts.items(), key=lambda entry: (entry[1], entry[0])):
        scored = any(photo.id in held and label in photo.tags for photo in wanted)
        chosen = next((photo for photo in new if label in photo.tags and photo.id not in held
                       and all(left[other] > 1 for other in photo.tags)), None)
        if count >= every and not scored and chosen:
            held.add(chosen.id)
            left.subtract(chosen.tags)
    held |= _held_untagged(photos, every, earlier, grows=bool(held) and not unlisted)
    return [_moved(photo) if photo.id in held else photo for photo in photos]


def _held_untagged(photos: Sequence[Photo], every: int, earlier: Mapping[str, Photo], *,
                   grows: bool) -> set[str]:
    """Return the photos without a tag that are held out: those of before, and new ones if `grows`.

    One stays in `train`. In a workspace with a `val`, photos that it has keep their split.
    """
    untagged = [photo.id for photo in photos if "train" in photo.splits and not photo.tags]
    held = {key for key in untagged if key in earlier and "val" in earlier[key].splits}
    if not grows or len(untagged) < 2:
        return held
    divided = any("val" in photo.splits for photo in earlier.values())
    new = [key for key in untagged if key not in earlier] if divided else untagged
    return held | {*new[::every][:max(0, -(-len(untagged) // every) - len(held))]}


def _moved(photo: Photo) -> Photo:
    return replace(photo, splits=tuple("val" if split == "train" else split
                                       for split in photo.splits))


def hold_out_files(photos: Sequence[Photo], every: int, before: Sequence[Photo],
                   file_of: Mapping[str, str], *, unlisted: bool = False
                   ) -> tuple[list[Photo], list[str]]:
    """Hold out whole files, as `hold_out` does photos; return the photos, and a remark or none.

    Tiles and frames of a file resemble their neighbours, so those held out beside others of
    `train` would be segmented better than new files. Still they are, with a remark, if there are
    fewer than `every` files, or if a file has been divided before.

    Args:
        file_of: file or folder by id, of photos that are parts of one; of copies, the first's id.
    """
    if not file_of:
        return hold_out(photos, every, before, unlisted=unlisted), []

    def files_of(parts: Sequence[Photo]) -> dict[str, Photo]:
        found: dict[str, Photo] = {}
        for part in parts:
            name = file_of.get(part.id, part.id)
            file = found.get(name, Photo(name, name, (), ()))
            found[name] = replace(file, tags=tuple(dict.fromkeys((*file.tags, *part.tags))),
                                  splits=tuple(dict.fromkeys((*file.splits, *part.splits))))
        return found

    files, earlier = files_of(photos), files_of(before)
    tagged = sum("train" in file.splits and bool(file.tags) for file in files.values())
    divided = any({"train", "val"} <= {*file.splits} for file in earlier.values())
    held = set[str]() if divided or tagged < every else {
        file.id for file in hold_out([*files.values()], every, [*earlier.values()],
                                     unlisted=unlisted)
        if "val" in file.splits and "val" not in files[file.id].splits}
    if not held:
        parts = hold_out(photos, every, before, unlisted=unlisted)
        why = ("as before, which `overwrite=True` ends" if divided else
               f"since there are {tagged} tagged files, not {every}" if tagged < every else
               "since each file is the only one with some class")
        apart = parts != list(photos) and any({"train", "val"} <= {*file.splits}
                                              for file in files_of(parts).values())
        return parts, [f"parts or copies of the same files are in `train` and `val`, {why}; they "
                       "resemble each other, so scores will be too good: put whole files into "
                       "`val` in the column `split` of the CSV"] * apart
    return [_moved(photo) if file_of.get(photo.id, photo.id) in held else photo
            for photo in photos], []
