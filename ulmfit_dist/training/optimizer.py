"""fastai's Adam, computed by torch's fused kernel.

fastai updates one parameter after the other by ten small operations, each of them a pass over memory on a CPU and a launch
on a GPU. torch's fused AdamW does the same arithmetic in one pass over all parameters of a group. fastai's `OptimWrapper`
would bring torch's optimizer as a whole, but it knows nothing of `do_wd`, by which fastai spares biases and norms the weight
decay. So this is fastai's own `Optimizer`, its hyper-parameters, freezing and state, and only the step is the kernel's.
"""

from __future__ import annotations

from typing import Any

import torch
from fastai.optimizer import Optimizer
from torch import Tensor
from torch.optim.adamw import adamw


class FusedAdam(Optimizer):
    """`fastai.optimizer.Adam` with decoupled weight decay (Loshchilov & Hutter, 2019); its arguments and its state.

    Args:
        params: parameters, or lists of them: one list per group that has hyper-parameters of its own.
        lr: learning rate.
        mom, sqr_mom: share of the past in the averages of gradients and of their squares.
        eps: added to the root of the latter.
        wd: weight decay; parameters whose state says `do_wd=False` are spared.
    """

    _step_supports_amp_scaling = True
    """Says to torch's loss scaler that the kernel itself leaves a step of infinite gradients out: nobody waits to know."""

    def __init__(self, params: Any, lr: float, mom: float = 0.9, sqr_mom: float = 0.99, eps: float = 1e-5, wd: float = 0.01):
        super().__init__(params, [], lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd)

    @torch.no_grad()
    def step(self) -> None:
        """One step of all parameters that have a gradient; frozen ones have none."""
        for group, hyper in zip(self.param_lists, self.hypers, strict=True):
            parameters = [parameter for parameter in group if parameter.grad is not None]
            for decays in (True, False):
                alike = [parameter for parameter in parameters if self.state[parameter].get("do_wd", True) is decays]
                if alike:
                    self._step(alike, hyper, decays)

    def _step(self, parameters: list[Tensor], hyper: dict[str, float], decays: bool) -> None:
        states = [self._begun(parameter) for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["grad_avg"] for state in states],
            [state["sqr_avg"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
            amsgrad=False,
            maximize=False,
            lr=hyper["lr"],
            beta1=hyper["mom"],
            beta2=hyper["sqr_mom"],
            eps=hyper["eps"],
            weight_decay=hyper["wd"] if decays else 0.0,
        )

    def _begun(self, parameter: Tensor) -> dict[str, Any]:
        """The state of a parameter, begun where there is none; its step is a tensor, as the kernel wants it."""
        state: dict[str, Any] = self.state[parameter]
        if "grad_avg" not in state:
            zeros = {key: torch.zeros_like(parameter) for key in ("grad_avg", "sqr_avg")}
            state.update(zeros, step=0)
        if not isinstance(state["step"], Tensor):
            state["step"] = torch.full((), float(state["step"]), device=parameter.device)
        return state
