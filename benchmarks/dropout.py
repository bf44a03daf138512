"""Accuracy with our dropout masks and with fastai's, over several seeds.

    python -m benchmarks.dropout CONFIG [key=value ...] [--seeds 5]

For each seed the config's language model and classifier are trained twice: with our masks, computed from their position, and
with fastai's modules, which draw them from torch's generator. Data splits, initial weights and batches are equal.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from fastai.text.models import awdlstm
from torch import nn
from torch.nn import functional as F

from benchmarks.machine import machine
from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import Config, Phase
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.models.bundle import save_bundle
from ulmfit_dist.models.dropout import RowDropout, WeightDropout
from ulmfit_dist.models.networks import awd_lstm_of
from ulmfit_dist.rng.counter_based import seed_torch
from ulmfit_dist.stages.classifier import classifier_learner
from ulmfit_dist.stages.lm import lm_learner
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.training.learner import DistributedLearner
from ulmfit_dist.training.schedule import run_phases


class DrawnWeightDropout(WeightDropout):
    """Weight dropout with masks drawn as in fastai."""

    def _dropped(self, raw: torch.Tensor) -> torch.Tensor:
        return F.dropout(raw, self.weight_p) if self.training else super()._dropped(raw)


def use_fastais_dropout(model: nn.Module) -> None:
    """Replace our dropout modules by fastai's, in place."""
    encoder = awd_lstm_of(model)
    encoder.encoder_dp = awdlstm.EmbeddingDropout(encoder.encoder, encoder.encoder_dp.embed_p)
    for module in list(model.modules()):
        if isinstance(module, WeightDropout):
            module.__class__ = DrawnWeightDropout
        for name, child in module.named_children():
            if isinstance(child, RowDropout):
                in_head = child.site.startswith("head")
                setattr(module, name, nn.Dropout(child.p) if in_head else awdlstm.RNNDropout(child.p))


def accuracy(config: Config, runtime: Runtime, store: TokenStore, fastais: bool) -> dict[str, float]:
    """Return perplexity and accuracy of both stages on the validation split."""
    language_model = train(lm_learner(config, runtime, store), config.lm.phases, fastais)
    training = {"data_fingerprint": store.fingerprint}
    save_bundle(config.run_dir / "lm", language_model.model, config, store, None, training)
    classifier = train(classifier_learner(config, runtime, store), config.classifier.phases, fastais)
    return {"perplexity": language_model.valid_metrics["perplexity"], "accuracy": classifier.valid_metrics["accuracy"]}


def train(learner: DistributedLearner, phases: Sequence[Phase], fastais: bool) -> DistributedLearner:
    if fastais:
        use_fastais_dropout(learner.model)
        seed_torch(learner.dropout_context.seed, learner.stage)
    run_phases(learner, phases)
    return learner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    print(f"{machine()}, {torch.get_num_threads()} threads", flush=True)
    metrics: dict[str, list[dict[str, float]]] = {"ours": [], "fastai": []}
    for seed in range(1, args.seeds + 1):
        for name, results in metrics.items():
            with tempfile.TemporaryDirectory() as folder:
                config = load_config(args.config, [*args.overrides, f"seed={seed}", f"runs_dir={folder}"])
                runtime = Runtime(config.runtime)
                results.append(accuracy(config, runtime, prepare(config, runtime), fastais=name == "fastai"))
            figures = ", ".join(f"{key} {value:.4f}" for key, value in results[-1].items())
            print(f"seed {seed}, {name}: {figures}", flush=True)
    means = {}
    for name, results in metrics.items():
        values = [result["accuracy"] for result in results]
        error = statistics.stdev(values) / len(values) ** 0.5
        means[name] = (statistics.mean(values), error)
        perplexity = statistics.mean(result["perplexity"] for result in results)
        print(f"{name:<7} accuracy {means[name][0]:.4f}, standard error {error:.4f}; perplexity {perplexity:.2f}")
    (ours, our_error), (fastais, fastais_error) = means["ours"], means["fastai"]
    print(f"difference {ours - fastais:+.4f}, its standard error {(our_error**2 + fastais_error**2) ** 0.5:.4f}")


if __name__ == "__main__":
    main()
