"""The tests in this folder are written for a CUDA device. Where there is none, what does not depend on one runs on the
CPU with the CPU kernels: a check of the tests themselves. The rest says so.
"""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    reason = "needs a GPU, and torch sees no CUDA device; the other tests for a GPU run on the CPU"
    for item in items:
        if item.path.parent == HERE and item.get_closest_marker("only_gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))
