"""The model card of a bundle: what people read on the hub, made from the bundle's header."""

from __future__ import annotations

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

## Licences

- The segmenter: {licence}.
- The encoder's weights: {encoder_licence}.

The training photos may have their own licences.
"""


def model_card(header: Header, repository: str) -> str:
    """Write the card of a bundle: the hub's metadata, then text in Markdown.

    Args:
        header: of the bundle.
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
        licence=licence, encoder_licence=facts["licence"]["clip"])
