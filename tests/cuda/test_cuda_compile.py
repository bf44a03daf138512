"""Tests of kernel compilation: choice of the compiler, messages of failures, and number of compilations."""

import ctypes
import re
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from ulmfit_dist.cuda import compile as module
from ulmfit_dist.cuda.compile import CompilationError, compile_function, to_cubin, try_compilers, warn_of_slow
from ulmfit_dist.models import softmax_gradient
from ulmfit_dist.rng import philox

SOURCES = sorted(Path(module.__file__).parent.glob("*.cu"))


@pytest.fixture(autouse=True)
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    recorded: list[str] = []
    monkeypatch.setattr(module, "messages", recorded)
    return recorded


def fails() -> None:
    raise OSError("no NVRTC\nand a second line")


def test_the_first_working_compiler_is_used(messages: list[str]):
    kernel = try_compilers("masks", ("NVRTC", fails), ("torch.compile", lambda: max), ("third", fails))
    assert kernel is max
    assert messages[0] == "masks: NVRTC failed: no NVRTC"
    assert re.fullmatch(r"masks: compiled by torch\.compile in \d+\.\d s", messages[1])
    assert len(messages) == 2


def test_a_warning_names_the_compiler_errors_and_the_packages_to_install():
    assert try_compilers("masks", ("NVRTC", fails)) is None
    assert try_compilers("losses", ("NVRTC", fails)) is None
    with pytest.warns(
        UserWarning, match=r"masks are slow .*masks: NVRTC failed: no NVRTC\. Install gcc .*python3-dev"
    ) as caught:
        warn_of_slow("masks")
    assert "losses" not in str(caught[0].message)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_without_cuda_in_torch_nothing_is_compiled_from_source():
    with pytest.raises(CompilationError, match="torch was installed without CUDA"):
        module.compile_source("dropout_masks")


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Count the graphs of dynamo, without compiling them further, which takes many seconds."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()


def test_the_generator_is_compiled_once_for_all_counts(compilations: dict[str, int]):
    counter, key = torch.zeros(4, 1021, dtype=torch.int64), torch.zeros(2, 1021, dtype=torch.int64)
    compiled = compile_function(philox.philox, [counter, key])
    assert sys.modules["torch._inductor.config"].compile_threads == 1
    for n in (2, 4, 5000):
        counter, key = torch.randint(2**60, (4, n)), torch.randint(2**60, (2, n))
        assert torch.equal(compiled(counter, key), philox.philox(counter, key))
    assert compilations["unique_graphs"] == 1


def test_the_loss_is_compiled_once_for_all_sizes(compilations: dict[str, int]):
    def arguments(n: int, num_words: int) -> list[torch.Tensor]:
        return [torch.randn(n, num_words), torch.randint(0, num_words, (n,)), torch.empty(n), torch.tensor(2.0)]

    compiled = compile_function(softmax_gradient._by_inductor, arguments(5, 1021))
    for n, num_words in ((7, 7), (512, 60), (3, 5)):
        logits, y, losses, scale = arguments(n, num_words)
        expected, expected_losses = logits.clone(), torch.empty(n)
        softmax_gradient.softmax_gradient(expected, y, expected_losses, 2.0)
        compiled(logits, y, losses, scale)
        torch.testing.assert_close(logits, expected)
        torch.testing.assert_close(losses, expected_losses)
    assert compilations["unique_graphs"] == 1


def nvrtc() -> ctypes.CDLL | None:
    """Return NVRTC as installed by pip, with torch's CUDA wheels or `nvidia-cuda-nvrtc`, which needs no GPU."""
    places = (find_spec("nvidia") or find_spec("torch")).submodule_search_locations
    actual = [path for place in places for path in sorted(Path(place).glob("*/lib/libnvrtc.so.*"))]
    return ctypes.CDLL(str(actual[0])) if actual else None


@pytest.mark.skipif(nvrtc() is None, reason="no NVRTC is installed")
@pytest.mark.parametrize("gpu", ["sm_75", "sm_80", "sm_90"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_nvrtc_compiles_the_sources_without_any_headers(source: Path, gpu: str):
    for logits in softmax_gradient.DEFINES.values():
        options = [f"--gpu-architecture={gpu}", f"-DTHREADS={module.THREADS}", f"-D{logits}"]
        assert to_cubin(nvrtc(), source.read_bytes(), options).startswith(b"\x7fELF")


@pytest.mark.skipif(nvrtc() is None, reason="no NVRTC is installed")
def test_an_nvrtc_error_keeps_the_compilers_message():
    with pytest.raises(CompilationError, match="expected"):
        to_cubin(nvrtc(), b"__global__ void broken( {}", [])
