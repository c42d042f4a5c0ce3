"""Everything in this folder needs a CUDA device and says so where there is none.

ATTFC_GPU_TESTS_ON=cpu runs on the CPU, with the CPU kernels, what does not depend on a GPU: a check of the tests
themselves (tests/test_gpu_programs.py).
"""

import os
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    on_cpu = os.environ.get("ATTFC_GPU_TESTS_ON") == "cpu"
    for item in items:
        if item.path.parent != HERE:
            continue
        if on_cpu:
            if item.get_closest_marker("only_gpu"):
                item.add_marker(pytest.mark.skip(reason="runs on a GPU only"))
        elif not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))
