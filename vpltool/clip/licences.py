"""Licences of published encoders: CLIPs by the tag of their weights, others by their name."""

from __future__ import annotations

from collections.abc import Mapping

_BY_TAG = {
    "openai": "MIT (OpenAI)", "laion": "MIT (LAION)", "datacomp": "MIT (DataComp)",
    "commonpool": "MIT (DataComp)", "webli": "Apache-2.0 (Google)",
    "metaclip": "CC-BY-NC-4.0 (Meta)",
}
"""First letters of open_clip's tags to the licence under which their publishers gave them out."""


_BY_NAME = {
    "eupe": "FAIR Noncommercial Research License (Meta)",
    "dinov3": "DINOv3 License (Meta)", "dinov2": "Apache-2.0 (Meta)",
    "lingbot": "Apache-2.0 (Robbyant)", "tipsv2": "Apache-2.0 (Google)",
    "vit_pe_": "Apache-2.0 (Meta)", "radio_v3": "NVIDIA Open Model License",
    "radio_v4": "NVIDIA Open Model License", "augreg": "Apache-2.0 (Google)",
    "aimv2": "Apple Sample Code License", "eva02": "MIT (BAAI)", "siglip": "Apache-2.0 (Google)",
    "sam2_hiera": "Apache-2.0 (Meta)", "samvit": "Apache-2.0 (Meta)",
}
"""Part of a name of timm or transformers to the licence, as timm states it for its weights."""

LIBRARIES = {"timm:": "timm", "hf:": "transformers"}
"""How names of encoders begin to what their identity has as `pretrained` for a download."""


def licence_of(model: Mapping[str, str]) -> str:
    """Licence of an encoder's weights, as its publisher states it; empty if it is not known.

    Args:
        model: identity of the encoder, as headers have it.
    """
    name, tag = model.get("name", "").lower(), model.get("pretrained", "")
    library = next((name for start, name in LIBRARIES.items()
                    if model.get("name", "").startswith(start)), "")
    if not library:
        return next((licence for start, licence in _BY_TAG.items() if tag.startswith(start)), "")
    found = next((licence for part, licence in _BY_NAME.items() if part in name), "")
    # A file may hold weights that somebody else has trained.
    return f"{found}, if {tag} is the published file" if found and tag != library else found
