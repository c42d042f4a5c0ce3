"""LMDB databases whose values are msgpack: a list or a map of an encoded image and its label, under numbered keys."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from attfc_cuda._check import error

HEADS = {bytes([head]) for head in (*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF)}
"""First bytes of a list or map."""
_ABOUT_THE_REST = (b"__len__", b"__keys__")
_LABELS = (b"identity", b"label", b"class", b"target", b"name", b"id")  # the surest first, as in list_layouts
_LARGEST_LABEL = 2**62


def holds_msgpack(others: Mapping[str, tuple[int, bytes]]) -> bool:
    """Whether numbered keys have values that begin as msgpack. others: length and first bytes of values by key."""
    return any(key.isdecimal() and head[:1] in HEADS for key, (_, head) in others.items())


def read_labels(environment: Any, left_out: Callable[[str, str], None]) -> tuple[list[bytes], list[int | bytes]]:
    """Keys and labels of all images of an open database.

    Args:
        environment: Open, and known to be safe to read.
        left_out: Told of the kind and an example of an entry that holds no image with a label.
    """
    keys: list[bytes] = []
    labels: list[int | bytes] = []
    with environment.begin(buffers=True) as transaction:
        for key, value in transaction.cursor():
            name = bytes(key)
            if name in _ABOUT_THE_REST:
                continue
            try:
                label = unpacked(bytes(value))[1]
            except ValueError as cause:
                left_out("values that are not an image and a label", f"{name!r} ({cause})")
                continue
            keys.append(name)
            labels.append(label)
    return keys, labels


def unpacked(value: bytes) -> tuple[bytes, int | bytes]:
    """Image and label of a value. The image is the longest of its bytes; the label a whole number, or in a list the
    first other bytes, in a map those called identity, label, class, target, name or id.

    Raises:
        ValueError: For anything else.
    """
    try:
        content = _msgpack().unpackb(value, raw=True, strict_map_key=False)
    except ImportError:
        raise
    except Exception as cause:  # its own, on damage, and those of deep nesting
        raise ValueError(" ".join(str(cause).split())[:100] or type(cause).__name__) from cause
    if not isinstance(content, list | dict):
        raise ValueError(f"a {type(content).__name__}, no list or map")
    parts = list(content.values()) if isinstance(content, dict) else content
    image = max((part for part in parts if isinstance(part, bytes)), key=len, default=b"")
    if isinstance(content, dict):
        candidates = [content[name] for name in _LABELS if name in content]
    else:
        candidates = [part for part in content if part is not image]
    label = next((part for part in candidates if isinstance(part, int | bytes) and part is not image), None)
    if label is None or isinstance(label, bool) or not image:
        raise ValueError("no image, or no label beside it")
    if isinstance(label, int) and not 0 <= label < _LARGEST_LABEL:
        raise ValueError(f"the label {label}")
    return image, label


def _msgpack() -> Any:
    try:
        return importlib.import_module("msgpack")
    except ImportError as cause:
        remedy = 'pip install msgpack, of the extra "data"'
        rule = "be installed, for a database of msgpack values,"
        raise error("LmdbFaces", "msgpack", rule, f"none ({cause})", remedy, ImportError) from cause
