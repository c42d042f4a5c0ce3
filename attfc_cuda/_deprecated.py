"""Old names of modules, keywords, backends, methods, attributes of modules and fields of dataclasses: they work for one
more release, with a DeprecationWarning."""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

# Modules that users may have imported, by their dotted name inside the package. Private ones (a leading underscore) are
# not among them.
MOVED = {
    "container": "heads.container",
    "momentum": "heads.momentum_encoder",
    "reference": "ops.eager",
    "head_checkpoint": "distributed.checkpoint",
    "kernels": "ops.triton",
    "kernels.report": "ops.resources.triton_report",
    "kernels.cuda_report": "ops.resources.cuda_report",
    "train.setup": "train.training",
    "train.distributed": "train.process_group",
    "train.split_state": "distributed.split_state",
    "train.watch": "train.diagnostics",
    "train.judge": "evaluation.report",
    "compat.insightface.command": "compat.insightface.run_folder",
    "data.concat": "data.sources.concat",
    "data.folders": "data.sources.folders",
    "data.lists": "data.sources.lists",
    "data.lmdb_faces": "data.sources.lmdb",
    "data.tar_faces": "data.sources.tar",
    "data.records": "data.sources.recordio",
    "data.record_faces": "data.sources.recordio_faces",
    "data.record_index": "data.sources.recordio_index",
    "data.record_writer": "data.sources.recordio_writer",
    "data.stored": "data.sources.stored",
    "data.face_drawing": "data.procedural.drawing",
    "data.face_traits": "data.procedural.traits",
}
# Backends, as `backend=`, ATTFC_BACKEND and a configuration name them.
BACKENDS = {"reference": "eager"}
_PACKAGE = "attfc_cuda."
_Function = TypeVar("_Function", bound=Callable[..., Any])


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that `old` is called `new`. stacklevel 3: at the caller of the function that calls this."""
    message = f"{old} is now {new}; the old name goes with the next release"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)


def renamed_keyword(old: str, new: str) -> Callable[[_Function], _Function]:
    """Decorator: the keyword argument `old` of a function is taken as `new`. Giving both raises TypeError."""

    def decorate(function: _Function) -> _Function:
        name = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def with_old_name(*arguments: Any, **keywords: Any) -> Any:
            if old in keywords:
                if new in keywords:
                    raise TypeError(f"{name}: {new} must be given once, got {old} as well")
                warn_renamed(f"{name}({old}=...)", f"{new}=")
                keywords[new] = keywords.pop(old)
            return function(*arguments, **keywords)

        return with_old_name  # type: ignore[return-value]

    return decorate


def current_backend(name: str) -> str:
    """The backend's present name. An old one is taken as the new, with a warning at the code that called us."""
    if name not in BACKENDS:
        return name
    frame, stacklevel = sys._getframe(), 2  # of this function, as warn_renamed counts
    while frame.f_back is not None and frame.f_globals["__name__"].startswith((_PACKAGE, "torch.")):
        frame, stacklevel = frame.f_back, stacklevel + 1
    warn_renamed(f"backend {name!r}", repr(BACKENDS[name]), stacklevel)
    return BACKENDS[name]


def renamed_attributes(module: str, places: dict[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module some of whose names have moved or are called otherwise.

    Args:
        module: Its `__name__`.
        places: New dotted name inside the package, of each old name.
    """

    def __getattr__(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(f"{module}.{name}", _PACKAGE + places[name])
        place, _, attribute = places[name].rpartition(".")
        return getattr(importlib.import_module(_PACKAGE + place), attribute)

    return __getattr__


def renamed_field(old: str, new: str) -> Callable[[type], type]:
    """Class decorator for a dataclass: `old` is still an argument and an attribute that mean `new`."""

    def decorate(cls: type) -> type:
        def read(self: Any) -> Any:
            warn_renamed(f"{cls.__name__}.{old}", new)
            return getattr(self, new)

        def write(self: Any, value: Any) -> None:
            warn_renamed(f"{cls.__name__}.{old}", new)
            setattr(self, new, value)

        cls.__init__ = renamed_keyword(old, new)(cls.__init__)  # type: ignore[misc]
        setattr(cls, old, property(read, write))
        return cls

    return decorate


def renamed_method(owner: type, old: str, new: str) -> None:
    """Make `old` and `new` names of one method of the class `owner`, which may define it under either.

    A subclass of a user that still defines `old` is warned about where it is defined. `super().<old>()` works too.
    """
    own = vars(owner)
    if old in own and new not in own:
        warn_renamed(f"{owner.__name__}.{old}", new, stacklevel=4)
        setattr(owner, new, own[old])
    elif new in own and old not in own:
        method = own[new]

        @functools.wraps(method)
        def with_old_name(*arguments: Any, **keywords: Any) -> Any:
            warn_renamed(f"{owner.__name__}.{old}", new)
            return method(*arguments, **keywords)

        setattr(owner, old, with_old_name)


class _OldPlaces(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a moved module by its old name, and gives the module of the new one: one object, not a copy."""

    def __init__(self) -> None:
        self._specs: dict[str, importlib.machinery.ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.startswith(_PACKAGE) and fullname.removeprefix(_PACKAGE) in MOVED:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=fullname == f"{_PACKAGE}kernels")
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        place = _PACKAGE + MOVED[spec.name.removeprefix(_PACKAGE)]
        warn_renamed(spec.name, place)
        module = importlib.import_module(place)
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has just written the old place's spec into the module.
        module.__spec__ = self._specs.pop(module.__name__ if module.__spec__ is None else module.__spec__.name)


def install() -> None:
    """Look for old places last, after everything that is there."""
    if not any(isinstance(finder, _OldPlaces) for finder in sys.meta_path):
        sys.meta_path.append(_OldPlaces())
