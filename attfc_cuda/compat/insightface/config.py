"""InsightFace's config files (`configs/*.py`) as settings of `attfc train`.

A config of theirs is a Python file. It is parsed, not run: assignments to `config.<name>` of numbers, strings, lists
and arithmetic over earlier names are understood, and that is all that their configs hold.
"""

from __future__ import annotations

import ast
import math
import operator
import os
import warnings
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

# What is said of a setting that has no counterpart, where it is on.
_DROPPED = {
    "num_classes": "num_classes is counted in the data",
    "num_image": "num_image is counted in the data",
    "dali": "dali: images are decoded by --workers processes",
    "dali_aug": "dali_aug: see --augment crop,photometric,gray,lowres, which are not the same",
    "save_all_states": "save_all_states: every checkpoint holds all of the run",
    "resume": "resume: attfc train --resume says so at the start of a run",
}
_NETWORKS = {
    "r18": "iresnet18", "r34": "iresnet34", "r50": "iresnet50", "r100": "iresnet100", "r200": "iresnet200",
    "mbf": "mobilefacenet",
}  # fmt: skip
_NETWORK_REMEDY = (
    "its ViT (patches of 9 pixels, all tokens flattened), r2060 and mbf_large are not here; --network NAME, such as "
    "timm:vit_small_patch16_224, takes another in its place"
)
_NO_DATA = "synthetic"  # random images, for timing
_SCALE = 64.0  # fixed in train_v2.py
_IMAGE_SIZE = 112
_OPERATORS: dict[type, Any] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.USub: operator.neg,
}  # fmt: skip
_NUMBERS = (
    "num_epoch", "warmup_epoch", "sample_rate", "batch_size", "num_workers", "embedding_size", "lr", "momentum",
    "weight_decay", "verbose", "frequent", "seed", "interclass_filtering_threshold",
)  # fmt: skip
_LARGEST_FILE, _LARGEST_VALUE, _MOST_BITS = 2**16, 2**12, 63


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """The settings that a config file of InsightFace assigns, without running it and without `BASE`.

    A value is at most 4096 characters and items together, a whole number has at most 63 bits, and a file at most 64 KiB
    (our choice): more is not computed.

    Raises:
        ValueError: naming the file and the line that is more than an assignment of values.
    """
    path = Path(path)
    text = _text(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of their escapes and comparisons
            tree = ast.parse(text)
    except SyntaxError as cause:
        got = f"line {cause.lineno or 1} of {path}: {cause.msg}"
        raise error("read_config", "path", "be a readable Python file", got) from cause
    except (ValueError, RecursionError, MemoryError) as cause:
        got = f"{path} ({cause or 'nested too deeply'})"
        raise error("read_config", "path", "be a readable Python file", got) from cause
    settings: dict[str, Any] = {}
    for line in tree.body:
        if isinstance(line, (ast.Import, ast.ImportFrom)) or _is_text(line) or _makes_the_dict(line):
            continue
        target = line.targets[0] if isinstance(line, ast.Assign) and len(line.targets) == 1 else None
        if not isinstance(line, ast.Assign) or not _is_setting(target):
            raise _not_a_value(path, line, text)
        try:
            settings[target.attr] = _value(line.value, settings)
        except (ValueError, ArithmeticError, TypeError, RecursionError) as cause:
            raise _not_a_value(path, line, text) from cause
    return settings


def train_config(
    settings: Mapping[str, Any],
    *,
    processes: int = 1,
    batch_size: int | None = None,
    backbone: str | None = None,
) -> tuple[TrainConfig, list[str]]:
    """The config of `attfc train` that trains as InsightFace's settings do.

    network -> backbone, embedding_size -> embedding_dim, margin_list and interclass_filtering_threshold -> margin and
    margin_options (scale 64), sample_rate -> head (fc at 1, else partial_fc) and sample_rate, fp16 -> precision,
    num_epoch -> epochs, warmup_epoch -> warmup, lr (polynomial decay of power 2), momentum -> sgd_momentum,
    weight_decay, optimizer, rec -> data, output -> run, verbose -> verify_every, frequent -> log_every, seed,
    num_workers -> workers, val_targets -> verify_pairs: <rec>/<name>.bin, which are verified during training, and no
    identities are held out. batch_size is that of one process there and of all here, so it is multiplied by
    `processes`; lr belongs to the batch of all in both.

    Args:
        settings: from `read_config`, or any mapping with InsightFace's names (its EasyDict too); `BASE` fills in the
            rest.
        processes: Number of processes that the settings are for, at least 1; they do not say it.
        batch_size: Probes a step to train with instead of as many as there; lr is then in proportion to it.
        backbone: In place of network.

    Returns:
        The config, and remarks on what is not the same.

    Raises:
        ValueError: for a network or an optimizer that is not here, gradient_acc other than 1, a missing rec or one of
            random images.
    """
    # The head needs torch alone; the trainer needs the extra [train].
    from attfc_cuda.train.config import TrainConfig

    given = {**BASE, **settings}
    network = given["network"]
    if backbone is None and (not isinstance(network, str) or network not in _NETWORKS):
        raise error("train_config", "network", f"be one of {', '.join(_NETWORKS)}", repr(network), _NETWORK_REMEDY)
    if processes < 1:
        raise error("train_config", "processes", "be at least 1", processes)
    if given["gradient_acc"] != 1:
        raise error("train_config", "gradient_acc", "be 1", given["gradient_acc"], "a larger batch_size does the same")
    if not given.get("rec") or given["rec"] == _NO_DATA:
        raise error("train_config", "rec", "name the training data", repr(given.get("rec")))
    given = {"num_epoch": 20, "warmup_epoch": 0, **given}
    for name in _NUMBERS:
        _require_number(name, given[name])
    epochs, warmup = float(given["num_epoch"]), float(given["warmup_epoch"])
    if epochs <= 0:
        raise error("train_config", "num_epoch", "be positive", given["num_epoch"])
    rate = float(given["sample_rate"])
    there = int(given["batch_size"]) * processes
    here = there if batch_size is None else batch_size
    if there < 1 or here < 1:
        raise error("train_config", "batch_size", "be at least 1", min(there, here))
    pairs = ",".join(f"{given['rec']}/{name}.bin" for name in _targets(given))
    plain = {
        "dataset": {"data": str(given["rec"]), "image_size": _IMAGE_SIZE, "batch_size": here,
                    "min_images": 1, "workers": int(given["num_workers"])},
        "model": {"backbone": backbone or _NETWORKS[network], "embedding_dim": int(given["embedding_size"])},
        "head": {"head": "fc" if rate == 1 else "partial_fc", "sample_rate": rate, "scale": _SCALE,
                 **_margin(given["margin_list"], given["interclass_filtering_threshold"])},
        "optim": {"optimizer": str(given["optimizer"]), "lr": float(given["lr"]) * here / there, "epochs": epochs,
                  "sgd_momentum": float(given["momentum"]), "weight_decay": float(given["weight_decay"]),
                  "schedule": "polynomial", "power": 2.0, "warmup": warmup / epochs, "clip_norm": 5.0,
                  "precision": "fp16" if given["fp16"] else "fp32"},
        "verify": {"verify_every": int(given["verbose"]), "verify_pairs": pairs or None, "hold_out": 0.0},
        "run": {"run": str(given["output"] or f"runs/{network}"), "log_every": int(given["frequent"]),
                "seed": int(given["seed"])},
    }  # fmt: skip
    return TrainConfig.from_dict(plain), [*_batch_remarks(given, processes, there, here), *_remarks(given)]


def _require_number(name: str, value: Any) -> None:
    """Whole numbers beyond 63 bits would not fit a float or a tensor."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 2.0**_MOST_BITS:
        raise error("train_config", name, f"be a finite number below 2^{_MOST_BITS}", repr(value)[:100])


class _MarginLoss:
    """The attributes by which `as_margin` knows a CombinedMarginLoss."""

    def __init__(self, m1: float, m2: float, m3: float, threshold: float) -> None:
        self.s, self.m1, self.m2, self.m3 = _SCALE, m1, m2, m3
        self.interclass_filtering_threshold = threshold


def _margin(margin_list: Any, threshold: float) -> dict[str, str]:
    if not isinstance(margin_list, (tuple, list)) or len(margin_list) != 3:
        raise error("train_config", "margin_list", "be three numbers (m1, m2, m3)", repr(margin_list)[:100])
    for number in margin_list:
        _require_number("margin_list", number)
    margin = as_margin(_MarginLoss(*margin_list, threshold))  # type: ignore[call-arg]
    name = type(margin).__name__.lower()
    numbers = {"arcface": ("m2",), "cosface": ("m",)}.get(name, ("m1", "m2", "m3"))
    options = {"m" if name == "arcface" else key: getattr(margin, key) for key in numbers}
    options["gradient"] = margin.gradient
    if margin.interclass_filter is not None:
        options["interclass_filter"] = margin.interclass_filter
    text = ",".join(f"{key}={value}" for key, value in options.items())
    return {"margin": {"combinedmargin": "combined"}.get(name, name), "margin_options": text}


def _targets(given: Mapping[str, Any]) -> list[str]:
    targets = given.get("val_targets") or []
    if not isinstance(targets, (list, tuple)) or not all(isinstance(name, str) for name in targets):
        raise error("train_config", "val_targets", "be a list of names", repr(targets)[:100])
    return list(targets)


def _batch_remarks(given: Mapping[str, Any], processes: int, there: int, here: int) -> list[str]:
    each = f"batch_size {given['batch_size']} is that of one process there, and lr {given['lr']} that of all together"
    if processes == 1:
        each += "; --processes N if the config is for N"
    remarks = [f"{each}: batch_size {there} here"]
    if here != there:
        remarks.append(
            f"batch_size {here} instead of {there}, and lr {float(given['lr']) * here / there:g} in proportion"
        )
    return remarks


def _remarks(given: Mapping[str, Any]) -> list[str]:
    remarks = [
        "weight_decay leaves norms, biases and PReLU slopes alone; InsightFace decays them too",
        "clip_norm is over all trained parameters, the fused class centres excepted; InsightFace clips the backbone's",
    ]
    if targets := _targets(given):
        remarks.append(
            f"val_targets: {', '.join(targets)} must lie in rec as .bin; InsightFace passes over what is missing"
        )
    remarks += [said for name, said in _DROPPED.items() if given.get(name)]
    known = {*BASE, *_DROPPED, "rec", "num_epoch", "warmup_epoch", "val_targets"}
    unknown = sorted(str(name) for name in given if name not in known)
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


def _text(path: Path) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_LARGEST_FILE + 1)
    except (OSError, ValueError) as cause:
        raise error("read_config", "path", "be a readable Python file", f"{path} ({cause})") from cause
    if len(text) > _LARGEST_FILE:
        raise error("read_config", "path", f"have at most {_LARGEST_FILE} characters", f"more in {path}")
    return text


def _value(node: ast.expr, settings: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return _bounded(node.value)
    if isinstance(node, (ast.Tuple, ast.List)):
        return _bounded(tuple(_value(item, settings) for item in node.elts))
    if _is_setting(node):
        if node.attr in settings or node.attr in BASE:
            return settings.get(node.attr, BASE.get(node.attr))
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left, settings), _value(node.right, settings)
        sizes = [_size(value) for value in (left, right) if isinstance(value, (str, tuple))]
        if isinstance(node.op, ast.Mult) and sizes and sizes[0] * _times(left, right) > _LARGEST_VALUE:
            raise ValueError("repeated too often")
        return _bounded(_OPERATORS[type(node.op)](left, right))
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _bounded(_OPERATORS[type(node.op)](_value(node.operand, settings)))
    raise ValueError("not a value")


def _times(left: Any, right: Any) -> int:
    """How often a product repeats its text or list."""
    return max((value for value in (left, right) if isinstance(value, int)), default=1)


def _bounded(value: Any) -> Any:
    """`value`, a number, text, None or tuple of these. Raises ValueError for another or a larger one."""
    if not isinstance(value, (bool, int, float, str, tuple, type(None))):
        raise ValueError("no number, text or list")
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise ValueError("too large a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not a finite number")
    if _size(value) > _LARGEST_VALUE:
        raise ValueError("too long")
    return value


def _size(value: Any) -> int:
    """Characters and items in a value, those of lists in it included."""
    if isinstance(value, tuple):
        return 1 + sum(_size(item) for item in value)
    return 1 + len(value) if isinstance(value, str) else 1


def _not_a_value(path: Path, line: ast.stmt, text: str) -> Exception:
    source = text.split("\n")[line.lineno - 1].strip()[:100]
    got = f"line {line.lineno} of {path}: {source}"
    return error("read_config", "path", "hold assignments of values to config.<name> alone", got)
