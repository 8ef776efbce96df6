"""The model card of a bundle: what people read on the hub, made from the bundle's header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vpltool.formats import Header

_KNOWN = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0",
          "bsd-3-clause", "gpl-3.0", "agpl-3.0")
"""Licences as the hub spells them; any other is `other` there, with its name."""

_TEXT = """\
# {name}

Labels each pixel of a photo: {classes}, or background. It was trained by vpltool, from photos with
image-level tags.

    vpltool pull {repository} --out segmenter.safetensors
    vpltool predict PHOTOS --segmenter segmenter.safetensors --overlay

```python
from vpltool import Segmenter

result = Segmenter.load("segmenter.safetensors")("photo.jpg")
print(result.labels.shape)
```

## What it is

| | |
| --- | --- |
| classes | {numbered} |
| segmenter | {segmenter} |
| frozen encoder | {encoder} |
| photos | {size} |
| trained by | vpltool {version}: {options} |

Label 0 is the background.

{more}## Licences

- The segmenter: {licence}.
- The encoder's weights: {encoder_licence}.

The training photos may have their own licences.
"""


_LIMITS = (
    "It was taught by tags, not by outlines that a person has drawn: outlines may be wrong where "
    "classes occur together, and thin parts are lost.",
    "It knows these classes only; anything else is background, or mistaken for one of them.",
    "Scores are of photos like those that it was trained on.")


def sections(about: Mapping[str, Any]) -> list[str]:
    """Write what a card says of training, scores, calibration and limits, as lines of Markdown.

    Args:
        about: see `stages._about.about_segmenter`.
    """
    lines = []
    if "photos" in about:
        lines += ["## Trained on", "", f"{about['photos']} photos; supervision: "
                  f"{about['supervision']}. Tagged: " + ", ".join(
                      f"{name} {count}" for name, count in about["tagged"].items()) + ".", ""]
    for score in about.get("scores", ()):
        names = list(score["iou"])
        lines += [f"## Scores on {score['photos']} photos of `{score['split']}`, "
                  + ("among the tagged classes" if score["tags"] else "without tags"), "",
                  f"mIoU {100 * score['miou']:.1f}: " + ", ".join(
                      f"{name} {'-' if value is None else format(100 * value, '.1f')}"
                      for name, value in score["iou"].items()) + "."]
        # Scores of very many classes have none.
        if matrix := score["confusion"]:
            lines += ["", "Share of the pixels of a class (rows) that get a label (columns), in %:",
                      "", "| | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
            lines += [f"| {name} | " + " | ".join(
                f"{100 * value / max(sum(row), 1):.1f}" for value in row) + " |"
                for name, row in zip(names, matrix, strict=True)]
        lines.append("")
    if found := about.get("calibration"):
        lines += ["## How sure it is", "",
                  f"Temperature {found['temperature']:g}, from the tags of {found['photos']} "
                  f"photos of `{found['split']}`. `predict --abstain LEVEL` labels fewer pixels:",
                  "", "| level | pixels labelled | of those of a class, tagged |",
                  "| ---: | ---: | ---: |"]
        lines += [f"| {row['level']:g} | {100 * row['share']:.1f} % | "
                  + ("-" if row["right"] is None else f"{100 * row['right']:.1f} %") + " |"
                  for row in found["kept"]]
        lines += ["", "Tags say whether a class is in the photo, not where: outlines are not "
                  "judged here.", ""]
    return [*lines, "## Limits", "", *(f"- {limit}" for limit in _LIMITS), ""]


def model_card(header: Header, repository: str, measured: Sequence[str] = ()) -> str:
    """Write the card of a bundle: the hub's metadata, then text in Markdown.

    Args:
        header: of the bundle.
        measured: lines that say how the file was measured.
        repository: where it is to lie, `ORGANISATION/NAME`.
    """
    from huggingface_hub import ModelCardData

    facts, model = header.facts, header.model
    classes, licence = facts["classes"], facts["licence"]["segmenter"]
    known = licence.lower() if licence.lower() in _KNOWN else ""
    data = ModelCardData(
        library_name="vpltool", pipeline_tag="image-segmentation", license=known or "other",
        license_name=None if known else licence,
        tags=["semantic-segmentation", "weakly-supervised",
              *([] if "encoder" in model else ["clip"])])
    encoder = f"{model['name']} ({model['pretrained']}), " + (
        "in the file" if facts["tower"] else "to be downloaded")
    trained = facts["trained"]
    options = ", ".join(f"{name} {value}" for name, value in trained["options"].items())
    return f"---\n{data.to_yaml()}\n---\n\n" + _TEXT.format(
        name=repository.split("/")[1], repository=repository, classes=", ".join(classes),
        numbered=", ".join(f"{index} {name}" for index, name in enumerate(classes, 1)),
        segmenter=facts["segmenter"], encoder=encoder, version=trained["version"],
        size=(f"longer sides are scaled down to {facts['max_side']} pixels" if facts["max_side"]
              else "are not scaled down"),
        options=f"{trained['command']}, {options}",
        more="\n".join([*sections(facts.get("about", {})), *measured, ""]),
        licence=licence, encoder_licence=facts["licence"]["clip"])
