"""A learner's state as tensors and JSON, and back, on any number of ranks.

Dropout masks and orders of documents are computed from their position (`models/dropout.py`, `data/`), so there is no random
state to keep: parameters, buffers, the optimizer's moments and hyper-parameters, the loss scaler, the language model's
hidden states, the position, and what callbacks have added up, are all that the next step depends on.

Callbacks that have a `state_dict` and a `load_state_dict` (torch's `Stateful`) take part; what they give must be JSON, and
the same whatever the number of ranks.

B: rows of the global batch, H: width of an LSTM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from fastai.callback.core import Callback
from torch import Tensor

from ulmfit_dist.checkpointing.manager import TENSOR_FILES
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.encoder import Hidden
from ulmfit_dist.models.networks import encoder_of
from ulmfit_dist.training.learner import DistributedLearner
from ulmfit_dist.training.train_state import RecipePosition

Tensors = dict[str, dict[str, Tensor]]


class LearnerStateDict:
    """The state of one learner. Made before a fit, while its model is bare: wrapping renames what is in it.

    Args:
        learner: whose state it is; it gets an optimizer, if it has none.
        runtime: of all ranks.
    """

    def __init__(self, learner: DistributedLearner, runtime: Runtime):
        self.learner, self.runtime = learner, runtime
        self.parameters = dict(learner.model.named_parameters())
        self.modules = dict(learner.model.named_modules())  # a buffer may be replaced by another tensor, so not the buffers
        if learner.opt is None:
            learner.create_opt()

    def is_finite(self) -> bool:
        """Whether no parameter is NaN or infinite. The same on all ranks, as the parameters are."""
        parameters = [parameter.detach() for parameter in self.parameters.values()]
        return bool(torch.stack(torch._foreach_norm(parameters, float("inf"))).isfinite().all())

    def capture(self, position: RecipePosition) -> tuple[Tensors, dict[str, Any]]:
        """Copies of all tensors in rank 0's memory (nothing on other ranks), and the rest. Collective."""
        learner = self.learner
        hidden = self._hidden_states() if position.step else {}
        callbacks = {cb.name: cb.state_dict() for cb in self._stateful()}
        scaler = self.runtime.accelerator.scaler
        moments, counters = self._optimizer_state()
        state = {
            "position": {**asdict(position), "pct_train": float(learner.pct_train) if position.step else 0.0},
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

    def restore(self, tensors: Tensors, state: Mapping[str, Any]) -> RecipePosition:
        """Put a captured state into the learner; returns where it goes on. Local: every rank is given the same.

        Raises:
            UserError: the state of another model.
        """
        try:
            return self._restore(tensors, state)
        except Exception as error:  # whatever somebody has put into it
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"the checkpoint is not of this model ({what}): start over with --fresh") from None

    def load_model(self, model: Mapping[str, Tensor]) -> None:
        """Give the learner's model captured parameters and buffers."""
        _copy_into({**self.parameters, **self._buffers()}, model)

    def _restore(self, tensors: Tensors, state: Mapping[str, Any]) -> RecipePosition:
        learner, position = self.learner, RecipePosition.from_json(state["position"])
        self.load_model(tensors["model"])
        scaler = self.runtime.accelerator.scaler
        if scaler is not None and state["scaler"] is not None:
            scaler.load_state_dict(state["scaler"])
        for callback in self._stateful():
            if callback.name in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][callback.name])
        dtype = None if state["precision"] == self.runtime.precision else next(iter(self.parameters.values())).dtype
        share_done = float(state["position"]["pct_train"])
        if not 0 <= share_done <= 1.01 or position.step > len(learner.dls.train):
            raise ValueError("a position beyond the end")
        optimizer = self._read_optimizer(tensors["optimizer"], state["optimizer"])
        self._check_hidden_states(tensors["hidden_states"], position)
        self._limit_micro_batches(state.get("micro_batch_size"))
        learner.add_cb(ResumeEpoch(position, share_done, optimizer, tensors["hidden_states"], dtype))
        return position

    def _limit_micro_batches(self, size: int | None) -> None:
        """Resume with the micro-batch size to which a lack of memory has led, unless the config has a smaller one."""
        if size is None:
            return
        if type(size) is not int or size < 1:
            raise ValueError(f"micro_batch_size {size!r}")
        self.learner.limit_micro_batches(min(size, self.learner.accelerate.share.micro_batch_size or size))

    def _buffers(self) -> dict[str, Tensor]:
        of_each = (module.named_buffers(name, recurse=False) for name, module in self.modules.items())
        return {name: buffer for buffers in of_each for name, buffer in buffers}

    def _stateful(self) -> list[Any]:
        # asked of their class: a callback passes on what it does not know to the learner, and that to the model
        return [cb for cb in self.learner.cbs if hasattr(type(cb), "state_dict") and hasattr(type(cb), "load_state_dict")]

    def _optimizer_state(self) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
        """The optimizer's tensors as `parameter/key`, and the rest by parameter and key."""
        state = self.learner.opt.state
        moments, counters = {}, {}
        for name, parameter in self.parameters.items():
            items = state[parameter].items()
            moments.update({f"{name}/{key}": value for key, value in items if isinstance(value, Tensor)})
            counters[name] = {key: value for key, value in items if not isinstance(value, Tensor)}
        return moments, counters

    def _read_optimizer(self, moments: Mapping[str, Tensor], state: Mapping[str, Any]) -> dict[str, Any]:
        """What fastai's `Optimizer.load_state_dict` takes."""
        by_name = {name: dict(state["counters"][name]) for name in self.parameters}
        for path, moment in moments.items():
            name, key = path.rsplit("/", 1)
            parameter = self.parameters[name]
            if moment.dim() and not _alike(moment, parameter):
                raise ValueError(f"{path} differs")
            by_name[name][key] = moment.to(parameter.device, parameter.dtype if moment.dim() else None, copy=True)
        by_parameter = {parameter: by_name[name] for name, parameter in self.parameters.items()}
        in_order = [by_parameter[parameter] for parameter, *_ in self.learner.opt.all_params()]
        pairs = zip(self.learner.opt.hypers, state["hypers"], strict=True)
        return {"state": in_order, "hypers": [{**own, **saved} for own, saved in pairs]}

    def _check_hidden_states(self, hidden_states: Mapping[str, Tensor], position: RecipePosition) -> None:
        """Raise ValueError if these are not of all rows, where there are to be any."""
        if self.learner.stage != "lm" or not position.step:
            return
        expected = encoder_of(self.learner.model).zero_state(self.learner.dls.train.global_batch_size)
        for name, zeros_1BH in _named(expected).items():
            hidden = hidden_states[name]
            if hidden.shape != zeros_1BH.shape[1:] or not hidden.is_floating_point():
                raise ValueError(f"hidden state {name} differs")

    def _hidden_states(self) -> dict[str, Tensor]:
        """The state of each layer by global row, [B, H]; empty for a stage that keeps none from step to step. Collective."""
        if self.learner.stage != "lm":
            return {}
        mine = encoder_of(self.learner.model).hidden_states
        pieces: dict[int, dict[str, Tensor]] = {}
        for theirs in self.runtime.all_gather_object({row: _on_cpu(_named(layers)) for row, layers in mine.items()}):
            pieces |= theirs
        in_order = [pieces[row] for row in sorted(pieces)]
        return {name: torch.cat([piece[name][0] for piece in in_order]) for name in in_order[0]}


class ResumeEpoch(Callback):
    """Takes the first epoch up where it was left, once fastai and all other callbacks have begun it as a new one.

    Args:
        position: where to go on.
        share_done: fastai's share of the fit that is done, which schedules go by.
        optimizer: state of the optimizer, which `freeze_to` has cleared.
        hidden_states: of the language model, by global row.
        dtype: what they are converted to; None leaves them as they are.
    """

    order = 90

    def __init__(
        self,
        position: RecipePosition,
        share_done: float,
        optimizer: dict[str, Any],
        hidden_states: dict[str, Tensor],
        dtype: torch.dtype | None,
    ):
        self.begin, self.share_done, self.optimizer = position, share_done, optimizer
        self.hidden_states, self.dtype = hidden_states, dtype

    def before_train(self) -> None:
        learn, begin = self.learn, self.begin
        if begin.epoch or begin.step:  # else the phase is a new one, and begins as such
            learn.opt.load_state_dict(self.optimizer)
            learn.train_iter = begin.epoch * len(learn.dls.train) + begin.step
        if begin.step:
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
    """The tensors of a state by `layer.h` and `layer.c`."""
    return {f"{layer}.{name}": part for layer, parts in enumerate(state) for name, part in zip("hc", parts)}  # noqa: B905


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def _copy_into(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    odd = sorted(own.keys() ^ saved.keys()) or [name for name in own if not _alike(own[name], saved[name])]
    if odd:
        raise ValueError(f"{odd[0]} differs")
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.is_floating_point() == other.is_floating_point()
