"""Bytes on disk, from shapes: the tables of docs/performance.md.

    python benchmarks/disk.py
"""

from __future__ import annotations

from collections.abc import Sequence

DATA = {"VOC": (10582, 24 * 32), "COCO": (82081, 30 * 40)}
"""Training photos, and patches of a photo of 500×375 or 640×480."""

KEPT = {
    "cam": ("tokens",), "cam, refine": ("tokens", "attention"),
    "dense maps, learn-prototypes": ("patches",),
    "all of these (the default)": ("tokens", "patches", "attention"),
    "and a decoder of 4 layers": ("tokens", "patches", "attention", "layers"),
    "a decoder of 4 layers alone": ("patches", "layers"),
    "a decoder of all 11 layers alone": ("patches", "layers"),
}
"""What later commands need, and what `extract --keep` stores for them."""


def bytes_a_photo(keep: Sequence[str], patches: int, *, width: int = 768, dim: int = 512,
                  layers: int = 11) -> int:
    """Bytes of a features file, but for its header of about a kilobyte.

    Args:
        keep: what is stored.
        patches: number of patches h·w.
        width: of the encoder; ViT-B/16's by default.
        dim: of the joint space.
        layers: number of layers, if they are stored.
    """
    values = {"tokens": (1 + patches) * width, "patches": patches * dim, "attention": patches**2,
              "layers": layers * patches * width}
    numbers = 8 * (2 + layers * ("layers" in keep))
    return 2 * sum(values[name] for name in keep) + numbers


def tables() -> str:
    """Markdown."""
    lines = ["| for | `--keep` | "
             + " | ".join(f"{name}, a photo | {name}, {count:,}"
                          for name, (count, _) in DATA.items()) + " |",
             "| --- | --- | ---: | ---: | ---: | ---: |"]
    for purpose, keep in KEPT.items():
        layers = 11 if "all 11" in purpose else 4
        cells = []
        for count, patches in DATA.values():
            size = bytes_a_photo(keep, patches, layers=layers)
            cells.append(f"{size / 1e6:.2f} MB | {size * count / 1e9:,.0f} GB")
        lines.append(f"| {purpose} | `{','.join(keep)}` | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables())
