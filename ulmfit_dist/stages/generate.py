"""Text that goes on from a prompt, from an exported language model.

The prompt is read once; after that each word is one step of the LSTM, for all samples together. As in fastai, words are
drawn from the model's distribution, sharpened by the temperature, and never `xxunk`; here by the number that belongs to
seed, word and sample, so a text does not depend on how many are written with it.

b: samples, T: tokens of the prompt, V: vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import torch
from fastai.text.learner import decode_spec_tokens
from torch import Tensor

from ulmfit_dist.data.tokenizer import open_tokenizer
from ulmfit_dist.data.vocab import FILLER, PAD_ID, UNK_ID, token_ids
from ulmfit_dist.errors import UserError
from ulmfit_dist.model.awd_lstm import encoder_of
from ulmfit_dist.model.export import load_model, read_exported
from ulmfit_dist.randomness import uniform
from ulmfit_dist.stages.run import model_folder


class LanguageModel:
    """An exported language model with its tokenizer and vocabulary.

    Args:
        folder: a run directory, or its `lm/`.
        device: where to compute.
        trust_rules: whether to call the functions of yours that the model's config names (tokenizer.rules).

    Raises:
        UserError: no language model there, or a damaged one.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu", trust_rules: bool = False):
        exported = read_exported(model_folder(Path(folder), "lm"))
        if exported.config.model.backwards:
            raise UserError(f"{exported.folder} reads texts backwards: it cannot go on from a prompt")
        self.vocab, self.device = exported.vocab, torch.device(device)
        self.tokenizer = open_tokenizer(exported.config.tokenizer, exported.folder, trust_rules)
        self.ids = token_ids(exported.vocab)
        self.model = load_model(exported, self.device)
        never = [UNK_ID, PAD_ID, *(i for i, token in enumerate(self.vocab) if token == FILLER)]
        self.never = torch.tensor(never, device=self.device)

    @torch.no_grad()
    def generate(
        self, prompt: str, words: int = 40, temperature: float = 0.75, samples: int = 1, seed: int = 42
    ) -> list[str]:
        """The prompt and `words` tokens more, once per sample. The same seed gives the same texts.

        Raises:
            UserError: words, temperature or samples that are not positive.
        """
        for name, value in (("words", float(words)), ("temperature", temperature), ("samples", samples)):
            if not 0.01 <= value <= 1e6:
                raise UserError(f"{name}={value}: give a number from 0.01 to a million")
        prompt_T = [self.ids.get(token, UNK_ID) for token in self.tokenizer.tokenize([prompt])[0]]
        encoder_of(self.model).reset()
        tokens_bT = torch.tensor([prompt_T] * samples, device=self.device)
        texts_bT = [tokens_bT]
        for word in range(words):
            tokens_bT = draw(self._next(tokens_bT, temperature), seed, "generate", word)[:, None]
            texts_bT.append(tokens_bT)
        return [self._decode(row) for row in torch.cat(texts_bT, dim=1).tolist()]

    def _next(self, tokens_bT: Tensor, temperature: float) -> Tensor:
        """Probabilities of the word after the tokens, which go on from those before."""
        decoded_bTE = self.model(tokens_bT)[0]
        logits_bV = self.model[1].decoder(decoded_bTE[:, -1])  # type: ignore[index]
        logits_bV[:, self.never] = -torch.inf
        return torch.softmax(logits_bV / temperature, dim=1)

    def _decode(self, ids: list[int]) -> str:
        tokens = [self.vocab[i] for i in ids]
        words = self.tokenizer.words([token for token in tokens if token not in ("xxbos", "xxpad")])
        return " ".join(decode_spec_tokens(words))


def draw(p_bV: Tensor, *position: int | str) -> Tensor:
    """An index for each row, int64 [b], as likely as its probability: where the cumulative ones pass the row's number."""
    cumulative_bV = p_bV.double().cumsum(1)
    targets_b1 = uniform(len(p_bV), *position).to(p_bV.device)[:, None] * cumulative_bV[:, -1:]
    return torch.searchsorted(cumulative_bV, targets_b1, right=True)[:, 0].clamp(max=p_bV.shape[1] - 1)
