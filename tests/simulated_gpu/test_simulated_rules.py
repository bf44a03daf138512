"""Tests of the simulated GPU: errors of CUDA and cuDNN, and counters."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from simulated_gpu.counters import MEMORY, MOST_BEHIND, Counters

pytestmark = pytest.mark.filterwarnings("ignore:RNN module weights")


def test_numbers_are_those_of_a_cpu():
    a, b = torch.randn(5, 7), torch.randn(7, 3)
    actual = (a.cuda() @ b.cuda()).relu().sum(1)
    assert actual.device == torch.device("cuda", 0)
    assert torch.equal(actual.cpu(), (a @ b).relu().sum(1))


def test_tensors_of_two_devices_are_refused():
    with pytest.raises(RuntimeError, match="two devices, cuda:0 and cpu"):
        torch.ones(3, device="cuda") + torch.ones(3)
    with pytest.raises(RuntimeError, match="cuda:0 and cuda:1"):
        torch.ones(3, device="cuda:0") + torch.ones(3, device="cuda:1")
    assert (torch.ones(3, device="cuda") + torch.tensor(1.0)).tolist() == [2, 2, 2]


def test_numpy_cannot_read_a_gpu():
    with pytest.raises((TypeError, RuntimeError)):
        torch.ones(3, device="cuda").numpy()


def test_waits_are_counted_and_raise_where_they_are_errors(simulated_gpu: Counters):
    x = torch.ones(3, device="cuda")
    waiting = {
        "number": lambda: x.sum().item(),
        "bool": lambda: bool(x.all()),
        "numbers": x.tolist,
        "mask": lambda: x[x > 0],
        "nonzero": x.nonzero,
        "download": x.cpu,
        "upload": lambda: torch.ones(3).to("cuda", non_blocking=True),
        "tensor": lambda: torch.tensor([1.0], device="cuda"),
        "synchronize": torch.cuda.synchronize,
    }
    for name, wait in waiting.items():
        simulated_gpu.clear()
        wait()
        assert simulated_gpu.waits.total() >= 1, name
    torch.cuda.set_sync_debug_mode("error")
    for wait in waiting.values():
        with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
            wait()


def test_work_without_waits_is_allowed_where_waits_are_errors(simulated_gpu: Counters):
    pinned = torch.ones(3).pin_memory()
    torch.cuda.set_sync_debug_mode("error")
    x = pinned.to("cuda", non_blocking=True)
    x[0].fill_(5)
    torch.where(x > 1, x, torch.zeros_like(x)).sum()
    x.to("cpu", non_blocking=True)
    assert not simulated_gpu.waits


def test_the_device_passes_an_event_some_kernels_later_or_in_a_wait(simulated_gpu: Counters):
    first, second = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    x = torch.ones(3, device="cuda")
    first.record()
    for _ in range(MOST_BEHIND):
        assert not first.query()
        x += 1
    assert first.query()
    first.synchronize()
    assert not simulated_gpu.waits
    second.record()
    with pytest.raises(RuntimeError, match="device not ready"):
        first.elapsed_time(second)
    second.synchronize()
    assert simulated_gpu.waits.total() == 1
    assert second.query()
    assert first.elapsed_time(second) > 0


def test_kernels_and_bytes_are_counted(simulated_gpu: Counters):
    a, b = torch.empty(8, 4, device="cuda"), torch.empty(4, 2, device="cuda")
    assert simulated_gpu.kernels.total() == 0
    a.view(4, 8)[1:].t()
    assert simulated_gpu.kernels.total() == 0
    a @ b
    assert simulated_gpu.kernels == {"mm": 1}
    assert simulated_gpu.bytes["mm"] == 4 * (8 * 4 + 4 * 2 + 8 * 2)


def test_memory_is_that_of_living_tensors():
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    x = torch.empty(1024, device="cuda")
    view = x[:10]
    del x
    assert torch.cuda.memory_allocated() - before == 4096
    del view
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() - before == 4096


def test_memory_runs_out():
    MEMORY.limit = torch.cuda.memory_allocated() + 1000
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1024, device="cuda")


def test_a_compiled_function_is_one_kernel(simulated_gpu: Counters):
    compiled = torch.compile(lambda x: (x + 1).mul_(2), dynamic=True)
    x = torch.ones(4, device="cuda")
    simulated_gpu.clear()
    assert compiled(x).tolist() == [4, 4, 4, 4]
    assert simulated_gpu.kernels.total() == 1


def test_parameters_stay_tied_on_the_gpu():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    model.to("cuda")
    assert model["a"].weight is model["b"].weight
    assert model["a"].weight.is_cuda


def lstm_on_gpu() -> tuple[nn.LSTM, torch.Tensor]:
    return nn.LSTM(4, 6, batch_first=True).to("cuda"), torch.randn(2, 3, 4).to("cuda")


def test_lstms_compute_what_a_cpu_does(simulated_gpu: Counters):
    lstm, x = lstm_on_gpu()
    actual, _ = lstm(x)
    actual.sum().backward()
    gradient = lstm.weight_hh_l0.grad.cpu()
    lstm.zero_grad()
    lstm.to("cpu")
    expected, _ = lstm(x.cpu())
    expected.sum().backward()
    torch.testing.assert_close(actual.detach().cpu(), expected.detach())
    torch.testing.assert_close(gradient, lstm.weight_hh_l0.grad)
    assert simulated_gpu.lstms == 1


def test_scattered_weights_of_an_lstm_are_counted_and_warned_of(simulated_gpu: Counters):
    lstm, x = lstm_on_gpu()
    with pytest.warns(UserWarning, match="not part of single contiguous chunk"):
        lstm(x)
    weights = [getattr(lstm, name) for name in lstm._flat_weights_names]
    flat = torch.cat([weight.flatten() for weight in weights]).split([weight.numel() for weight in weights])
    pieces = [piece.view_as(weight) for piece, weight in zip(flat, weights, strict=True)]
    state = [torch.zeros(1, 2, 6, device="cuda")] * 2
    torch._VF.lstm(x, state, pieces, True, 1, 0.0, True, False, True)
    assert (simulated_gpu.lstms, simulated_gpu.scattered) == (2, 1)


def test_cudnn_refuses_mixed_types_scattered_states_and_backward_in_evaluation():
    lstm, x = lstm_on_gpu()
    weights = [getattr(lstm, name) for name in lstm._flat_weights_names]
    state = [torch.zeros(1, 2, 6, device="cuda")] * 2
    with pytest.raises(RuntimeError, match=r"input is torch\.bfloat16"):
        torch._VF.lstm(x.bfloat16(), state, weights, True, 1, 0.0, True, False, True)
    transposed = [torch.zeros(1, 6, 2, device="cuda").mT] * 2
    with pytest.raises(RuntimeError, match="hx is not contiguous"):
        torch._VF.lstm(x, transposed, weights, True, 1, 0.0, True, False, True)
    output, _ = lstm.eval()(x)
    with pytest.raises(RuntimeError, match="backward can only be called in training mode"):
        output.sum().backward()


def test_autocast_computes_lstms_in_fp16():
    lstm, x = lstm_on_gpu()
    with torch.autocast("cuda", torch.bfloat16):
        assert lstm(x)[0].dtype == torch.float16


def test_the_result_of_an_all_reduce_is_on_the_gpu(tmp_path: Path, simulated_gpu: Counters):
    x, on_cpu = torch.ones(3, device="cuda"), torch.ones(3)
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        work = dist.all_reduce(x, async_op=True)
        (result,) = work.get_future().wait()
        assert result is x
        with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
            dist.all_reduce(on_cpu)
    finally:
        dist.destroy_process_group()
    assert simulated_gpu.kernels["c10d.allreduce_"] == 1
    assert not simulated_gpu.waits
