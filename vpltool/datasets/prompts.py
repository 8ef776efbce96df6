"""Texts of classes: prompt templates, with one `{}` for the class word, and descriptions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vpltool.errors import VplError, near_name
from vpltool.json_text import parse_json

_IMAGENET_80 = tuple("""
a bad photo of a {}.|a photo of many {}.|a sculpture of a {}.|a photo of the hard to see {}.
a low resolution photo of the {}.|a rendering of a {}.|graffiti of a {}.|a bad photo of the {}.
a cropped photo of the {}.|a tattoo of a {}.|the embroidered {}.|a photo of a hard to see {}.
a bright photo of a {}.|a photo of a clean {}.|a photo of a dirty {}.|a dark photo of the {}.
a drawing of a {}.|a photo of my {}.|the plastic {}.|a photo of the cool {}.
a close-up photo of a {}.|a black and white photo of the {}.|a painting of the {}.
a painting of a {}.|a pixelated photo of the {}.|a sculpture of the {}.
a bright photo of the {}.|a cropped photo of a {}.
a plastic {}.|a photo of the dirty {}.|a jpeg corrupted photo of a {}.|a blurry photo of the {}.
a photo of the {}.|a good photo of the {}.|a rendering of the {}.|a {} in a video game.
a photo of one {}.|a doodle of a {}.|a close-up photo of the {}.|a photo of a {}.
the origami {}.|the {} in a video game.|a sketch of a {}.|a doodle of the {}.
a origami {}.|a low resolution photo of a {}.|the toy {}.|a rendition of the {}.
a photo of the clean {}.|a photo of a large {}.|a rendition of a {}.|a photo of a nice {}.
a photo of a weird {}.|a blurry photo of a {}.|a cartoon {}.|art of a {}.
a sketch of the {}.|a embroidered {}.|a pixelated photo of a {}.|itap of the {}.
a jpeg corrupted photo of the {}.|a good photo of a {}.|a plushie {}.|a photo of the nice {}.
a photo of the small {}.|a photo of the weird {}.|the cartoon {}.|art of the {}.
a drawing of the {}.|a photo of the large {}.|a black and white photo of a {}.|the plushie {}.
a dark photo of a {}.|itap of a {}.|graffiti of the {}.|a toy {}.
itap of my {}.|a photo of a cool {}.|a photo of a small {}.|a tattoo of the {}.
""".strip().replace("\n", "|").split("|"))
"""The 80 templates that CLIP (2021) averages for ImageNet."""

PROMPTS: dict[str, tuple[str, ...]] = {
    "single": ("a photo of a {}.",),
    # CLIP-ES's choice, for the sharpness of its scores on multi-label photos.
    "origami": ("a clean origami {}.",),
    # Those of InMaP (NeurIPS 2023): CLIP's own shortlist for ImageNet.
    "seven": (
        "itap of a {}.", "a origami {}.", "a bad photo of the {}.", "a photo of the large {}.",
        "a {} in a video game.", "art of the {}.", "a photo of the small {}."),
    "ensemble": _IMAGENET_80,
}


def find_prompts(choice: str) -> tuple[str, ...]:
    """Return the templates of a name in `PROMPTS`, or those of a file, one a line.

    Raises:
        VplError: `choice` is neither a name nor a file, or a line has no `{}`.
    """
    if choice in PROMPTS:
        return PROMPTS[choice]
    lines = read_lines(Path(choice), f"`prompts` is one of {', '.join(PROMPTS)}, or a text file")
    for line in lines:
        if line.count("{}") != 1:
            raise VplError(f"{choice}: `{line}` needs one {{}} where the class word goes",
                           "for example: a photo of a {}.")
    return tuple(lines)


def read_lines(path: Path, hint: str) -> list[str]:
    """Read the lines of a text file, without empty ones.

    Raises:
        VplError: the file is missing or empty, or is not UTF-8 text.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VplError(f"cannot read {path}: {reason}", hint) from error
    if not lines:
        raise VplError(f"{path} is empty", hint)
    return lines


_HINT = 'for example {"cat": ["a cat has whiskers", "a furry animal"], "dog": ["a dog barks"]}'


def read_attributes(path: Path, classes: Sequence[str]) -> dict[str, list[str]]:
    """Read descriptions of some classes from a JSON object: class name to a list of texts.

    Raises:
        VplError: the file is missing or something else, or describes what is no class; the class
            is named.
    """
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        (name, count), = Counter(name for name, _ in pairs).most_common(1) or [("", 0)]
        if count > 1:
            raise VplError(f"{path}: `{name}` occurs twice", "put its descriptions into one list")
        return dict(pairs)

    try:
        content = parse_json(path.read_text("utf-8"), object_pairs_hook=once)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VplError(f"cannot read {path}: {reason}", _HINT) from error
    if not isinstance(content, dict) or not content:
        raise VplError(f"{path} is not a JSON object of classes and their descriptions", _HINT)
    for name, texts in content.items():
        if name not in classes:
            raise VplError(f"{path}: `{name}` is not a class", near_name(name, classes))
        _check_texts(path, name, texts)
    return {name: [text.strip() for text in texts] for name, texts in content.items()}


def _check_texts(path: Path, name: str, texts: object) -> None:
    if not isinstance(texts, list):
        raise VplError(f"{path}: `{name}` has no list of descriptions", _HINT)
    if not texts:
        raise VplError(f"{path}: `{name}` has no descriptions", "add some, or leave the class out")
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str) or not text.strip():
            raise VplError(f"{path}: description {number} of `{name}` is not a text: "
                           f"{json.dumps(text, ensure_ascii=False)}", _HINT)
