"""`push`: a segmenter to the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vpltool.errors import VplError
from vpltool.formats import describe, expect_header
from vpltool.names import without_home
from vpltool.settings import Settings, Stage, setting
from vpltool.stages._card import measured_section, model_card
from vpltool.stages.pull import FILE, check_repository, explaining


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

    Returns:
        the address of the repository; or the card.

    Raises:
        VplError: there is no bundle, or the hub cannot be reached, or refuses.
    """
    check_repository(settings.repository)
    bundle = settings.segmenter
    if bundle is None:
        found = [file for file in sorted((path / "exports").glob("*.safetensors"))
                 if (header := describe(file).header) and header.kind == "bundle"]
        if len(found) != 1:
            count = f"{len(found)} bundles" if found else "no bundle"
            raise VplError(f"{count} in {path / 'exports'}",
                           " or ".join(f"`segmenter='{file}'`" for file in found)
                           or "`export('bundle')`")
        bundle = found[0]
    header = expect_header(bundle, "bundle")
    card = model_card(header, settings.repository, measured_section(bundle))
    given = list(header.facts["trained"]["options"].values())
    if without_home(given) != given:
        raise VplError(f"{bundle} names a folder of the machine that made it",
                       "`export('bundle')` again leaves it out")
    if settings.card:
        return card
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with explaining(settings.repository):
        address = api.create_repo(settings.repository, private=settings.private, exist_ok=True)
        api.create_commit(
            settings.repository, commit_message=f"vpltool push {bundle.name}", operations=[
                CommitOperationAdd(FILE, str(bundle)),
                CommitOperationAdd("README.md", card.encode())])
    return str(address)
