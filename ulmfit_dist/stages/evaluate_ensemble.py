"""Several classifiers that answer together: the mean of their probabilities.

The paper's figures are those of two, of which one reads the texts from their end (Howard & Ruder, 2018, section 3.3). Each
member has a tokenizer and vocabulary of its own, so for new texts they must agree on the labels alone. To be measured
they must have the same token store and the same validation documents: on others, one of them may have trained.

N: validation documents, C: classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.targets import read_targets
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.answers import compute_answers, figures_of_answers, with_intervals
from ulmfit_dist.inference.predictor import Classifier, TextClassifier
from ulmfit_dist.inference.temperature import fit_temperature, scale_answers
from ulmfit_dist.models.bundle import ModelBundle, model_folder, read_bundle
from ulmfit_dist.stages.evaluate import check_functions, check_store
from ulmfit_dist.stages.prepare import prepare

Answers = dict[str, Tensor]
"""Probabilities of the classes, or numbers, float64 [N, C], by split."""
METRICS = ("accuracy", "f1_macro", "f1_micro", "rmse", "mae", "r2")
"""Metrics that the table shows, where the target has them; the first has its interval."""


class Ensemble(Classifier):
    """Exported classifiers as one.

    Args:
        folders: of each, a run directory or its `classifier/`.
        device: where to compute.
        trust_remote_code: whether to call what the models' configs name of yours (tokenizer.rules, model.arch).

    Attributes:
        members: the classifiers.

    Raises:
        UserError: less than two; no classifier there, or a damaged one; labels that differ.
    """

    def __init__(self, folders: Sequence[str | Path], device: torch.device | str = "cpu", trust_remote_code: bool = False):
        self.labels = _common_labels(_read_members(folders))
        self.members = [TextClassifier(folder, device, trust_remote_code) for folder in folders]
        self.settings = self.members[0].settings

    def _predict_part(self, texts: Sequence[str], batch_tokens: int) -> np.ndarray:
        return np.mean([member._predict_part(texts, batch_tokens) for member in self.members], axis=0)


def evaluate_ensemble(
    folders: Sequence[str | Path], runtime: Runtime, trust_remote_code: bool = False, with_baseline: bool = False
) -> dict[str, Any]:
    """Metrics of classifiers and of their mean on the validation documents that they have in common. Collective.

    Args:
        folders, trust_remote_code: as for `Ensemble`; with the baseline, one folder is enough.
        with_baseline: whether the TF-IDF baseline is a member, fitted again to the first run's training documents. Then the
            probabilities of each member are taken at a temperature that is fitted to the validation documents
            (`inference/temperature.py`); numbers of a regression are averaged as they are.

    Returns:
        `ensemble`: the figures of the mean, as `evaluate` gives them for a classifier; `members`: for each its folder, as
        `run`, and those of the figures that are a single number.
            With the baseline, `members` and `baseline` have their `temperature` (None for a regression; their figures are
            those without it), `baseline` its `C` and `num_features`, and all three have `test`, where the test split is
            labelled: the same figures there with 95 % intervals.

    Raises:
        UserError: as `Ensemble`; no store of their texts, or texts that have changed since; members that were trained on
            different texts, or validated on different documents.
    """
    members = _read_members(folders, least=1 if with_baseline else 2)
    _common_labels(members)
    for exported in members:
        check_functions(exported, trust_remote_code)
    stores = [prepare(exported.config, runtime) for exported in members]
    with runtime.fail_together():
        sides = {"valid": _common_documents(members, stores)}
    if with_baseline:
        from ulmfit_dist.stages.baseline import baseline_answers

        sides, facts, linear, _ = baseline_answers(members[0].config, runtime, stores[0])
    answers: list[Answers] = [
        {
            side: compute_answers(exported, store, documents_N, runtime, trust_remote_code)
            for side, documents_N in sides.items()
        }
        for exported, store in zip(members, stores, strict=True)
    ]
    figures = partial(_figures, sides=sides, config=members[0].config, store=stores[0], runtime=runtime)
    found: dict[str, Any] = {
        "members": [{"run": str(run)} | _single_numbers(figures(part)) for run, part in zip(folders, answers, strict=True)]
    }
    if with_baseline:
        answers.append({side: torch.from_numpy(part).to(runtime.device) for side, part in linear.items()})
        found["baseline"] = {name: facts[name] for name in ("C", "num_features")} | _single_numbers(figures(answers[-1]))
        temperatures, answers = _at_temperatures(answers, sides["valid"], members[0].config, stores[0], runtime)
        for member, temperature in zip((*found["members"], found["baseline"]), temperatures, strict=True):
            member["temperature"] = temperature
    mean = {side: torch.stack([part[side] for part in answers]).mean(0) for side in sides}
    return found | {"ensemble": figures(mean)}


def describe_ensemble(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table of the figures of `evaluate_ensemble`, a line at a time: one for each model and split."""
    models = [(member["run"], member) for member in found["members"]]
    models += [(name, found[name]) for name in ("baseline", "ensemble") if name in found]
    names = [name for name in METRICS if name in found["ensemble"]]
    has_test, has_temperature = "test" in found["ensemble"], "baseline" in found
    width = max(len(model) for model, _ in models) + 2
    columns = "".join(f"{name:>12}" for name in (*names, "loss"))
    columns += f"{'temperature':>13}" * has_temperature + f"   95 % interval of {names[0]}" * has_test
    yield f"{'model':<{width}}{'split':<7}{columns}"
    for model, valid in models:
        for split, figures in (("valid", valid), ("test", valid.get("test"))):
            if figures is None:
                continue
            loss, temperature = figures["loss" if split == "test" else "valid_loss"], valid.get("temperature")
            values = "".join(f"{value:>12.4f}" for value in (*(figures[name] for name in names), loss))
            values += f"{'' if temperature is None else f'{temperature:.3f}':>13}" * has_temperature
            low_high = figures.get(f"{names[0]}_interval")
            values += f"   {low_high[0]:.4f} to {low_high[1]:.4f}" if low_high else ""
            yield f"{model:<{width}}{split:<7}{values}".rstrip()
    if has_temperature and found["members"][0]["temperature"] is None:
        yield "numbers are averaged as they are: a temperature is for probabilities"


def _figures(
    answers: Answers, sides: Mapping[str, np.ndarray], config: Config, store: TokenStore, runtime: Runtime
) -> dict[str, Any]:
    """Return the figures on valid, and those on test, with their intervals, as `test`. Collective."""
    targets = read_targets(store, config.classifier, config.data.label_delim)
    y_by_side = {side: targets.of(store.labels[documents_N]) for side, documents_N in sides.items()}
    found = {
        side: figures_of_answers(answers[side], y_N, targets, config.classifier, runtime) for side, y_N in y_by_side.items()
    }
    if "test" not in found:
        return found["valid"]
    return found["valid"] | {"test": with_intervals(found["test"], answers["test"], y_by_side["test"], config)}


def _at_temperatures(
    answers: Sequence[Answers], valid_N: np.ndarray, config: Config, store: TokenStore, runtime: Runtime
) -> tuple[list[float | None], list[Answers]]:
    """Return the temperature of each member, fitted to the validation documents, and the answers at it. Collective."""
    target = config.classifier.target
    if target == "regression":
        return [None] * len(answers), list(answers)
    y = read_targets(store, config.classifier, config.data.label_delim).of(store.labels[valid_N])
    temperatures: list[float] = []
    with runtime.fail_together():
        if runtime.is_main:
            temperatures = [fit_temperature(part["valid"], y, target) for part in answers]
    temperatures = runtime.broadcast_object(temperatures)
    scaled = [
        {side: scale_answers(part_NC, temperature, target) for side, part_NC in part.items()}
        for part, temperature in zip(answers, temperatures, strict=True)
    ]
    return list(temperatures), scaled


def _single_numbers(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the figures that are a number, their intervals, and the same of `test`."""
    found = {name: value for name, value in figures.items() if isinstance(value, float) or name.endswith("_interval")}
    return found | ({"test": _single_numbers(figures["test"])} if "test" in figures else {})


def _read_members(folders: Sequence[str | Path], least: int = 2) -> list[ModelBundle]:
    if len(folders) < least:
        raise UserError(
            f"an ensemble of {len(folders)}: name two runs or more, such as runs/imdb runs/imdb-backwards, or measure one "
            f"together with the TF-IDF baseline (--with-baseline)"
        )
    return [read_bundle(model_folder(Path(folder), "classifier")) for folder in folders]


def _common_labels(members: Sequence[ModelBundle]) -> list[str]:
    first, *others = members
    for other in others:
        if other.config.classifier.target != first.config.classifier.target:
            raise UserError(
                f"{other.folder} and {first.folder} have not the same classifier.target: they cannot be averaged"
            )
        if other.labels != first.labels:
            raise UserError(
                f"{other.folder} has other labels ({_named(other.labels)}) than {first.folder} ({_named(first.labels)}): "
                f"the members of an ensemble must have the same"
            )
    assert first.labels is not None  # model_folder has looked for them
    return first.labels


def _named(labels: Sequence[str] | None) -> str:
    labels = labels or []
    return ", ".join(labels[:5]) + (f", ... {len(labels)} in all" if len(labels) > 5 else "")


def _common_documents(members: Sequence[ModelBundle], stores: Sequence[TokenStore]) -> np.ndarray:
    """The documents that all were validated on, int64 [N], ascending."""
    first, expected = members[0], split_documents(stores[0], members[0].config).classifier_valid
    for exported, store in zip(members, stores, strict=True):
        check_store(exported, store)
        if store.fingerprint != stores[0].fingerprint:
            raise UserError(
                f"{exported.folder} was trained on another token store ({store.path}) than {first.folder} "
                f"({stores[0].path}): give both the same texts and tokenizer; or label texts with them (--text, --file)"
            )
        if not np.array_equal(split_documents(store, exported.config).classifier_valid, expected):
            raise UserError(
                f"{exported.folder} was validated on other documents than {first.folder}, so one has trained on what "
                f"measures the other: train both with the same seed and data.valid_pct"
            )
    return expected
