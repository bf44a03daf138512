"""Classifier of an ensemble run: the mean of its members at their temperatures, with the linear model if it votes.

Members of such an ensemble share a token store, so texts are tokenized once. Trade-off: all members are held in memory.

N: texts, C: classes, or 1 for a regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.ensemble import common_labels
from ulmfit_dist.inference.predictor import Classifier, TextClassifier
from ulmfit_dist.inference.temperature import scale_answers
from ulmfit_dist.models.ensemble_file import is_ensemble, read_ensemble, read_ensemble_members, read_linear_models


class SavedEnsemble(Classifier):
    """The classifier that `run --both-directions` or `cross-validate --ensemble` has made of several runs.

    Args:
        run: run directory with `ensemble.json`.
        device: device of the members; linear models are computed on the CPU.
        trust_remote_code: as for `TextClassifier`.
        quantize: as for `TextClassifier`, for the members.

    Attributes:
        members: the classifiers.
        folders: their folders.

    Raises:
        UserError: a file or a member is missing or damaged, or a member was trained again.
    """

    def __init__(
        self,
        run: Path,
        device: torch.device | str = "cpu",
        trust_remote_code: bool = False,
        quantize: str | None = None,
    ):
        self.file = read_ensemble(run)
        bundles = read_ensemble_members(run, self.file)
        self.labels = common_labels(bundles)
        for exported in bundles:
            if exported.vocab != bundles[0].vocab:
                raise UserError(f"{exported.folder} has other tokens than {bundles[0].folder}: restore the original members")
        self._linear = read_linear_models(run, self.file, bundles) if self.file.linear_votes else []
        self.folders = [exported.folder for exported in bundles]
        self.members = [TextClassifier(folder, device, trust_remote_code, quantize) for folder in self.folders]
        self.settings, self.data = self.members[0].settings, self.members[0].data

    @property
    def digest(self) -> str:
        voters = [
            f"{member.digest}@{saved.temperature}" for member, saved in zip(self.members, self.file.members, strict=True)
        ]
        return ",".join([*voters, *([f"linear:{self.file.identity}"] if self.file.linear_votes else [])])

    def _predict_part(self, texts: Sequence[str], batch_tokens: int) -> np.ndarray:
        documents = self.members[0].encode(texts)
        saved = self.file.members
        answers = [
            self._scaled(member.predict_proba_of_tokens(member.as_read(documents), batch_tokens), of_member.temperature)
            for member, of_member in zip(self.members, saved, strict=True)
        ]
        fitted = [of_member for of_member in saved if of_member.linear is not None]
        for model, of_member in zip(self._linear, fitted if self._linear else [], strict=True):
            answers.append(self._scaled(model.answers(documents), of_member.linear_temperature))
        mean_NC: np.ndarray = np.mean(answers, axis=0)
        return mean_NC

    def _scaled(self, answers_NC: np.ndarray, temperature: float | None) -> np.ndarray:
        if temperature is None:
            return answers_NC
        return scale_answers(torch.from_numpy(answers_NC), temperature, self.settings.target).numpy()


def open_classifier(
    folder: Path, device: torch.device | str = "cpu", trust_remote_code: bool = False, quantize: str | None = None
) -> TextClassifier | SavedEnsemble:
    """Return the classifier of a run directory or an exported model's folder, which may be an ensemble."""
    kind = SavedEnsemble if is_ensemble(folder) else TextClassifier
    return kind(folder, device, trust_remote_code, quantize)
