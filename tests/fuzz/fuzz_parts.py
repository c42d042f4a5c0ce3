"""What several kinds of file are made of and changed by: small pictures, and values in nested dicts and lists."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from attfc_cuda._check import printable

SIZE = 16


class Target(NamedTuple):
    """One entry point.

    Attributes:
        seeds: Gives whole files as bytes, made in a folder.
        run: Reads a changed one in that folder as a user would; whether it was read at all. Only errors that the entry
            documents may leave it.
        change: Changes a whole file but keeps its structure, so that what lies behind the first checks is met.
        weight: Inputs, relative to the other targets: fewer where one takes long.
    """

    seeds: Callable[[Path], list[bytes]]
    run: Callable[[bytes, Path], bool]
    change: Callable[[bytes, random.Random], bytes]
    weight: float = 1.0


def picture(kind: str, value: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


PICTURES = [picture(kind, k) for k, kind in enumerate(("JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF"))]
FACES = PICTURES[:1] * 2 + PICTURES[:2] + PICTURES[1:2]


def check_named(cause: Exception, path: Path | str) -> bool:
    """False, for an input that was refused. Raises AssertionError unless the error names the file."""
    if printable(str(path)) not in str(cause):
        raise AssertionError(f"the error does not name {path}: {cause!r}") from cause
    return check_printable(cause)


def check_printable(cause: Exception) -> bool:
    """False, for an input that was refused. Raises AssertionError where the message would steer a terminal."""
    if printable(str(cause)) != str(cause):
        raise AssertionError(f"the message holds control characters: {str(cause)!r}") from cause
    return False


# What a value of a file may be in place of a number or a word.
ODD_VALUES = (
    0, 1, -1, 2, 3, 255, 2**31, 2**33, 2**63 - 1, 10**400, 0.0, -0.5, 1.5, 1e308, float("inf"), float("nan"), True,
    False, None, "", "0", "8", "small", "a\x1b[2Jb", "../../x", "é" * 50, "x" * 100_000, [], {},
    [1, 2], {"a": 1}, [[[[]]]],
)  # fmt: skip


def changed_value(whole: Any, rng: random.Random, odd: Callable[[Any, random.Random], Any]) -> Any:
    """A copy of nested dicts and lists in which one to three places are changed: a value replaced by `odd` of it, a key
    renamed, repeated, added or left out, a branch put elsewhere. Parts that stay are shared with `whole`."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        whole = _changed_once(whole, rng, odd)
    return whole


def _changed_once(value: Any, rng: random.Random, odd: Callable[[Any, random.Random], Any]) -> Any:
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or rng.random() < 0.05:
        return odd(value, rng)
    key, copy = rng.choice(keys), value.copy()
    if isinstance(value[key], (dict, list)) and rng.random() < 0.85:
        copy[key] = _changed_once(value[key], rng, odd)
        return copy
    kind = rng.randrange(8)
    if kind < 4:
        copy[key] = odd(value[key], rng)
    elif kind == 4:
        del copy[key]
    elif kind == 5:
        copy[key] = value[rng.choice(keys)]
    elif isinstance(copy, list):
        copy.insert(key, odd(value[key], rng))
    elif kind == 6:
        copy[rng.choice((f"{key}x", f"module.{key}", f"_orig_mod.{key}", "a\x1bb", ""))] = value[key]
    else:
        copy[rng.choice((f"{key}x", "name", "step", "pretrained", "\x1b[2J"))] = copy.pop(key)
    return copy


def odd_value(value: Any, rng: random.Random) -> Any:
    """One of `ODD_VALUES`; for a number often one near it, and sometimes nested deeply."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**64 and rng.random() < 0.4:
        return rng.choice((value + 1, value - 1, -value, value * 2, value + 0.5, str(value)[:20], [value]))
    if rng.random() < 0.02:
        nested: Any = []
        for _ in range(rng.choice((50, 70, 150))):
            nested = [nested]
        return nested
    return rng.choice(ODD_VALUES)
