"""`text-prototypes`: from class names to text prototypes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vpltool import console, options
from vpltool.clip import load, models
from vpltool.core.prototypes import attribute_centres, text_prototypes, with_attributes
from vpltool.datasets import words as word_files
from vpltool.engine import headers
from vpltool.engine.models import check_words
from vpltool.errors import VplError, counted, near_name
from vpltool.formats import Workspace, identity_of_many, kinds, write_tensors
from vpltool.lazy import torch
from vpltool.parallel.device import find_device
from vpltool.settings import Stage, setting, warn_without_effect


@dataclass(frozen=True, kw_only=True)
class TextPrototypesSettings(options.Replaces):
    """Settings of `text-prototypes`."""

    prompts: str = setting("origami", "Prompt templates; single, origami as CLIP-ES, seven as "
                                      "InMaP, ensemble of 80, or a file of templates.",
                           metavar="NAME-OR-FILE", source="CLIP-ES, official code")
    synonyms: bool = setting(True, "Use CLIP-ES's class words for VOC and COCO; else the bare "
                                   "names.", source="CLIP-ES, official code")
    words: Path | None = setting(
        None, "Your own class words, one line each: CLASS: WORDS.", metavar="FILE")
    attributes: Path | None = setting(
        None, 'Descriptions of each class, as JSON; {"CLASS": ["DESCRIPTION", …]}. Each class is '
              "enriched with what it shares with them (ExCEL).", metavar="FILE", record="never")
    attribute_clusters: int = setting(
        112, "Number of attributes that all descriptions are clustered into; ExCEL: 112 for VOC, "
             "224 for COCO.", low=1, record="changed", source="ExCEL, official code", brief=False)
    attribute_share: float = setting(
        0.9, "Share of the attributes, the nearest ones, that are added to a class.", low=0, high=1,
        record="changed", source="ExCEL, official code", brief=False)
    device: str = options.device()


STAGE = Stage(order=20, panel="1. Begin", reads=("workspace",), writes=("prototypes",),
              settings=TextPrototypesSettings)


def run(workspace: Workspace, settings: TextPrototypesSettings) -> Path:
    """Encode class names and background words with CLIP's text encoder.

    Example: vpltool text-prototypes --prompts ensemble

    Next: vpltool extract

    Raises:
        VplError: no such prompts, a file that does not fit the classes, or no such CLIP.
    """
    check_words(workspace, "`tag_prototypes()` makes prototypes from tags")
    path = settings.out or kinds.result_path(workspace.path, "prototypes", "text")
    if not workspace.classes:
        raise VplError(f"{workspace.path / 'workspace.json'} names no class",
                       "the same `prepare` again, with `classes='FILE'`: one class per line")
    templates = word_files.find_prompts(settings.prompts)
    words = class_words(workspace, synonyms=settings.synonyms, file=settings.words)
    described = _read_attributes(workspace, settings)
    # Before it is loaded, neither the model's fingerprint nor the path of a download is known.
    source = models.find_source(workspace.model, workspace.pretrained, workspace.path)
    weights = models.local_weights(workspace.model, workspace.pretrained, workspace.path)
    header = headers.make_header(
        workspace, "prototypes", "text-prototypes", settings,
        model=source.names | {name: value for name, value in (
            ("weights", weights),
            ("normalise", workspace.normalise if workspace.normalise != "model" else "")) if value},
        inputs={"classes": workspace.classes_identity,
                "vocabulary": vocabulary_identity(workspace, words),
                **({} if settings.prompts in word_files.PROMPTS else
                   {"prompts": Path(settings.prompts)}),
                **({"words": settings.words} if settings.words else {}),
                **({"attributes": settings.attributes} if settings.attributes else {})},
        options={"prompts": list(templates),
                 "words": settings.words.name if settings.words else None},
        skip=() if described else _OF_ATTRIBUTES)
    if headers.check_file(path, header, settings, by_model_name=True):
        return path

    clip = load.load_clip(workspace.model, workspace.pretrained, find_device(settings.device),
                          base=workspace.path, normalise=workspace.normalise)
    vectors = text_prototypes([*words.values(), *workspace.background], templates, clip.encode_text)
    if described:
        centres = attribute_centres(clip.encode_text(described).float().cpu(),
                                    settings.attribute_clusters)
        classes = slice(len(words))
        vectors[classes] = with_attributes(vectors[classes], centres, settings.attribute_share)
        console.note(f"{len(described)} descriptions in {len(centres)} attributes")
    index = [*range(1, len(words) + 1), *(0 for _ in workspace.background)]
    if kinds.RESERVED in words:
        # Nothing resembles a row of zeros.
        vectors[workspace.classes.index(kinds.RESERVED)] = 0
    header = replace(header, model=clip.identity, facts={
        "space": "text", "rows": [*workspace.classes, *workspace.background],
        "words": list(words.values())})
    write_tensors(path, header, {"prototypes": vectors, "class_index": torch.tensor(index)})
    prompts = counted(len(templates), "prompt", "prompts")
    console.note(f"{len(words)} classes and {len(workspace.background)} background words, "
                 f"{prompts} each, in {vectors.shape[1]} dimensions")
    return path


_OF_ATTRIBUTES = ("attribute_clusters", "attribute_share")


def _read_attributes(workspace: Workspace, settings: TextPrototypesSettings) -> list[str]:
    """Read the descriptions of all classes; empty without a file."""
    if settings.attributes is None:
        warn_without_effect(settings, without=dict.fromkeys(
            _OF_ATTRIBUTES, "there are no descriptions"))
        return []
    read = word_files.read_attributes(settings.attributes, workspace.classes)
    missing = [name for name in workspace.classes if name not in read]
    if missing:
        console.warn(f"{settings.attributes} does not describe {', '.join(missing)}")
    return [text for texts in read.values() for text in texts]


def vocabulary_identity(workspace: Workspace, words: Mapping[str, str]) -> str:
    """Return a hash of the words of all classes and of the background."""
    return identity_of_many(dict(words) | {"": "\n".join(workspace.background)})


def class_words(workspace: Workspace, *, synonyms: bool, file: Path | None) -> Mapping[str, str]:
    """Return the words for the prompts by class name, in class order.

    Synonyms are CLIP-ES's words for VOC and COCO, by the workspace's name. Lines `CLASS: WORDS` of
    a file override them.

    Raises a VplError if a line of the file is malformed, or names no class.
    """
    vocabulary = word_files.VOCABULARIES.get(workspace.name)
    known = vocabulary.synonyms if vocabulary and synonyms else word_files.SPLIT_WORDS
    words = {name: known.get(name, name.replace("_", " ")) for name in workspace.classes}
    hint = "`words` takes a text file with lines such as: person: a person, people"
    for line in word_files.read_lines(file, hint) if file is not None else ():
        name, colon, text = (part.strip() for part in line.partition(":"))
        if not colon or not text:
            raise VplError(f"{file}: `{line}` is not CLASS: WORDS", hint)
        if name not in words:
            raise VplError(f"{file}: `{name}` is not a class", near_name(name, words))
        words[name] = text
    return words
