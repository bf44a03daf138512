"""Temperature scaling within the exported classifier (`classifier.temperature_scaling`)."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import LEARNING, TINY, make_folder
from safetensors.torch import load_file

from ulmfit_dist import evaluate, load_classifier, load_config
from ulmfit_dist.config.schema import ClassifierConfig, Config, RuntimeConfig
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.temperature import BOUNDS, fit_temperature, scale_answers
from ulmfit_dist.stages.calibrate import check_threshold
from ulmfit_dist.stages.run import run

pytestmark = pytest.mark.usefixtures("no_process_group")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("calibrated")
    texts = make_folder(folder / "texts", per_class=30)
    place = [f"data.path={texts}", f"data.cache_dir={folder}/cache", f"runs_dir={folder}", "runtime.precision=fp32"]
    return load_config(None, [*TINY, *LEARNING, *place, "classifier.baseline=false"])


def scaled(config: Config, name: str) -> Config:
    """The same classifier on the same language model, with temperature scaling."""
    settings = replace(config.classifier, temperature_scaling=True, encoder=str(config.run_dir / "lm"))
    return replace(config, name=name, classifier=settings)


@pytest.fixture(scope="module")
def runs(config: Config) -> tuple[Path, Path]:
    """Two equal runs, the second with temperature scaling."""
    for each in (config, scaled(config, "scaled")):
        run(each, Runtime(each.runtime))
    return config.run_dir, scaled(config, "scaled").run_dir


def test_the_exported_model_has_the_fitted_temperature_and_no_other_change(runs: tuple[Path, Path], config: Config):
    plain, calibrated = (load_file(folder / "classifier" / "model.safetensors") for folder in runs)
    figures = json.loads((runs[1] / "summary.json").read_text())["classifier"]
    differing = [name for name in plain if not torch.equal(plain[name], calibrated[name])]
    assert len(differing) == 1
    torch.testing.assert_close(calibrated[differing[0]] * figures["temperature"], plain[differing[0]])
    before = json.loads((runs[0] / "summary.json").read_text())["classifier"]
    assert figures["accuracy"] == before["accuracy"]
    assert figures["valid_loss"] < before["valid_loss"]
    evaluated = evaluate(runs[1], Runtime(RuntimeConfig(precision="fp32")))["classifier"]
    assert evaluated["valid_loss"] == pytest.approx(figures["valid_loss"], rel=1e-6)
    text = "goal match team score"
    first, second = (load_classifier(folder).predict([text])[0] for folder in runs)
    assert first.label == second.label
    assert first.probabilities != second.probabilities


@pytest.mark.parametrize("target", ["category", "multicategory"])
def test_the_temperature_minimizes_the_loss_to_rounding(target: str):
    generator = torch.Generator().manual_seed(0)
    p_NC = torch.rand(200, 4, generator=generator, dtype=torch.float64)
    p_NC = p_NC / p_NC.sum(1, keepdim=True) if target == "category" else p_NC
    y = torch.multinomial(p_NC, 1, generator=generator)[:, 0]
    y = y if target == "category" else torch.bernoulli(p_NC, generator=generator).float()
    sharp_NC = scale_answers(p_NC, 0.4, target)
    temperature = fit_temperature(sharp_NC, y, target)
    assert 1.5 < temperature < 4  # 2.5 undoes the sharpening, up to the noise of the labels
    assert fit_temperature(scale_answers(sharp_NC, temperature, target), y, target) == pytest.approx(1, abs=1e-12)
    assert fit_temperature(sharp_NC * (1 + 1e-14), y, target) == pytest.approx(temperature, rel=1e-9)


def test_a_threshold_that_scaled_probabilities_cross_is_refused():
    several = ClassifierConfig(target="multicategory", temperature_scaling=True)
    check_threshold(several)
    with pytest.raises(UserError, match=r"temperature_scaling moves probabilities across classifier.threshold=0.3: set it"):
        check_threshold(replace(several, threshold=0.3))


def test_answers_that_are_all_right_or_all_wrong_get_the_bounds():
    p_NC = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()
    assert fit_temperature(p_NC, torch.tensor([0, 1]), "category") == BOUNDS[0]
    assert fit_temperature(p_NC, torch.tensor([1, 0]), "category") == BOUNDS[1]
