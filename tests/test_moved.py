"""Modules that moved still import from their old places, with a warning, and are the same objects."""

import importlib
import subprocess
import sys

import pytest

from attfc_cuda._moved import MOVED


@pytest.mark.parametrize("old", [name for name in MOVED if not name.startswith("kernels")])
def test_an_old_place_gives_the_module_of_the_new_one(old):
    place = importlib.import_module(f"attfc_cuda.{MOVED[old]}")
    sys.modules.pop(f"attfc_cuda.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"attfc_cuda.{MOVED[old]}"):
        assert importlib.import_module(f"attfc_cuda.{old}") is place
    assert place.__spec__.name == place.__name__ == f"attfc_cuda.{MOVED[old]}"


def test_importing_the_package_needs_no_old_place():
    subprocess.run([sys.executable, "-W", "error::DeprecationWarning:attfc_cuda", "-c", "import attfc_cuda"], check=True)
