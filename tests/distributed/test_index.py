"""Several processes open the data of a run: one looks for the images, the others read its index."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from group import run
from index_cases import beats, opened, turns
from PIL import Image


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    stream = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 9, np.uint8)).save(stream, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(6):
            for name, content in ((f"{number}.png", stream.getvalue()), (f"{number}.cls", b"%d" % (number // 2))):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return tmp_path / "a.tar"


def test_one_process_looks_through_the_data_and_the_others_read_its_index(shard: Path, tmp_path: Path) -> None:
    first, second = run(2, opened, str(shard), str(tmp_path / "caches"))
    assert first["searches"] == [False] and second["searches"] == []
    assert first["labels"] == second["labels"] == [0, 0, 1, 1, 2, 2]
    # The images that `cache` keeps are each process's own.
    assert first["report"] == second["report"] and "kept in memory" in first["report"]


def test_where_no_index_can_be_kept_each_process_looks_for_itself(shard: Path, tmp_path: Path) -> None:
    shard.with_name("a.tar.attfc_index").mkdir()
    (tmp_path / "caches").touch()
    found = run(2, opened, str(shard), str(tmp_path / "caches"))
    # Twice each: `cache` opens the data once more.
    assert [process["searches"] for process in found] == [[False, False]] * 2
    assert found[0]["labels"] == found[1]["labels"] == [0, 0, 1, 1, 2, 2]


def test_data_that_cannot_be_opened_are_an_error_of_every_process(tmp_path: Path) -> None:
    found = run(2, opened, str(tmp_path / "none.tar"), str(tmp_path / "caches"))
    assert all("shards must be readable tar files" in process["error"] for process in found)


@pytest.mark.parametrize(("first_of_machine", "expected"), [
    (3, [[], ["0"], ["0"]]), (1, [[], ["0"], ["0", "1"]]),
], ids=["one machine", "two machines"])  # fmt: skip
def test_the_first_process_of_each_machine_comes_before_the_rest(
    tmp_path: Path, first_of_machine: int, expected: list[list[str]]
) -> None:
    """Whose disk may be its own."""
    found = run(3, turns, str(tmp_path), first_of_machine)
    # Those of one turn may see each other.
    assert [sorted(set(there) & set(late)) for there, late in zip(found, expected, strict=True)] == expected
    assert found[0] == [] and (first_of_machine == 3 or found[1] == ["0"])


def test_who_waits_hears_of_the_others_meanwhile() -> None:
    """So that looking for millions of images may take longer than the group waits for a message."""
    assert run(2, beats) == [True, True]
