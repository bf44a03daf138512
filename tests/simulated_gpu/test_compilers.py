"""Tests of kernels without NVRTC, and without any compiler: fallbacks with the same results."""

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from killing import metrics
from small_runs import make_texts, small_config, train

from ulmfit_dist.cuda import compile as compilers
from ulmfit_dist.cuda.compile import CompilationError
from ulmfit_dist.models import masks, softmax_gradient
from ulmfit_dist.models.masks import Mask, compute_masks
from ulmfit_dist.rng import philox

SHORT = "lm.phases=[{epochs: 1, lr: 1e-2}]", "checkpoint={interval_steps: null, interval_minutes: null}"
SLOW = "are slow on this machine"


def fail(*arguments: object) -> NoReturn:
    raise CompilationError("not installed")


def forget_kernels() -> None:
    for module in (masks, softmax_gradient, philox):
        module._kernel.cache_clear()


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Clear all compiled kernels before and after a test, and return the messages of the compilers."""
    recorded: list[str] = []
    monkeypatch.setattr(compilers, "messages", recorded)
    forget_kernels()
    yield recorded
    forget_kernels()


@pytest.fixture
def _without_nvrtc(messages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (masks, softmax_gradient):
        monkeypatch.setattr(module, "compile_source", fail)


@pytest.fixture
def _without_compilers(_without_nvrtc: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (philox, softmax_gradient):
        monkeypatch.setattr(module, "compile_function", fail)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_texts(tmp_path_factory.mktemp("texts"), 40)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


def losses(texts: Path, folder: Path, precision: str) -> list[float]:
    run = train(small_config(texts, folder, *SHORT, f"runtime.precision={precision}"), "lm")
    return [line["lm/loss"] for line in metrics(run) if "lm/loss" in line]


@pytest.fixture(scope="module")
def expected(texts: Path, precision: str, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Return the losses of a run with kernels compiled by NVRTC."""
    return losses(texts, tmp_path_factory.mktemp("nvrtc"), precision)


def assert_masks_are_those_of_a_cpu() -> None:
    wanted = [Mask((5, 6), range(1), 500, 0.2, torch.float32), Mask((1, 2), range(3, 60, 4), 130, 0.25, torch.bfloat16)]
    on_gpu, on_cpu = (compute_masks(wanted, torch.device(device)) for device in ("cuda", "cpu"))
    assert all(torch.equal(actual.cpu(), mask) for actual, mask in zip(on_gpu, on_cpu, strict=True))


@pytest.mark.usefixtures("_without_nvrtc")
def test_without_nvrtc_torch_compiles_the_kernels(
    texts: Path, expected: list[float], precision: str, messages: list[str], tmp_path: Path, recwarn: pytest.WarningsRecorder
):
    assert losses(texts, tmp_path, precision) == pytest.approx(expected, rel=1e-2 if precision == "bf16" else 1e-5)
    assert_masks_are_those_of_a_cpu()
    for kernel in ("softmax gradients", "dropout masks"):
        assert f"{kernel}: NVRTC failed: not installed" in messages
        assert any(message.startswith(f"{kernel}: compiled by torch.compile") for message in messages)
    assert not [warning for warning in recwarn if SLOW in str(warning.message)]


@pytest.mark.usefixtures("_without_compilers")
def test_without_a_compiler_torchs_operations_compute_the_kernels_and_a_warning_says_so(
    texts: Path, expected: list[float], precision: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
):
    assert losses(texts, tmp_path, precision) == pytest.approx(expected, rel=1e-2 if precision == "bf16" else 1e-5)
    assert_masks_are_those_of_a_cpu()
    slow = sorted(str(warning.message) for warning in recwarn if SLOW in str(warning.message))
    assert [message.split(" are ")[0] for message in slow] == ["dropout masks", "softmax gradients"]
    assert all("torch.compile failed: not installed. Install gcc" in message for message in slow)
