"""Python API for notebooks and scripts: a config in, an object out.

Calls share a process group: each call of a script reuses the group of the one before, and a notebook can start ranks
(Accelerate's `notebook_launcher`) after any of them. The trade-off: a learner keeps its process group, so it can be used
only in the processes that created it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import Config, RuntimeConfig
from ulmfit_dist.data.sources.in_memory import InMemorySource, with_cached_texts
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.ensemble import Ensemble
from ulmfit_dist.inference.generator import LanguageModel
from ulmfit_dist.inference.loading import load_classifier as load_classifier
from ulmfit_dist.inference.loading import load_language_model as load_language_model
from ulmfit_dist.inference.predictor import TextClassifier
from ulmfit_dist.inference.saved_ensemble import SavedEnsemble
from ulmfit_dist.models.pretrained import fetch
from ulmfit_dist.recipes.dataset_profile import TextOptions
from ulmfit_dist.recipes.init import InitResult, RecipeOptions
from ulmfit_dist.recipes.init import init as init_stage
from ulmfit_dist.stages.both_directions import configs_of_directions, run_both_directions
from ulmfit_dist.stages.classifier import classifier_learner as stage_classifier_learner
from ulmfit_dist.stages.compare import Runs
from ulmfit_dist.stages.compare import compare as compare_runs
from ulmfit_dist.stages.cross_validate import Figures, configs_of_folds
from ulmfit_dist.stages.cross_validate import cross_validate as cross_validate_folds
from ulmfit_dist.stages.lm import lm_learner as stage_lm_learner
from ulmfit_dist.stages.lr_find import find_learning_rate as find_learning_rate_of
from ulmfit_dist.stages.notebook import prepare_for_notebook
from ulmfit_dist.stages.prepare import prepare as prepare_stage
from ulmfit_dist.stages.run import run as run_stages
from ulmfit_dist.stages.run import run_stage
from ulmfit_dist.stages.self_train import config_of_round
from ulmfit_dist.stages.self_train import self_train as self_train_rounds
from ulmfit_dist.stages.show_results import batch_tables, result_tables
from ulmfit_dist.training.callbacks.lr_finder import LRFinderResult
from ulmfit_dist.training.train_steps import ClassifierLearner, LMLearner
from ulmfit_dist.utils.log import get_logger
from ulmfit_dist.utils.text_table import Shown

logger = get_logger(__name__)


def init(
    path: str | Path,
    *overrides: str,
    options: TextOptions | None = None,
    minutes: float = 15,
    name: str | None = None,
    output: str | Path | None = None,
) -> InitResult:
    """Inspect texts and write a config that trains on them in a given time, as `ulmfit-dist init` does.

    Args:
        path: a folder, a CSV, TSV, JSON or Parquet file, a folder of such files, or `hub:NAME`.
        overrides: keys of the config to set, such as "data.quoting=false".
        options: columns, kind of label and language, such as `TextOptions(label="stars")`; None: detect all of them.
        minutes: time limit of a run on this machine.
        name: name of the run; None: that of the path.
        output: path of the config file; None: NAME.yaml in the current folder.

    Returns:
        The data card as `card`, the path of the config as `recipe`, for `load_config`, and the expected `minutes` of each
        stage.

    Raises:
        UserError: texts that cannot be read, an ambiguity that the arguments must resolve, a file that exists already.
    """
    options = options or TextOptions()
    options = replace(options, overrides=(*options.overrides, *overrides))
    with Runtime(load_config(None, ["data.path=.", *options.overrides]).runtime, keeps_group=True) as runtime:
        recipe = RecipeOptions(minutes, name, Path(output) if output is not None else None)
        return init_stage(str(path), runtime, options, recipe)


def prepare(config: Config, texts: Any = None) -> TokenStore:
    """Return the token store of the config's texts; create it if it does not exist.

    A script must call this below `if __name__ == "__main__":`, because worker processes import the script.

    Args:
        texts: a pandas `DataFrame`, or a Hugging Face `Dataset` or `DatasetDict`, instead of the config's source; the
            config names its columns (data.text_col, data.label_col, data.valid_col). The same on every rank.

    Raises:
        UserError: on every rank, if config or texts are invalid.
    """
    with _runtime(config) as runtime:
        return prepare_stage(_with_source(config, texts, runtime), runtime)


def with_texts(config: Config, texts: Any) -> Config:
    """Return the config with texts given in Python as its source, so that other calls need only the config.

    The texts are written to data.cache_dir.

    Args:
        texts: as in `prepare`.
    """
    with _runtime(config) as runtime:
        return _with_source(config, texts, runtime)


def train_lm(config: Config, fresh: bool = False, texts: Any = None) -> LanguageModel:
    """Train the language model and export it to `runs/<name>/lm`. An interrupted training resumes, unless `fresh`.

    Args:
        texts: as in `prepare`.
    """
    with _runtime(config, None if fresh else config.run_dir) as runtime:
        run_stage(_with_source(config, texts, runtime), runtime, "lm", fresh)
    return LanguageModel(config.run_dir, trust_remote_code=True)


def train_classifier(config: Config, fresh: bool = False, texts: Any = None) -> TextClassifier:
    """Train the classifier on the run's language model, as `train_lm`, and export it to `runs/<name>/classifier`."""
    with _runtime(config, None if fresh else config.run_dir) as runtime:
        run_stage(_with_source(config, texts, runtime), runtime, "classifier", fresh)
    return TextClassifier(config.run_dir, trust_remote_code=True)


def run(
    config: Config, fresh: bool = False, both_directions: bool = False, texts: Any = None
) -> TextClassifier | SavedEnsemble:
    """Train all stages and score the classifier on the test split, as `ulmfit-dist run` does. An interrupted run resumes.

    Args:
        fresh: start over.
        both_directions: train a forward and a backward run, and make them an ensemble in `runs/<name>`.
        texts: as in `prepare`.

    Returns:
        The classifier, or the ensemble.
    """
    first = configs_of_directions(config)[0] if both_directions else config
    with _runtime(config, None if fresh else first.run_dir) as runtime:
        config = _with_source(config, texts, runtime)
        if both_directions:
            run_both_directions(config, runtime, fresh)
        else:
            run_stages(config, runtime, fresh)
    return load_classifier(config.run_dir, trust_remote_code=True)


def cross_validate(config: Config, fresh: bool = False, ensemble: bool = False) -> Figures:
    """Train a run for each of `data.folds`; return mean, std and the values of the folds by stage and metric.

    Args:
        fresh: train all folds again.
        ensemble: make the classifiers of the folds an ensemble in `runs/<name>`, for `load_classifier`.
    """
    first = configs_of_folds(config)[0]
    with _runtime(first, None if fresh else first.run_dir) as runtime:
        return cross_validate_folds(config, runtime, fresh, ensemble)


def self_train(config: Config, fresh: bool = False, trust_remote_code: bool = False, texts: Any = None) -> dict[str, Any]:
    """Train rounds that also learn from pseudo-labels; return the content of `self_training.json`, on rank 0.

    Args:
        fresh: train all rounds again.
        trust_remote_code: call user-defined functions of the configs of `self_training.voters`.
        texts: as in `prepare`.
    """
    first = config_of_round(config, 0)
    with _runtime(config, None if fresh else first.run_dir) as runtime:
        return self_train_rounds(_with_source(config, texts, runtime), runtime, fresh, trust_remote_code)


def baseline(config: Config, texts: Any = None) -> Figures:
    """Return the figures of a linear baseline on the config's documents, as `ulmfit-dist baseline --json` prints them.

    Args:
        texts: as in `prepare`.
    """
    from ulmfit_dist.stages.baseline import baseline as baseline_of  # importing scikit-learn takes a second

    with _runtime(config) as runtime:
        return baseline_of(_with_source(config, texts, runtime), runtime)


def compare(first: Runs, second: Runs) -> dict[str, Any]:
    """Return the comparison of two runs on the same documents, as `ulmfit-dist compare --json` prints it.

    Args:
        first: a run directory; or a list of them, compared by their mean and the spread over its runs.
        second: the same, on the same documents.
    """
    return compare_runs(first, second)


def find_learning_rate(config: Config, stage: str = "lm", **range: float) -> LRFinderResult:
    """Run a learning rate range test of a stage: `.suggestions()` returns rates, `.draw(axes)` draws the plot.

    Args:
        range: `start`, `end` and `num_steps` (defaults: 1e-7, 10 and 100).
    """
    with _runtime(config) as runtime:
        return find_learning_rate_of(config, runtime, stage, **range)  # type: ignore[arg-type]


def lm_learner(config: Config, texts: Any = None) -> LMLearner:
    """Return fastai's learner of the language model, untrained, for `fit_one_cycle`, `freeze_to`, `validate` and callbacks.

    It trains on all ranks as `train_lm` does, but without checkpoints; `save` and `save_encoder` write to
    `runs/<name>/models`, `export` writes a model for the rest of the package.

    Args:
        texts: as in `prepare`.
    """
    runtime, config, store = _prepare_for_learner(config, texts)
    fetch(config.model.pretrained, runtime, config.model.backwards)
    with runtime.fail_together():
        learner = stage_lm_learner(config, runtime, store)
    return prepare_for_notebook(learner, config, store, runtime)


def classifier_learner(config: Config, texts: Any = None) -> ClassifierLearner:
    """Return the classifier's learner, as `lm_learner`. It starts from the run's language model, or use `load_encoder`."""
    runtime, config, store = _prepare_for_learner(config, texts)
    fetch(config.encoder_source, runtime, config.model.backwards)
    with runtime.fail_together():
        learner = stage_classifier_learner(config, runtime, store, needs_encoder=False)
    if config.encoder_source is None and not (config.run_dir / "lm").is_dir():
        logger.warning(
            f"no language model in {config.run_dir / 'lm'}: the encoder has random weights; load_encoder loads trained ones"
        )
    return prepare_for_notebook(learner, config, store, runtime)


def load_ensemble(
    folders: Sequence[str | Path],
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
    quantize: str | None = None,
) -> Ensemble:
    """Load exported classifiers with the same labels as one that returns the mean of their probabilities."""
    return Ensemble(folders, device, trust_remote_code, quantize)


def show_batch(config: Config, stage: str | None = None, rows: int = 4, tokens: bool = False, texts: Any = None) -> Shown:
    """Return the first rows of the first training batch, as tables for a notebook or `print`.

    Args:
        stage: "lm" or "classifier"; None: both if any text is labelled, else "lm".
        tokens: show the tokens that the model reads, not readable text.
        texts: as in `prepare`.
    """
    with _runtime(config) as runtime:
        return Shown(batch_tables(_with_source(config, texts, runtime), runtime, stage, rows, tokens))


def show_results(
    run: str | Path, stage: str | None = None, rows: int = 4, tokens: bool = False, trust_remote_code: bool = False
) -> Shown:
    """Return predictions of a run's models for some validation texts, as tables like those of `show_batch`."""
    with Runtime(RuntimeConfig(), keeps_group=True) as runtime:
        return Shown(result_tables(Path(run), runtime, stage, rows, tokens, trust_remote_code))


def _runtime(config: Config, run_dir: Path | None = None) -> Runtime:
    return Runtime(config.runtime, run_dir=run_dir, keeps_group=True)


def _prepare_for_learner(config: Config, texts: Any) -> tuple[Runtime, Config, TokenStore]:
    """Return runtime, config and store of a learner; the runtime lasts until the process ends."""
    runtime = Runtime(config.runtime)
    runtime.register_shutdown()
    config = _with_source(config, texts, runtime)
    return runtime, config, prepare_stage(config, runtime)


def _with_source(config: Config, texts: Any, runtime: Runtime) -> Config:
    """Return the config with the texts as its source, written by rank 0. Collective."""
    if texts is None:
        return config
    digest = ""
    with runtime.fail_together():
        source = InMemorySource(texts, config.data)
        digest = source.digest()
    digests = runtime.all_gather_object(digest)
    config = with_cached_texts(config, digest)
    folder = Path(config.data.path or "")
    with runtime.fail_together():
        for rank, other in enumerate(digests):
            if other != digests[0]:
                raise UserError(f"texts: rank {rank} has other texts than rank 0: give the same on every rank")
        if runtime.is_main and not folder.is_dir():
            source.write(folder)
    return config
