"""Temperature scaling of the exported classifier (`classifier.temperature_scaling`), within its last layer.

With few labels a classifier is overconfident: its training loss approaches zero while its validation loss rises. The
temperature is fitted to the validation documents and divides the weights of the last linear layer, so every format that the
model is exported to has calibrated probabilities. Trade-off: the loss on valid is then of documents that have chosen one
number; that on test is not.

N: validation documents, C: classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ulmfit_dist.config.schema import ClassifierConfig
from ulmfit_dist.data.batches import MicroBatch
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.evaluation import read_batches
from ulmfit_dist.inference.outputs import answers_of
from ulmfit_dist.inference.temperature import LOG_DEVIATION, fit_temperature
from ulmfit_dist.training.train_steps import ClassifierLearner
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)


class AnswerCollector:
    """Probabilities and targets of the documents that a rank reads.

    Args:
        target: category or multicategory.
    """

    def __init__(self, target: str):
        self.target = target
        self.rows: list[tuple[list[int], Tensor, Tensor]] = []

    def update(self, outputs_bC: Tensor, batch: MicroBatch) -> None:
        """Add the logits of a micro-batch."""
        assert batch.documents is not None  # always set in the classifier's batches
        self.rows.append((batch.documents.tolist(), answers_of(outputs_bC, self.target).cpu(), batch.y.cpu()))

    def gather(self, runtime: Runtime) -> tuple[Tensor, Tensor]:
        """Return the probabilities of all ranks, float64 [N, C], and the targets, in the order of the store. Collective."""
        gathered = [row for rows in runtime.all_gather_object(self.rows) for row in rows]
        documents = [document for documents, _, _ in gathered for document in documents]
        order = torch.tensor(documents).argsort()
        return torch.cat([row[1] for row in gathered])[order], torch.cat([row[2] for row in gathered])[order]


def check_threshold(settings: ClassifierConfig) -> None:
    """Raise UserError for a threshold that scaled probabilities cross, so that predictions would change."""
    if settings.temperature_scaling and settings.target == "multicategory" and settings.threshold != 0.5:
        raise UserError(
            f"classifier.temperature_scaling moves probabilities across classifier.threshold={settings.threshold}: set it "
            f"to 0.5, which none crosses, or temperature_scaling to false"
        )


def calibrate(learner: ClassifierLearner, runtime: Runtime) -> dict[str, float]:
    """Scale the learner's last layer by a temperature fitted to its validation documents. Collective.

    Returns:
        `temperature`, and the validation metrics of the scaled model.
    """
    valid, metrics = learner.dls.valid, learner.evaluation.metrics
    collector = AnswerCollector(learner.dls.train.targets.kind)
    learner.model.eval()
    with learner.accelerate.evaluation_precision():
        read_batches(learner.model, valid, collector.update, runtime)
        answers_NC, y = collector.gather(runtime)
        temperature = fit_temperature(answers_NC, y, collector.target, LOG_DEVIATION)
        with torch.no_grad():
            _last_linear(learner.model[1].layers).weight.div_(temperature)
        metrics.reset(runtime.device)
        read_batches(learner.model, valid, metrics.update, runtime)
    learner.valid_metrics = metrics.compute(runtime)
    logger.info(
        f"classifier: temperature {temperature:.3f}, fitted to {len(y):,} validation documents: "
        f"loss {learner.valid_metrics['valid_loss']:.4f} on them"
    )
    return {**learner.valid_metrics, "temperature": temperature}


def _last_linear(layers: nn.Module) -> nn.Linear:
    return [module for module in layers.modules() if isinstance(module, nn.Linear)][-1]
