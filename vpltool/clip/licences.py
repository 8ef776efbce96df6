"""Licences of published CLIPs, by the tag of their weights."""

from __future__ import annotations

from collections.abc import Mapping

_BY_TAG = {
    "openai": "MIT (OpenAI)", "laion": "MIT (LAION)", "datacomp": "MIT (DataComp)",
    "commonpool": "MIT (DataComp)", "webli": "Apache-2.0 (Google)",
    "metaclip": "CC-BY-NC-4.0 (Meta)",
}
"""First letters of open_clip's tags to the licence under which their publishers gave them out."""


def licence_of(model: Mapping[str, str]) -> str:
    """Licence of a CLIP's weights, as its publisher states it; empty if it is not known.

    Args:
        model: identity of the CLIP, as headers have it.
    """
    tag = model.get("pretrained", "")
    return next((licence for start, licence in _BY_TAG.items() if tag.startswith(start)), "")
