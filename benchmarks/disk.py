"""Bytes on disk, from shapes: the tables of docs/performance.md.

    python benchmarks/disk.py
"""

from __future__ import annotations

from vpltool.papers.tables.setup import bytes_a_photo

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
