"""Documents that hypothesis makes: a valid one, with anything in one of its places."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from random import Random
from typing import Any

from hypothesis import strategies as st

from campaigns.mutations import FORMS, ODD, dumped

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(
        [value for value in ODD if not isinstance(value, (list, dict))]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8)
"""Any value of JSON."""


def _paths(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of a JSON value, as keys and indices from the outside in."""
    entries = (value.items() if isinstance(value, dict)
               else enumerate(value) if isinstance(value, list) else ())
    return [before] + [path for key, part in entries for path in _paths(part, (*before, key))]


def _with(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of a JSON value with another part at a place."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _with(value[path[0]], path[1:], new)
    return copy


PLACES = 8
"""Documents of an example: to draw a value takes longer than to read the files that have it."""


def json_documents(content: bytes) -> st.SearchStrategy[list[bytes]]:
    """JSON documents, each with the same value in one of its places."""
    value = json.loads(content)
    paths = _paths(value)[:2000]
    return st.builds(lambda number, new: [
        dumped(_with(value, path, new)) for path in Random(number).choices(paths, k=PLACES)],
        st.integers(0, 1 << 32), VALUES)


def _lines(content: bytes) -> st.SearchStrategy[list[bytes]]:
    lines = content.split(b"\n")
    return st.builds(
        lambda number, new: [b"\n".join([*lines[:at], new, *lines[at + 1:]])
                             for at in Random(number).choices(range(len(lines) + 1), k=PLACES)],
        st.integers(0, 1 << 32),
        st.binary() | st.text(st.characters(exclude_categories=["Cs"])).map(str.encode))


def _json_lines(content: bytes) -> st.SearchStrategy[list[bytes]]:
    first, _, rest = content.partition(b"\n")
    return json_documents(first).map(lambda made: [line + b"\n" + rest for line in made])


def _safetensors(content: bytes) -> st.SearchStrategy[list[bytes]]:
    length = struct.unpack("<Q", content[:8])[0]
    return json_documents(content[8 : 8 + length]).map(lambda made: [
        struct.pack("<Q", len(head)) + head + content[8 + length :] for head in made])


_MAKERS = {"json": json_documents, "lines": _lines, "json lines": _json_lines,
           "safetensors": _safetensors}


def documents(form: str, seeds: Sequence[bytes]) -> st.SearchStrategy[list[bytes]]:
    """Contents of a form's file; forms that are not text are mutated as hypothesis says."""
    if form in _MAKERS:
        return st.one_of([_MAKERS[form](seed) for seed in seeds])
    return st.builds(lambda seed, number: [
        FORMS[form](seed, Random(number + more)) for more in range(PLACES)],
        st.sampled_from(list(seeds)), st.integers(0, 1 << 32))
