"""Old names still work, with a warning: modules at their old places are the same objects, keywords mean the same."""

import importlib
import subprocess
import sys

import pytest

from attfc_cuda._deprecated import MOVED, renamed_keyword


@pytest.mark.parametrize("old", [name for name in MOVED if not name.startswith("kernels")])
def test_an_old_place_gives_the_module_of_the_new_one(old):
    place = importlib.import_module(f"attfc_cuda.{MOVED[old]}")
    sys.modules.pop(f"attfc_cuda.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"attfc_cuda.{MOVED[old]}"):
        assert importlib.import_module(f"attfc_cuda.{old}") is place
    assert place.__spec__.name == place.__name__ == f"attfc_cuda.{MOVED[old]}"


def test_importing_the_package_needs_no_old_place():
    subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:attfc_cuda", "-c", "import attfc_cuda"], check=True
    )


def test_a_renamed_keyword():
    @renamed_keyword("old", "new")
    def f(x, *, new=0):
        return x, new

    assert f(1, new=2) == (1, 2)
    with pytest.warns(DeprecationWarning, match=r"f\(old=...\) is now new="):
        assert f(1, old=3) == (1, 3)
    with pytest.raises(TypeError, match="new must be given once, got old as well"):
        f(1, old=3, new=4)
