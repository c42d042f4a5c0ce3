"""Argument checks that several files of this package share."""

from __future__ import annotations

import operator

from attfc_cuda._check import error

MAX_SEED = 2**64 - 1


def checked_int(function: str, argument: str, value: int, low: int, high: int | None = None) -> int:
    """`value` as an int within low..high (no upper limit for None); TypeError or ValueError naming the argument."""
    try:
        number = operator.index(value)
    except TypeError:
        raise error(function, argument, "be an int", repr(value), kind=TypeError) from None
    if number < low or (high is not None and number > high):
        raise error(function, argument, f"be at least {low}" if high is None else f"lie in {low} to {high}", number)
    return number


def checked_image_size(function: str, image_size: int) -> int:
    """Below 8 pixels nothing of a face is left; above 4096 a typing error is likelier than a face."""
    return checked_int(function, "image_size", image_size, 8, 4096)


def checked_share(function: str, argument: str, value: float) -> float:
    """`value` as a float within 0 to 1; TypeError or ValueError naming the argument."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise error(function, argument, "be a number", repr(value), kind=TypeError)
    if not 0 <= value <= 1:
        raise error(function, argument, "lie in 0 to 1", value)
    return float(value)
