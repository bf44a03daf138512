"""The learners as a notebook has them: fastai's methods on them, and ranks that a notebook starts."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import LEARNING, TINY, launch, make_folder

from ulmfit_dist import classifier_learner, evaluate, lm_learner, load_classifier, load_config, load_language_model
from ulmfit_dist.config.schema import Config, RuntimeConfig
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.networks import encoder_of
from ulmfit_dist.stages.run_directories import SELF_TRAINING

pytestmark = pytest.mark.usefixtures("no_process_group")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("learners") / "texts", per_class=30)


@pytest.fixture
def config(texts: Path, tmp_path: Path) -> Config:
    place = [f"data.path={texts}", f"data.cache_dir={texts.parent}/cache", f"runs_dir={tmp_path}"]
    return load_config(None, [*TINY, *LEARNING, *place])


def weights(learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_a_notebook_trains_as_with_fastai_and_the_rest_reads_its_export(config: Config, capsys: pytest.CaptureFixture[str]):
    learn = lm_learner(config)
    before = learn.validate()
    learn.freeze_to(-1)
    frozen = {name for name, parameter in learn.model.named_parameters() if not parameter.requires_grad}
    held = weights(learn)
    learn.fit_one_cycle(1, 5e-2)
    assert frozen
    assert all(torch.equal(weights(learn)[name], held[name]) for name in frozen)
    learn.unfreeze()
    learn.fit_one_cycle(2, 5e-2)
    assert learn.valid_metrics["valid_loss"] < before["valid_loss"]
    assert learn.validate() == pytest.approx(learn.valid_metrics)
    rows = re.findall(r"^lm +(\d) +(\d/\d)  .* {2,}(\d+\.\d{4}) ", capsys.readouterr().out, re.MULTILINE)
    assert [(phase, epoch) for phase, epoch, _ in rows] == [("1", "1/1"), ("2", "1/2"), ("2", "2/2")]
    assert learn.export() == config.run_dir / "lm"
    assert len({path.stat().st_mode for path in (config.run_dir / "lm").iterdir()}) == 1  # who may read one may read all
    assert load_language_model(config.run_dir).generate("the match", words=5)[0].startswith("the match ")

    classifier = classifier_learner(config)
    assert torch.equal(encoder_of(classifier.model).encoder.weight, encoder_of(learn.model).encoder.weight)
    classifier.freeze_to(-1)
    classifier.fit_one_cycle(1, 2e-2)
    classifier.unfreeze()
    classifier.fit_one_cycle(2, slice(8e-3, 1e-2))
    (config.run_dir / SELF_TRAINING).write_text("{}")
    with pytest.raises(UserError, match="holds a self-training: give this run another name"):
        classifier.export()
    (config.run_dir / SELF_TRAINING).unlink()
    classifier.export()
    prediction = load_classifier(config.run_dir).predict(["goal match team score"])[0]
    assert prediction.label in prediction.probabilities
    actual = evaluate(config.run_dir, Runtime(RuntimeConfig(precision="fp32")))
    assert actual["classifier"]["accuracy"] == classifier.valid_metrics["accuracy"]
    assert actual["lm"]["valid_loss"] == pytest.approx(learn.valid_metrics["valid_loss"], rel=1e-6)


@pytest.mark.parametrize("build", [lm_learner, classifier_learner])
def test_save_and_load_bring_weights_and_optimizer_back(build, config: Config):
    learn = build(config)
    learn.fit_one_cycle(1, 1e-2)
    file = learn.save("one")
    assert file == config.run_dir / "models" / "one.pth"
    saved = weights(learn)
    learn.fit_one_cycle(1, 1e-2)
    trained = weights(learn)
    other = build(config)
    other.load("one")
    assert_equal(weights(other), saved)
    other.train_state.stage_epoch, other.train_state.stage_step = 1, len(other.dls.train)  # as the first one
    other.fit_one_cycle(1, 1e-2)
    assert_equal(weights(other), trained)


def test_an_encoder_goes_from_one_learner_to_the_next(config: Config, capsys: pytest.CaptureFixture[str]):
    learn = lm_learner(config)
    learn.fit_one_cycle(1, 1e-2)
    learn.save_encoder("encoder")
    classifier = classifier_learner(config)
    assert "the encoder has random weights; load_encoder" in capsys.readouterr().err
    assert classifier.load_encoder("encoder") is classifier
    assert_equal(encoder_of(classifier.model).state_dict(), encoder_of(learn.model).state_dict())


def test_fastais_own_encoder_can_be_loaded(config: Config):
    from fastai.text.models.awdlstm import AWD_LSTM

    learn = lm_learner(config)
    encoder = encoder_of(learn.model)
    reference = AWD_LSTM(*encoder.encoder.weight.shape, n_hid=20, n_layers=2)
    (learn.path / "models").mkdir(parents=True)
    torch.save(reference.state_dict(), learn.path / "models" / "reference.pth")
    learn.load_encoder("reference")
    assert_equal(encoder_of(learn.model).state_dict(), reference.state_dict())


def test_callbacks_are_the_users(config: Config):
    from fastai.callback.core import Callback

    seen = []

    class Mine(Callback):
        def after_epoch(self) -> None:
            seen.append((self.learn.epoch, self.learn.valid_metrics["accuracy"]))

    learn = lm_learner(config)
    learn.fit_one_cycle(2, 1e-2, cbs=Mine())
    assert [epoch for epoch, _ in seen] == [0, 1]


def test_what_goes_through_fastais_pipeline_says_where_it_is_here(config: Config):
    learn = lm_learner(config)
    for method in (learn.predict, learn.get_preds, learn.show_results):
        with pytest.raises(UserError, match=r"write the model with learn\.export\(\)") as error:
            method("a text")
        assert "\n" not in str(error.value)
    learn.exporter = None
    with pytest.raises(UserError, match=r"learn\.export needs"):
        learn.export()
    with pytest.raises(UserError, match="are too few for"):
        lm_learner(replace(config, lm=replace(config.lm, global_batch_size=10**6)))


NOTEBOOK = """
import json
import socket
import sys
from accelerate import notebook_launcher
from ulmfit_dist import load_config, prepare, show_batch, train_classifier, train_lm


def train(config):
    train_lm(config)
    train_classifier(config)


config = load_config(None, sys.argv[1:])
if __name__ == "__main__":
    prepare(config)
    show_batch(config)
    train_lm(load_config(None, [*sys.argv[1:], "name=alone"]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    notebook_launcher(train, (config,), num_processes=2, use_port=str(port))
    print(json.loads((config.run_dir / "summary.json").read_text())["world_size"], "ranks")
"""


def test_a_notebook_starts_ranks_after_it_has_trained_by_itself(texts: Path, tmp_path: Path):
    (tmp_path / "cells.py").write_text(NOTEBOOK)
    words = [tmp_path / "cells.py", *TINY, *LEARNING, f"data.path={texts}", f"data.cache_dir={texts.parent}/cache"]
    result = launch([*words, "tracking.wandb_mode=disabled", "name=two"], cwd=tmp_path, OMP_NUM_THREADS="2")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "2 ranks"
    alone, two = (load_language_model(tmp_path / "runs" / name).model.state_dict() for name in ("alone", "two"))
    for name, tensor in alone.items():
        torch.testing.assert_close(
            tensor, two[name], rtol=1e-4, atol=1e-5
        )  # on two threads and on one: equal but for rounding


SCRIPT = """
import os
import sys
import time
from ulmfit_dist import lm_learner, load_config, prepare
from ulmfit_dist.distributed.env import is_main_process
from ulmfit_dist.distributed.heartbeat import GRACE

if __name__ == "__main__":
    config = load_config(None, sys.argv[1:])
    prepare(config)
    learn = lm_learner(config)
    learn.fit_one_cycle(1, 1e-2)
    if not is_main_process():
        open("other", "w").write(str(os.getpid()))
    elif os.environ.get("WORLD_SIZE") == "2":
        while not os.path.exists("other") or os.path.exists(f"/proc/{open('other').read()}"):
            time.sleep(0.1)
        time.sleep(GRACE + 2)  # the other rank has ended, in order
    if is_main_process():
        print(f"{learn.valid_metrics['valid_loss']:.5f}")
"""


def test_learners_train_on_two_ranks_as_on_one_and_a_rank_may_end_before_the_others(texts: Path, tmp_path: Path):
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [tmp_path / "script.py", *TINY, *LEARNING, f"data.path={texts}", f"data.cache_dir={texts.parent}/cache"]
    actual = [launch(words, ranks, cwd=tmp_path) for ranks in (1, 2)]
    for result in actual:
        assert result.returncode == 0, result.stdout + result.stderr
        assert "error" not in result.stderr
    rows = [[re.sub(r" *[\d,]+ +\d+:\d\d$", "", line) for line in result.stdout.splitlines()] for result in actual]
    assert rows[0] == rows[1]  # speed and time apart
