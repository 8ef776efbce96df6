"""`vpltool text-prototypes`: from class names to text prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vpltool import console
from vpltool.datasets.prompts import find_prompts, read_lines
from vpltool.datasets.words import SPLIT_WORDS, VOCABULARIES
from vpltool.errors import VplError, near_name
from vpltool.formats import Header, open_workspace, write_tensors
from vpltool.options import Device, Out, Overwrite, Quiet
from vpltool.stage import Stage
from vpltool.stages import _artifacts

STAGE = Stage(order=20, panel="1. Begin", reads=("workspace",),
              writes=("prototypes",))


def text_prototypes(
    ctx: typer.Context,
    prompts: Annotated[str, typer.Option(
        metavar="NAME-OR-FILE",
        help="single, origami (CLIP-ES), seven (InMaP), ensemble (80), or a file of templates.",
    )] = "origami",
    synonyms: Annotated[bool, typer.Option(
        help="CLIP-ES's class words instead of the bare names, for VOC and COCO.")] = True,
    words: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Your own class words, a line each: CLASS: WORDS.")] = None,
    device: Device = "auto",
    out: Out = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Encode class names and background words with CLIP's text encoder.

    Example: vpltool text-prototypes --prompts ensemble

    Next: vpltool extract
    """
    console.set_quiet(quiet)
    workspace = open_workspace(ctx.obj)
    path = out or ctx.obj / "prototypes/text.safetensors"
    templates = find_prompts(prompts)
    spoken = _class_words(workspace.name, workspace.classes, synonyms, words)
    header = Header(
        kind="prototypes", command="text-prototypes",
        options={"prompts": list(templates), "words": spoken,
                 "background": list(workspace.background)})
    from vpltool.clip.models import find_source

    # The fingerprint of the model is not known before it is loaded; its name must do here.
    source = find_source(workspace.model, workspace.pretrained, ctx.obj)
    wanted = replace(header, model=source.names | (
        {"normalise": workspace.normalise} if workspace.normalise != "model" else {}))
    if _artifacts.is_done(path, wanted, overwrite=overwrite, by_model_name=True):
        print(path)
        return

    from vpltool.clip.load import load_clip
    from vpltool.core.text import text_prototypes as encode_words
    from vpltool.parallel.device import find_device

    clip = load_clip(workspace.model, workspace.pretrained, find_device(device), base=ctx.obj,
                     normalise=workspace.normalise)
    rows = [*spoken, *workspace.background]
    vectors = encode_words(rows, templates, clip.encode_text)
    import torch

    index = [*range(1, len(spoken) + 1), *(0 for _ in workspace.background)]
    header = replace(header, model=clip.identity, facts={
        "space": "text", "rows": [*workspace.classes, *workspace.background]})
    write_tensors(path, header, {"prototypes": vectors, "class_index": torch.tensor(index)})
    prompts = "1 prompt" if len(templates) == 1 else f"{len(templates)} prompts"
    console.note(f"{len(spoken)} classes and {len(workspace.background)} background words, "
                 f"{prompts} each, in {vectors.shape[1]} dimensions")
    print(path)


def _class_words(
    data_set: str, classes: Sequence[str], synonyms: bool, file: Path | None
) -> list[str]:
    vocabulary = VOCABULARIES.get(data_set)
    known = vocabulary.synonyms if vocabulary and synonyms else SPLIT_WORDS
    spoken = {name: known.get(name, name.replace("_", " ")) for name in classes}
    if file is not None:
        hint = "--words takes a text file with lines such as: person: a person, people"
        for line in read_lines(file, hint):
            name, colon, text = (part.strip() for part in line.partition(":"))
            if not colon or not text:
                raise VplError(f"{file}: `{line}` is not CLASS: WORDS", hint)
            if name not in spoken:
                raise VplError(f"{file}: `{name}` is no class", near_name(name, spoken))
            spoken[name] = text
    return list(spoken.values())
