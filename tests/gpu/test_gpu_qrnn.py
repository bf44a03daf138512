"""A QRNN on a GPU: the same outputs and gradients as on the CPU."""

from __future__ import annotations

import copy

import torch
from small_runs import needs_cuda, needs_gpu
from torch import Tensor

from ulmfit_dist.config.schema import ModelConfig
from ulmfit_dist.models.registry import make_encoder

pytestmark = [needs_gpu, needs_cuda]
SIZES = ModelConfig(emb_sz=6, n_hid=8, n_layers=2, arch="qrnn")
NO_DROPOUT = dict.fromkeys(("embed_p", "input_p", "hidden_p", "weight_p"), 0.0)


def test_a_qrnn_computes_on_a_gpu_what_it_computes_on_the_cpu():
    torch.manual_seed(0)
    on_cpu = make_encoder(20, SIZES, NO_DROPOUT)
    on_gpu = copy.deepcopy(on_cpu).to("cuda")
    x_bT = torch.arange(3 * 11).view(3, 11) % 20
    results: list[list[Tensor]] = []
    for encoder, x in ((on_cpu, x_bT), (on_gpu, x_bT.to("cuda"))):
        first, second = encoder(x), encoder(x)  # the second begins with the state after the first
        (first.square().sum() + second.square().sum()).backward()
        grads = [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]
        results.append([tensor.detach().cpu() for tensor in (first, second, *grads)])
    assert len(results[0]) > 5
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
