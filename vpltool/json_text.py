"""JSON from anywhere: whatever is wrong with it is a ValueError."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
"""An object of JSON: names to values of any type, which its reader checks."""


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Return the value of a JSON text.

    Raises a ValueError if it is damaged, or nested thousands of levels deep.
    """
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
