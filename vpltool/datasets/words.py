"""Class names, CLIP-ES's class words, and background words of VOC and COCO.

CLIP-ES (CVPR 2023) replaces some names with several words in one prompt ("synonym fusion") and
adds words for things that are not classes, so that railway pixels match something better than
`train`.
"""

from __future__ import annotations

from dataclasses import dataclass, field


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
