"""State of a learner as tensors and JSON, captured and restored on any number of ranks.

Dropout masks and orders of documents are computed from their position (`models/dropout.py`, `data/`), so there is no random
state to save: the next step depends on parameters, buffers, the optimizer's moments and hyper-parameters, the loss scaler,
the language model's hidden states, the train state, and the sums of callbacks only.

Callbacks with a `state_dict` and a `load_state_dict` (torch's `Stateful`) are included; their state must be JSON, and the
same for every world size. Trade-off: rank 0 holds a second copy of all tensors in host memory.

B: rows of the global batch, H: width of an LSTM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from fastai.callback.core import Callback
from torch import Tensor

from ulmfit_dist.checkpointing.manager import TENSOR_FILES
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.encoder import Hidden
from ulmfit_dist.models.networks import encoder_of
from ulmfit_dist.training.callbacks.order import CallbackOrder
from ulmfit_dist.training.learner import DistributedLearner
from ulmfit_dist.training.train_state import TrainState

Tensors = dict[str, dict[str, Tensor]]
"""Tensors by file (`TENSOR_FILES`) and name."""


class LearnerStateDict:
    """State of one learner, created outside of a fit: while its model is wrapped, its modules have other names.

    Args:
        learner: gets an optimizer if it has none.
        runtime: gathers the hidden states of all ranks.
    """

    def __init__(self, learner: DistributedLearner, runtime: Runtime):
        self.learner, self.runtime = learner, runtime
        self.parameters = dict(learner.model.named_parameters())
        self.modules = dict(learner.model.named_modules())  # a buffer may be replaced by another tensor, so not the buffers
        if learner.opt is None:
            learner.create_opt()

    def is_finite(self) -> bool:
        """Return whether all parameters are finite. The same on all ranks, because their parameters are equal."""
        parameters = [parameter.detach() for parameter in self.parameters.values()]
        return bool(torch.stack(torch._foreach_norm(parameters, float("inf"))).isfinite().all())

    def capture(self, train_state: TrainState) -> tuple[Tensors, dict[str, Any]]:
        """Return copies of all tensors in host memory (none on other ranks than 0), and the rest as JSON. Collective.

        Args:
            train_state: progress from which a resume continues.
        """
        learner, is_mid_epoch = self.learner, train_state.first_step > 0
        hidden = self._hidden_states() if is_mid_epoch else {}
        callbacks = {cb.name: cb.state_dict() for cb in self._stateful()}
        scaler = self.runtime.accelerator.scaler
        moments, counters = self._optimizer_state()
        state = {
            "train_state": train_state.to_json(),
            "pct_train": float(learner.pct_train) if is_mid_epoch else 0.0,
            "optimizer": {"hypers": [dict(hyper) for hyper in learner.opt.hypers], "counters": counters},
            "scaler": None if scaler is None else scaler.state_dict(),
            "precision": self.runtime.precision,
            "micro_batch_size": self.runtime.micro_batch_size,
            "callbacks": callbacks,
        }
        if not self.runtime.is_main:
            return {}, state
        model = {**self.parameters, **self._buffers()}
        tensors = dict(zip(TENSOR_FILES, (_copied(model), _copied(moments), _copied(hidden)), strict=True))
        return tensors, state

    def restore(self, tensors: Tensors, state: Mapping[str, Any]) -> None:
        """Restore a captured state. Not collective: every rank must pass the same.

        Raises:
            UserError: the state is not that of this model.
        """
        try:
            self._restore(tensors, state)
        except Exception as error:  # the content of a file can be anything
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"the checkpoint does not fit this model ({reason}): start over with --fresh") from None

    def load_model(self, model: Mapping[str, Tensor]) -> None:
        """Load captured parameters and buffers into the learner's model."""
        _copy_into({**self.parameters, **self._buffers()}, model)

    def _restore(self, tensors: Tensors, state: Mapping[str, Any]) -> None:
        learner, train_state = self.learner, TrainState.from_json(state["train_state"])
        if train_state.stage != learner.stage:
            raise ValueError(f"a train state of {train_state.stage}, not of {learner.stage}")
        self.load_model(tensors["model"])
        scaler = self.runtime.accelerator.scaler
        if scaler is not None and state["scaler"] is not None:
            scaler.load_state_dict(state["scaler"])
        for callback in self._stateful():
            if callback.name in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][callback.name])
        dtype = None if state["precision"] == self.runtime.precision else next(iter(self.parameters.values())).dtype
        pct_train = float(state["pct_train"])
        if not 0 <= pct_train <= 1.01 or train_state.first_step > len(learner.dls.train):
            raise ValueError("its position is beyond the end of the epoch")
        optimizer = self._read_optimizer(tensors["optimizer"], state["optimizer"])
        self._check_hidden_states(tensors["hidden_states"], train_state)
        self._limit_micro_batches(state.get("micro_batch_size"))
        learner.train_state = train_state
        learner.add_cb(ResumeEpoch(replace(train_state), pct_train, optimizer, tensors["hidden_states"], dtype))

    def _limit_micro_batches(self, size: int | None) -> None:
        """Resume with the micro-batch size that a lack of memory has led to, unless the config has a smaller one."""
        if size is None:
            return
        if type(size) is not int or size < 1:
            raise ValueError(f"micro_batch_size {size!r}")
        self.learner.limit_micro_batches(min(size, self.learner.accelerate.shard.micro_batch_size or size))

    def _buffers(self) -> dict[str, Tensor]:
        by_module = (module.named_buffers(name, recurse=False) for name, module in self.modules.items())
        return {name: buffer for buffers in by_module for name, buffer in buffers}

    def _stateful(self) -> list[Any]:
        # checked on the class, because a callback delegates unknown attributes to the learner, and that to the model
        return [cb for cb in self.learner.cbs if hasattr(type(cb), "state_dict") and hasattr(type(cb), "load_state_dict")]

    def _optimizer_state(self) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
        """Return the optimizer's tensors by `parameter/key`, and its other values by parameter and key."""
        state = self.learner.opt.state
        moments, counters = {}, {}
        for name, parameter in self.parameters.items():
            items = state[parameter].items()
            moments.update({f"{name}/{key}": value for key, value in items if isinstance(value, Tensor)})
            counters[name] = {key: value for key, value in items if not isinstance(value, Tensor)}
        return moments, counters

    def _read_optimizer(self, moments: Mapping[str, Tensor], state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the argument of fastai's `Optimizer.load_state_dict`."""
        by_name = {name: dict(state["counters"][name]) for name in self.parameters}
        for path, moment in moments.items():
            name, key = path.rsplit("/", 1)
            parameter = self.parameters[name]
            if moment.dim() and not _is_compatible(moment, parameter):
                raise ValueError(f"{path} differs")
            by_name[name][key] = moment.to(parameter.device, parameter.dtype if moment.dim() else None, copy=True)
        by_parameter = {parameter: by_name[name] for name, parameter in self.parameters.items()}
        in_order = [by_parameter[parameter] for parameter, *_ in self.learner.opt.all_params()]
        pairs = zip(self.learner.opt.hypers, state["hypers"], strict=True)
        return {"state": in_order, "hypers": [{**own, **saved} for own, saved in pairs]}

    def _check_hidden_states(self, hidden_states: Mapping[str, Tensor], train_state: TrainState) -> None:
        """Raise ValueError if hidden states are required and do not cover all rows."""
        if not self.learner.keeps_hidden_states or not train_state.first_step:
            return
        expected = encoder_of(self.learner.model).zero_state(self.learner.dls.train.global_batch_size)
        for name, zeros_1BH in _named(expected).items():
            hidden = hidden_states[name]
            if hidden.shape != zeros_1BH.shape[1:] or not hidden.is_floating_point():
                raise ValueError(f"hidden state {name} differs")

    def _hidden_states(self) -> dict[str, Tensor]:
        """Return the state of each layer by global row, [B, H]; empty if the stage keeps no hidden states. Collective."""
        if not self.learner.keeps_hidden_states:
            return {}
        local = encoder_of(self.learner.model).hidden_states
        pieces: dict[int, dict[str, Tensor]] = {}
        for of_rank in self.runtime.all_gather_object({row: _on_cpu(_named(layers)) for row, layers in local.items()}):
            pieces |= of_rank
        in_order = [pieces[row] for row in sorted(pieces)]
        return {name: torch.cat([piece[name][0] for piece in in_order]) for name in in_order[0]}


class ResumeEpoch(Callback):
    """Moves the first epoch to its saved step, after fastai and all other callbacks have started it as a new one.

    Args:
        begin: progress at the checkpoint.
        share_done: fastai's `pct_train` at the checkpoint, which schedules depend on.
        optimizer: state of the optimizer, which `freeze_to` has cleared.
        hidden_states: hidden states of the language model by global row.
        dtype: dtype that they are converted to; None: unchanged.
    """

    order = CallbackOrder.RESUME_EPOCH

    def __init__(
        self,
        begin: TrainState,
        share_done: float,
        optimizer: dict[str, Any],
        hidden_states: dict[str, Tensor],
        dtype: torch.dtype | None,
    ):
        self.begin, self.share_done, self.optimizer = begin, share_done, optimizer
        self.hidden_states, self.dtype = hidden_states, dtype

    def before_train(self) -> None:
        learn, begin = self.learn, self.begin
        if begin.first_epoch or begin.first_step:  # else a new phase begins, with a new optimizer
            learn.opt.load_state_dict(self.optimizer)
            learn.train_iter = begin.first_epoch * len(learn.dls.train) + begin.first_step
        if begin.first_step:
            learn.pct_train = self.share_done
            for rows in learn.dls.train.row_ranges if self.hidden_states else ():
                encoder_of(learn.model).hidden_states[rows.start] = self._of_rows(slice(rows.start, rows.stop))

    def after_train(self) -> None:
        self.learn.remove_cb(self)

    def _of_rows(self, rows: slice) -> Hidden:
        layers: dict[int, dict[str, Tensor]] = {}
        for name, hidden in self.hidden_states.items():
            number, part = name.split(".")
            layers.setdefault(int(number), {})[part] = hidden[None, rows].to(dtype=self.dtype)
        return [tuple(layers[number][part] for part in "hc" if part in layers[number]) for number in sorted(layers)]


def _named(state: Hidden) -> dict[str, Tensor]:
    """Return the tensors of a state by `layer.h` and `layer.c`."""
    return {f"{layer}.{name}": part for layer, parts in enumerate(state) for name, part in zip("hc", parts)}  # noqa: B905


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def _copy_into(model: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    differing = sorted(model.keys() ^ saved.keys())
    differing = differing or [name for name in model if not _is_compatible(model[name], saved[name])]
    if differing:
        raise ValueError(f"{differing[0]} differs")
    for name, tensor in model.items():
        tensor.copy_(saved[name])


def _is_compatible(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.is_floating_point() == other.is_floating_point()
