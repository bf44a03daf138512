"""Figures of an ensemble of classifiers on the documents of their token store.

All members must have the same token store and the same validation documents: otherwise, one of them may have been trained on
documents that measure the other. Trade-off: ensembles of differently tokenized members can label texts
(`inference/ensemble.py`), but are not evaluated here.

N: validation documents, C: classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ulmfit_dist.config.schema import Config
from ulmfit_dist.config.validation import check_probabilities_only
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.targets import read_targets
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.answers import compute_answers, figures_of_answers, with_intervals
from ulmfit_dist.inference.ensemble import common_labels, read_members
from ulmfit_dist.inference.temperature import LOG_DEVIATION, fit_temperature, scale_answers
from ulmfit_dist.models.bundle import ModelBundle
from ulmfit_dist.pretrained.hub import model_paths
from ulmfit_dist.stages.evaluate import check_functions, check_store
from ulmfit_dist.stages.prepare import prepare

Answers = dict[str, Tensor]
"""Probabilities of the classes, or numbers, float64 [N, C], by split."""
METRICS = ("accuracy", "f1_macro", "f1_micro", "rmse", "mae", "r2")
"""Metrics of the table, as far as the target has them; the first is shown with its interval."""


def evaluate_ensemble(
    folders: Sequence[str | Path],
    runtime: Runtime,
    trust_remote_code: bool = False,
    with_baseline: bool = False,
    quantize: str | None = None,
    baseline_features: str | None = None,
) -> dict[str, Any]:
    """Return metrics of classifiers and of their mean on their common validation documents. Collective.

    Args:
        folders: as for `Ensemble`; with the baseline, one folder suffices.
        runtime: ranks that share the documents.
        trust_remote_code: as for `Ensemble`.
        quantize: as for `Ensemble`.
        with_baseline: add the linear baseline as a member, fitted again to the first run's training documents. The
            probabilities of each member are then scaled by a temperature fitted to the validation documents
            (`inference/temperature.py`); the numbers of a regression are averaged unscaled.
        baseline_features: its features, as `classifier.baseline_features`; None: as in the first run's config.

    Returns:
        The figures of the mean as `ensemble`, as `evaluate` returns them for a classifier, and the scalar ones of each
        member in `members`, with its folder as `run`. With the baseline, `members` and `baseline` have their `temperature`
        (None for a regression; their figures are unscaled), `baseline` its `features`, `C` and `num_features`, and, if the
        test split is labelled, all three have `test`, the same figures there with 95 % intervals.

    Raises:
        UserError: as for `Ensemble`; the token store is missing or the texts have changed; members were trained on different
            texts, or validated on different documents.
    """
    members = read_members(model_paths(folders, runtime), least=1 if with_baseline else 2)
    common_labels(members)
    for exported in members:
        check_functions(exported, trust_remote_code)
    stores = [prepare(exported.config, runtime) for exported in members]
    with runtime.fail_together():
        sides = {"valid": common_documents(members, stores)}
    if with_baseline:
        from ulmfit_dist.stages.baseline import baseline_answers

        config = with_features(members[0].config, baseline_features)
        sides, metadata, linear, _ = baseline_answers(config, runtime, stores[0])
    answers: list[Answers] = [
        {
            side: compute_answers(exported, store, documents_N, runtime, trust_remote_code, quantize)
            for side, documents_N in sides.items()
        }
        for exported, store in zip(members, stores, strict=True)
    ]
    figures = partial(figures_by_split, sides=sides, config=members[0].config, store=stores[0], runtime=runtime)
    result: dict[str, Any] = {
        "members": [{"run": str(run)} | single_numbers(figures(part)) for run, part in zip(folders, answers, strict=True)]
    }
    if with_baseline:
        answers.append({side: torch.from_numpy(part).to(runtime.device) for side, part in linear.items()})
        settings = {name: metadata[name] for name in ("features", "C", "num_features")}
        result["baseline"] = settings | single_numbers(figures(answers[-1]))
        temperatures, answers = at_temperatures(answers, sides["valid"], members[0].config, stores[0], runtime)
        for member, temperature in zip((*result["members"], result["baseline"]), temperatures, strict=True):
            member["temperature"] = temperature
    mean = {side: torch.stack([part[side] for part in answers]).mean(0) for side in sides}
    return result | {"ensemble": figures(mean)}


def with_features(config: Config, baseline_features: str | None) -> Config:
    """Return a config with these features of the linear baseline; None: its own. Raises UserError if they do not fit."""
    if baseline_features is None:
        return config
    classifier = replace(config.classifier, baseline_features=baseline_features)
    check_probabilities_only(classifier)
    return replace(config, classifier=classifier)


def describe_ensemble(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table of the figures of `evaluate_ensemble`, a line at a time: one for each model and split."""
    models = [(member["run"], member) for member in result["members"]]
    models += [(name, result[name]) for name in ("baseline", "ensemble") if name in result]
    names = [name for name in METRICS if name in result["ensemble"]]
    has_test, has_temperature = "test" in result["ensemble"], "baseline" in result
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
    if has_temperature and result["members"][0]["temperature"] is None:
        yield "numbers are averaged unscaled: a temperature applies to probabilities"


def figures_by_split(
    answers: Answers, sides: Mapping[str, np.ndarray], config: Config, store: TokenStore, runtime: Runtime
) -> dict[str, Any]:
    """Return the figures on valid, with those on test and their intervals as `test`. Collective."""
    targets = read_targets(store, config.classifier, config.data.label_delim)
    y_by_side = {side: targets.of(store.labels[documents_N]) for side, documents_N in sides.items()}
    figures = {
        side: figures_of_answers(answers[side], y_N, targets, config.classifier, runtime) for side, y_N in y_by_side.items()
    }
    if "test" not in figures:
        return figures["valid"]
    return figures["valid"] | {"test": with_intervals(figures["test"], answers["test"], y_by_side["test"], config)}


def at_temperatures(
    answers: Sequence[Answers],
    valid_N: np.ndarray,
    config: Config,
    store: TokenStore,
    runtime: Runtime,
) -> tuple[list[float | None], list[Answers]]:
    """Return the temperature of each member, fitted to the validation documents, and the scaled answers. Collective."""
    target = config.classifier.target
    if target == "regression":
        return [None] * len(answers), list(answers)
    y = read_targets(store, config.classifier, config.data.label_delim).of(store.labels[valid_N])
    temperatures: list[float] = []
    with runtime.fail_together():
        if runtime.is_main:
            temperatures = [fit_temperature(part["valid"], y, target, LOG_DEVIATION) for part in answers]
    temperatures = runtime.broadcast_object(temperatures)
    scaled = [
        {side: scale_answers(part_NC, temperature, target) for side, part_NC in part.items()}
        for part, temperature in zip(answers, temperatures, strict=True)
    ]
    return list(temperatures), scaled


def single_numbers(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the scalar figures and their intervals, also those of `test`."""
    scalars = {name: value for name, value in figures.items() if isinstance(value, float) or name.endswith("_interval")}
    return scalars | ({"test": single_numbers(figures["test"])} if "test" in figures else {})


def common_documents(members: Sequence[ModelBundle], stores: Sequence[TokenStore]) -> np.ndarray:
    """Return the validation documents, which all members must share, int64 [N], ascending."""
    first, expected = members[0], split_documents(stores[0], members[0].config).classifier_valid
    for exported, store in zip(members, stores, strict=True):
        check_store(exported, store)
        if store.fingerprint != stores[0].fingerprint:
            raise UserError(
                f"{exported.folder} was trained on another token store ({store.path}) than {first.folder} "
                f"({stores[0].path}): train both on the same texts with the same tokenizer, or label texts with them "
                f"(--text, --file)"
            )
        if not np.array_equal(split_documents(store, exported.config).classifier_valid, expected):
            raise UserError(
                f"{exported.folder} was validated on other documents than {first.folder}, so one was trained on validation "
                f"documents of the other: train both with the same seed and data.valid_pct"
            )
    return expected
