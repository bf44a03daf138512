"""Parts of a training step, in one process."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from fastai.optimizer import Adam
from torch import nn

from ulmfit_dist.config.schema import Phase, RuntimeConfig
from ulmfit_dist.data.batches import BatchShard
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.distributed.tree_reduce import PairwiseGradients, PairwiseSum
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.fused_cross_entropy import ActivationRegularization
from ulmfit_dist.stages.train_stage import warn_of_few_steps
from ulmfit_dist.training.callbacks.accelerate import AccelerateCallback
from ulmfit_dist.training.schedule import learning_rate


def stepped(
    gradient: list[float], scale: float | None = None, grad_clip: float | None = None
) -> tuple[nn.Parameter, object]:
    """A parameter of zeros after one Adam step on a gradient, which a loss scaler has scaled."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale else None
    if scaler is not None:
        scaler.scale(torch.zeros(1))  # a scaler makes its scale at its first use
    weight = nn.Parameter(torch.zeros(len(gradient)))
    weight.grad = torch.tensor(gradient) * (scale or 1)
    callback = AccelerateCallback(
        SimpleNamespace(accelerator=SimpleNamespace(scaler=scaler), world_size=1, bytes_given=0), BatchShard(), grad_clip
    )
    callback.learn = SimpleNamespace(model=nn.ParameterList([weight]))
    callback.step(Adam([weight], lr=0.1, eps=1.0))
    return weight, scaler


def test_a_scaled_step_is_the_step():
    assert torch.equal(stepped([0.5, -2.0], scale=1024.0)[0], stepped([0.5, -2.0])[0])


def test_gradients_are_clipped_after_unscaling():
    clipped = stepped([3.0, 4.0], grad_clip=1.0)[0]
    torch.testing.assert_close(clipped, stepped([0.6, 0.8])[0])
    torch.testing.assert_close(stepped([3.0, 4.0], scale=256.0, grad_clip=1.0)[0], clipped)


def test_a_step_of_infinite_gradients_is_left_out_and_the_scale_falls():
    weight, scaler = stepped([float("inf"), 1.0], scale=1024.0)
    assert torch.equal(weight, torch.zeros(2))
    assert scaler.get_scale() == 512


@pytest.mark.parametrize("steps", [1, 5])
def test_activation_regularization_is_fastais_and_finite_on_one_token(steps: int):
    dropped, raw = torch.randn(3, steps, 4), torch.randn(3, steps, 4)
    expected = 2 * dropped.pow(2).mean()
    if steps > 1:
        expected = expected + (raw[:, 1:] - raw[:, :-1]).pow(2).mean()
    torch.testing.assert_close(ActivationRegularization(alpha=2, beta=1)(dropped, raw), expected)


@pytest.mark.usefixtures("bf16_lstms")
def test_each_phase_runs_in_mixed_precision_and_leaves_the_module_bare():
    """A phase's preparation must not make Accelerate skip the next one's."""
    AcceleratorState._reset_state(reset_partial_state=True)
    callback = AccelerateCallback(Runtime(RuntimeConfig(precision="bf16")), BatchShard())
    learner = SimpleNamespace(model=nn.Linear(64, 64))
    learner.replace_modules = lambda replace: setattr(learner, "model", replace(learner.model))
    callback.learn = learner
    x = torch.randn(5, 64)
    bare = learner.model(x)
    for _ in range(2):
        callback.before_fit()
        prepared = learner.model(x)
        callback.after_fit()
        assert prepared.dtype == torch.float32
        assert not torch.equal(prepared, bare)
        torch.testing.assert_close(prepared, bare, rtol=0.05, atol=0.05)
        assert torch.equal(learner.model(x), bare)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_learning_rates_are_fastais_values():
    assert learning_rate(Phase(lr=1e-2)) == 1e-2
    assert learning_rate(Phase(lr=[1e-3, 1e-2])) == slice(1e-3, 1e-2)


def test_a_batch_that_leaves_an_epoch_hardly_a_step_is_warned_of(capsys: pytest.CaptureFixture[str]):
    for num_steps in (4, 5):
        warn_of_few_steps("lm", range(num_steps), 900)  # type: ignore[arg-type]
    assert capsys.readouterr().err == (
        "warning: lm.global_batch_size=900: an epoch has 4 optimizer step(s), too few to learn from: lower it, or add "
        "epochs\n"
    )


def test_an_error_leaves_together_as_it_is_on_one_process():
    with pytest.raises(UserError, match="this"), Runtime(RuntimeConfig(precision="fp32")).fail_together():
        raise UserError("this")


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_pairs_are_added_first_then_pairs_of_pairs(count: int):
    terms = torch.randn(count, 1000)
    total = PairwiseSum()
    for term in terms:
        total.add([term.clone(), 2 * term])
    expected = terms
    while len(expected) > 1:
        expected = expected[::2] + expected[1::2]
    first, second = total.take()
    assert torch.equal(first, expected[0])
    assert torch.equal(second, 2 * expected[0])
    total.add([terms[0]])
    assert torch.equal(total.take()[0], terms[0])


def test_gradients_that_were_there_before_a_step_are_added_once():
    weight, frozen = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2), requires_grad=False)
    weight.grad = torch.tensor([1.0, 2.0, 3.0])
    gradients = PairwiseGradients([weight, frozen], SimpleNamespace(world_size=1))
    for _ in range(4):
        weight.grad = torch.full((3,), 0.25)
        gradients.add()
    gradients.finish()
    assert torch.equal(weight.grad, torch.tensor([2.0, 3.0, 4.0]))
    assert frozen.grad is None
