"""The fused optimizer beside fastai's own Adam."""

import copy

import pytest
import torch
from fastai.optimizer import Adam, Optimizer
from torch import nn

from ulmfit_dist.training.optimizer import FusedAdam

HYPERS = {"mom": 0.8, "sqr_mom": 0.99, "eps": 1e-5, "wd": 0.1}


def both(dtype: torch.dtype) -> list[tuple[nn.Module, Optimizer]]:
    """The same network twice, in two groups, with fastai's optimizer and ours; the biases are spared weight decay."""
    actual = []
    for kind in (Adam, FusedAdam):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)).to(dtype)
        optimizer = kind([list(layer.parameters()) for layer in model], lr=1e-2, **HYPERS)
        for layer in model:
            optimizer.state[layer.bias]["do_wd"] = False
        actual.append((model, optimizer))
    return actual


def train(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    """Steps whose rates and momentum change, as in a one-cycle schedule."""
    for step in steps:
        torch.manual_seed(step)
        optimizer.set_hyper("lr", [1e-2 / (step + 1), 1e-2])
        optimizer.set_hyper("mom", 0.8 - 0.01 * step)
        x = torch.randn(4, 7, dtype=next(model.parameters()).dtype)
        model(x).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_steps_are_those_of_fastais_adam(dtype: torch.dtype, tolerance: float):
    (reference, adam), (ours, fused) = both(dtype)
    before = [parameter.detach().clone() for parameter in ours.parameters()]
    train(reference, adam, range(20))
    train(ours, fused, range(20))
    for expected, actual, first in zip(reference.parameters(), ours.parameters(), before, strict=True):
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
        assert not torch.equal(actual, first)


def test_what_is_frozen_stays():
    _, (model, optimizer) = both(torch.float64)
    first, last = (layer.weight.detach().clone() for layer in model)
    optimizer.freeze_to(1)
    train(model, optimizer, range(3))
    assert torch.equal(model[0].weight, first)
    assert not torch.equal(model[1].weight, last)


def test_a_state_of_fastais_adam_goes_on():
    (reference, adam), (ours, fused) = both(torch.float64)
    train(reference, adam, range(5))
    ours.load_state_dict(reference.state_dict())
    fused.load_state_dict(copy.deepcopy(adam.state_dict()))
    train(reference, adam, range(5, 10))
    train(ours, fused, range(5, 10))
    for expected, actual in zip(reference.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_one_call_for_each_weight_decay_where_hyper_parameters_are_equal(monkeypatch: pytest.MonkeyPatch):
    _, (model, optimizer) = both(torch.float32)
    calls, kernel = [], torch._fused_adamw_
    monkeypatch.setattr(torch, "_fused_adamw_", lambda *args, **kwargs: calls.append(kwargs) or kernel(*args, **kwargs))
    for rates, expected in (([1e-2, 1e-2], 2), ([1e-3, 1e-2], 4)):
        calls.clear()
        model(torch.ones(4, 7)).sum().backward()
        optimizer.set_hyper("lr", rates)
        optimizer.step()
        assert len(calls) == expected
        assert sorted({call["lr"] for call in calls}) == sorted(set(rates))
        assert sorted({call["weight_decay"] for call in calls}) == [0.0, 0.1]


def test_gradients_are_dropped_and_not_filled_with_zeros():
    _, (model, optimizer) = both(torch.float32)
    model(torch.ones(4, 7)).sum().backward()
    optimizer.step()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.zero_grad()
    assert [parameter.grad for parameter in model.parameters()] == [None] * 4
    optimizer.step()
    assert all(map(torch.equal, model.parameters(), before))


def test_a_loss_scaler_leaves_out_steps_of_infinite_gradients():
    _, (model, optimizer) = both(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    train(model, optimizer, range(2))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for factor, moves in ((float("inf"), False), (1.0, True)):
        scaler.scale(model(torch.ones(4, 7)).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        moved = [not torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True)]
        assert all(moved) if moves else not any(moved)
    assert scaler.get_scale() == 2.0
    assert {state["step"].item() for state in optimizer.state.values()} == {3.0}


def test_a_scaled_step_is_the_step():
    (plain, optimizer), (scaled, other) = both(torch.float32)[1], both(torch.float32)[1]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    plain(torch.ones(4, 7)).sum().backward()
    optimizer.step()
    scaler.scale(scaled(torch.ones(4, 7)).sum()).backward()
    scaler.step(other)
    for expected, actual in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(actual, expected)
