"""Figures of the baseline as text: its table, and the comparison with the classifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ulmfit_dist.config.schema import Config
from ulmfit_dist.tracking.console import LESS_IS_BETTER, MAIN_METRICS

FEATURES = {"tfidf": "TF-IDF", "naive_bayes": "NB-TF-IDF", "lsa": "LSA"}
"""Name of the features, by `classifier.baseline_features`."""
FEW_LM_EPOCHS = 3
"""Language model epochs below which more are suggested."""


def describe_baseline(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table of the figures of `compute_baseline`."""
    simplest = "most frequent class" if "accuracy" in figures["valid"] else "mean"
    names = [name for name in ("accuracy", "f1_macro", "f1_micro", "rmse", "mae", "r2") if name in figures["valid"]]
    yield (
        f"{'baseline':<22}{'split':<7}"
        + "".join(f"{name:>12}" for name in names)
        + ("   95 % interval" if "test" in figures else "")
    )
    for model, sides in ((simplest, figures["majority"]), (f"{features_name(figures)}, linear", figures)):
        for side in ("valid", "test"):
            if side not in sides:
                continue
            values = "".join(f"{sides[side][name]:>12.4f}" for name in names)
            low, high = sides[side].get(f"{names[0]}_interval", (None, None))
            yield f"{model:<22}{side:<7}{values}" + (f"   {low:.4f} to {high:.4f}" if low is not None else "")


def features_name(figures: Mapping[str, Any]) -> str:
    """Return the name of the features of the linear model, from the figures of `compute_baseline`."""
    return FEATURES[figures.get("features", "tfidf")]


def main_metric(figures: Mapping[str, Any]) -> str:
    """Return the name of the metric that a classifier and the baseline are compared by."""
    return next(name for name in MAIN_METRICS if name in figures)


def describe_standing(summary: Mapping[str, Any], config: Config) -> Iterator[str]:
    """Yield a line that compares a finished classifier with the baseline, from the figures of summary.json.

    If the classifier is not better, the line suggests what to try.
    """
    classifier, baseline = summary.get("classifier"), summary.get("baseline")
    if classifier is None or baseline is None:
        return
    side = "test" if "test" in classifier and "test" in baseline else "valid"
    figures = classifier["test"] if side == "test" else classifier
    name = main_metric(baseline[side])
    sign = -1 if name in LESS_IS_BETTER else 1
    value, other = figures[name], baseline[side][name]
    low, high = figures.get(f"{name}_interval", (value, value))
    shown = f"{name} {value:.4f} against {other:.4f} on {side}"
    if low <= other <= high and side == "test":
        finding = f"{shown}, within the 95 % interval; {_advice(config)}"
        yield f"no significant difference between classifier and baseline: {finding}"
    elif sign * value > sign * other:
        yield f"the classifier is better than the baseline: {shown}"
    else:
        yield f"the classifier is not better than the baseline: {shown}; {_advice(config)}"


def _advice(config: Config) -> str:
    """Return suggestions to improve the classifier that the config does not use yet."""
    suggestions = []
    if config.classifier.max_doc_tokens is not None:
        suggestions.append("read whole documents (classifier.max_doc_tokens=null)")
    if config.model.pretrained is None and config.classifier.encoder is None:
        is_english = config.tokenizer.lang == "en" and config.tokenizer.type == "word"
        pretrained = "model.pretrained=wt103_fwd" if is_english else "ulmfit-dist pretrain on more texts"
        suggestions.append(f"start from a pretrained language model ({pretrained})")
    if config.classifier.encoder is None and sum(phase.epochs for phase in config.lm.phases) < FEW_LM_EPOCHS:
        suggestions.append("train the language model for more epochs (lm.phases)")
    return f"try to {', to '.join([*suggestions, f'average both (ulmfit-dist ensemble {config.run_dir} --with-baseline)'])}"
