"""Folds of the documents, and the runs of a cross-validation."""

import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, command_here, succeed
from stores import make_store

from ulmfit_dist.checkpointing.compatibility import differences
from ulmfit_dist.config.loading import load_config, to_dict
from ulmfit_dist.config.schema import Config, DataConfig, LMConfig, RuntimeConfig
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.token_store import NO_LABEL, TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.stages.cross_validate import (
    average,
    configs_of_folds,
    copy_language_model,
    cross_validate,
    describe_figures,
)
from ulmfit_dist.stages.run_directories import SELF_TRAINING
from ulmfit_dist.tracking.run_lock import RunLock

LABELS = np.array([0] * 31 + [1] * 12 + [2] * 5 + [NO_LABEL] * 9)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    documents = [np.full(3, 2 + i % 5) for i in range(len(LABELS))]
    order = np.random.default_rng(0).permutation(len(LABELS))
    return make_store(tmp_path_factory.mktemp("folds") / "store", documents, LABELS[order], [f"w{i}" for i in range(9)])


def folds_of(store: TokenStore, **config) -> list:
    return [split_documents(store, Config(data=DataConfig(folds=4, fold=fold), **config)) for fold in range(4)]


def test_each_document_is_validated_on_in_one_fold_and_trained_on_in_all_others(store: TokenStore):
    splits = folds_of(store)
    assert sorted(np.concatenate([split.lm_valid for split in splits])) == list(range(len(LABELS)))
    for split in splits:
        assert sorted([*split.lm_train, *split.lm_valid]) == list(range(len(LABELS)))
        assert set(split.classifier_valid) <= set(split.lm_valid)
        assert all(np.diff(split.lm_train) > 0)


def test_each_fold_has_its_share_of_every_class(store: TokenStore):
    for split in folds_of(store):
        counts = np.bincount(store.labels[split.classifier_valid], minlength=3)
        assert all(abs(counts - np.array([31, 12, 5]) / 4) < 1)


def test_another_seed_cuts_other_folds(store: TokenStore):
    assert not np.array_equal(folds_of(store)[0].lm_valid, folds_of(store, seed=1)[0].lm_valid)


def test_a_language_model_of_all_texts_is_the_same_in_all_folds(store: TokenStore):
    first, second, *_ = folds_of(store, lm=LMConfig(valid_pct=0.2))
    assert np.array_equal(first.lm_train, second.lm_train)
    assert not np.array_equal(first.classifier_train, second.classifier_train)
    now, then = (Config(data=DataConfig(folds=4, fold=fold), lm=LMConfig(valid_pct=0.2)) for fold in (0, 1))
    assert differences("lm", now, to_dict(then), "a", "a") == []
    assert differences("classifier", now, to_dict(then), "a", "a") == ["data.fold (now 0, then 1)"]
    now.lm.valid_pct = then.lm.valid_pct = None
    assert differences("lm", now, to_dict(then), "a", "a") == ["data.fold (now 0, then 1)"]


@pytest.mark.parametrize(
    ("overrides", "output"),
    [
        (["data.folds=1"], "at least 2"),
        (["data.folds=3", "data.fold=3"], "from 0 to below data.folds=3"),
        (["data.fold=1"], "from 0 to below"),
    ],
)
def test_wrong_folds_are_named(overrides: list[str], output: str):
    with pytest.raises(UserError, match=output):
        load_config(None, ["data.path=x", *overrides])


def test_without_folds_there_is_nothing_to_do():
    with pytest.raises(UserError, match="folds is not set"):
        configs_of_folds(Config())


def test_figures_are_mean_and_sample_deviation():
    summaries = [{"classifier": {"accuracy": value, "examples_per_second": 9.0}} for value in (0.8, 0.9, 1.0)]
    actual = average(summaries)
    assert actual["classifier"].keys() == {"accuracy"}
    assert actual["classifier"]["accuracy"]["mean"] == pytest.approx(0.9)
    assert actual["classifier"]["accuracy"]["std"] == pytest.approx(0.1)
    assert list(describe_figures(actual)) == ["classifier  accuracy      0.9000 ± 0.1000  (0.8000 0.9000 1.0000)"]


def test_a_fold_keeps_what_it_has_unless_all_is_to_be_trained_again(tmp_path: Path):
    config = Config(name="cv-fold-1", runs_dir=str(tmp_path))
    for name, content in (("cv-fold-0", "new"), ("cv-fold-1", "old")):
        for stage in ("lm", "classifier"):
            (tmp_path / name / stage).mkdir(parents=True)
            (tmp_path / name / stage / "training.json").write_text(content)

    def actual() -> list[str]:
        return [path.read_text() for path in sorted((tmp_path / "cv-fold-1").glob("*/training.json"))]

    copy_language_model(tmp_path / "cv-fold-0", config, fresh=False)
    assert actual() == ["old", "old"]
    copy_language_model(tmp_path / "cv-fold-0", config, fresh=True)
    assert actual() == ["new"]
    (config.run_dir / "classifier").mkdir()
    copy_language_model(tmp_path / "cv-fold-0", config, fresh=True)  # the same one: what was trained on it meanwhile stays
    assert (config.run_dir / "classifier").is_dir()


def test_a_fold_that_another_process_trains_is_left_alone(tmp_path: Path):
    config = Config(name="cv-fold-1", runs_dir=str(tmp_path))
    (tmp_path / "cv-fold-0" / "lm").mkdir(parents=True)
    config.checkpoints_dir.mkdir(parents=True)
    with RunLock(config), pytest.raises(UserError, match="cv-fold-1 is locked by another training process"):
        copy_language_model(tmp_path / "cv-fold-0", config, fresh=False)
    assert config.checkpoints_dir.is_dir()


def test_a_fold_that_holds_another_kind_of_run_is_left_alone(tmp_path: Path):
    config = Config(name="cv", runs_dir=str(tmp_path), data=DataConfig(folds=2, path="x"))
    (tmp_path / "cv-fold-1").mkdir()
    (tmp_path / "cv-fold-1" / SELF_TRAINING).write_text("{}")
    with pytest.raises(UserError, match="cv-fold-1 holds a self-training: give this run another name"):
        cross_validate(config, Runtime(RuntimeConfig(precision="fp32")))


def test_folds_are_runs_and_what_is_done_is_not_done_again(corpus: Path, recipe: Path, tmp_path: Path):
    words = [recipe, f"data.path={corpus}", *TINY, f"data.cache_dir={tmp_path}/cache", f"runs_dir={tmp_path}", "name=cv"]
    words += ["lm.valid_pct=0.2", "lm.phases=[{lr: 5e-2}]", "classifier.phases=[{epochs: 2, lr: 2e-2}]", "data.folds=2"]
    output = succeed(["cross-validate", *words], 2)
    runs = [tmp_path / f"cv-fold-{fold}" for fold in range(2)]
    values = [json.loads((run / "summary.json").read_text())["classifier"]["accuracy"] for run in runs]
    actual = json.loads((tmp_path / "cv" / "cross_validation.json").read_text())["classifier"]["accuracy"]
    assert actual == {"mean": statistics.fmean(values), "std": statistics.stdev(values), "folds": values}
    assert f"accuracy      {actual['mean']:.4f} ± {actual['std']:.4f}" in output
    models = [(run / "lm" / "model.safetensors").read_bytes() for run in runs]
    assert models[0] == models[1]
    assert len({path.name.split("-")[-1] for run in runs for path in (run / "wandb").glob("offline-run-*")}) == 2

    before = [(run / "classifier" / "training.json").stat().st_mtime_ns for run in runs]
    assert f"accuracy      {actual['mean']:.4f}" in succeed(["cross-validate", *words])
    assert [(run / "classifier" / "training.json").stat().st_mtime_ns for run in runs] == before

    encoder = f"classifier.encoder={runs[0]}/lm"  # then no fold trains a language model, and none is copied
    result = command_here(["cross-validate", *words, encoder, "name=given"])
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "given-fold-1" / "lm").exists()

    (tmp_path / "split").mkdir()
    (tmp_path / "split" / "train").symlink_to(corpus)
    shutil.copytree(corpus, tmp_path / "split" / "valid")
    refused = command_here(["run", *words, f"data.path={tmp_path}/split", "name=other"])
    assert refused.returncode == 2
    assert "documents are in a valid split: set data.folds=null" in refused.stderr
