"""Which options of a network a file may set: of a stranger's run or .safetensors only the tensors are wanted.

An option reaches the constructor of a network; those of timm can open files and sockets. A user may give any on the
command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attfc_cuda._check import error

# Shapes and rates: plain numbers and names, none of which is a place to read from.
TIMM_OPTIONS = frozenset({
    "act_layer", "attn_drop_rate", "depth", "depths", "dim", "drop_path_rate", "drop_rate", "embed_dim", "global_pool",
    "img_size", "init_values", "mlp_ratio", "norm_layer", "num_heads", "output_stride", "patch_size", "pos_drop_rate",
    "proj_drop_rate", "qk_norm", "qkv_bias", "stem_width", "width", "window_size",
})  # fmt: skip
OWN_OPTIONS = frozenset({"dropout", "embedding", "middle_norm", "norm", "pool_shortcut"})
WEIGHTS_OPTION = "pretrained"  # true: fetch weights, which those in the file would replace
_LONGEST_WORD = 40


def options_from_file(name: str, options: Mapping[str, Any], source: object) -> dict[str, Any]:
    """The options that a file gives for a network, without `pretrained`.

    Args:
        name: The network, as for `build`.
        options: What the file holds.
        source: The file, for the message.

    Raises:
        ValueError: Naming the first option that no file may set, or whose value is no number, word or list of these.
    """
    known = TIMM_OPTIONS if name.startswith("timm:") else OWN_OPTIONS
    kept = {key: value for key, value in options.items() if key != WEIGHTS_OPTION}
    for key, value in kept.items():
        remedy = "build the network yourself and load the tensors into it, if you trust the file"
        if key not in known:
            rule = f"be set by no file, but for {', '.join(sorted(known))}"
            raise error("backbone", f"option {str(key)[:_LONGEST_WORD]!r}", rule, f"it in {source}", remedy)
        if not _is_plain(value):
            raise error(
                "backbone", f"option {key!r}", "be a number or a short word", f"{value!r:.80} in {source}", remedy
            )
    return kept


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= 16 and all(isinstance(item, (int, float)) for item in value)
    if isinstance(value, str):
        return len(value) <= _LONGEST_WORD and value.replace("_", "").isalnum()
    return value is None or isinstance(value, (bool, int, float))
