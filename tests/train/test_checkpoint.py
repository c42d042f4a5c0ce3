"""Checkpoints: complete or absent, never run code, and always fall back to one that loads."""

from __future__ import annotations

import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from attfc_cuda._files import checksum
from attfc_cuda.train import archive, checkpoint
from attfc_cuda.train.checkpoint import CheckpointError


def state(value: float) -> dict:
    return {"weights": torch.full((50, 50), value)}


def test_round_trip_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 9, 10):
        checkpoint.save(state(step), tmp_path, step, keep=3)
    assert [p.name for p in checkpoint.find(tmp_path)] == ["step_00000010.pt", "step_00000009.pt", "step_00000002.pt"]
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded["step"] == 10
    assert torch.equal(loaded["weights"], state(10)["weights"])


def test_a_later_checkpoint_that_does_not_load_costs_no_good_one(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        checkpoint.save(state(step), tmp_path, step, keep=3)
    checkpoint.path_of(tmp_path, 30).write_bytes(b"half")
    saved = checkpoint.save(state(25), tmp_path, 25, keep=1)  # the run went on from 20
    assert checkpoint.find(tmp_path) == [saved]
    assert checkpoint.load_newest(tmp_path)["step"] == 25


def test_truncated_newest_falls_back_to_the_one_before_and_says_so(tmp_path: Path) -> None:
    checkpoint.save(state(1), tmp_path, 1, keep=3)
    newest = checkpoint.save(state(2), tmp_path, 2, keep=3)
    newest.write_bytes(newest.read_bytes()[:3000])
    said: list[str] = []
    assert checkpoint.load_newest(tmp_path, said.append)["step"] == 1
    assert len(said) == 1
    assert f"{newest} must be a complete checkpoint, got 3000 bytes that do not load" in said[0]
    assert said[0].endswith("; trying the one before")


@pytest.mark.parametrize("size", [0, 1, 100, 3000])
def test_any_truncation_is_an_error_that_names_the_file(tmp_path: Path, size: int) -> None:
    path = checkpoint.save(state(1), tmp_path, 1, keep=1)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(
        CheckpointError, match=rf"checkpoint: .*step_00000001.pt must be a complete .*, got {size} bytes"
    ):
        checkpoint.load(path)
    with pytest.raises(CheckpointError, match="must hold a checkpoint that loads, got 1 that do not"):
        checkpoint.load_newest(tmp_path, lambda text: None)


def test_every_flipped_byte_of_a_tensor_is_seen_and_the_one_before_is_taken(tmp_path: Path) -> None:
    checkpoint.save(state(1), tmp_path, 1, keep=2)
    path = checkpoint.save(state(2), tmp_path, 2, keep=2)
    whole, weight = path.read_bytes(), state(2)["weights"].numpy().tobytes()
    start = whole.index(weight)
    for place in (start, start + 5001, start + len(weight) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        assert torch.load(path, weights_only=True)["step"] == 2  # torch itself does not see it
        with pytest.raises(CheckpointError, match=r"that do not load \(the checksum of .*data/\d+ in it is wrong\)"):
            checkpoint.load(path)
        assert checkpoint.load_newest(tmp_path, lambda text: None)["step"] == 1


def test_whatever_is_damaged_is_one_kind_of_error(tmp_path: Path) -> None:
    path = checkpoint.save({**state(1), "names": ["a", "b"], "numbers": {"x": 1.5}}, tmp_path, 1, keep=1)
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 3, 30))):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        if draw.random() < 0.3:
            del damaged[draw.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            loaded = checkpoint.load(path)
        except CheckpointError:
            continue
        # Only padding between the archive's entries was hit: all that is in it is as it was.
        assert torch.equal(loaded["weights"], state(1)["weights"]) and loaded["names"] == ["a", "b"]


def shards_in(folder: Path) -> dict[str, int]:
    """Stand-ins for the files of two processes, and their checksums."""
    folder.mkdir()
    names = (".metadata", "__0_0.distcp")
    for name in names:
        (folder / name).write_bytes(b"0" * 1000)
    return {name: checksum(folder / name) for name in names}


@pytest.mark.parametrize("named", [False, True], ids=["by an earlier release", "named"])
def test_damaged_or_missing_shards_are_seen(tmp_path: Path, named: bool) -> None:
    folder = tmp_path / "checkpoints"
    path = checkpoint.path_of(folder, 1)
    folder.mkdir()
    shards = tmp_path / "shards"
    held = {**state(1), "processes": 2, "shards_crc32": shards_in(shards)}
    checkpoint.save({**held, "shards": ".again.shards"} if named else held, folder, 1, keep=1)
    shards = shards.rename(folder / f"step_00000001{'.again' if named else ''}.shards")
    assert checkpoint.shards_of(path, checkpoint.load(path)) == shards
    (shards / "__0_0.distcp").write_bytes(b"0" * 999 + b"1")
    with pytest.raises(CheckpointError, match="__0_0.distcp must be as it was written, got a damaged file"):
        checkpoint.load(path)
    (shards / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match="__0_0.distcp must be as it was written, got no such file"):
        checkpoint.load(path)


def test_a_checkpoint_of_the_same_step_is_replaced_all_at_once(tmp_path: Path) -> None:
    """Its shards are written beside those of the one that is there, which go once the file names the new ones."""
    path, names = checkpoint.path_of(tmp_path, 1), []
    for n in range(3):
        shards = path.with_suffix(checkpoint.free_shards(path))
        assert not shards.exists()
        crc = shards_in(shards)
        assert n == 0 or checkpoint.load(path)["number"] == n - 1
        checkpoint.save(
            {"processes": 2, "number": n, "shards": "".join(shards.suffixes), "shards_crc32": crc}, tmp_path, 1, keep=1
        )
        assert checkpoint.load(path)["number"] == n
        assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [shards.name]
        names.append(shards.name)
    assert names == ["step_00000001.shards", "step_00000001.again.shards", "step_00000001.shards"]
    path.write_bytes(b"damaged")
    assert checkpoint.free_shards(path) == ".shards"


@pytest.mark.parametrize(
    "forged, words",
    [
        ({"step": "3"}, "hold a whole number as step, got '3'"),
        ({"step": True}, "hold a whole number as step, got True"),
        ({"step": torch.ones(1)}, r"hold a whole number as step, got tensor\(\[1.\]\)"),
        ({"step": -1}, "hold a whole number as step, got -1"),
        ({"processes": "x\x1b[2J"}, r"hold a whole number as processes, got 'x\\x1b\[2J'"),
        ({"processes": torch.zeros(0)}, "hold a whole number as processes"),
        ({"shards": "../elsewhere"}, "have its shards in one of .*, got '../elsewhere'"),
        ({"shards": [1]}, "have its shards in one of"),
        ({"shards_crc32": [1]}, r"hold the checksums of its shards, got \[1\]"),
        ({"shards_crc32": {7: 1}}, "hold the checksums of its shards"),
        ({"format": "\x1b[2J"}, r"hold format 'attfc-checkpoint-1', got '\\x1b\[2J'"),
    ],
)
def test_what_a_stranger_forged_is_named(tmp_path: Path, forged: dict, words: str) -> None:
    path = tmp_path / "step_00000003.pt"
    torch.save({"format": checkpoint.FORMAT, "step": 3, **forged}, path)
    with pytest.raises(checkpoint.CheckpointError, match=f"^checkpoint: {path} must {words}") as refused:
        checkpoint.load(path)
    assert "\x1b" not in str(refused.value)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.pt must exist, got no such file"):
        checkpoint.load(tmp_path / "nowhere.pt")
    with pytest.raises(CheckpointError, match=r"must hold a step_\*.pt file, got none; start without --resume"):
        checkpoint.load_newest(tmp_path)
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="must hold format 'attfc-checkpoint-1', got None"):
        checkpoint.load(tmp_path / "other.pt")
    torch.save(torch.zeros(1), tmp_path / "tensor.pt")
    with pytest.raises(CheckpointError, match="must hold format 'attfc-checkpoint-1', got 'Tensor'"):
        checkpoint.load(tmp_path / "tensor.pt")


class Intruder:
    def __reduce__(self) -> tuple:
        return (random.seed, (12345,))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "plain pickle"])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "evil.pt"
    if legacy:
        path.write_bytes(pickle.dumps(Intruder(), protocol=2))
    else:
        torch.save({"format": checkpoint.FORMAT, "x": Intruder()}, path)
    random.seed(1)
    before = random.getstate()
    with pytest.raises(CheckpointError, match="evil.pt must be a complete checkpoint"):
        checkpoint.load(path)
    assert random.getstate() == before


def test_a_run_killed_while_it_writes_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(state(1), tmp_path, 1, keep=1)
    script = f"""
import os, pathlib, torch
from attfc_cuda.train import archive, checkpoint
whole = archive.write
def half(state, file, streamed):
    whole(state, file, streamed)
    file.truncate(4000)
    file.flush()
    os._exit(9)
archive.write = half
checkpoint.save({{"weights": torch.zeros(50, 50)}}, pathlib.Path({str(tmp_path)!r}), 2, keep=1)
"""
    killed = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    assert killed.wait() == 9
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f".step_00000002.pt.{killed.pid}.tmp", "step_00000001.pt",
    ]  # fmt: skip
    said: list[str] = []
    assert checkpoint.load_newest(tmp_path, said.append)["step"] == 1
    assert said == []
    checkpoint.save(state(3), tmp_path, 3, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000003.pt"]  # the half-written file goes with the next save


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process grows past 200 000 bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_failed_write_leaves_the_old_checkpoint_alone_in_place(tmp_path: Path, full_disk: None) -> None:
    checkpoint.save(state(1), tmp_path, 1, keep=1)
    (tmp_path / ".step_00000002.pt.17.tmp").write_bytes(b"left by a killed run")
    path = checkpoint.path_of(tmp_path, 2)
    message = (
        rf"^checkpoint: {path} must be written, got \[Errno 27\] .*; the checkpoints before it are whole: make room"
    )
    with pytest.raises(OSError, match=message):
        checkpoint.save({"weights": torch.zeros(500, 500)}, tmp_path, 2, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001.pt"]
    assert checkpoint.load_newest(tmp_path)["step"] == 1


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(archive, "write", broken)
    with pytest.raises(RuntimeError, match="^out of memory$"):
        checkpoint.save(state(2), tmp_path, 2, keep=1)
    assert list(tmp_path.iterdir()) == []


def test_open_any_takes_a_file_a_checkpoint_folder_or_a_run(tmp_path: Path) -> None:
    path = checkpoint.save(state(1), tmp_path / "checkpoints", 1, keep=1)
    for place in (path, path.parent, tmp_path):
        assert checkpoint.open_any(place)["step"] == 1


def test_random_generators_continue_where_they_were(tmp_path: Path) -> None:
    torch.manual_seed(3), np.random.seed(4), random.seed(5)
    np.random.standard_normal()  # leaves a cached second value, part of the state
    random.gauss(0, 1)
    checkpoint.save({"rng": checkpoint.rng_state()}, tmp_path, 1, keep=1)

    def draw() -> tuple:
        return torch.rand(3).tolist(), np.random.standard_normal(3).tolist(), random.gauss(0, 1), random.random()

    expected = draw()
    checkpoint.set_rng_state(checkpoint.load_newest(tmp_path)["rng"])
    assert draw() == expected


def files_behind(tensor: torch.Tensor) -> set[str]:
    """The files that the pages of the tensor are mapped from."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc on this system")
    first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    found = set()
    for line in maps.read_text().splitlines():
        span, *_, name = [*line.split(maxsplit=5), ""][:6]
        start, end = (int(part, 16) for part in span.split("-"))
        if start < last and first < end:
            found.add(name)
    return found


@pytest.mark.parametrize("mapped", [False, True])
def test_a_mapped_checkpoint_takes_no_memory_of_its_own(tmp_path: Path, mapped: bool) -> None:
    path = checkpoint.save({"weights": torch.ones(64, 2**18)}, tmp_path, 1, keep=1)  # 64 MiB
    state = checkpoint.load(path, mapped)
    assert float(state["weights"].sum()) == 2**24
    assert (files_behind(state["weights"]) == {str(path)}) == mapped
    if mapped:  # its own writes stay with it
        state["weights"][0] = 5
        assert float(checkpoint.load(path)["weights"].sum()) == 2**24
