"""Text that a language model makes up.

What is there is read once; after that each word is one step of the LSTM, for all samples together. As in fastai, words are
drawn from the model's distribution, sharpened by the temperature, and never `xxunk`; here by the number that belongs to
seed, word and sample, so a text does not depend on how many are written with it.

b: samples, T: tokens, E: width of the embedding, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ulmfit_dist.data.vocab import FILLER, PAD_ID, UNK_ID
from ulmfit_dist.model.awd_lstm import encoder_of
from ulmfit_dist.randomness import uniform


def never_drawn(vocab: Sequence[str]) -> list[int]:
    """Ids that are no word of a text: xxunk, xxpad and what fills the vocabulary up."""
    return [UNK_ID, PAD_ID, *(i for i, token in enumerate(vocab) if token == FILLER)]


@torch.no_grad()
def continue_tokens(
    model: nn.Module, tokens_bT: Tensor, words: int, temperature: float, never: Sequence[int], *position: int | str
) -> Tensor:
    """The tokens and `words` more, int64 [b, T + words]. The model's hidden state is that of these texts afterwards.

    Args:
        model: a language model, in evaluation mode.
        tokens_bT: ids of the beginnings, int64, on the model's device.
        temperature: below 1 sharpens the distribution.
        never: ids that are not drawn.
        position: what the draws are computed from: the same one gives the same texts.
    """
    encoder_of(model).reset()
    never_V = torch.tensor(never, device=tokens_bT.device)
    texts_bT = [tokens_bT]
    for word in range(words):
        logits_bV = _last_logits(model, texts_bT[-1])
        logits_bV[:, never_V] = -torch.inf
        texts_bT.append(draw(torch.softmax(logits_bV / temperature, dim=1), *position, word)[:, None])
    return torch.cat(texts_bT, dim=1)


def draw(p_bV: Tensor, *position: int | str) -> Tensor:
    """An index for each row, int64 [b], as likely as its probability: where the cumulative ones pass the row's number."""
    cumulative_bV = p_bV.double().cumsum(1)
    targets_b1 = uniform(len(p_bV), *position).to(p_bV.device)[:, None] * cumulative_bV[:, -1:]
    return torch.searchsorted(cumulative_bV, targets_b1, right=True)[:, 0].clamp(max=p_bV.shape[1] - 1)


def _last_logits(model: nn.Module, tokens_bT: Tensor) -> Tensor:
    decoded_bTE = model(tokens_bT)[0]
    return model[1].decoder(decoded_bTE[:, -1])  # type: ignore[index]
