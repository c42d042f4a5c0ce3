"""InsightFace's config files (`configs/*.py`) as settings of `attfc train`.

A config of theirs is a Python file. It is parsed, not run: assignments to `config.<name>` of numbers, strings, lists
and arithmetic over earlier names are understood, and that is all that their configs hold.
"""

from __future__ import annotations

import ast
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from attfc_cuda._check import error
from attfc_cuda.compat.insightface.margins import as_margin

if TYPE_CHECKING:
    from attfc_cuda.train import TrainConfig

# What InsightFace's configs/base.py sets, and a config that leaves it out gets.
BASE = {
    "margin_list": (1.0, 0.5, 0.0), "network": "r50", "resume": False, "save_all_states": False,
    "output": "ms1mv3_arcface_r50", "embedding_size": 512, "sample_rate": 1, "interclass_filtering_threshold": 0,
    "fp16": False, "batch_size": 128, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4,
    "verbose": 2000, "frequent": 10, "dali": False, "gradient_acc": 1, "seed": 2048, "num_workers": 2,
}  # fmt: skip

# No effect on what is learned, or measured from the data here.
_WITHOUT_COUNTERPART = ("num_classes", "num_image", "dali", "dali_aug", "save_all_states")
_NETWORKS = {"r18": "iresnet18", "r34": "iresnet34", "r50": "iresnet50", "r100": "iresnet100", "mbf": "mobilefacenet"}
_SCALE = 64.0  # fixed in train_v2.py
_IMAGE_SIZE = 112
_OPERATORS: dict[type, Any] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.USub: operator.neg,
}  # fmt: skip


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """The settings that a config file of InsightFace assigns, without running it and without `BASE`.

    Raises:
        ValueError: naming the file and the line that is more than an assignment of values.
    """
    path = Path(path)
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError) as cause:
        raise error("read_config", "path", "be a readable Python file", f"{path} ({cause})") from cause
    settings: dict[str, Any] = {}
    for line in tree.body:
        if isinstance(line, (ast.Import, ast.ImportFrom)) or _is_text(line) or _makes_the_dict(line):
            continue
        target = line.targets[0] if isinstance(line, ast.Assign) and len(line.targets) == 1 else None
        if not isinstance(line, ast.Assign) or not _is_setting(target):
            raise _not_a_value(path, line)
        try:
            settings[target.attr] = _value(line.value, settings)
        except (ValueError, ArithmeticError, TypeError) as cause:
            raise _not_a_value(path, line) from cause
    return settings


def train_config(settings: Mapping[str, Any]) -> tuple[TrainConfig, list[str]]:
    """The config of `attfc train` that trains as InsightFace's settings do.

    network -> backbone, embedding_size -> embedding_dim, margin_list and interclass_filtering_threshold -> margin and
    margin_options (scale 64), sample_rate -> head (fc at 1, else partial_fc) and sample_rate, fp16 -> precision,
    num_epoch -> epochs, warmup_epoch -> warmup, lr (polynomial decay of power 2), momentum -> sgd_momentum,
    weight_decay, optimizer, batch_size, rec -> data, output -> run, verbose -> verify_every, frequent -> log_every,
    seed, num_workers -> workers. lr and batch_size are those of one process.

    Args:
        settings: from `read_config`, or any mapping with InsightFace's names (its EasyDict too); `BASE` fills in the
            rest.

    Returns:
        The config, and remarks on what is not the same.

    Raises:
        ValueError: for a network or an optimizer that is not here, gradient_acc other than 1, a missing rec.
    """
    # The head needs torch alone; the trainer needs the extra [train].
    from attfc_cuda.train.config import TrainConfig

    given = {**BASE, **settings}
    network = str(given["network"])
    if network not in _NETWORKS:
        raise error("train_config", "network", f"be one of {', '.join(_NETWORKS)}", repr(network))
    if given["gradient_acc"] != 1:
        raise error("train_config", "gradient_acc", "be 1", given["gradient_acc"], "a larger batch_size does the same")
    if not given.get("rec"):
        raise error("train_config", "rec", "name the training data", repr(given.get("rec")))
    epochs, warmup = given.get("num_epoch", 20), given.get("warmup_epoch", 0)
    rate = float(given["sample_rate"])
    plain = {
        "dataset": {"data": str(given["rec"]), "image_size": _IMAGE_SIZE, "batch_size": int(given["batch_size"]),
                    "min_images": 1, "workers": int(given["num_workers"])},
        "model": {"backbone": _NETWORKS[network], "embedding_dim": int(given["embedding_size"])},
        "head": {"head": "fc" if rate == 1 else "partial_fc", "sample_rate": rate, "scale": _SCALE,
                 **_margin(given["margin_list"], given["interclass_filtering_threshold"])},
        "optim": {"optimizer": str(given["optimizer"]), "lr": float(given["lr"]), "epochs": float(epochs),
                  "sgd_momentum": float(given["momentum"]), "weight_decay": float(given["weight_decay"]),
                  "schedule": "polynomial", "power": 2.0, "warmup": warmup / epochs, "clip_norm": 5.0,
                  "precision": "fp16" if given["fp16"] else "fp32"},
        "verify": {"verify_every": int(given["verbose"])},
        "run": {"run": str(given["output"] or f"runs/{network}"), "log_every": int(given["frequent"]),
                "seed": int(given["seed"])},
    }  # fmt: skip
    return TrainConfig.from_dict(plain), _remarks(given)


class _MarginLoss:
    """The attributes by which `as_margin` knows a CombinedMarginLoss."""

    def __init__(self, m1: float, m2: float, m3: float, threshold: float) -> None:
        self.s, self.m1, self.m2, self.m3 = _SCALE, m1, m2, m3
        self.interclass_filtering_threshold = threshold


def _margin(margin_list: Any, threshold: float) -> dict[str, str]:
    if not isinstance(margin_list, (tuple, list)) or len(margin_list) != 3:
        raise error("train_config", "margin_list", "be three numbers (m1, m2, m3)", repr(margin_list))
    margin = as_margin(_MarginLoss(*margin_list, threshold))  # type: ignore[call-arg]
    name = type(margin).__name__.lower()
    numbers = {"arcface": ("m2",), "cosface": ("m",)}.get(name, ("m1", "m2", "m3"))
    options = {"m" if name == "arcface" else key: getattr(margin, key) for key in numbers}
    options["gradient"] = margin.gradient
    if margin.interclass_filter is not None:
        options["interclass_filter"] = margin.interclass_filter
    text = ",".join(f"{key}={value}" for key, value in options.items())
    return {"margin": {"combinedmargin": "combined"}.get(name, name), "margin_options": text}


def _remarks(given: Mapping[str, Any]) -> list[str]:
    remarks = [
        "weight_decay leaves norms, biases and PReLU slopes alone; InsightFace decays them too",
        "clip_norm is over all trained parameters, the fused class centres excepted; InsightFace clips the backbone's",
    ]
    if given.get("val_targets"):
        remarks.append(f"val_targets {list(given['val_targets'])}: give the sets by --verify-pairs or --verify-data")
    known = {*BASE, *_WITHOUT_COUNTERPART, "rec", "num_epoch", "warmup_epoch", "val_targets"}
    unknown = sorted(name for name in given if name not in known)
    if unknown:
        remarks.append(f"no counterpart here: {', '.join(unknown)}")
    return remarks


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


def _is_setting(node: ast.expr | None) -> TypeGuard[ast.Attribute]:
    """`config.<name>`"""
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "config"


def _makes_the_dict(line: ast.stmt) -> bool:
    """`config = edict()`"""
    return (
        isinstance(line, ast.Assign)
        and isinstance(line.value, ast.Call)
        and not line.value.args
        and not line.value.keywords
        and [getattr(target, "id", None) for target in line.targets] == ["config"]
    )


def _value(node: ast.expr, settings: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(_value(item, settings) for item in node.elts)
    if _is_setting(node):
        if node.attr in settings or node.attr in BASE:
            return settings.get(node.attr, BASE.get(node.attr))
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, settings), _value(node.right, settings))
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.operand, settings))
    raise ValueError("not a value")


def _not_a_value(path: Path, line: ast.stmt) -> Exception:
    got = f"line {line.lineno} of {path}: {ast.unparse(line)[:100]}"
    return error("read_config", "path", "hold assignments of values to config.<name> alone", got)
