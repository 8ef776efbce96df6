"""`push`: a segmenter to the Hugging Face hub, with a model card made from its header."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vpltool.errors import VplError
from vpltool.formats import Header, describe, expect_header
from vpltool.settings import Settings, setting
from vpltool.stage import Stage
from vpltool.stages._hub import check_repository, upload

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


@dataclass(frozen=True, kw_only=True)
class PushSettings(Settings):
    """Settings of `push`."""

    repository: str = setting(help="Where it goes on the hub; it is made if it does not exist.",
                              metavar="ORGANISATION/NAME", positional=True)
    segmenter: Path | None = setting(None, "The bundle; default: the only one in exports/.",
                                     metavar="FILE")
    private: bool = setting(False, "Make the repository private.")
    card: bool = setting(False, "Print the model card and upload nothing.")


STAGE = Stage(order=100, panel="4. Scores and pictures", reads=("bundle",), writes=(),
              settings=PushSettings, begins=True)


def run(path: Path, settings: PushSettings) -> str:
    """Upload a bundle to the Hugging Face hub, with a model card made from its header.

    The token comes from `hf auth login` or HF_TOKEN.

    Example: vpltool push my-name/animals --segmenter exports/segmenter.safetensors

    Example: vpltool push my-name/animals --card

    Next: vpltool pull my-name/animals, on another machine

    Args:
        path: the folder in whose exports/ the bundle is looked for.
        settings: what goes where.

    Returns:
        the address of the repository; or the card.

    Raises:
        VplError: there is no bundle, or the hub cannot be reached, or refuses.
    """
    check_repository(settings.repository)
    bundle = settings.segmenter or _only_bundle(path)
    card = model_card(expect_header(bundle, "bundle"), settings.repository)
    if settings.card:
        return card
    return upload(settings.repository, bundle, card, private=settings.private)


def _only_bundle(path: Path) -> Path:
    """The bundle in exports/.

    Raises:
        VplError: there is none, or there are several.
    """
    found = [file for file in sorted((path / "exports").glob("*.safetensors"))
             if (header := describe(file).header) and header.kind == "bundle"]
    if len(found) != 1:
        count = f"{len(found)} bundles" if found else "no bundle"
        raise VplError(f"{count} in {path / 'exports'}",
                       " or ".join(f"`segmenter='{file}'`" for file in found)
                       or "`export('bundle')`")
    return found[0]


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
