"""Classifiers in int8: close to fp32, independent of the batch, and measured on valid."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from made_classifiers import CONFIG, VOCAB, lettered_store, make_classifier
from torch import nn

from ulmfit_dist import load_classifier, load_ensemble
from ulmfit_dist.cli.main import main
from ulmfit_dist.config.schema import Config, RuntimeConfig
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import USER_ERROR, UserError
from ulmfit_dist.inference.predictor import TextClassifier
from ulmfit_dist.inference.quantization_effect import quantization_effect
from ulmfit_dist.models.bundle import bundle_digest
from ulmfit_dist.models.quantization import Int8Linear, check_quantize, quantize_rows
from ulmfit_dist.rng.counter_based import seed_torch
from ulmfit_dist.stages import evaluate as evaluate_module
from ulmfit_dist.stages.evaluate import evaluate
from ulmfit_dist.utils.files import write_json

TEXTS = [" ".join(VOCAB[5 + (7 * i + 3 * j) % 26] for j in range(1 + 5 * i)) for i in range(12)]


def with_store(folder: Path, **classifier: object) -> tuple[Config, TokenStore]:
    """Return a config that finds its token store, and the store."""
    store = lettered_store(folder / "store")
    data = replace(CONFIG.data, token_store=str(store.path))
    return replace(CONFIG, data=data, classifier=replace(CONFIG.classifier, **classifier)), store


def made_run(folder: Path, **classifier: object) -> Path:
    config, store = with_store(folder, **classifier)
    run = make_classifier(folder / "run", store, config=config)
    write_json(run / "classifier" / "training.json", {"data_fingerprint": store.fingerprint})
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run(tmp_path_factory.mktemp("quantize"))


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Runtime(RuntimeConfig(precision="fp32"))
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_product_is_that_of_the_rounded_factors():
    seed_torch("product")
    linear, x_bK = nn.Linear(96, 40), torch.randn(7, 96) * torch.logspace(-3, 3, 7)[:, None]
    x_bK[5] = 0
    rounded_bK, scale_b1 = quantize_rows(x_bK)
    scale_N1 = linear.weight.detach().abs().amax(1, keepdim=True) / 127
    weight_NK = (linear.weight.detach() / scale_N1).round() * scale_N1
    expected = ((rounded_bK.double() - 64) * scale_b1) @ weight_NK.double().t() + linear.bias.detach()
    error_b1 = (Int8Linear(linear.weight, linear.bias)(x_bK) - expected).detach().abs().amax(1, keepdim=True)
    assert (error_b1 < 1e-5 * (1 + x_bK.abs().amax(1, keepdim=True))).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_do_not_overflow(sign: int):
    actual = Int8Linear(sign * torch.ones(16, 1200))(torch.ones(3, 1200))
    torch.testing.assert_close(actual, torch.full((3, 16), 1200.0 * sign))


@pytest.mark.parametrize("target", ["category", "multicategory", "regression"])
def test_answers_are_close_to_those_in_fp32(tmp_path: Path, target: str):
    store_run = made_run(tmp_path, target=target) if target != "regression" else numbered_run(tmp_path)
    actual = load_classifier(store_run, quantize="int8").predict_proba(TEXTS)
    expected = load_classifier(store_run).predict_proba(TEXTS)
    assert 0 < np.abs(actual - expected).max() < 0.1 * np.ptp(expected, axis=0).max()


def numbered_run(folder: Path) -> Path:
    """Return a run of a regression: its labels are numbers."""
    config, store = with_store(folder, target="regression")
    write_json(store.path / "meta.json", store.meta | {"labels": [str(i) for i in range(len(store.label_names))]})
    store = TokenStore(store.path)
    config = replace(config, data=replace(config.data, missing_label=None))
    run = make_classifier(folder / "run", store, config=config)
    write_json(run / "classifier" / "training.json", {"data_fingerprint": store.fingerprint})
    return run


def test_a_text_by_itself_gets_the_answer_that_it_gets_in_a_batch(run: Path):
    classifier = load_classifier(run, quantize="int8")
    alone = np.concatenate([classifier.predict_proba([text]) for text in TEXTS])
    assert np.ptp(alone, axis=0).max() > 0.01
    for batch_tokens in (1, 40, 4000):
        np.testing.assert_allclose(classifier.predict_proba(TEXTS, batch_tokens), alone, atol=1e-6)


def test_a_quantized_qrnn_is_close_to_fp32_in_any_batch(tmp_path: Path):
    config = replace(CONFIG, model=replace(CONFIG.model, arch="qrnn"))
    run = make_classifier(tmp_path / "run", lettered_store(tmp_path / "store"), config=config)
    classifier, original = load_classifier(run, quantize="int8"), load_classifier(run)
    alone = np.concatenate([classifier.predict_proba([text]) for text in TEXTS])
    assert np.ptp(alone, axis=0).max() > 0.01
    np.testing.assert_allclose(classifier.predict_proba(TEXTS), alone, atol=1e-6)
    difference = np.abs(original.predict_proba(TEXTS) - alone).max()
    assert 0 < difference < 0.05


def test_threads_share_a_quantized_classifier(run: Path):
    classifier = load_classifier(run, quantize="int8")
    expected = [classifier.predict_proba([text]) for text in TEXTS]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            actual = pool.map(classifier.predict_proba, [[text] for text in TEXTS])
            assert all(map(np.array_equal, actual, expected))


def test_an_ensemble_is_the_mean_of_its_quantized_members(run: Path):
    expected = load_classifier(run, quantize="int8").predict_proba(TEXTS)
    np.testing.assert_allclose(load_ensemble([run, run], quantize="int8").predict_proba(TEXTS), expected, rtol=1e-12)


def test_an_interrupted_table_is_not_resumed_in_another_precision(run: Path):
    assert load_classifier(run, quantize="int8").digest != load_classifier(run).digest
    assert load_classifier(run).digest == bundle_digest(run / "classifier")


def test_what_cannot_be_quantized_is_an_error(run: Path):
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="quantize=int4: expected int8"):
        load_classifier(run, quantize="int4")
    with pytest.raises(UserError, match="is for CPUs, but the device is cuda"):
        check_quantize("int8", CONFIG, torch.device("cuda"))
    with pytest.raises(UserError, match=r"model\.arch is package\.Encoder"):
        check_quantize("int8", replace(CONFIG, model=replace(CONFIG.model, arch="package.Encoder")), cpu)
    check_quantize(None, CONFIG, torch.device("cuda"))


def test_the_effect_is_measured_once(run: Path):
    messages: list[str] = []
    quantized = load_classifier(run, quantize="int8")
    effect = quantization_effect(run, quantized, report=messages.append)
    assert effect is not None
    assert (effect.metric, effect.num_documents, len(messages)) == ("accuracy", 24, 1)
    assert 0 < effect.largest_difference < 0.1
    assert quantization_effect(run, quantized, report=messages.append) == effect
    assert len(messages) == 1
    assert str(effect).startswith(f"int8: accuracy {effect.quantized:.4f} on valid, {effect.original:.4f} in fp32 (")
    assert str(effect).endswith(f"; {effect.num_different} of 24 predictions differ)")


def test_the_effect_on_a_regression_is_that_on_its_error(tmp_path: Path):
    run = numbered_run(tmp_path)
    effect = quantization_effect(run, load_classifier(run, quantize="int8"))
    assert effect is not None
    assert (effect.metric, effect.num_different) == ("rmse", None)
    assert "values differ by at most" in str(effect)


def test_the_effect_of_a_read_only_cache_is_not_kept(tmp_path: Path):
    run = made_run(tmp_path)
    (tmp_path / "quantization").write_text("in the way")
    messages: list[str] = []
    assert quantization_effect(run, load_classifier(run, quantize="int8"), report=messages.append) is not None
    assert "computed again in the next call" in messages[1]


def test_predict_prints_the_effect_to_standard_error(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["predict", str(run), TEXTS[3], "--quantize", "int8", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert "int8: accuracy " in printed.err
    assert printed.out.count("\n") == 1
    assert main(["predict", str(run), TEXTS[3], "--quantize", "int8", "--device", "cpu", "--quiet"]) == 0
    assert "int8" not in capsys.readouterr().err


def test_predict_without_the_token_store_names_the_way_to_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = made_run(tmp_path)
    (tmp_path / "store").rename(tmp_path / "moved")
    assert main(["predict", str(run), TEXTS[3], "--quantize", "int8", "--device", "cpu"]) == 0
    assert "its token store is missing: see evaluate RUN --data FILE --quantize int8" in capsys.readouterr().err


def test_an_unknown_kind_is_an_error_of_the_command(run: Path):
    assert main(["predict", str(run), "a", "--quantize", "int3"]) == USER_ERROR


def test_evaluate_has_the_accuracy_that_predict_prints(run: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch):
    store = TokenStore(Path(load_classifier(run).data.token_store or ""))
    monkeypatch.setattr(evaluate_module, "prepare", lambda config, runtime: store)
    effect = quantization_effect(run, load_classifier(run, quantize="int8"))
    assert effect is not None
    figures = evaluate(run, runtime, quantize="int8")
    assert figures.keys() == {"classifier"}
    assert figures["classifier"]["accuracy"] == pytest.approx(effect.quantized)
    assert figures["classifier"]["valid_loss"] != evaluate(run, runtime)["classifier"]["valid_loss"]


def test_a_classifier_holds_no_fp32_weights_of_its_lstms(run: Path):
    def num_parameters(classifier: TextClassifier) -> int:
        return sum(parameter.numel() for parameter in classifier.model.parameters())

    embedding = len(VOCAB) * CONFIG.model.emb_sz
    assert num_parameters(load_classifier(run, quantize="int8")) < embedding + 1000 < num_parameters(load_classifier(run))
