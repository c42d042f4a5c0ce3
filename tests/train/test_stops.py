"""What ends a run: signals, lost workers, data that cannot be read. Always with a checkpoint, and with a name."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from proofs import rest_in_proof
from torch import Tensor, nn
from torch.utils.data._utils import signal_handling

from attfc_cuda.data import AttentionLoader, Batch, TooManyUnreadable, build_dataset
from attfc_cuda.train import AttFCObjective, TrainConfig, checkpoint, train
from attfc_cuda.train.interrupt import Interrupt, LostWorker

Tiny = Callable[..., TrainConfig]
TRAIN = [
    sys.executable, "-u", "-m", "attfc_cuda.cli", "train", "--data", "procedural:16x4", "--image-size", "16",
    "--batch-size", "8", "--embedding-dim", "16", "--device", "cpu", "--threads", "1", "--steps", "100000",
    "--verify-every", "0", "--verify-num-pairs", "20", "--log-every", "1", "--checkpoint-every", "0",
    "--no-tensorboard", "--no-pictures", "--workers", "2",
]  # fmt: skip


@pytest.mark.parametrize("name", rest_in_proof(["SIGTERM", "SIGHUP", "SIGUSR1"]))
def test_a_signal_to_the_whole_group_saves_with_workers(tmp_path: Path, name: str) -> None:
    process = subprocess.Popen(
        [*TRAIN, "--run", str(tmp_path / "run")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, cwd=Path(__file__).parents[2],
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # ignored where the tests run under nohup
    )  # fmt: skip
    try:
        shown = []
        for line in process.stdout:
            shown.append(line)
            if line.startswith("step 2/"):
                os.killpg(process.pid, getattr(signal, name))
                break
        shown.append(process.stdout.read())
        assert process.wait(timeout=300) == 128 + getattr(signal, name), "".join(shown)
    finally:
        if process.poll() is None:
            process.kill()
    assert f"stopped by {name} after step" in "".join(shown)
    assert checkpoint.load_newest(tmp_path / "run" / "checkpoints")["step"] >= 2


def test_a_lost_worker_is_named_after_a_checkpoint(tiny_config: Tiny) -> None:
    config = tiny_config(workers=1, steps=1000, checkpoint_every=0)
    calls = [0]

    class Killing(AttFCObjective):
        def forward(self, backbone: nn.Module, batch: Batch) -> Tensor:
            calls[0] += 1
            if calls[0] == 3:
                for child in multiprocessing.active_children():
                    os.kill(child.pid, signal.SIGKILL)
            return super().forward(backbone, batch)

    with pytest.raises(LostWorker, match=r"processes that prepare batches must go on, got: .*worker.*--resume"):
        train(config, Killing)
    assert checkpoint.load_newest(config.run.run / "checkpoints")["step"] >= 3


def torchs_handler(monkeypatch: pytest.MonkeyPatch) -> object:
    """Installs torch's handler of a child's death, as the first batch of any loader with workers does."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    signal_handling._set_SIGCHLD_handler()
    return signal.getsignal(signal.SIGCHLD)


def test_a_closed_loader_leaves_no_worker_to_raise_for(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even while somebody holds the iteration, as a traceback does."""
    loader = AttentionLoader(build_dataset(str(faces), image_size=16), batch_size=2, num_workers=1)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        batches = iter(loader)
        next(batches)
        held, (worker,) = loader._loader._iterator, multiprocessing.active_children()
        torchs_handler(monkeypatch)
        with Interrupt():
            os.kill(worker.pid, signal.SIGKILL)
            loader.close()
        subprocess.run([sys.executable, "-c", ""], check=True)
        assert multiprocessing.active_children() == [] and held is not None
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_child_that_dies_interrupts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's handler, from a loader before the run or within it, is out of the way; the caller's own stays."""

    def installed(previous: object) -> object:
        signal.signal(signal.SIGCHLD, previous)
        return torchs_handler(monkeypatch)

    def own(number: int, frame: object) -> None: ...

    def batches() -> Iterator[int]:
        installed(signal.getsignal(signal.SIGCHLD))
        yield 1

    before = signal.getsignal(signal.SIGCHLD)
    try:
        for handler, held in [(installed(signal.SIG_DFL), signal.SIG_DFL), (own, own)]:
            signal.signal(signal.SIGCHLD, handler)
            with Interrupt() as interrupt:
                assert signal.getsignal(signal.SIGCHLD) is held
                assert interrupt.next_batch(batches()) == 1
                assert signal.getsignal(signal.SIGCHLD) is held
            assert signal.getsignal(signal.SIGCHLD) is handler
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize(
    "cause", [ConnectionResetError(104, "reset"), EOFError(), RuntimeError("DataLoader worker (pid 1) exited")]
)
def test_however_the_end_of_a_worker_shows(cause: Exception) -> None:
    def batches() -> Iterator[int]:
        yield 1
        raise cause

    source = batches()
    with Interrupt() as interrupt:
        assert interrupt.next_batch(source) == 1
        with pytest.raises(LostWorker, match="processes that prepare batches must go on, got: .*worker"):
            interrupt.next_batch(source)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for k in range(8):
        (tmp_path / "faces" / f"p{k}").mkdir(parents=True)
        for i in range(4):
            Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
                tmp_path / "faces" / f"p{k}" / f"{i}.png"
            )
    return tmp_path / "faces"


@pytest.mark.filterwarnings("ignore:row ignored")
def test_data_that_go_away_stop_the_run_and_earlier_checkpoints_stay(tiny_config: Tiny, faces: Path) -> None:
    config = tiny_config(data=str(faces), cache="off", steps=1000, checkpoint_every=2, keep=2)
    calls = [0]

    class Losing(AttFCObjective):
        def forward(self, backbone: nn.Module, batch: Batch) -> Tensor:
            calls[0] += 1
            if calls[0] == 5:
                faces.rename(faces.parent / "gone")
            return super().forward(backbone, batch)

    words = r"share of 0.05 unreadable rows, got none in the last 8; .*faces/p\d/\d.png.* after step 5 is in .*--resume"
    with pytest.raises(TooManyUnreadable, match=words):
        train(config, Losing)
    assert calls[0] == 5  # no step was made of nothing
    steps = [checkpoint.step_of(path) for path in checkpoint.find(config.run.run / "checkpoints")]
    assert steps[0] == 5 and 4 in steps


def test_workers_start_worker() -> None:
    script = (
        "import os, signal; from attfc_cuda._signals import STOP_SIGNALS, start_worker\n"
        "start_worker(0)\n"
        "for number in STOP_SIGNALS: os.kill(os.getpid(), number)\n"
        "print(len(STOP_SIGNALS), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (shown.returncode, shown.stdout) == (-signal.SIGTERM, "4\n")  # the second one is obeyed


def test_no_worker_outlives_a_run(tiny_config: Tiny) -> None:
    train(tiny_config(workers=2, steps=10))  # more than an epoch
    assert multiprocessing.active_children() == []


def test_a_hangup_that_nohup_ignores_stays_ignored(tiny_config: Tiny) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        config, calls = tiny_config(steps=3), [0]

        class Hanging(AttFCObjective):
            def forward(self, backbone: nn.Module, batch: Batch) -> Tensor:
                calls[0] += 1
                os.kill(os.getpid(), signal.SIGHUP)
                return super().forward(backbone, batch)

        assert train(config, Hanging).step == 3 == calls[0]
    finally:
        signal.signal(signal.SIGHUP, before)
