"""Checks of numerics: Philox, LSTMs, the fused loss, a step on a GPU against a CPU, and reproducibility of steps.

Errors are norms of differences over norms of references. The trade-off: bounds leave room for rounding and for different
kernels, so they only catch a different algorithm, such as TF32 for fp32, wrong strides, or a kernel that is broken on a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional as F

from ulmfit_dist.distributed.precision import has_bf16_lstms
from ulmfit_dist.doctor.checks import Context, Finding, failure, ok, skipped, warning
from ulmfit_dist.doctor.synthetic import (
    DTYPES,
    LocalStep,
    StepSpec,
    flat_weights,
    probe_learner,
    sizes_of,
    train_steps,
    vocab_size,
)
from ulmfit_dist.models.dropout import DropoutContext, WeightDropout
from ulmfit_dist.models.fused_cross_entropy import DecoderLoss
from ulmfit_dist.models.masks import Mask, compute_masks
from ulmfit_dist.rng import philox
from ulmfit_dist.rng.counter_based import derive_key

BOUNDS = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.05, "fp64": 1e-9}
"""Largest relative error of a module against fp32, by precision."""
BOUNDS_OF_STEP = {"fp32": 5e-3, "bf16": 0.5, "fp16": 0.3, "fp64": 1e-9}
"""Largest relative error of a step's gradients, by precision: where rounding changes the token that max-pooling selects, the
gradient moves to it."""
BOUND_OF_UPDATE = 0.05
"""Largest relative error of Adam's first step in fp32, which divides each gradient by its magnitude."""
COUNTERS = 10_000
"""Number of Philox counters to compare."""
STEPS = 2
"""Number of steps in a reproducibility check."""
ROWS, TOKENS = 4, 16
"""Rows and tokens per row in comparisons with a CPU."""
FIX = "compare with another driver, torch or machine; set runtime.precision=fp32 to disable mixed precision"
"""Fix for numbers that are out of bounds."""


def check_philox(context: Context) -> Finding:
    """Compare the random numbers of dropout with numpy's, and dropout masks with those of a CPU."""
    key = derive_key(context.config.seed, "doctor")
    expected = philox.random_words(key, 5, COUNTERS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if context.device.type == "cuda":
            actual = philox.random_words(key, 5, COUNTERS, context.device).cpu()
        else:
            actual = _philox_on_cpu(key, 5, COUNTERS)
        masks = [Mask(key, range(3, 9), width, 0.3, torch.float32) for width in (50, context.config.model.emb_sz)]
        pairs = zip(compute_masks(masks, context.device), compute_masks(masks, torch.device("cpu")), strict=True)
        wrong_masks = sum(not torch.equal(mask.cpu(), reference) for mask, reference in pairs)
    if wrong_masks:
        return failure(f"{wrong_masks} dropout mask(s) differ from those of a CPU", "report a bug, with the versions above")
    if not torch.equal(actual, expected):
        differing = int((actual != expected).sum())
        return failure(
            f"{differing:,} of {expected.numel():,} numbers differ from numpy's",
            "dropout would differ between machines: report a bug, with the versions above",
        )
    slow = next((f"{item.message}" for item in caught if "slow" in f"{item.message}"), None)
    if slow is not None:
        return warning(f"equal to numpy's, but not compiled: {slow}", "install a C compiler and Python's headers")
    compiled = "; compiled" if context.device.type == "cuda" else ""
    return ok(f"{expected.numel():,} numbers equal to numpy's{compiled}")


def _philox_on_cpu(key: philox.Key, first: int, count: int) -> Tensor:
    """Compute random words with torch operations on the CPU."""
    counters = torch.zeros(4, count, dtype=torch.int64)
    counters[0] = torch.arange(first, first + count)
    return philox.philox(counters, torch.tensor([philox.signed(word) for word in key]))


def precisions(context: Context) -> list[str]:
    """Return the mixed precisions that this device supports."""
    if context.device.type == "cpu":
        return ["bf16"] if has_bf16_lstms() else []
    return ["bf16", "fp16"] if torch.cuda.get_device_capability(context.device)[0] >= 8 else ["fp16"]


def check_lstm(context: Context) -> Finding:
    """Compare forward and backward pass of each LSTM layer with fp32 on the CPU, in each precision."""
    model = context.config.model
    errors: dict[str, float] = {}
    if model.arch is not None:
        return skipped(f"model.arch={model.arch} is the encoder")
    if context.device.type == "cpu" and not precisions(context):
        return skipped("this CPU computes LSTMs in fp32 only")
    widths = [model.emb_sz, *[model.n_hid] * (model.n_layers - 1), model.emb_sz]
    with warnings.catch_warnings(record=True) as caught, exact_fp32():
        warnings.simplefilter("always")
        for layer, (n_in, n_out) in enumerate(pairwise(widths)):
            reference = _lstm(context, layer, n_in, n_out, "fp32", torch.device("cpu"))
            if context.device.type == "cuda":
                actual = _lstm(context, layer, n_in, n_out, "fp32", context.device)
                errors["fp32"] = max(errors.get("fp32", 0.0), *map(relative_error, actual, reference))
            for precision in precisions(context):
                actual = _lstm(context, layer, n_in, n_out, precision, context.device)
                errors[precision] = max(errors.get(precision, 0.0), *map(relative_error, actual, reference))
    if any("contiguous chunk" in f"{item.message}" for item in caught):
        return warning("the weights of an LSTM are not contiguous, so cuDNN copies them in each call", "report a bug")
    return _compare_with_bounds(errors, "output and gradients of all layers")


def _lstm(
    context: Context, layer: int, n_in: int, n_out: int, precision: str, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, input gradient and hidden-to-hidden weight gradient of one LSTM layer with weight dropout."""
    generator = torch.Generator().manual_seed(layer)
    lstm = nn.LSTM(n_in, n_out, batch_first=True)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator).sub_(0.5).mul_(2 / n_out**0.5))
    x_bTE = torch.randn(ROWS, TOKENS, n_in, generator=generator).to(device).requires_grad_()
    module = WeightDropout(lstm, 0.2, f"doctor {layer}", DropoutContext(context.config.seed, "doctor", 0)).to(device).train()
    zeros = torch.zeros(1, ROWS, n_out, device=device)
    with _autocast(device, precision):
        output_bTH, _ = module(x_bTE, (zeros, zeros.clone()))
    output_bTH.float().square().mean().backward()
    assert x_bTE.grad is not None
    assert module.weight_hh_l0_raw.grad is not None
    return output_bTH.detach(), x_bTE.grad, module.weight_hh_l0_raw.grad


def check_loss(context: Context) -> Finding:
    """Compare the fused cross-entropy and its gradients with autograd, in each precision."""
    generator = torch.Generator().manual_seed(context.config.seed)
    num_words, width, num_tokens = vocab_size(context.config), context.config.model.emb_sz, 4 * ROWS * TOKENS
    decoder = nn.Linear(width, num_words)
    with torch.no_grad():
        decoder.weight.copy_(torch.rand(num_words, width, generator=generator).sub_(0.5).mul_(0.2))
    decoder.to(context.device)
    x_1NE = torch.randn(1, num_tokens, width, generator=generator).to(context.device)
    y_1N = torch.randint(0, num_words, (1, num_tokens), generator=generator).to(context.device)

    def gradients(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        decoder.zero_grad()
        leaf_1NE = x_1NE.clone().requires_grad_()
        total = loss(leaf_1NE, y_1N)
        total.backward()
        gradients = [leaf_1NE.grad, decoder.weight.grad, decoder.bias.grad]
        return total.detach(), *(gradient.clone() for gradient in gradients if gradient is not None)

    errors = {}
    with exact_fp32():
        reference = gradients(lambda x, y: F.cross_entropy(decoder(x[0]), y[0]))
        for precision in ("fp32", *precisions(context)):
            dtype = x_1NE.dtype if precision == "fp32" else DTYPES[precision]
            errors[precision] = max(map(relative_error, gradients(DecoderLoss(decoder, dtype)), reference))
    return _compare_with_bounds(errors, f"loss and gradients of {num_tokens} tokens over {num_words:,} words")


def step_against_cpu(stage: str) -> Callable[[Context], Finding]:
    """Return the check of one step against fp32 on the CPU: gradients in fp32 and the run's precision, and Adam's step."""

    def check(context: Context) -> Finding:
        resolved = context.resolved or "fp32"
        on_gpu = context.device.type == "cuda"
        if not on_gpu and resolved in ("fp32", "fp64"):
            return skipped("neither a GPU nor a mixed precision to compare with fp32 on the CPU")
        errors, update = {}, 0.0
        with exact_fp32():
            for precision in dict.fromkeys(["fp32", resolved] if on_gpu else [resolved]):
                steps = _two_steps(context, stage, precision)
                errors[precision] = relative_error(steps[0].gradients(), steps[1].gradients())
                if precision == "fp32":
                    update = _error_of_update(*steps)
        if not update <= BOUND_OF_UPDATE:
            return failure(f"Adam's step in fp32: relative error against the CPU: {update:.1e}", FIX)
        return _compare_with_bounds(errors, "gradients of a step", BOUNDS_OF_STEP)

    return check


def _two_steps(context: Context, stage: str, precision: str) -> tuple[LocalStep, LocalStep]:
    """Return a step on this rank's device, and the same step in fp32 on the CPU, after their backward passes."""
    fixed_norms = precision != "fp32"
    actual = LocalStep(context.config, stage, StepSpec(context.device, precision, ROWS, TOKENS, fixed_norms))
    expected = LocalStep(context.config, stage, StepSpec(torch.device("cpu"), "fp32", ROWS, TOKENS, fixed_norms))
    for step in (actual, expected):
        step.backward()
    return actual, expected


def _error_of_update(actual: LocalStep, expected: LocalStep) -> float:
    """Return the relative error of Adam's step from equal weights."""
    before = expected.weights()
    actual.step()
    expected.step()
    return relative_error(actual.weights() - before, expected.weights() - before)


def same_steps_twice(stage: str) -> Callable[[Context], Finding]:
    """Return the check that repeated steps from the same weights are bitwise equal, also on all ranks. Collective."""

    def check(context: Context) -> Finding:
        digests = []
        for _ in range(2):
            learner = probe_learner(context, stage, STEPS)
            train_steps(learner, STEPS)
            weights = flat_weights(learner.model)
            digests.append(xxhash.xxh3_64_hexdigest(weights.numpy().tobytes()))
            if not bool(torch.isfinite(weights).all()):
                return failure("a weight is NaN or infinite", FIX)
        all_digests = context.monitor.exchange(f"digests of {stage}", digests)
        step = f"{STEPS} steps" + (f", {sizes_of(context).describe(context.config)}" if stage == "lm" else "")
        if len({second for _, second in all_digests}) > 1 or len({first for first, _ in all_digests}) > 1:
            return failure(f"{step}: the ranks have different weights", "report a bug: all ranks must have equal weights")
        if digests[0] != digests[1]:
            return warning(
                f"{step}: weights differ between two trials",
                "set runtime.deterministic=true if you need bitwise-equal weights (slower)",
            )
        return ok(f"{step}: bitwise equal in two trials" + (" and on all ranks" if context.world_size > 1 else ""))

    return check


def _compare_with_bounds(errors: dict[str, float], what: str, bounds: Mapping[str, float] = BOUNDS) -> Finding:
    described = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    details = f"{what}: relative error against fp32: {described}"
    wrong = [name for name, error in errors.items() if not error <= bounds[name]]
    return failure(f"{details}; at most {bounds[wrong[0]]:g} expected in {wrong[0]}", FIX) if wrong else ok(details)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm of the reference."""
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-30))


def _autocast(device: torch.device, precision: str) -> torch.autocast | nullcontext[None]:
    return nullcontext() if precision in ("fp32", "fp64") else torch.autocast(device.type, DTYPES[precision])


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Disable TF32, which rounds the factors of fp32 products to 10 bits of mantissa."""
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed
