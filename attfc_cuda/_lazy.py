"""Packages that import their parts when they are first used, so that `attfc --help` does not wait for torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any


def lazy_attributes(package: str, names: Sequence[str], modules: Sequence[str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562) that imports its public names on first use.

    Args:
        package: The package's `__name__`.
        names: What is looked up in `modules`, in their order.
        modules: Dotted names inside the package. Those on the first level are attributes too, as after an import.

    Returns:
        A function of the attribute's name. It raises AttributeError for any other name.
    """

    def __getattr__(name: str) -> Any:
        if name in names:
            for module in modules:
                found = vars(importlib.import_module(f"{package}.{module}"))
                if name in found:
                    setattr(sys.modules[package], name, found[name])
                    return found[name]
        elif name in modules:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__
