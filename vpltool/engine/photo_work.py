"""The common loop of per-photo stages: find remaining work, start, write results, finish."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from vpltool import console
from vpltool.core.photos import PhotoSettings
from vpltool.engine.features import smaller_side_hint
from vpltool.engine.photos import SEE_THE_DISK, Photos
from vpltool.errors import PhotosFailed, VplError, part_of
from vpltool.formats import Header, OutputFolder, changes, finish_all, kinds, open_output
from vpltool.formats.labels import read_labels
from vpltool.lazy import np, npt, torch
from vpltool.options import PerPhoto
from vpltool.parallel import batches as batching
from vpltool.parallel import memory, once
from vpltool.parallel.device import find_device, worker_count
from vpltool.parallel.threads import write_behind


@dataclass(frozen=True)
class Failed:
    """The reason why a photo failed; work on the others continues."""

    reason: str


Made = tuple[str, Any]
"""A photo's id, and its result or `Failed`."""

Batch = TypeVar("Batch", bound="memory.Divisible")
Item = TypeVar("Item")


def tracked(title: str, items: Iterable[Item], total: int) -> Iterator[Item]:
    """Yield items, and show the progress of the work on them.

    An iterator of threads must be passed without a name, so that an interrupt closes it at once.
    """
    with console.progress(title, total) as advance:
        for item in items:
            yield item
            advance()


def open_outputs(
    folders: Mapping[Path, Header], photos: Photos, settings: PerPhoto, labels: int
) -> list[OutputFolder]:
    """Open a stage's output folders, the main one first; nothing is changed yet.

    `labels` is the number of labels including the background.

    Raises a VplError if a folder was made with other settings, or another command is writing to it.
    """
    for path in folders:
        once.write_alone(path)
    return [replace(open_output(path, header, photos.ids,
                                overwrite=settings.overwrite, update=settings.update,
                                left_out=photos.left_out, whole=photos.whole,
                                per_photo_inputs=photos.per_photo_inputs,
                                shard=photos.shard, photos=photos.hashes), labels=labels)
            for path, header in folders.items()]


def make_photos(
    title: str, outputs: Sequence[OutputFolder],
    start: Callable[[list[str]], Iterable[Made]],
    write: Callable[[OutputFolder, str, Any], None], settings: PerPhoto,
    on_start: Callable[[], None] | None = None, reads: Mapping[str, Path] | None = None,
) -> list[Path]:
    """Process all remaining photos of a stage, and write the results.

    Args:
        start: called with the remaining ids. It must load models and make all checks before it
            returns an iterator over results; earlier results are deleted only after that.
        write: writes one photo's result to one of the outputs.
        settings: device and batch size. On a GPU a thread writes, with up to a batch pending.
        on_start: called once the outputs have begun, to write files that belong to them.
        reads: path by id, of photos that the work opens.

    Returns:
        paths of the outputs.

    Raises:
        VplError: photos are missing whose earlier results would be deleted.
        PhotosFailed: some photos failed; the others are done.
    """
    _check_there(outputs, reads or {})
    todo = list(dict.fromkeys(key for output in outputs for key in output.todo))
    results = start(todo) if todo else ()
    before = {output.path: _labels_before(output) for output in outputs}
    for output in outputs:
        output.begin()
    if on_start is not None:
        on_start()
    pending = [(output, set(output.todo)) for output in outputs]

    def put(key: str, made: object) -> None:
        for output, keys in pending:
            if isinstance(made, Failed):
                output.fail(key, made.reason)
            elif key in keys:
                try:
                    write(output, key, made)
                except kinds.BadValues as error:
                    output.fail(key, error.reason)

    with contextlib.ExitStack() as stack:
        stack.enter_context(_withdrawing(outputs))
        for output in outputs:
            stack.enter_context(output.together())
        with (console.progress(title, len(todo)) as advance,
              write_behind(put, _write_ahead(settings) if todo else 0) as write_out):
            for key, made in results:
                write_out(key, made)
                advance()
    _tell_changes(outputs, before)
    return _finish(outputs, reads or {})


@contextlib.contextmanager
def _withdrawing(outputs: Sequence[OutputFolder]) -> Iterator[None]:
    """Remove new outputs if an exception ends the block before their first file."""
    try:
        yield
    except Exception:
        for output in outputs:
            output.withdraw()
        raise


def _finish(outputs: Sequence[OutputFolder], paths: Mapping[str, Path]) -> list[Path]:
    """Finish the outputs; the hint of an error names the path of a failed photo that is gone."""
    try:
        return finish_all(outputs)
    except PhotosFailed as error:
        # Reasons are kept in manifests, which name no folder.
        gone = [paths[key] for key in error.photos if key in paths and not paths[key].exists()]
        error.hint = f"{gone[0]} is not there; {error.hint}" if gone else error.hint
        raise


def _check_there(outputs: Sequence[OutputFolder], paths: Mapping[str, Path]) -> None:
    """Check that photos whose results would be replaced are readable."""
    for output in outputs:
        old = [key for key in output.todo if key in paths and output.holds(key)]
        gone = [key for key in old if not os.access(paths[key], os.R_OK)]
        if gone:
            raise VplError(
                part_of(len(gone), len(old), "photos", "is", "are") + " gone or cannot be read, "
                f"and {output.path} holds results of {'it' if len(gone) == 1 else 'them'}, which "
                f"would be deleted: {', '.join(str(paths[key]) for key in gone[:3])}"
                f"{' …' if gone[3:] else ''}",
                SEE_THE_DISK)


def _write_ahead(settings: PerPhoto) -> int:
    return settings.batch_size if find_device(settings.device).type == "cuda" else 0


_MANY = 2000
"""Number of photos from which reading image sizes is slow enough for a progress bar."""


def count_sizes(total: int) -> Callable[[], None]:
    """Show progress of reading photo sizes; call the returned function after each photo."""
    if total < _MANY:
        return lambda: None
    stack = contextlib.ExitStack()
    advance = stack.enter_context(console.progress("read sizes", total))
    left = total

    def sized() -> None:
        nonlocal left
        advance()
        left -= 1
        if not left:
            stack.close()

    return sized


def run_batches(
    batches: Iterable[Batch], run: Callable[[Batch], Iterable[Made]],
    too_large: Callable[[Batch], str],
) -> Iterator[Made]:
    """Run batches, and yield results photo by photo; batches that exceed memory are split.

    Photos in `batch.failed` could not be read. `too_large` says what to change where memory does
    not suffice for one photo, which fails then.
    """
    def failures(batch: Batch) -> list[Made]:
        failed: Mapping[str, str] = getattr(batch, "failed", {})
        return [(key, Failed(reason)) for key, reason in failed.items()]

    def run_one(batch: Batch) -> list[Made]:
        return [*failures(batch), *(run(batch) if len(batch) else ())]

    def fail_one(batch: Batch) -> list[Made]:
        return [*failures(batch), (batch.ids[0], too_large_photo(batch.each, too_large(batch)))]

    for _, made in memory.run_within_memory(batches, run_one, warn=console.warn,
                                            too_large=fail_one):
        yield from made


def too_large_photo(size: str, hint: str) -> Failed:
    """Return the failure of a photo of a size for which memory does not suffice."""
    return Failed(f"out of memory with a photo of {size}; try {hint}")


def run_photos(
    paths: Mapping[str, Path], preprocess: PhotoSettings,
    run: Callable[[batching.Batch], Iterable[Made]], *,
    device: torch.device, batch_size: int, workers: int,
    too_large: Callable[[batching.Batch], str] = smaller_side_hint,
) -> Iterator[Made]:
    """Run a network over photos read by worker processes; see `load_batches` and `run_batches`."""
    return run_batches(batching.load_batches(
        list(paths.items()), preprocess, device=device, batch_size=batch_size,
        workers=worker_count(workers), sized=count_sizes(len(paths))), run, too_large)


MOST_COMPARED = 200
"""Maximum number of photos to compare; of more, every nth."""


Compressed: TypeAlias = "Callable[[], npt.NDArray[np.uint8]]"
"""A function that returns compressed labels (H, W)."""


def compressed(labels: npt.NDArray[np.uint8]) -> Compressed:
    """Compress labels (H, W), because labels of hundreds of photos are held in memory."""
    size, kind, content = labels.shape, labels.dtype, zlib.compress(labels.tobytes(), 1)
    return lambda: np.frombuffer(zlib.decompress(content), kind).reshape(size)


def _labels_before(output: OutputFolder) -> dict[str, Compressed]:
    """Return label images about to be replaced, by id; empty if the files are not labels."""
    if kinds.KINDS[output.header.kind].layout != "labels-folder":
        return {}
    there = [key for key in output.todo if output.path_of(key).exists()]
    found = {}
    for key in there[:: -(-len(there) // MOST_COMPARED) or 1]:
        # Damaged files are replaced without a comparison.
        with contextlib.suppress(VplError):
            found[key] = compressed(read_labels(output.path_of(key)))
    return found


def _tell_changes(outputs: Sequence[OutputFolder], before: Mapping[Path, Mapping[str, Compressed]]
                  ) -> None:
    """Report the share of pixels whose label has changed, folder by folder."""
    for output in outputs:
        photos = changed = pixels = 0
        for key, unpack in before[output.path].items():
            try:
                labels, old = read_labels(output.path_of(key)), unpack()
            except VplError:
                # The photo failed in this run.
                continue
            # Another size means another photo of the same name.
            if labels.shape == old.shape:
                photos += 1
                changed += int((old != labels).sum())
                pixels += labels.size
        if changed:
            console.note(f"{output.path}: {100 * changed / pixels:.1f} % of the pixels have "
                         f"another label than before ({changes.count_photos(photos)} compared)")
