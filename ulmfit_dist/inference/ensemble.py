"""Several exported classifiers as one: the mean of their probabilities.

The paper's best results average two classifiers, one of which reads texts backwards (Howard & Ruder, 2018, section 3.3).
Each member keeps its own tokenizer and vocabulary, so members must agree only on the labels. Trade-off: every member is
held in memory, and each text is tokenized once per member.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.predictor import Classifier, TextClassifier
from ulmfit_dist.models.bundle import ModelBundle, model_folder, read_bundle
from ulmfit_dist.pretrained.hub import model_path


class Ensemble(Classifier):
    """Exported classifiers as one.

    Args:
        folders: run directories, their `classifier/` folders, or `hf:USER/NAME`, models of the hub.
        device: device of the members.
        trust_remote_code: call user-defined functions of the models' configs (tokenizer.rules, model.arch).
        quantize: as for `TextClassifier`.

    Attributes:
        members: the classifiers.

    Raises:
        UserError: fewer than two folders; a classifier is missing or damaged; the members' labels differ.
    """

    def __init__(
        self,
        folders: Sequence[str | Path],
        device: torch.device | str = "cpu",
        trust_remote_code: bool = False,
        quantize: str | None = None,
    ):
        folders = [model_path(folder) for folder in folders]  # once, so that each name means one commit
        self.labels = common_labels(read_members(folders))
        self.members = [TextClassifier(folder, device, trust_remote_code, quantize) for folder in folders]
        self.settings, self.data = self.members[0].settings, self.members[0].data

    @property
    def digest(self) -> str:
        return ",".join(member.digest for member in self.members)

    def _predict_part(self, texts: Sequence[str], batch_tokens: int) -> np.ndarray:
        mean: np.ndarray = np.mean([member._predict_part(texts, batch_tokens) for member in self.members], axis=0)
        return mean


def read_members(folders: Sequence[str | Path], least: int = 2) -> list[ModelBundle]:
    """Return the exported classifiers of the folders. Raises UserError if there are fewer than `least`."""
    if len(folders) < least:
        raise UserError(
            f"an ensemble of {len(folders)}: name at least two runs, such as runs/imdb runs/imdb-backwards, or evaluate one "
            f"with the linear baseline (--with-baseline)"
        )
    return [read_bundle(model_folder(Path(folder), "classifier")) for folder in folders]


def common_labels(members: Sequence[ModelBundle]) -> list[str]:
    """Return the labels of the members. Raises UserError if their labels or targets differ."""
    first, *others = members
    for other in others:
        if other.config.classifier.target != first.config.classifier.target:
            raise UserError(
                f"{other.folder} has classifier.target={other.config.classifier.target}, {first.folder} has "
                f"{first.config.classifier.target}: the members of an ensemble must have the same target"
            )
        if other.labels != first.labels:
            raise UserError(
                f"{other.folder} has other labels ({_named(other.labels)}) than {first.folder} ({_named(first.labels)}): "
                f"the members of an ensemble must have the same labels"
            )
    assert first.labels is not None  # model_folder checks for them
    return first.labels


def _named(labels: Sequence[str] | None) -> str:
    labels = labels or []
    return ", ".join(labels[:5]) + (f", ... {len(labels)} in all" if len(labels) > 5 else "")
