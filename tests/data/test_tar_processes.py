"""Shards indexed by worker processes give what one process finds in them."""

import io
import multiprocessing
import os
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from attfc_cuda.data import TarFaces, processes
from attfc_cuda.data.sources import index_cache, tar_index
from attfc_cuda.data.sources.checked_file import CheckedFile


def write_shards(folder, count=5):
    folder.mkdir()
    for shard in range(count):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for image in range(3 + shard):
                stream = io.BytesIO()
                Image.new("RGB", (8, 8), (20 * shard, 20 * image, 9)).save(stream, "PNG")
                member = tarfile.TarInfo(f"name{(shard + image) % 4}/{shard}_{image}.png")
                member.size = stream.tell()
                archive.addfile(member, io.BytesIO(stream.getvalue()))
            archive.addfile(tarfile.TarInfo(f"name0/.hidden{shard}.png"))
    return [folder / f"{shard}.tar" for shard in range(count)]


@pytest.fixture
def two_workers(monkeypatch):
    """Everything behind the first shard is worth two workers; the shards that they were given."""
    given = []

    def counted(work, count, workers):
        given.append((count, workers))
        return processes.in_processes(work, count, workers)

    monkeypatch.setattr(tar_index, "_LONG_S", -1.0)
    monkeypatch.setattr(tar_index, "spare_workers", lambda: 2)
    monkeypatch.setattr(tar_index, "start_method", lambda: "fork")
    monkeypatch.setattr(tar_index, "in_processes", counted)
    return given


def seen(faces):
    images = np.stack([faces[k].numpy() for k in range(len(faces))])
    return faces.labels.tolist(), list(faces.identities), images.tobytes(), faces.skipped.text(" ")


def test_workers_find_what_one_process_finds_and_keep_it(tmp_path, monkeypatch, two_workers):
    with monkeypatch.context() as alone:
        alone.setattr(tar_index, "spare_workers", lambda: 0)
        expected = seen(TarFaces(write_shards(tmp_path / "a"), 8))
    assert two_workers == [] and "skipped: 5 hidden" in expected[3]
    shards = write_shards(tmp_path / "b")
    found = seen(TarFaces(shards, 8))
    assert two_workers == [(4, 2)] and found[:3] == expected[:3]
    assert found[3] == expected[3].replace(str(tmp_path / "a"), str(tmp_path / "b"))
    # Kept by the workers; a shard that has changed is searched again, alone.
    with tarfile.open(shards[1], "w") as archive:
        archive.addfile(tarfile.TarInfo("name1/1.png"))
    assert len(TarFaces(shards, 8)) == len(expected[0]) - 3 and two_workers == [(4, 2)]


def test_damage_that_a_worker_finds_is_the_error_of_one_process(tmp_path, monkeypatch, two_workers):
    shards = write_shards(tmp_path / "a")
    content = bytearray(shards[3].read_bytes())
    content[140] ^= 1  # in the size of the first member
    shards[3].write_bytes(content)
    with monkeypatch.context() as alone, pytest.raises(ValueError, match="shards must be intact") as expected:
        alone.setattr(tar_index, "spare_workers", lambda: 0)
        TarFaces(shards, 8, on_bad_image="raise")
    for kept in tmp_path.glob(f"a/*{index_cache.SUFFIX}"):
        kept.unlink()
    with pytest.raises(ValueError) as found:
        TarFaces(shards, 8, on_bad_image="raise")
    assert str(found.value) == str(expected.value) and two_workers == [(4, 2)]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_no_worker_is_started_where_it_would_run_the_main_file(tmp_path, monkeypatch, two_workers, method):
    monkeypatch.setattr(tar_index, "start_method", lambda: method)
    assert len(TarFaces(write_shards(tmp_path / "a"), 8)) == 25 and two_workers == []


def test_a_search_goes_to_processes_that_are_not_forked(tmp_path):
    search = tar_index._Search([CheckedFile(path) for path in write_shards(tmp_path / "a")], "auto", False)
    there = pickle.loads(pickle.dumps(search))
    for number in range(5):
        np.testing.assert_array_equal(there(number).arrays["starts"], search(number).arrays["starts"])


def test_items_come_in_order_and_an_error_in_its_turn():
    for workers in (0, 2):
        results = processes.in_processes(_inverse, 9, workers, a_turn=2)
        assert [next(results) for _ in range(5)] == [1 / (5 - k) for k in range(5)]
        with pytest.raises(ZeroDivisionError, match="^division by zero$"):
            next(results)


ENDLESS = """
import multiprocessing, threading
from torch.utils.data import _utils
from attfc_cuda.data.processes import in_processes

_utils.MP_STATUS_CHECK_INTERVAL = 1e6  # what a DataLoader waits for each of its workers, in seconds

def endless(item):
    return threading.Event().wait() if item else item

if __name__ == "__main__":
    results = in_processes(endless, 3, 2)
    assert next(results) == 0 and len(multiprocessing.active_children()) == 2
    results.close()
    assert multiprocessing.active_children() == []
    multiprocessing.set_start_method("spawn")
"""


def test_workers_end_at_once_when_they_are_given_up_and_settle_no_start_method(tmp_path):
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def _inverse(item):
    return 1 / (5 - item)


def test_a_worker_has_no_workers_of_its_own():
    assert processes.spare_workers() >= 1
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(processes.spare_workers) == 0
