"""Sampling of text from a language model.

The prompts are computed once, equal prompts only once; after that each token is one step of the LSTM for all samples. That
step is not the network's forward, which is designed for many tokens: for one token, torch's LSTM on a CPU takes longer to
rearrange its weights than to multiply by them, and fastai's dropout copies them before. So the weights are collected once,
and a step is an LSTM cell per layer. Trade-off: this module depends on the layers of the network.

As in fastai, tokens are drawn from the model's distribution, scaled by the temperature, and never `xxunk`. The random number
is a function of seed, token position and sample, so a text does not depend on the number of samples. (If sums round
differently, as on another type of processor, about one token in ten thousand differs, and so does the rest of its text.)

b: samples, T: tokens, E: width of the embedding, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ulmfit_dist.data.vocab import FILLER, PAD_ID, UNK_ID
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.awd_lstm import AWDLSTM
from ulmfit_dist.models.encoder import Hidden
from ulmfit_dist.models.networks import awd_lstm_of, encoder_of
from ulmfit_dist.models.qrnn import QRNN
from ulmfit_dist.rng.counter_based import uniform


@dataclass(frozen=True)
class Sampling:
    """Sampling options: temperature, then top-k, top-p and min-p, in Hugging Face's order.

    Each filter is a minimum probability. So the most likely token always remains, and tokens of equal probability are kept
    or removed together: with ties, top-k and top-p keep more tokens.

    Attributes:
        temperature: divisor of the logits; below 1 sharpens the distribution.
        top_k: keep the k most likely tokens (Fan et al., 2018).
        top_p: keep the fewest tokens whose total probability is at least p (Holtzman et al., 2020, section 3.1).
        min_p: keep tokens whose probability is at least p times that of the most likely one (Nguyen et al., 2024,
            https://arxiv.org/abs/2407.01082). fastai's `min_p` differs: it is an absolute probability, compared before the
            temperature, and without effect if no token has it.

    Raises:
        UserError: a value that is out of range.
    """

    temperature: float = 0.75
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if not 0.01 <= self.temperature <= 1e6:
            raise UserError(f"temperature={self.temperature}: give a number from 0.01 to a million")
        if self.top_k is not None and not (self.top_k >= 1 and self.top_k % 1 == 0):
            raise UserError(f"top_k={self.top_k}: give a whole number of at least 1, or leave it out to keep all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: give a number above 0 and at most 1, or leave it out to keep all tokens")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise UserError(f"min_p={self.min_p}: give a number from 0 to 1, or leave it out to keep all tokens")

    def probabilities(self, logits_bV: Tensor) -> Tensor:
        """Return unnormalized probabilities, [b, V]: 0 for tokens that are filtered out."""
        p_bV = torch.softmax(logits_bV / self.temperature, dim=1)
        if self.top_k is not None:
            p_bV = _from(p_bV.topk(min(int(self.top_k), p_bV.shape[1])).values[:, -1:], p_bV)
        if self.top_p is not None:
            p_bV = _from(_floor_of_nucleus(p_bV, self.top_p), p_bV)
        if self.min_p is not None:
            p_bV = _from(self.min_p * p_bV.amax(1, keepdim=True), p_bV)
        return p_bV


def never_drawn(vocab: Sequence[str]) -> list[int]:
    """Return the ids that are never sampled: xxunk, xxpad and the padding of the vocabulary."""
    return [UNK_ID, PAD_ID, *(i for i, token in enumerate(vocab) if token == FILLER)]


@torch.no_grad()
def continue_tokens(
    model: nn.Module,
    tokens_bT: Tensor,
    num_tokens: int,
    sampling: Sampling,
    never: Sequence[int],
    *position: int | str,
) -> Tensor:
    """Return the tokens and `num_tokens` more, int64 [b, T + num_tokens]. Resets the model's hidden states.

    Args:
        model: a language model, in evaluation mode.
        tokens_bT: ids of the prompts, int64, on the model's device.
        num_tokens: tokens to sample per prompt.
        sampling: sampling options.
        never: ids that are not sampled.
        position: key of the random numbers: the same one gives the same texts.
    """
    numbers = torch.stack([uniform(len(tokens_bT), *position, index) for index in range(num_tokens)])
    readers: dict[type, type[_Reader | _Rereader]] = {AWDLSTM: _LSTMReader, QRNN: _Reader}
    reader = readers.get(type(encoder_of(model)), _Rereader)(model, never)
    drawn: list[Tensor] = []
    for number_b in numbers:
        logits_bV = reader.decode_step(drawn[-1]) if drawn else reader.prefill(tokens_bT)
        drawn.append(pick(sampling.probabilities(logits_bV), number_b))
    return torch.cat([tokens_bT, torch.stack(drawn, dim=1)], dim=1)


def pick(p_bV: Tensor, number_b: Tensor) -> Tensor:
    """Return an index per row, int64 [b]: the first whose cumulative probability exceeds the row's number in [0, 1)."""
    cumulative_bV = p_bV.double().cpu().cumsum(1)  # the order of a GPU's sums is not fixed
    targets_b1 = number_b[:, None].cpu() * cumulative_bV[:, -1:]
    return torch.searchsorted(cumulative_bV, targets_b1, right=True)[:, 0].clamp(max=p_bV.shape[1] - 1).to(p_bV.device)


class _Reader:
    """Next-token logits of an encoder with state: for prompts of any length, then token by token.

    Args:
        model: a language model, in evaluation mode.
        never: ids whose logits are set to minus infinity.
    """

    def __init__(self, model: nn.Module, never: Sequence[int]):
        self.model, self.encoder = model, encoder_of(model)
        self.decoder: nn.Linear = model[1].decoder  # type: ignore[index]
        self.bias_V = self.decoder.bias.index_fill(0, torch.tensor(never, device=self.decoder.bias.device), -torch.inf)

    def prefill(self, tokens_bT: Tensor) -> Tensor:
        """Return the logits of the token after each prompt, [b, V]."""
        unique_uT, index_b = tokens_bT.unique(dim=0, return_inverse=True)
        self.encoder.reset()
        output_bE = self.model(unique_uT)[0][index_b, -1]
        (hidden,) = self.encoder.hidden_states.values()
        self.encoder.reset()
        self.hidden: Hidden = [tuple(state[:, index_b].to(self.bias_V.dtype) for state in layer) for layer in hidden]
        return self._logits(output_bE)

    def decode_step(self, token_b: Tensor) -> Tensor:
        """Return the logits of the token after one more token of each text, [b, V]."""
        output_b1E, self.hidden = self.encoder.read(token_b[:, None], self.hidden)
        return self._logits(output_b1E[:, 0])

    def _logits(self, output_bE: Tensor) -> Tensor:
        return F.linear(output_bE, self.decoder.weight, self.bias_V)


class _LSTMReader(_Reader):
    """As `_Reader`, for an AWD-LSTM: a step is an LSTM cell per layer."""

    def __init__(self, model: nn.Module, never: Sequence[int]):
        super().__init__(model, never)
        self.weights = [
            (rnn.module.weight_ih_l0, rnn.weight_hh_l0_raw, rnn.module.bias_ih_l0, rnn.module.bias_hh_l0)
            for rnn in awd_lstm_of(model).rnns
        ]

    def prefill(self, tokens_bT: Tensor) -> Tensor:
        logits_bV = super().prefill(tokens_bT)
        self.hidden = [tuple(state[0] for state in layer) for layer in self.hidden]
        return logits_bV

    def decode_step(self, token_b: Tensor) -> Tensor:
        output_bE = F.embedding(token_b, self.encoder.encoder.weight)
        for layer, weights in enumerate(self.weights):
            self.hidden[layer] = torch.lstm_cell(output_bE, self.hidden[layer], *weights)
            output_bE = self.hidden[layer][0]
        return self._logits(output_bE)


class _Rereader:
    """As `_Reader`, for any encoder: computes the whole text again for each token."""

    def __init__(self, model: nn.Module, never: Sequence[int]):
        self.model, self.encoder, self.never = model, encoder_of(model), list(never)

    def prefill(self, tokens_bT: Tensor) -> Tensor:
        self.tokens_bT = tokens_bT
        self.encoder.reset()
        logits_bV: Tensor = self.model[1].decoder(self.model(tokens_bT)[0][:, -1])  # type: ignore[index]
        self.encoder.reset()
        logits_bV[:, self.never] = -torch.inf
        return logits_bV

    def decode_step(self, token_b: Tensor) -> Tensor:
        return self.prefill(torch.cat([self.tokens_bT, token_b[:, None]], dim=1))


def _floor_of_nucleus(p_bV: Tensor, top_p: float) -> Tensor:
    """Return the lowest probability among the fewest tokens with a fraction `top_p` of the row's sum, [b, 1]."""
    ascending_bV = torch.from_numpy(np.sort(p_bV.cpu().numpy()))  # 20 times as fast as torch's
    cumulative_bV = ascending_bV.double().cumsum(1)
    first_b1 = torch.searchsorted(cumulative_bV, (1 - top_p) * cumulative_bV[:, -1:], right=True)
    return ascending_bV.gather(1, first_b1.clamp(max=p_bV.shape[1] - 1)).to(p_bV.device)


def _from(floor_b1: Tensor, p_bV: Tensor) -> Tensor:
    return p_bV.where(p_bV >= floor_b1, 0)
