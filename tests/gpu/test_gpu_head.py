"""A head step on a GPU: the same numbers as on the CPU, on any stream, in a CUDA graph, compiled, without a wait."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from gpu_cases import BACKENDS, DEVICE, batches, make_head, need, only_gpu, step

from attfc_cuda import ArcFace, FullyConnected, PartialFC, testing

backends = pytest.mark.parametrize("backend", BACKENDS)
policies = pytest.mark.parametrize("policy", ["fifo", "refresh"])


def run(head, data):
    return [step(head, *batch) for batch in data]


def assert_same(found, expected):
    for (loss, grad), (expected_loss, expected_grad) in zip(found, expected, strict=True):
        assert torch.equal(loss, expected_loss) and torch.equal(grad, expected_grad)


@backends
@policies
def test_steps_agree_with_eager(backend, policy):
    need(backend, torch.bfloat16, 512)
    data = batches(4)
    found, expected = (run(make_head(name, policy=policy), data) for name in (backend, "eager"))
    for (loss, grad), (expected_loss, expected_grad) in zip(found, expected, strict=True):
        torch.testing.assert_close(loss, expected_loss, rtol=1e-3, atol=1e-4)
        # What the default tolerance leaves out, and the rounding of probabilities to 16 bits.
        testing.assert_gradient_close(grad, expected_grad, 2.0**-6)


@only_gpu
@backends
def test_a_stream_of_its_own(backend):
    """The kernels run on the current stream: what that stream has not done yet, they wait for."""
    need(backend, torch.bfloat16, 512)
    data = batches(3)
    expected = run(make_head(backend), data)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # cycles; whoever does not wait reads zeros
        late = [tuple(torch.zeros_like(value).copy_(value) for value in batch) for batch in data]
        found = run(make_head(backend), late)
    torch.cuda.current_stream().wait_stream(stream)
    assert_same(found, expected)


@only_gpu
@backends
@policies
def test_a_captured_step_replays_to_the_same_bits(backend, policy):
    need(backend, torch.bfloat16, 512)
    data = batches(5)
    head = make_head(backend, policy=policy)
    start = copy.deepcopy(head.state_dict())
    expected = run(head, data)
    after = copy.deepcopy(head.state_dict())

    static = [value.clone() for value in data[0]]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step(head, *static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, grad = step(head, *static)
    head.load_state_dict(start)
    found = []
    for batch in data:
        for into, value in zip(static, batch, strict=True):
            into.copy_(value)
        graph.replay()
        found.append((loss.clone(), grad.clone()))
    assert_same(found, expected)
    for name, value in head.state_dict().items():
        assert torch.equal(value, after[name]), name


@only_gpu
@backends
def test_the_host_waits_for_nothing(backend):
    need(backend, torch.bfloat16, 512)
    head, data = make_head(backend), batches(3)
    run(head, data[:1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = run(head, data[1:])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(loss.isfinite() for loss, _ in found)


@only_gpu
@backends
@policies
def test_compiled_in_one_piece(backend, policy):
    need(backend, torch.bfloat16, 512)
    data = batches(3)
    eager, head = make_head(backend, policy=policy), make_head(backend, policy=policy)
    compiled = torch.compile(head, fullgraph=True)
    for embeddings, labels, gallery in data:
        x, y = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
        loss, expected = compiled(x, labels, gallery), eager(y, labels, gallery)
        loss.backward()
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-4)
        testing.assert_gradient_close(x.grad, y.grad, 2.0**-6)


@backends
@pytest.mark.parametrize("kind", [FullyConnected, PartialFC])
def test_trained_centers(kind, backend):
    """Full and partial FC: loss and both gradients as eager's, under 16-bit autocast with float32 centres."""
    need(backend, torch.bfloat16, 256)
    options = {"sample_rate": 1.0} if kind is PartialFC else {}
    results = {}
    for name in (backend, "eager"):
        torch.manual_seed(0)
        head = kind(256, 700, margin=ArcFace(scale=32.0, m=0.3), backend=name, **options).to(DEVICE)
        x = batches(1, dim=256)[0][0].requires_grad_()
        labels = batches(1, dim=256)[0][1]
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            loss = head(x, labels)
        loss.backward()
        results[name] = (loss.detach(), x.grad, head.centers.grad)
    loss, *grads = results[backend]
    expected_loss, *expected = results["eager"]
    torch.testing.assert_close(loss, expected_loss, rtol=1e-3, atol=1e-4)
    for found, truth in zip(grads, expected, strict=True):
        assert found.dtype == truth.dtype == torch.float32
        testing.assert_gradient_close(found, truth, 2.0**-6)


@only_gpu
def test_launches_of_a_step(record_property):
    """How many kernels a step launches, eagerly and compiled; recorded, and compiled it must be a quarter at most."""
    need(BACKENDS[-1], torch.bfloat16, 512)
    counts = {}
    for name in ("eager", "compiled"):
        head = make_head(BACKENDS[-1])
        call = torch.compile(head, fullgraph=True) if name == "compiled" else head
        embeddings, labels, gallery = batches(1)[0]
        x = embeddings.requires_grad_()
        for _ in range(2):
            call(x, labels, gallery).backward()
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profile:
            call(x, labels, gallery).backward()
            torch.cuda.synchronize()
        device = torch.autograd.DeviceType.CUDA
        counts[name] = sum(1 for event in profile.events() if event.device_type == device)
        record_property(f"launches_{name}", counts[name])
        print(f"launches of a head step, {name}: {counts[name]}")
    assert 0 < counts["compiled"] <= counts["eager"] / 4


@only_gpu
@pytest.mark.parametrize("backend", ["triton", "cuda"])
@policies
def test_launches_of_a_fused_step(policy, backend, record_property):
    """Nine kernels with fifo, twelve with refresh, the sweep in one pass among them; a captured graph replays these."""
    need(backend, torch.bfloat16, 512)
    head = make_head(backend, policy=policy, check_labels=False, grad_tolerance=0.0)
    embeddings, labels, gallery = batches(1)[0]
    x, upstream = embeddings.requires_grad_(), torch.ones((), device=DEVICE)
    for _ in range(2):
        x.grad = None
        head(x, labels, gallery).backward(upstream)
    x.grad = None
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        head(x, labels, gallery).backward(upstream)
        torch.cuda.synchronize()
    device = torch.autograd.DeviceType.CUDA
    names = [event.name for event in profile.events() if event.device_type == device]
    names = [name for name in names if "Memset" not in name and "Memcpy" not in name]
    record_property(f"launches_fused_{backend}_{policy}", len(names))
    print(f"launches of a fused head step, {backend}, {policy}: {len(names)}")
    assert 0 < len(names) <= {"fifo": 9, "refresh": 12}[policy], names


OUT_OF_RANGE = """
import torch
from attfc_cuda import AttFC
head = AttFC(128, 64, num_classes=10, preset="published", enqueue="before", dtype=torch.bfloat16).to("cuda")
x = torch.randn(4, 128, device="cuda")
head(x, torch.tensor([1, 2, 10, 3], device="cuda"), x)
torch.cuda.synchronize()
"""


@only_gpu
@pytest.mark.parametrize("debug", ["", "1"])
def test_labels_out_of_range(debug):
    """A device assertion, which ends the process's use of the GPU; with ATTFC_DEBUG=1 an error that names the row."""
    environment = {**os.environ, "ATTFC_DEBUG": debug}
    done = subprocess.run([sys.executable, "-c", OUT_OF_RANGE], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    if debug:
        assert "ValueError" in done.stderr and "must be below num_classes = 10, got 10 in row 2" in done.stderr
    else:
        assert "must be below num_classes = 10" in done.stderr or "device-side assert" in done.stderr


@only_gpu
def test_a_captured_step_checks_no_labels_and_leaves_such_rows_out():
    need(BACKENDS[0], torch.bfloat16, 512)
    head = make_head(BACKENDS[0], num_classes=300)
    static = [value.clone() for value in batches(1)[0]]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(head, *static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, _ = step(head, *static)
    static[1][3] = 300
    graph.replay()
    torch.cuda.synchronize()
    assert loss.isfinite() and head.container.labels.max() < 300
