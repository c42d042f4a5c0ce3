"""Which of a test's cases `make test` runs, and which only `make proof` does."""

from __future__ import annotations

from collections.abc import Iterable

import pytest


def rest_in_proof(cases: Iterable, at_once: int = 1) -> list:
    """For `parametrize`: the first cases as they are, the others for `make proof`."""
    cases = list(cases)
    rest = (pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.proof)
            for case in cases[at_once:])  # fmt: skip
    return [*cases[:at_once], *rest]
