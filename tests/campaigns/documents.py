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


def json_documents(content: bytes) -> st.SearchStrategy[bytes]:
    """A JSON document with any values in one or two places."""
    value = json.loads(content)
    paths = _paths(value)[:2000]
    return st.builds(lambda path, new: dumped(_with(value, path, new)),
                     st.sampled_from(paths), VALUES)


def _lines(content: bytes) -> st.SearchStrategy[bytes]:
    lines = content.split(b"\n")
    return st.builds(
        lambda at, new: b"\n".join([*lines[:at], new, *lines[at + 1:]]),
        st.integers(0, len(lines)),
        st.binary() | st.text(st.characters(exclude_categories=["Cs"])).map(str.encode))


def _json_lines(content: bytes) -> st.SearchStrategy[bytes]:
    first, _, rest = content.partition(b"\n")
    return json_documents(first).map(lambda line: line + b"\n" + rest)


def _safetensors(content: bytes) -> st.SearchStrategy[bytes]:
    length = struct.unpack("<Q", content[:8])[0]
    return json_documents(content[8 : 8 + length]).map(
        lambda head: struct.pack("<Q", len(head)) + head + content[8 + length :])


_MAKERS = {"json": json_documents, "lines": _lines, "json lines": _json_lines,
           "safetensors": _safetensors}


def documents(form: str, seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Contents of a form's file; forms that are not text are mutated as hypothesis says."""
    if form in _MAKERS:
        return st.one_of([_MAKERS[form](seed) for seed in seeds])
    return st.builds(lambda seed, number: FORMS[form](seed, Random(number)),
                     st.sampled_from(list(seeds)), st.integers(0, 1 << 32))
