"""New columns of a table by a classifier (labels and probabilities) or a language model (continued prompts)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from ulmfit_dist.inference.generator import LanguageModel
from ulmfit_dist.inference.output_table import Columns
from ulmfit_dist.inference.outputs import MulticategoryPrediction, RegressionPrediction, prediction_of
from ulmfit_dist.inference.predictor import Classifier
from ulmfit_dist.models.sampling import Sampling

PREFIX = {"predict": "predicted_", "generate": "generated_"}
"""Default prefix of new columns, by command."""


class Labels:
    """Columns of a classifier: `predicted_label`, and `predicted_probability_CLASS` of each class.

    The first is `predicted_labels` if a text has several labels, a list, and `predicted_value`, without probabilities, if
    labels are numbers.
    """

    work = "predicting"

    def __init__(self, classifier: Classifier, prefix: str = PREFIX["predict"]):
        self._classifier, self._target = classifier, classifier.settings.target
        first = {"category": "label", "multicategory": "labels", "regression": "value"}[self._target]
        types = {"category": pa.string(), "multicategory": pa.list_(pa.string()), "regression": pa.float64()}
        classes = [] if self._target == "regression" else classifier.labels
        self.columns = {
            f"{prefix}{first}": types[self._target],
            **{f"{prefix}probability_{name}": pa.float64() for name in classes},
        }
        self.identity: dict[str, Any] = {"model": classifier.digest}

    def annotate(self, texts: Sequence[str], start: int) -> Columns:
        """Return the prediction of each text."""
        rows_NC = self._classifier.predict_proba(texts)
        first = [self._value(row) for row in rows_NC.tolist()]
        probabilities = [] if self._target == "regression" else rows_NC.T.tolist()
        return dict(zip(self.columns, [first, *probabilities], strict=True))

    def _value(self, outputs: Sequence[float]) -> str | list[str] | float:
        prediction = prediction_of(outputs, self._classifier.labels, self._classifier.settings)
        if isinstance(prediction, RegressionPrediction):
            return prediction.value
        return prediction.labels if isinstance(prediction, MulticategoryPrediction) else prediction.label


class Continuations:
    """Columns of a language model: `generated_text`, or `generated_text_1` and so on of several samples.

    The seed of a row is that of the command plus the row's number, so texts depend neither on blocks nor on ranks.
    """

    work = "generating"

    def __init__(
        self,
        model: LanguageModel,
        words: int,
        samples: int,
        seed: int,
        sampling: Sampling,
        keep_lines: bool,
        prefix: str = PREFIX["generate"],
    ):
        self._model, self._options = model, (words, samples)
        self._seed, self._sampling, self._keep_lines = seed, sampling, keep_lines
        names = [f"{prefix}text"] if samples == 1 else [f"{prefix}text_{i}" for i in range(1, samples + 1)]
        self.columns: dict[str, pa.DataType] = dict.fromkeys(names, pa.string())
        options = {"words": words, "samples": samples, "seed": seed, "keep_lines": keep_lines}
        self.identity: dict[str, Any] = {"model": model.digest, **options, "sampling": asdict(sampling)}

    def annotate(self, texts: Sequence[str], start: int) -> Columns:
        """Return the texts that continue each prompt."""
        rows = [
            self._model.generate(text, *self._options, self._seed + row, self._sampling, self._keep_lines)
            for row, text in enumerate(texts, start)
        ]
        return dict(zip(self.columns, map(list, zip(*rows, strict=True)), strict=True))
