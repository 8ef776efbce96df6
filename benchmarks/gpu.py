"""The same stages on a GPU, against the plain way on the same GPU; in under eight minutes.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --quick     # checks the script, measures no GPU

Our commands run over up to 1,536 photos, copies of 200 drawn ones in VOC's sizes. Nothing is run
over all 10,582: the last table extends the seconds a photo, start-up included. Lines are printed
and written as they come, so that an error or a limit of time loses none of those before it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from bench import page, run
from measure import Row, table
from stages import STAGES, TOY, Bench, Sizes

from vpltool.clip.load import load_clip
from vpltool.core.photos import PhotoSettings
from vpltool.parallel.batches import load_batches
from vpltool.parallel.device import dtype_of, worker_count

FULL = Sizes(rounds=2, photos=(48, 1536), learn_photos=512, product_pixels=2**21,
             crf_photos=(12, 384), decoder_photos=192, decoder_steps=(12, 240),
             predict_photos=(24, 384), batch_size=32)
UNMEASURED = "No CUDA device here: the GPU column is not measured."


def main(argv: list[str] | None = None) -> int:
    """Run the stages and what only a GPU asks for; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="toy sizes: checks the script")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--only", default=",".join([*STAGES, "idle"]))
    parser.add_argument("--out", type=Path, help="also write the table of a whole run here")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(UNMEASURED)
        return 0
    known: dict[str, Callable[[Bench], Iterator[Row]]] = {**STAGES, "idle": idle}
    sizes = TOY if options.quick else FULL
    whole = not options.quick and options.only == parser.get_default("only")
    where = ("" if device.type == "cuda"
             else f"{UNMEASURED} What follows is this script on {device}.")

    def save(head: str, rows: Sequence[Row], note: str = "") -> str:
        text = "\n\n".join(part for part in (where, note, page(head, rows, device.type, sizes))
                           if part)
        if options.out and whole:
            options.out.write_text(f"# On a GPU\n\nWritten by `make bench-gpu`.\n\n{text}", "utf-8")
        return text

    def told(head: str, rows: Sequence[Row]) -> None:
        print(table(rows[-1:], device.type).split("\n")[2], flush=True)
        save(head, rows, "**Not finished**: what was measured so far.")

    rows, head = run({name: known[name] for name in options.only.split(",")}, sizes, device,
                     options.precision, told)
    print(save(head, rows))
    return int(any(row.error for row in rows))


def idle(bench: Bench) -> Iterator[Row]:
    """What share of the time the encoder waits for photos that are decoded."""
    world, (_, many) = bench.world, bench.sizes.photos
    clip = load_clip(world.model, str(world.base / "clip"), bench.device)
    vision = clip.vision.to(dtype_of(bench.precision))
    settings = PhotoSettings(vision.patch, clip.mean, clip.std)

    def decoded() -> Iterator[torch.Tensor]:
        for batch in load_batches(list(world.first(many).items()), settings, device=bench.device,
                                  batch_size=bench.sizes.batch_size, workers=worker_count(-1)):
            yield batch.pixels

    def encode(batches: Iterable[torch.Tensor]) -> float:
        started = time.perf_counter()
        for pixels in batches:
            vision(pixels.to(bench.device, vision.cls.dtype, non_blocking=True))
        if bench.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    encode(list(islice(decoded(), 2)))
    both = encode(decoded())
    started = time.perf_counter()
    kept = list(decoded())
    decoding, encoding = time.perf_counter() - started, encode(kept)
    share = 100 * max(0.0, 1 - encoding / both)
    yield Row("encoder waits for decoded photos", share, (share, share), {"cuda": 5},
              (many / decoding, many / encoding), (0, 0), unit="% of the time",
              reason=f"decoding alone gives {decoding / encoding:.2g} times the time of encoding "
                     f"alone, with {worker_count(-1)} processes and their start",
              check=f"decoding alone {many / decoding:.0f} photos a second in "
                    f"{worker_count(-1)} processes, encoding alone {many / encoding:.0f}, "
                    f"together {many / both:.0f}; the start of the processes is part of it")


if __name__ == "__main__":
    sys.exit(main())
