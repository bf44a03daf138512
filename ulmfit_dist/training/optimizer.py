"""fastai's Adam, computed by torch's fused kernel.

fastai updates one parameter after the other by ten small operations, each of them a pass over memory on a CPU and a launch
on a GPU. torch's fused AdamW does the same arithmetic in one pass over all parameters that share their hyper-parameters; its
operator is called once for each set of them, and all counters of steps are incremented in one call. fastai's `OptimWrapper`
would bring torch's optimizer as a whole, but it knows nothing of `do_wd`, by which fastai spares biases and norms the weight
decay. So this is fastai's own `Optimizer`, its hyper-parameters, freezing and state, and only the step is the kernel's.
"""

from __future__ import annotations

from typing import Any

import torch
from fastai.optimizer import Optimizer
from torch import Tensor


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
        alike: dict[tuple[Any, ...], list[Tensor]] = {}
        for group, hyper in zip(self.param_lists, self.hypers, strict=True):
            for parameter in group:
                if parameter.grad is not None:
                    alike.setdefault(self._hyper_of(parameter, hyper), []).append(parameter)
        steps = [self._begun(parameter)["step"] for parameters in alike.values() for parameter in parameters]
        if not steps:
            return
        torch._foreach_add_(steps, 1)
        for (_, *hyper), parameters in alike.items():
            self._step(parameters, *hyper)
        if (found_inf := getattr(self, "found_inf", None)) is not None:
            torch._foreach_sub_(steps, [found_inf] * len(steps))  # a step that the kernel has left out does not count

    def zero_grad(self) -> None:
        """Drop the gradients: the next backward pass writes new ones, instead of adding to zeros."""
        for group in self.param_lists:
            for parameter in group:
                parameter.grad = None

    def _hyper_of(self, parameter: Tensor, hyper: dict[str, float]) -> tuple[Any, ...]:
        """Everything that parameters of one kernel call share."""
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

    def _begun(self, parameter: Tensor) -> dict[str, Any]:
        """The state of a parameter, begun where there is none; its step is a tensor, as the kernel wants it."""
        state: dict[str, Any] = self.state[parameter]
        if "grad_avg" not in state:
            zeros = {key: torch.zeros_like(parameter) for key in ("grad_avg", "sqr_avg")}
            state.update(zeros, step=0)
        if not isinstance(state["step"], Tensor):
            state["step"] = torch.full((), float(state["step"]), device=parameter.device)
        return state
