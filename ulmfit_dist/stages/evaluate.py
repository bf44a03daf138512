"""Evaluation of a finished run from its exported models, on any number of ranks that divides its global batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ulmfit_dist.config.schema import PRECISIONS
from ulmfit_dist.data.batches import RankLoader
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.devices import uses_gpu
from ulmfit_dist.distributed.launch_settings import read_launch_settings
from ulmfit_dist.distributed.precision import resolve_precision
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.evaluation import classifier_figures, in_precision, read_batches
from ulmfit_dist.metrics.accumulators import ClassifierMetrics, LMMetrics, Metrics
from ulmfit_dist.metrics.objective import build_objective_metrics
from ulmfit_dist.models.bundle import ModelBundle, find_model, read_bundle
from ulmfit_dist.models.ensemble_file import is_ensemble, path_of_member, read_ensemble
from ulmfit_dist.models.fused_cross_entropy import PRODUCT_DTYPES, DecoderLoss
from ulmfit_dist.models.quantization import load_quantized
from ulmfit_dist.models.registry import user_class
from ulmfit_dist.pretrained.hub import model_paths
from ulmfit_dist.stages.classifier import classifier_loaders
from ulmfit_dist.stages.lm import lm_loaders
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.utils.imports import check_trust
from ulmfit_dist.utils.log import get_logger
from ulmfit_dist.utils.text_table import TextTable

logger = get_logger(__name__)


def evaluate(
    run: Path,
    runtime: Runtime,
    trust_remote_code: bool = False,
    split: str = "valid",
    data: Path | None = None,
    columns: Mapping[str, Any] | None = None,
    quantize: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Return metrics by stage on the validation documents, for each exported model of the run. Collective.

    The classifier's metrics are those of `classifier_figures`. On the test split and on new texts, only the classifier is
    evaluated, with the 95 % interval of each metric (`metrics/intervals.py`).

    Args:
        run: run directory, which may be that of an ensemble, an exported model's folder, or `hf:USER/NAME`, which has no
            texts of its own.
        trust_remote_code: call user-defined functions of the model's config. Otherwise tokenizer.rules raise UserError, and
            classifier.metrics are skipped.
        split: valid or test.
        data: new labelled texts to evaluate the classifier on instead.
        columns: `text_col` and `label_col` of these texts, in place of those of the run's config.
        quantize: "int8" for the figures of the classifier, which alone is then evaluated, in int8.

    Raises:
        UserError: the exported model or the token store of its texts is missing, or the texts have changed.
    """
    (run,) = model_paths([run], runtime)
    if data is not None or split == "test":
        from ulmfit_dist.stages.evaluate_texts import evaluate_test_split, evaluate_texts

        return {
            "classifier": evaluate_test_split(run, runtime, trust_remote_code, quantize)
            if data is None
            else evaluate_texts(run, data, runtime, trust_remote_code, columns, quantize)
        }
    if is_ensemble(run):
        from ulmfit_dist.stages.evaluate_saved import evaluate_ensemble_run

        return {"classifier": evaluate_ensemble_run(run, runtime, trust_remote_code, split, quantize)}
    stages = ("lm", "classifier") if quantize is None else ("classifier",)
    folders = {stage: folder for stage in stages if (folder := find_model(run, stage)) is not None}
    if not folders:
        kind = "model" if quantize is None else "classifier"
        raise UserError(f"{run}: no exported {kind} here: give a run directory or the folder of an exported model")
    exports = {stage: read_bundle(folder) for stage, folder in folders.items()}
    for exported in exports.values():
        check_functions(exported, trust_remote_code)
    if "classifier" in exports and exports["classifier"].config.classifier.metrics and not trust_remote_code:
        logger.warning("the user-defined classifier.metrics are skipped: --trust-remote-code computes them")
    return {
        stage: _evaluate_stage(stage, exported, runtime, trust_remote_code, quantize) for stage, exported in exports.items()
    }


def precision_of_models(runs: Sequence[Path]) -> str:
    """Return the precision that the models of runs were trained in, so that `evaluate` reproduces the figures of training.

    Returns `auto` if it differs between models or is unknown, if the launcher sets one, and, with a warning, if this machine
    does not support it.
    """
    runs = [member for run in runs for member in (_members(run) if is_ensemble(run) else [run])]
    folders = {folder for run in runs for stage in ("lm", "classifier") if (folder := find_model(run, stage)) is not None}
    precisions = {read_bundle(folder).training.get("precision") for folder in folders}
    precision = precisions.pop() if len(precisions) == 1 else None
    if precision not in PRECISIONS or read_launch_settings().mixed_precision is not None:
        return "auto"
    try:
        return resolve_precision(precision, uses_gpu())
    except UserError as error:
        logger.warning(f"the models were trained in another precision than this evaluation uses: {error}")
        return "auto"


def _members(run: Path) -> list[Path]:
    return [path_of_member(run, member) for member in read_ensemble(run).members]


def describe_figures(figures: dict[str, dict[str, Any]]) -> str:
    """Return figures by stage as tables: metrics with their intervals, if any, and scores of each class."""
    tables = []
    for stage, stage_figures in figures.items():
        rows = []
        for name, value in stage_figures.items():
            if isinstance(value, (int, float)):
                low_high = stage_figures.get(f"{name}_interval")
                interval = f"{low_high[0]:.4f} to {low_high[1]:.4f}" if low_high else ""
                rows.append((name, f"{value:,}" if isinstance(value, int) else f"{value:.4f}", interval))
        has_intervals = any(interval for *_, interval in rows)
        columns = ("metric", "value", "95 % interval") if has_intervals else ("metric", "value")
        tables.append(TextTable(stage, columns, tuple(row[: len(columns)] for row in rows), show_lines=False))
        if classes := stage_figures.get("classes"):
            cells = tuple(tuple(_cell(value) for value in scores.values()) for scores in classes)
            tables.append(TextTable("classes", tuple(classes[0]), cells, show_lines=False))
    return "\n\n".join(map(str, tables))


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _evaluate_stage(
    stage: str, exported: ModelBundle, runtime: Runtime, trust: bool, quantize: str | None
) -> dict[str, Any]:
    store = prepare(exported.config, runtime)
    with runtime.fail_together():
        check_store(exported, store)
        model = load_quantized(exported, runtime.device, trust, quantize)
        metrics: Metrics
        if stage == "lm":
            metrics = LMMetrics(DecoderLoss(model[1].decoder, PRODUCT_DTYPES[runtime.precision]))  # type: ignore[index]
            valid: RankLoader = lm_loaders(exported.config, runtime, store)[1]
        else:
            labelled = replace(exported.config.classifier, pseudo_labels=None)  # they are only trained on
            loader = classifier_loaders(replace(exported.config, classifier=labelled), runtime, store)[1]
            metrics, valid = build_objective_metrics(loader.targets, exported.config.classifier, trust), loader
        metrics.reset(runtime.device)
        if quantize is None:
            model = in_precision(model, stage, runtime)
        read_batches(model, valid, metrics.update, runtime)
    if isinstance(metrics, ClassifierMetrics):
        return classifier_figures(metrics, store.label_names, runtime)
    return dict(metrics.compute(runtime))


def check_functions(exported: ModelBundle, trust_remote_code: bool) -> None:
    """Raise UserError if the model was published without its texts, or needs user-defined functions that are not trusted."""
    config = exported.config
    if config.data.source == "frame" and config.data.path is None and config.data.token_store is None:
        raise UserError(
            f"{exported.folder}: a model of the hub has no texts of its own: evaluate it on labelled texts with --data FILE"
        )
    paths = {"model.arch": user_class(config.model), "data.splitter": config.data.splitter, "data.get_y": config.data.get_y}
    functions = {key: [path] for key, path in paths.items() if path is not None}
    check_trust({"tokenizer.rules": config.tokenizer.rules, **functions}, exported.folder, trust_remote_code)


def check_store(exported: ModelBundle, store: TokenStore) -> None:
    """Raise UserError if the model was not trained on this token store."""
    if exported.training["data_fingerprint"] != store.fingerprint or exported.vocab != store.vocab:
        raise UserError(
            f"{exported.folder} was not trained on the texts of {store.path}: texts or labels have changed; train again, "
            f"or restore the original texts"
        )
