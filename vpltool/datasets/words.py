"""Words of classes: those of VOC and COCO, class files, prompt templates, descriptions.

CLIP-ES (CVPR 2023) replaces some class names with several words in one prompt ("synonym fusion")
and adds words for things that are not classes, so that railway pixels match something better than
`train`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from vpltool import console
from vpltool.errors import VplError, near_name
from vpltool.formats import IGNORE
from vpltool.formats.kinds import MOST_CLASSES, numbered
from vpltool.json_text import parse_json
from vpltool.names import spelled


@dataclass(frozen=True)
class Vocabulary:
    """Words of a data set: class names in index order, and words for things that are no classes.

    Synonyms are class name to the words that CLIP-ES uses instead.
    """

    classes: tuple[str, ...]
    background: tuple[str, ...]
    synonyms: dict[str, str] = field(default_factory=dict)


_BACKGROUND = (
    "ground", "land", "grass", "tree", "building", "wall", "sky", "lake", "water", "river", "sea",
    "railway", "railroad", "keyboard", "helmet", "cloud", "house", "mountain", "ocean", "road",
    "rock", "street", "valley", "bridge", "sign",
)

VOC = Vocabulary(
    classes=(
        "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
        "train", "tvmonitor",
    ),
    background=_BACKGROUND,
    synonyms={
        "bird": "bird avian", "chair": "chair seat", "person": "person with clothes,people,human",
        "tvmonitor": "tvmonitor screen",
    },
)

COCO = Vocabulary(
    classes=(
        "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
        "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat",
        "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack",
        "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball",
        "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket",
        "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
        "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair",
        "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse",
        "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
        "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier",
        "toothbrush",
    ),
    background=tuple(word for word in _BACKGROUND if word not in ("keyboard", "sign")),
    synonyms={
        "person": "person with clothes,people,human", "bird": "bird avian",
        "motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa",
        "potted plant": "pottedplant", "dining table": "diningtable",
        "backpack": "backpack,bag", "umbrella": "umbrella,parasol", "handbag": "handbag,purse",
        "tie": "necktie",
        # CLIP-ES's published run has this spelling, and its results depend on it.
        "snowboard": "sknowboard",
        "baseball glove": "glove", "spoon": "dessertspoon", "chair": "chair seat",
        "tv": "tvmonitor screen", "remote": "remote control", "hair drier": "hairdrier,blowdrier",
    },
)

COCO_IDS = (
    *range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70,
    *range(72, 83), *range(84, 91),
)
"""COCO's own category ids, in the order of `COCO.classes`; some of 1 to 90 were never used."""

VOCABULARIES: dict[str, Vocabulary] = {"voc": VOC, "coco": COCO}

SPLIT_WORDS = {
    "diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor",
}
"""VOC's joined names as words, for names without a synonym."""

_NO_CLASS = {"background": 0, "_background_": 0, "ignore": IGNORE}
"""Names in a class file that are not classes, and the labels that they mean."""


@dataclass(frozen=True)
class ClassFile:
    """Class names in index order, the first is class 1, and what true masks' values mean.

    That is pixel value to label (0: background, 255: not scored); empty if they are the labels.
    """

    names: tuple[str, ...]
    values: dict[int, int]


def read_classes(path: Path) -> ClassFile:
    """Read a class file: names in index order, or lines `VALUE NAME`.

    VALUE is the value of the class's pixels in the true masks. The names `background` and `ignore`
    are not classes: their pixels are background, or not scored. Without values, one of them may be
    the first line, and says what 0 means.

    Raises:
        VplError: the file is missing or names no class, only some lines have a value, a name or
            value is listed twice, or there are more than 65,534 classes.
    """
    hint = "`classes='FILE'` takes a text file with a line NAME, or VALUE NAME, for each class"
    lines = read_lines(path, hint)
    pairs = [re.fullmatch(r"(\d{1,9})[\s,:]+(\S.*)", line) for line in lines]
    if all(pairs):
        read = [(int(pair[1]), pair[2].strip()) for pair in pairs if pair]
        once = [str(value) for value, _ in read]
    elif any(pairs):
        plain = next(line for line, pair in zip(lines, pairs, strict=True) if not pair)
        valued = next(line for line, pair in zip(lines, pairs, strict=True) if pair)
        raise VplError(f"{path}: `{valued}` has a value, `{plain}` has none",
                       f"put a value before each name, such as `1 {lines[0]}`, or before none")
    else:
        read = list(enumerate(lines, 0 if lines[0].lower() in _NO_CLASS else 1))
        once = lines
    twice = [entry for entry, count in Counter(once).items() if count > 1]
    if twice:
        raise VplError(f"{path}: `{min(twice)}` is listed twice", hint)
    names = tuple(dict.fromkeys(name for _, name in read if name.lower() not in _NO_CLASS))
    if not names:
        raise VplError(f"{path} names no class, only {' and '.join(name for _, name in read)}",
                       hint)
    if len(names) > MOST_CLASSES:
        raise VplError(f"{path} has {len(names)} classes; {MOST_CLASSES} at most are possible",
                       hint)
    if max(read)[0] > MOST_CLASSES + 1:
        raise VplError(f"{path}: `{max(read)[0]} {max(read)[1]}`: a pixel's value is at most "
                       f"{MOST_CLASSES + 1}", hint)
    if odd := [name for name in names if ";" in name]:
        raise VplError(f"{path}: `{odd[0]}` has a semicolon, which separates tags",
                       "write another name")
    looks: dict[str, list[str]] = defaultdict(list)
    for name in names:
        looks[unicodedata.normalize("NFKC", name).casefold()].append(name)
    if alike := [pair for group in looks.values() for pair in combinations(group, 2)]:
        shown = "; ".join(" and ".join(f"`{spelled(name)}`" for name in pair) for pair in alike[:5])
        console.warn(f"{path}: names that look like one class are two: {shown}")
    names = numbered(names)
    label = dict(zip(names, range(1, len(names) + 1), strict=True))
    values = {value: label[name] if name in label else _NO_CLASS[name.lower()]
              for value, name in read}
    return ClassFile(names, {} if all(value == values[value] for value in values) else values)


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
    """Read the lines of a text file, without empty ones and a byte order mark.

    Raises:
        VplError: the file is missing or empty, or is not UTF-8 text.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
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
        content = parse_json(path.read_text("utf-8-sig"), object_pairs_hook=once)
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
