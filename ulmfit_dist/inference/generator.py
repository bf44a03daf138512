"""Text generation from a prompt by an exported language model."""

from __future__ import annotations

from pathlib import Path

import torch

from ulmfit_dist.data.text_arguments import check_text
from ulmfit_dist.data.tokenizers.detokenize import detokenize
from ulmfit_dist.data.tokenizers.registry import open_tokenizer
from ulmfit_dist.data.vocab import UNK_ID, token_ids
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.per_call import for_one_call
from ulmfit_dist.models.bundle import bundle_digest, load_model, model_folder, read_bundle
from ulmfit_dist.models.sampling import Sampling as Sampling
from ulmfit_dist.models.sampling import continue_tokens, never_drawn
from ulmfit_dist.utils.memory import explain_out_of_memory

DEFAULT_SAMPLING = Sampling()
"""Temperature 0.75, without filters."""


class LanguageModel:
    """An exported language model with its tokenizer and vocabulary. Threads may share it.

    Args:
        folder: a run directory, its `lm/`, or `hf:USER/NAME`, a model of the hub.
        device: device of the model.
        trust_remote_code: call user-defined functions of the model's config (tokenizer.rules, model.arch).

    Raises:
        UserError: the language model is missing or damaged, or was trained on reversed texts.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu", trust_remote_code: bool = False):
        exported = read_bundle(model_folder(Path(folder), "lm"))
        if exported.config.model.backwards:
            raise UserError(f"{exported.folder} has model.backwards=true, so it cannot continue a prompt: use another model")
        self.vocab, self.device, self.config = exported.vocab, torch.device(device), exported.config.tokenizer
        self.data, self._folder = exported.config.data, exported.folder
        self.tokenizer = open_tokenizer(exported.config.tokenizer, exported.folder, trust_remote_code)
        self.ids, self.never = token_ids(exported.vocab), never_drawn(exported.vocab)
        self.model = load_model(exported, self.device, trust_remote_code)

    @property
    def digest(self) -> str:
        """Hexadecimal digest that changes with the weights, the vocabulary and the config."""
        return bundle_digest(self._folder)

    def generate(
        self,
        prompt: str,
        words: int = 40,
        samples: int = 1,
        seed: int = 42,
        sampling: Sampling = DEFAULT_SAMPLING,
        keep_lines: bool = False,
    ) -> list[str]:
        """Return the prompt continued by `words` tokens, once per sample, as plain text. The same seed gives the same texts.

        Args:
            prompt: the beginning of the text.
            words: tokens to add.
            samples: number of texts.
            seed: seed of the sampling.
            sampling: sampling options, such as `Sampling(temperature=0.5, top_p=0.9)`.
            keep_lines: keep line breaks instead of replacing each by a space.

        Raises:
            UserError: words or samples are not positive, or out of memory; or the prompt is not a text, in which case it is
                a TypeError or ValueError as well.
        """
        check_text(prompt, "prompt")
        for name, value in (("words", words), ("samples", samples)):
            if not 1 <= value <= 1_000_000:
                raise UserError(f"{name}={value}: give a whole number from 1 to a million")
        tokens = self.tokenizer.tokenize([prompt])[0]  # kept for the text: the ids lose unknown tokens
        prompt_T = [self.ids.get(token, UNK_ID) for token in tokens]
        tokens_bT = torch.tensor([prompt_T] * samples, device=self.device)
        with explain_out_of_memory(f"generate of {samples} sample(s)", "give fewer samples, or device='cpu'"):
            texts_bT = continue_tokens(for_one_call(self.model), tokens_bT, words, sampling, self.never, seed, "generate")
        token_lists = ([*tokens, *(self.vocab[i] for i in row[len(tokens) :])] for row in texts_bT.tolist())
        return [detokenize(text, self.config.type, self.config.lang, keep_lines) for text in token_lists]
