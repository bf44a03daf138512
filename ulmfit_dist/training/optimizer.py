"""fastai's Adam, computed by torch's fused kernel.

fastai updates one parameter after the other by ten small operations, each of them a pass over memory on a CPU and a launch
on a GPU. torch's fused AdamW does the same arithmetic in one pass over all parameters that share their hyper-parameters; its
operator is called once for each set of them, and all step counters are incremented in one call. fastai's `OptimWrapper`
wraps a whole torch optimizer, but does not support `do_wd`, by which fastai exempts biases and norms from weight decay. So
this is fastai's own `Optimizer` with its hyper-parameters, freezing and state, and only the step is the kernel's. Trade-off:
the step calls a private operator of torch.
"""

from __future__ import annotations

from typing import Any

import torch
from fastai.optimizer import Optimizer
from torch import Tensor


class FusedAdam(Optimizer):
    """`fastai.optimizer.Adam` with decoupled weight decay (Loshchilov & Hutter, 2019), the same arguments and state.

    Args:
        params: parameters, or lists of them: one list per group with its own hyper-parameters.
        lr: learning rate.
        mom, sqr_mom: decay rates of the averages of gradients and of their squares (Adam's beta1 and beta2).
        eps: added to the root of the latter.
        wd: weight decay; not applied to parameters whose state has `do_wd=False`.
    """

    _step_supports_amp_scaling = True
    """Flag for torch's loss scaler: the kernel itself skips a step with infinite gradients, so the host need not wait."""

    def __init__(self, params: Any, lr: float, mom: float = 0.9, sqr_mom: float = 0.99, eps: float = 1e-5, wd: float = 0.01):
        super().__init__(params, [], lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd)

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient; frozen ones have none."""
        calls: dict[tuple[Any, ...], list[Tensor]] = {}
        for group, hyper in zip(self.param_lists, self.hypers, strict=True):
            for parameter in group:
                if parameter.grad is not None:
                    calls.setdefault(self._call_key(parameter, hyper), []).append(parameter)
        steps = [self._initialized_state(parameter)["step"] for parameters in calls.values() for parameter in parameters]
        if not steps:
            return
        torch._foreach_add_(steps, 1)
        for (_, *hyper), parameters in calls.items():
            self._step(parameters, *hyper)
        if (found_inf := getattr(self, "found_inf", None)) is not None:
            torch._foreach_sub_(steps, [found_inf] * len(steps))  # a step that the kernel has skipped does not count

    def zero_grad(self) -> None:
        """Set all gradients to None: the next backward pass writes new ones instead of adding to zeros."""
        for group in self.param_lists:
            for parameter in group:
                parameter.grad = None

    def _call_key(self, parameter: Tensor, hyper: dict[str, float]) -> tuple[Any, ...]:
        """Return all that parameters of one kernel call share: dtype and hyper-parameters."""
        wd = hyper["wd"] if self.state[parameter].get("do_wd", True) else 0.0
        return parameter.dtype, hyper["lr"], hyper["mom"], hyper["sqr_mom"], hyper["eps"], wd

    def _step(self, parameters: list[Tensor], lr: float, mom: float, sqr_mom: float, eps: float, wd: float) -> None:
        states = [self.state[parameter] for parameter in parameters]
        torch._fused_adamw_(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["grad_avg"] for state in states],
            [state["sqr_avg"] for state in states],
            [],
            [state["step"] for state in states],
            lr=lr,
            beta1=mom,
            beta2=sqr_mom,
            weight_decay=wd,
            eps=eps,
            amsgrad=False,
            maximize=False,
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
        )

    def _initialized_state(self, parameter: Tensor) -> dict[str, Any]:
        """Return the state of a parameter, initialized if empty; its step is a tensor, as the kernel requires."""
        state: dict[str, Any] = self.state[parameter]
        if "grad_avg" not in state:
            zeros = {key: torch.zeros_like(parameter) for key in ("grad_avg", "sqr_avg")}
            state.update(zeros, step=0)
        if not isinstance(state["step"], Tensor):
            state["step"] = torch.full((), float(state["step"]), device=parameter.device)
        return state
