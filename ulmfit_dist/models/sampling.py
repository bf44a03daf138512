"""Text that a language model makes up.

What is there is read once, equal beginnings as one; after that each word is one step of the LSTM, for all samples together.
That step is not the network's forward, which is made for many tokens: for one, on a CPU, torch's LSTM takes longer to
rearrange its weights than to multiply by them, and fastai's dropout copies them before that. So weights are looked up once,
and a step is a cell for each layer. The price: these lines know what the network's layers are.

As in fastai, words are drawn from the model's distribution, sharpened by the temperature, and never `xxunk`; here by the
number that belongs to seed, word and sample, so a text does not depend on how many are written with it. (Where sums round
differently, as on another kind of processor, one word in some ten thousand is another, and its text goes on from there.)

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
from ulmfit_dist.models.networks import awd_lstm_of, encoder_of
from ulmfit_dist.rng.counter_based import uniform


@dataclass(frozen=True)
class Sampling:
    """How words are drawn from a distribution: temperature, then top-k, top-p and min-p, in Hugging Face's order.

    Each cut is a floor under the probabilities. So the most likely word always stays, and words that are as likely as each
    other stay or go together: top-k and top-p keep more words than they say where the last ones tie.

    Attributes:
        temperature: below 1 sharpens the distribution.
        top_k: this many words stay, the most likely ones (Fan et al., 2018).
        top_p: the fewest words stay that have this share of the probability together (Holtzman et al., 2020, section 3.1).
        min_p: words stay that are at least this likely relative to the most likely one (Nguyen et al., 2024,
            https://arxiv.org/abs/2407.01082). fastai's `min_p` is another: a probability as such, the same where the model
            is sure and where it is not, looked at before the temperature, and without effect where no word has it.

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
            raise UserError(f"top_k={self.top_k}: give a whole number of at least 1, or leave it out to keep all words")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: give a share above 0 and up to 1, or leave it out to keep all words")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise UserError(f"min_p={self.min_p}: give a share from 0 to 1, or leave it out to keep all words")

    def probabilities(self, logits_bV: Tensor) -> Tensor:
        """How likely words are drawn, [b, V]: 0 for those that are cut; the others' are not scaled up to a sum of 1."""
        p_bV = torch.softmax(logits_bV / self.temperature, dim=1)
        if self.top_k is not None:
            p_bV = _from(p_bV.topk(min(int(self.top_k), p_bV.shape[1])).values[:, -1:], p_bV)
        if self.top_p is not None:
            p_bV = _from(_floor_of_nucleus(p_bV, self.top_p), p_bV)
        if self.min_p is not None:
            p_bV = _from(self.min_p * p_bV.amax(1, keepdim=True), p_bV)
        return p_bV


def never_drawn(vocab: Sequence[str]) -> list[int]:
    """Ids that are no word of a text: xxunk, xxpad and what fills the vocabulary up."""
    return [UNK_ID, PAD_ID, *(i for i, token in enumerate(vocab) if token == FILLER)]


@torch.no_grad()
def continue_tokens(
    model: nn.Module,
    tokens_bT: Tensor,
    words: int,
    sampling: Sampling,
    never: Sequence[int],
    *position: int | str,
) -> Tensor:
    """The tokens and `words` more, int64 [b, T + words]. The model's hidden states are reset.

    Args:
        model: a language model, in evaluation mode.
        tokens_bT: ids of the beginnings, int64, on the model's device.
        sampling: how words are drawn.
        never: ids that are not drawn.
        position: what the draws are computed from: the same one gives the same texts.
    """
    numbers = torch.stack([uniform(len(tokens_bT), *position, word) for word in range(words)])
    reader = (_Reader if type(encoder_of(model)) is AWDLSTM else _Rereader)(model, never)
    drawn: list[Tensor] = []
    for number_b in numbers:
        logits_bV = reader.decode_step(drawn[-1]) if drawn else reader.prefill(tokens_bT)
        drawn.append(pick(sampling.probabilities(logits_bV), number_b))
    return torch.cat([tokens_bT, torch.stack(drawn, dim=1)], dim=1)


def pick(p_bV: Tensor, number_b: Tensor) -> Tensor:
    """An index for each row, int64 [b]: where the cumulative probabilities pass the row's number, one from 0 to 1."""
    cumulative_bV = p_bV.double().cpu().cumsum(1)  # a GPU's sums have no order of their own
    targets_b1 = number_b[:, None].cpu() * cumulative_bV[:, -1:]
    return torch.searchsorted(cumulative_bV, targets_b1, right=True)[:, 0].clamp(max=p_bV.shape[1] - 1).to(p_bV.device)


class _Reader:
    """A language model that says what comes next: after beginnings of any length, then word by word.

    Args:
        model: a language model, in evaluation mode.
        never: ids whose logits are minus infinity.
    """

    def __init__(self, model: nn.Module, never: Sequence[int]):
        self.model, self.encoder = model, awd_lstm_of(model)
        self.decoder: nn.Linear = model[1].decoder  # type: ignore[index]
        self.bias_V = self.decoder.bias.index_fill(0, torch.tensor(never, device=self.decoder.bias.device), -torch.inf)
        self.weights = [
            (rnn.module.weight_ih_l0, rnn.weight_hh_l0_raw, rnn.module.bias_ih_l0, rnn.module.bias_hh_l0)
            for rnn in self.encoder.rnns
        ]

    def prefill(self, tokens_bT: Tensor) -> Tensor:
        """Logits of the words after these beginnings, [b, V]."""
        different_uT, number_b = tokens_bT.unique(dim=0, return_inverse=True)
        self.encoder.reset()
        output_bE = self.model(different_uT)[0][number_b, -1]
        (hidden,) = self.encoder.hidden_states.values()
        self.encoder.reset()
        self.hidden = [tuple(state[0, number_b].to(self.bias_V.dtype) for state in layer) for layer in hidden]
        return self._logits(output_bE)

    def decode_step(self, token_b: Tensor) -> Tensor:
        """Logits of the words after one more token of each text, [b, V]."""
        output_bE = F.embedding(token_b, self.encoder.encoder.weight)
        for layer, weights in enumerate(self.weights):
            self.hidden[layer] = torch.lstm_cell(output_bE, self.hidden[layer], *weights)
            output_bE = self.hidden[layer][0]
        return self._logits(output_bE)

    def _logits(self, output_bE: Tensor) -> Tensor:
        return F.linear(output_bE, self.decoder.weight, self.bias_V)


class _Rereader:
    """As `_Reader`, for any encoder: it reads all again for each word."""

    def __init__(self, model: nn.Module, never: Sequence[int]):
        self.model, self.encoder, self.never = model, encoder_of(model), list(never)

    def prefill(self, tokens_bT: Tensor) -> Tensor:
        self.tokens_bT = tokens_bT
        self.encoder.reset()
        logits_bV = self.model[1].decoder(self.model(tokens_bT)[0][:, -1])  # type: ignore[index, operator]
        self.encoder.reset()
        logits_bV[:, self.never] = -torch.inf
        return logits_bV

    def decode_step(self, token_b: Tensor) -> Tensor:
        return self.prefill(torch.cat([self.tokens_bT, token_b[:, None]], dim=1))


def _floor_of_nucleus(p_bV: Tensor, top_p: float) -> Tensor:
    """Probability of the least likely word among the fewest that have this share of the row's sum, [b, 1]."""
    rising_bV = torch.from_numpy(np.sort(p_bV.cpu().numpy()))  # 20 times as fast as torch's
    cumulative_bV = rising_bV.double().cumsum(1)
    first_b1 = torch.searchsorted(cumulative_bV, (1 - top_p) * cumulative_bV[:, -1:], right=True)
    return rising_bV.gather(1, first_b1.clamp(max=p_bV.shape[1] - 1)).to(p_bV.device)


def _from(floor_b1: Tensor, p_bV: Tensor) -> Tensor:
    return p_bV.where(p_bV >= floor_b1, 0)
