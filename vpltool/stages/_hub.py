"""The Hugging Face hub: putting files into a repository, and taking one out.

`HF_ENDPOINT` names another server, and `HF_TOKEN` the token, as for every client of the hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vpltool.errors import VplError, first_line, silent

_FILE, _CARD = "segmenter.safetensors", "README.md"
"""Names in a repository: of the bundle, and of the model card."""

_SECONDS = 10.0
"""How long the hub may take to answer at all; its client would try for minutes."""

_WHY = {401: "you are not logged in", 403: "you may not do that", 404: "it does not exist"}


def check_repository(name: str) -> None:
    """Check that a name can be that of a repository.

    Raises:
        VplError: it cannot.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise VplError(f"`{name}` is not a name on the hub", "write it as ORGANISATION/NAME")


def upload(repository: str, bundle: Path, card: str, *, private: bool) -> str:
    """Put a bundle and its card into a repository, which is made if it is not there.

    Returns:
        the address of the repository.

    Raises:
        VplError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with _told(repository):
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.create_commit(repository, commit_message=f"vpltool push {bundle.name}", operations=[
            CommitOperationAdd(_FILE, str(bundle)), CommitOperationAdd(_CARD, card.encode())])
    return str(address)


def download(repository: str, revision: str) -> Path:
    """Download the bundle of a repository into the client's cache, and return its path there.

    Raises:
        VplError: the hub cannot be reached, or there is no such repository, revision or file.
    """
    import huggingface_hub as hub

    with _told(repository):
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, _FILE, revision=revision or None),
                                 timeout=_SECONDS)
        return Path(hub.hf_hub_download(repository, _FILE, revision=revision or None))


@contextmanager
def _told(repository: str) -> Iterator[None]:
    """Say what went wrong between us and the hub, in one line."""
    try:
        with silent():
            yield
    except (KeyboardInterrupt, VplError):
        raise
    # The client lets errors of its HTTP library through, and that library has changed.
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        why = _WHY.get(status, first_line(error))
        hint = ("hf auth login, or HF_TOKEN=TOKEN; and check the name" if status in _WHY else
                "check the network; HF_ENDPOINT names another server")
        raise VplError(f"{repository} on the hub: {why}", hint) from error
