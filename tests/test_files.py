"""A file is replaced whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from attfc_cuda import _files
from attfc_cuda._files import replacing, write_text
from attfc_cuda.data.sources.recordio_writer import RecordWriter


def test_the_new_file_stands_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")
    write_text(path, "n\u00e9w")
    assert path.read_bytes() == "n\u00e9w".encode() and list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_file_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as part:
        part.write_text("half of")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "absent" / "a.json", "new")


@pytest.mark.parametrize("write", [lambda path: write_text(path, "new"), lambda path: RecordWriter(path).__enter__()])
def test_what_a_killed_writer_left_is_removed_a_day_later(tmp_path, monkeypatch, write) -> None:
    left = [tmp_path / ".a.rec.12.tmp", tmp_path / ".a.rec.12-0123456789abcdef.tmp"]
    others = [tmp_path / name for name in (".b.a.rec.12.tmp", ".a.rec.x.tmp", ".a.rec.12.tmp2", "a.rec.12.tmp")]
    for file in [*left, *others]:
        file.write_bytes(b"half of")
    write(tmp_path / "a.rec")
    assert all(file.exists() for file in [*left, *others])
    monkeypatch.setattr(_files, "ABANDONED_S", -1)
    write(tmp_path / "a.rec")
    assert not any(file.exists() for file in left) and all(file.exists() for file in others)
