"""The settings of a run as `attfc train --help` shows them: the usual ones first, in a group of their own.

A form has the fields of `TrainConfig`, with their types, defaults and help, in other groups.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from typing import Annotated, Any

import tyro

from attfc_cuda.train import config as settings
from attfc_cuda.train.config import TrainConfig

USUAL = (
    "data", "run", "backbone", "image_size", "init", "head", "margin", "batch_size", "epochs", "lr", "precision",
    "verify_data", "verify_pairs", "resume", "config",
)  # fmt: skip
GROUP = "usual"
_Fields = dict[str, tuple[Any, Any]]  # types and values by name


def to_form(config: TrainConfig) -> Any:
    """The form filled with a config: an instance of a dataclass for `tyro.cli`."""
    texts, usual, groups = _texts(), _Fields(), {}
    for group in dataclasses.fields(config):
        values = getattr(config, group.name)
        hints, rest = typing.get_type_hints(type(values)), _Fields()
        for field in dataclasses.fields(values):
            help_text = texts[type(values).__name__][field.name]
            hint: Any = Annotated[hints[field.name], tyro.conf.arg(help=help_text)]  # type: ignore[valid-type, name-defined]
            (usual if field.name in USUAL else rest)[field.name] = (hint, getattr(values, field.name))
        groups[group.name] = _filled(type(values).__name__, type(values).__doc__, rest)
    ordered = {name: usual[name] for name in USUAL}
    first = _filled("Usual", "What most runs set. The rest has defaults that fit each other.", ordered)
    parts = {GROUP: (type(first), first), **{name: (type(part), part) for name, part in groups.items()}}
    return _filled("TrainForm", TrainConfig.__doc__, parts)


def from_form(form: Any) -> TrainConfig:
    """The inverse of `to_form`."""
    usual, config = vars(getattr(form, GROUP)), TrainConfig()
    for group in dataclasses.fields(config):
        part = getattr(config, group.name)
        given = vars(getattr(form, group.name))
        for field in dataclasses.fields(part):
            setattr(part, field.name, usual[field.name] if field.name in USUAL else given[field.name])
    return config


def _filled(name: str, text: str | None, fields: dict[str, tuple[Any, Any]]) -> Any:
    """An instance of a dataclass of that name and docstring, of fields with types and values."""
    made = dataclasses.make_dataclass(name, [(key, hint) for key, (hint, _) in fields.items()])
    made.__doc__ = text
    return made(**{key: value for key, (_, value) in fields.items()})


def _texts() -> dict[str, dict[str, str]]:
    """The text under each field, by class and field."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(settings)).body:
        if isinstance(node, ast.ClassDef):
            for field, below in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                    text = ast.literal_eval(below.value)
                    found.setdefault(node.name, {})[field.target.id] = " ".join(text.split())  # type: ignore[union-attr]
    return found
