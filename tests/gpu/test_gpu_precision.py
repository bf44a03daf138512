"""Tests of mixed-precision training on a GPU, with both stages. Skipped without a GPU."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from killing import STAGES, metrics
from safetensors.torch import load_file
from small_runs import (
    DEVICE,
    PRECISIONS,
    SCATTERED,
    flat_lstm_weights,
    make_texts,
    needs_cuda,
    needs_gpu,
    running,
    small_config,
    train,
)
from torch import nn

from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.precision import resolve_precision
from ulmfit_dist.models.fused_cross_entropy import PRODUCT_DTYPES
from ulmfit_dist.models.networks import encoder_of
from ulmfit_dist.stages.evaluate import evaluate
from ulmfit_dist.stages.lm import lm_learner
from ulmfit_dist.stages.run import run_stage
from ulmfit_dist.training.schedule import run_phases

pytestmark = needs_gpu

Runs = dict[str, Path]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    """Return the run directory of a run in fp32."""
    return train(small_config(texts, tmp_path_factory.mktemp("exact"), "runtime.precision=fp32"), *STAGES)


@pytest.fixture(scope="module", params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, texts: Path, exact: Path, precision: str) -> Runs:
    """Return runs in mixed precision by stage; the classifier starts from the encoder of the fp32 run."""
    words = texts, tmp_path_factory.mktemp(precision), f"runtime.precision={precision}"
    configs = {stage: small_config(*words, f"name={stage}") for stage in STAGES}
    shutil.copytree(exact / "lm", configs["classifier"].run_dir / "lm")
    return {stage: train(config, stage) for stage, config in configs.items()}


def losses(run: Path, stage: str, name: str = "loss") -> list[float]:
    """Return the values of a key in metrics.jsonl, per step or per epoch."""
    return [line[f"{stage}/{name}"] for line in metrics(run) if f"{stage}/{name}" in line]


@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_falls(mixed: Runs, stage: str):
    of_steps, of_epochs = losses(mixed[stage], stage), losses(mixed[stage], stage, "valid_loss")
    assert sum(of_steps[-5:]) < 0.8 * sum(of_steps[:5])
    assert of_epochs[-1] < 0.8 * of_epochs[0]


@pytest.mark.parametrize(("stage", "steps"), [("lm", 100), ("classifier", 1)])
def test_the_first_losses_are_nearly_those_of_fp32(mixed: Runs, exact: Path, stage: str, steps: int):
    actual, expected = losses(mixed[stage], stage)[:steps], losses(exact, stage)[:steps]
    assert actual == pytest.approx(expected, rel=2e-2)
    assert actual != expected


@pytest.mark.parametrize("stage", STAGES)
def test_weights_and_moments_are_kept_and_exported_in_fp32(mixed: Runs, precision: str, stage: str):
    run = mixed[stage]
    saved = max(run.glob(f"checkpoints/{stage}/step-*"))
    for file in (run / stage / "model.safetensors", saved / "model.safetensors", saved / "optimizer.safetensors"):
        dtypes = {tensor.dtype for tensor in load_file(file).values() if tensor.is_floating_point()}
        assert dtypes == {torch.float32}, file
    for file in (run / "summary.json", saved / "state.json"):
        assert json.loads(file.read_text())["precision"] == precision


@pytest.mark.parametrize("wanted", ["fp32", *PRECISIONS])
def test_lstms_compute_in_the_precision_that_was_asked_for(wanted: str, texts: Path, tmp_path: Path):
    """autocast runs cuDNN's LSTMs in fp16 even for bf16, where small gradients underflow without loss scaling."""
    config = small_config(texts, tmp_path, f"runtime.precision={wanted}", "lm.phases=[{epochs: 1}]")
    dtypes = set()
    with running(config) as runtime:
        learner = lm_learner(config, runtime, TokenStore(texts))
        for rnn in encoder_of(learner.model).rnns:
            rnn.register_forward_hook(lambda module, given, made: dtypes.add(made[0].dtype))
        run_phases(learner, config.lm.phases)
    assert dtypes == {PRODUCT_DTYPES[wanted]}


@pytest.mark.parametrize("wanted", ["fp32", *PRECISIONS])
def test_the_weights_of_an_lstm_lie_in_one_piece(wanted: str, texts: Path, tmp_path: Path):
    config = small_config(texts, tmp_path, f"runtime.precision={wanted}")
    with running(config) as runtime, flat_lstm_weights():
        for stage in STAGES:
            run_stage(config, runtime, stage)
        evaluate(config.run_dir, runtime)


@needs_cuda
def test_cudnn_warns_of_noncontiguous_weights():
    """The warning exists, so the test above can fail."""
    lstm, x = nn.LSTM(16, 16, device=DEVICE), torch.randn(3, 2, 16, device=DEVICE)
    lstm.weight_hh_l0 = nn.Parameter(lstm.weight_hh_l0.detach().clone())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lstm(x)
    assert [warning for warning in caught if SCATTERED in str(warning.message)]


@needs_cuda
def test_auto_is_the_best_precision_that_the_gpu_has(monkeypatch: pytest.MonkeyPatch, texts: Path, tmp_path: Path):
    with running(small_config(texts, tmp_path)) as runtime:
        assert runtime.precision == ("bf16" if torch.cuda.get_device_capability(DEVICE)[0] >= 8 else "fp16")
    for capability, expected in (((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda *args, capability=capability: capability)
        assert resolve_precision("auto", has_gpu=True) == expected
