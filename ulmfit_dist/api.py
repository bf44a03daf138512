"""The stages as a notebook or a script of yours calls them: a config in, an object out.

A call that is done leaves nothing behind that would keep the next from its way: ranks of one script go from call to call in
the same process group, and a notebook may start ranks of its own (Accelerate's `notebook_launcher`) after it. A learner is
what stays: it holds the processes that it was made in.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import Config, RuntimeConfig
from ulmfit_dist.data.sources.in_memory import InMemorySource, kept_as
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.ensemble import Ensemble
from ulmfit_dist.inference.generator import LanguageModel
from ulmfit_dist.inference.predictor import TextClassifier
from ulmfit_dist.models.pretrained import fetch
from ulmfit_dist.recipes.dataset_profile import TextOptions
from ulmfit_dist.recipes.init import InitResult, RecipeOptions
from ulmfit_dist.recipes.init import init as init_stage
from ulmfit_dist.stages.classifier import classifier_learner as stage_classifier_learner
from ulmfit_dist.stages.compare import Runs
from ulmfit_dist.stages.compare import compare as compare_runs
from ulmfit_dist.stages.cross_validate import Figures, configs_of_folds
from ulmfit_dist.stages.cross_validate import cross_validate as cross_validate_folds
from ulmfit_dist.stages.lm import lm_learner as stage_lm_learner
from ulmfit_dist.stages.lr_find import find_learning_rate as find_learning_rate_of
from ulmfit_dist.stages.notebook import prepare_for_notebook
from ulmfit_dist.stages.prepare import prepare as prepare_stage
from ulmfit_dist.stages.run import run_stage
from ulmfit_dist.stages.show_results import batch_tables, result_tables
from ulmfit_dist.training.callbacks.lr_finder import LRFinderResult
from ulmfit_dist.training.train_steps import ClassifierLearner, LMLearner
from ulmfit_dist.utils.text_table import Shown


def init(
    path: str | Path,
    *overrides: str,
    text: Sequence[str] = (),
    label: str | None = None,
    target: str | None = None,
    lang: str | None = None,
    minutes: float = 15,
    name: str | None = None,
    output: str | Path | None = None,
) -> InitResult:
    """Look at texts, and write a recipe that trains on them in so many minutes: `ulmfit-dist init`.

    Args:
        path: a folder, a CSV, TSV, JSON or Parquet file, a folder of such files, or `hub:NAME`.
        overrides: keys of the config to set, such as "data.quoting=false".
        text, label, target, lang: columns ("none": no label), kind of label and language, where they are not to be found.
        name: of the run; None: that of the path.
        output: the recipe's file; None: NAME.yaml in the current folder.

    Returns:
        The data card as `card`, the file as `recipe`, for `load_config`, and the expected `minutes` of each stage.

    Raises:
        UserError: texts that cannot be read, a question that the arguments must answer, a file that is there already.
    """
    options = TextOptions(tuple(text), label, target, lang, tuple(overrides))
    with Runtime(load_config(None, ["data.path=.", *overrides]).runtime, keeps_group=True) as runtime:
        recipe = RecipeOptions(minutes, name, Path(output) if output is not None else None)
        return init_stage(str(path), runtime, options, recipe)


def prepare(config: Config, texts: Any = None) -> TokenStore:
    """The token store of the config's texts, made if it is not there.

    A script must call this below `if __name__ == "__main__":`, for worker processes import the script.

    Args:
        texts: a pandas `DataFrame`, or a `Dataset` or `DatasetDict` of Hugging Face, in place of the config's source; the
            config names its columns (data.text_col, data.label_col, data.valid_col). Every rank gives the same.

    Raises:
        UserError: on every rank, for whatever is wrong with config or texts.
    """
    with _call(config) as runtime:
        return prepare_stage(_given(config, texts, runtime), runtime)


def with_texts(config: Config, texts: Any) -> Config:
    """The config with texts given in Python as its source: then no other call needs them. They are kept in data.cache_dir.

    Args:
        texts: as those of `prepare`.
    """
    with _call(config) as runtime:
        return _given(config, texts, runtime)


def train_lm(config: Config, fresh: bool = False, texts: Any = None) -> LanguageModel:
    """Train the language model; it is in `runs/<name>/lm` afterwards. What was interrupted goes on, unless `fresh`.

    Args:
        texts: as those of `prepare`.
    """
    with _call(config, None if fresh else config.run_dir) as runtime:
        run_stage(_given(config, texts, runtime), runtime, "lm", fresh)
    return LanguageModel(config.run_dir, trust_rules=True)


def train_classifier(config: Config, fresh: bool = False, texts: Any = None) -> TextClassifier:
    """As `train_lm`, for the classifier on the run's language model; it is in `runs/<name>/classifier` afterwards."""
    with _call(config, None if fresh else config.run_dir) as runtime:
        run_stage(_given(config, texts, runtime), runtime, "classifier", fresh)
    return TextClassifier(config.run_dir, trust_rules=True)


def cross_validate(config: Config, fresh: bool = False) -> Figures:
    """Train a run for each of `data.folds`; mean, std and the values of the folds by stage and metric."""
    first = configs_of_folds(config)[0]
    with _call(first, None if fresh else first.run_dir) as runtime:
        return cross_validate_folds(config, runtime, fresh)


def baseline(config: Config, texts: Any = None) -> Figures:
    """Return the figures of a TF-IDF baseline on the config's documents, as `ulmfit-dist baseline --json` prints them.

    Args:
        texts: as those of `prepare`.
    """
    from ulmfit_dist.stages.baseline import baseline as baseline_of  # scikit-learn takes a second, which predict must not

    with _call(config) as runtime:
        return baseline_of(_given(config, texts, runtime), runtime)


def compare(first: Runs, second: Runs) -> dict[str, Any]:
    """Return the comparison of two runs on the same documents, as `ulmfit-dist compare --json` prints it.

    Args:
        first, second: run directories; or two lists of them, which are compared by mean and spread over their runs.
    """
    return compare_runs(first, second)


def find_learning_rate(config: Config, stage: str = "lm", **range: float) -> LRFinderResult:
    """A learning rate range test of a stage: `.suggestions()` gives rates, `.draw(axes)` the plot.

    Args:
        range: `start`, `end` and `num_steps`, where they are not to be 1e-7, 10 and 100.
    """
    with _call(config) as runtime:
        return find_learning_rate_of(config, runtime, stage, **range)  # type: ignore[arg-type]


def lm_learner(config: Config, texts: Any = None) -> LMLearner:
    """fastai's learner of the language model, untrained: `fit_one_cycle`, `freeze_to`, `validate`, callbacks are yours.

    It trains on all ranks as `train_lm` does, without its checkpoints; `save` and `save_encoder` write to
    `runs/<name>/models`, `export` a model for the rest of the package.

    Args:
        texts: as those of `prepare`.
    """
    runtime, config, store = _lasting(config, texts)
    fetch(config.model.pretrained, runtime)
    with runtime.fail_together():
        learner = stage_lm_learner(config, runtime, store)
    return prepare_for_notebook(learner, config, store, runtime)


def classifier_learner(config: Config, texts: Any = None) -> ClassifierLearner:
    """As `lm_learner`, for the classifier. Its encoder is the run's language model; where there is none, `load_encoder`."""
    runtime, config, store = _lasting(config, texts)
    fetch(config.encoder_source, runtime)
    with runtime.fail_together():
        learner = stage_classifier_learner(config, runtime, store, needs_encoder=False)
    if config.encoder_source is None and not (config.run_dir / "lm").is_dir():
        runtime.print(
            f"no language model in {config.run_dir / 'lm'}: the encoder is a fresh one; load_encoder gives it another"
        )
    return prepare_for_notebook(learner, config, store, runtime)


def load_classifier(folder: str | Path, device: torch.device | str = "cpu", trust_rules: bool = False) -> TextClassifier:
    """An exported classifier: `.predict(list_of_str)` gives labels and probabilities; `.predict_one(str)` for one text."""
    return TextClassifier(folder, device, trust_rules)


def load_ensemble(folders: Sequence[str | Path], device: torch.device | str = "cpu", trust_rules: bool = False) -> Ensemble:
    """Exported classifiers with the same labels, as one that gives the mean of their probabilities."""
    return Ensemble(folders, device, trust_rules)


def load_language_model(folder: str | Path, device: torch.device | str = "cpu", trust_rules: bool = False) -> LanguageModel:
    """An exported language model: `.generate(prompt)` gives texts."""
    return LanguageModel(folder, device, trust_rules)


def show_batch(config: Config, stage: str | None = None, rows: int = 4, tokens: bool = False, texts: Any = None) -> Shown:
    """The beginning of the first training batch, as a notebook shows it, and as `print` does.

    Args:
        stage: "lm" or "classifier"; None for both, where any text is labelled.
        tokens: tokens as the model reads them, in place of readable text.
        texts: as those of `prepare`.
    """
    with _call(config) as runtime:
        return Shown(batch_tables(_given(config, texts, runtime), runtime, stage, rows, tokens))


def show_results(
    run: str | Path, stage: str | None = None, rows: int = 4, tokens: bool = False, trust_rules: bool = False
) -> Shown:
    """What the models of a run say of some validation texts, as `show_batch` shows it."""
    with Runtime(RuntimeConfig(), keeps_group=True) as runtime:
        return Shown(result_tables(Path(run), runtime, stage, rows, tokens, trust_rules))


def _call(config: Config, run_dir: Path | None = None) -> Runtime:
    return Runtime(config.runtime, run_dir=run_dir, keeps_group=True)


def _lasting(config: Config, texts: Any) -> tuple[Runtime, Config, TokenStore]:
    """What a learner holds on to until the process ends."""
    runtime = Runtime(config.runtime)
    runtime.register_shutdown()
    config = _given(config, texts, runtime)
    return runtime, config, prepare_stage(config, runtime)


def _given(config: Config, texts: Any, runtime: Runtime) -> Config:
    """The config with the texts as its source, kept by rank 0. Collective."""
    if texts is None:
        return config
    name = ""
    with runtime.fail_together():
        frame = InMemorySource(texts, config.data)
        name = frame.digest()
    names = runtime.all_gather_object(name)
    kept = kept_as(config, name)
    with runtime.fail_together():
        for rank, other in enumerate(names):
            if other != names[0]:
                raise UserError(f"texts: rank {rank} has other texts than rank 0: give the same on every rank")
        if runtime.is_main and not Path(kept.data.path or "").is_dir():
            frame.write(Path(kept.data.path or ""))
    return kept
