"""Training steps in which a rank runs out of memory.

`python out_of_memory.py FOLDER [SCENARIO ...]` goes through `SCENARIOS`, on two ranks or more, and prints what becomes of
each as a line of JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback
from stores import make_store
from torch import Tensor

from ulmfit_dist.config.schema import ClassifierConfig, Config, DataConfig, LMConfig, ModelConfig, Phase, RuntimeConfig
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.networks import encoder_of
from ulmfit_dist.stages.classifier import classifier_learner
from ulmfit_dist.stages.lm import lm_learner
from ulmfit_dist.training.learner import DistributedLearner

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1 GiB is free."
V = 60


class OutOfMemory(Callback):
    """Raises `torch.OutOfMemoryError` on one rank, once, as CUDA does at an allocation.

    Args:
        place: `forward` (a pass of the encoder), `loss`, `backward` (in the middle of the encoder's last backward pass),
            `head`, `pooled` (in the head's backward pass, behind its last parameter) or `validation`.
        step: of the stage.
        rank: where.
        call: in which of the step's forward passes, for `forward`.
    """

    order = 70

    def __init__(self, place: str, step: int, rank: int = 0, call: int = 1):
        self.place, self.step, self.rank, self.call, self.is_over = place, step, rank, call, False
        self.handles: list[Any] = []

    def before_batch(self) -> None:
        if self._is_due("forward", "validation"):
            self._hook(encoder_of(self.learn.model).register_forward_pre_hook, self.call)
        if self._is_due("head"):
            self._hook(self.learn.model[1].layers.register_forward_pre_hook)
        if self._is_due("backward"):  # the gradients of the upper layer have been exchanged before it
            weight = encoder_of(self.learn.model).rnns[0].weight_hh_l0_raw
            self._hook(weight.register_hook, len(self.learn.micro_batches))

    def after_pred(self) -> None:
        if self._is_due("pooled"):
            self._hook(self.learn.pooled.register_post_accumulate_grad_hook)

    def after_loss(self) -> None:
        if self._is_due("loss"):
            self._fail()

    def _is_due(self, *places: str) -> bool:
        here = self.learn.accelerate.runtime.rank, self.learn.stage_step, self.training
        return not self.is_over and self.place in places and here == (self.rank, self.step, self.place != "validation")

    def _hook(self, register: Callable[..., Any], call: int = 1) -> None:
        """Fail in this call of what is registered."""
        calls = count(1)

        def hook(*_: Any) -> None:
            if next(calls) == call:
                self._fail()

        self.handles.append(register(hook))

    def _fail(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.is_over = True
        raise torch.OutOfMemoryError(MESSAGE)


def make_texts(folder: Path) -> TokenStore:
    """Some documents of random words, whose labels follow from their first word."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(9, V, rng.integers(20, 40)) for _ in range(48)]
    return make_store(
        folder, documents, np.array([words[0] % 3 for words in documents], np.int32), [f"w{i}" for i in range(V)]
    )


def config_of(**runtime: Any) -> Config:
    """A recipe of twelve steps of the language model and four of the classifier, every dropout at its default."""
    return Config(
        data=DataConfig(valid_pct=0.3),
        model=ModelConfig(emb_sz=8, n_hid=12, n_layers=2),
        runtime=RuntimeConfig(precision="fp64", **runtime),
        lm=LMConfig(global_batch_size=8, seq_len=10, phases=[Phase(1, 1e-2)]),
        classifier=ClassifierConfig(global_batch_size=8, seq_len=10, max_len=20, phases=[Phase(1, 1e-2)]),
    )


def trained(
    stage: str, store: TokenStore, runtime: Runtime, failures: Sequence[OutOfMemory] = (), **settings: Any
) -> dict[str, Tensor]:
    """The weights and statistics after an epoch of a stage, in which there are these failures."""
    runtime.micro_batch_size, config = None, config_of(**settings)
    if stage == "lm":
        learner: DistributedLearner = lm_learner(config, runtime, store)
    else:
        learner = classifier_learner(config, runtime, store, needs_encoder=False)
    learner.fit_one_cycle(1, 1e-2, cbs=list(failures))
    assert all(failure.is_over for failure in failures if failure.rank == runtime.rank)
    return {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest between two models."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


Place = tuple[Any, ...]
SCENARIOS: dict[str, tuple[str, list[Place], dict[str, Any]]] = {
    "lm forward": ("lm", [("forward", 0, 1)], {}),
    "lm loss": ("lm", [("loss", 2, 1)], {}),
    "lm backward": ("lm", [("backward", 2, 1)], {}),
    "lm on both ranks": ("lm", [("backward", 2, 1), ("forward", 2, 0)], {}),
    "lm twice": ("lm", [("backward", 1, 1), ("forward", 3, 0, 2)], {}),
    "lm virtual ranks": ("lm", [("backward", 2, 1)], {"canonical_ranks": 4}),
    "lm too often": ("lm", [("loss", 2, 1)], {"micro_batch_size": 1}),
    "lm validation": ("lm", [("validation", 13, 1)], {}),
    "classifier forward": ("classifier", [("forward", 0, 1)], {}),
    "classifier head": ("classifier", [("head", 1, 1)], {}),
    "classifier pooled": ("classifier", [("pooled", 1, 1)], {}),
    "classifier backward": ("classifier", [("backward", 2, 1)], {}),
    "classifier reads twice": ("classifier", [("forward", 1, 1, 3)], {"micro_batch_size": 2}),
    "classifier virtual ranks": ("classifier", [("backward", 1, 1)], {"canonical_ranks": 4}),
    "classifier validation": ("classifier", [("validation", 4, 0)], {}),
}
"""By name: the stage, the arguments of each `OutOfMemory`, and keys of the runtime section."""


class Outcomes:
    """Outcomes of scenarios, beside runs with their micro-batch size from the start. Collective."""

    def __init__(self, store: TokenStore, runtime: Runtime):
        self.store, self.runtime = store, runtime
        self.references: dict[str, dict[str, Tensor]] = {}

    def of(self, name: str) -> dict[str, Any]:
        """By rank: the errors, or the micro-batch sizes and the differences from the other run."""
        stage, places, settings = SCENARIOS[name]
        failures = [OutOfMemory(*place) for place in places]
        try:
            actual = trained(stage, self.store, self.runtime, failures, **settings)
        except UserError as error:
            return {"errors": self.runtime.all_gather_object(str(error))}
        size = self.runtime.micro_batch_size
        expected = self._reference(stage, **{**settings, "micro_batch_size": size})
        return {
            "sizes": self.runtime.all_gather_object(size),
            "differences": self.runtime.all_gather_object(difference(actual, expected)),
        }

    def _reference(self, stage: str, **settings: Any) -> dict[str, Tensor]:
        key = f"{stage} {settings}"
        if key not in self.references:
            self.references[key] = trained(stage, self.store, self.runtime, **settings)
        return self.references[key]


if __name__ == "__main__":
    with Runtime(config_of().runtime) as shared_runtime:
        shared_runtime.accelerator.ddp_handler.bucket_cap_mb = 0.001  # many buckets, of which some have been exchanged
        with shared_runtime.fail_together():
            if shared_runtime.is_main:
                make_texts(Path(sys.argv[1]))
        outcomes = Outcomes(TokenStore(Path(sys.argv[1])), shared_runtime)
        for scenario in sys.argv[2:] or SCENARIOS:
            shared_runtime.print(json.dumps({scenario: outcomes.of(scenario)}))
    names = [Path(task, "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    shared_runtime.print(json.dumps({"threads": [name for name in names if "gloo" in name]}))
