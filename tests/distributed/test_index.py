"""Several processes open the data of a run: one looks for the images, the others read its index."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import numpy as np
import pytest
from group import run
from index_cases import all_cases
from PIL import Image


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """[rank]: what each of three processes saw."""
    folder = tmp_path_factory.mktemp("shards")
    stream = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 9, np.uint8)).save(stream, "PNG")
    for shard in ("kept.tar", "not_kept.tar"):
        with tarfile.open(folder / shard, "w") as archive:
            for number in range(6):
                for name, content in ((f"{number}.png", stream.getvalue()), (f"{number}.cls", b"%d" % (number // 2))):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    (folder / "not_kept.tar.attfc_index").mkdir()  # permissions do not bind the superuser: a folder is in the way
    return run(3, all_cases, str(folder))


def test_one_process_looks_through_the_data_and_the_others_read_its_index(found: list) -> None:
    kept = [process["kept"] for process in found]
    assert [process["searches"] for process in kept] == [[False], [], []]
    assert all(process["labels"] == [0, 0, 1, 1, 2, 2] for process in kept)
    # The images that `cache` keeps are each process's own.
    assert all(process["report"] == kept[0]["report"] and "kept in memory" in process["report"] for process in kept)


def test_where_no_index_can_be_kept_each_process_looks_for_itself(found: list) -> None:
    # Twice each: `cache` opens the data once more.
    assert [process["not kept"]["searches"] for process in found] == [[False, False]] * 3
    assert all(process["not kept"]["labels"] == [0, 0, 1, 1, 2, 2] for process in found)


def test_data_that_cannot_be_opened_are_an_error_of_every_process(found: list) -> None:
    assert all("shards must be readable tar files" in process["none"]["error"] for process in found)


def test_the_first_process_of_each_machine_comes_before_the_rest(found: list) -> None:
    """Whose disk may be its own."""
    assert [process["two machines"] for process in found] == [[], ["0"], ["0", "1"]]
    assert found[0]["one machine"] == [] and all("0" in process["one machine"] for process in found[1:])


def test_who_waits_hears_of_the_others_meanwhile(found: list) -> None:
    """So that looking for millions of images may take longer than the group waits for a message."""
    assert [process["beats"] for process in found] == [True, True, True]
