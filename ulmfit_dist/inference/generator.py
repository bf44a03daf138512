"""Text that goes on from a prompt, from an exported language model."""

from __future__ import annotations

from pathlib import Path

import torch

from ulmfit_dist.data.text_arguments import check_text
from ulmfit_dist.data.tokenizers.detokenize import detokenize
from ulmfit_dist.data.tokenizers.word import open_tokenizer
from ulmfit_dist.data.vocab import UNK_ID, token_ids
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.per_call import for_one_call
from ulmfit_dist.models.bundle import load_model, model_folder, read_bundle
from ulmfit_dist.models.sampling import Sampling, continue_tokens, never_drawn
from ulmfit_dist.utils.memory import explain_out_of_memory


class LanguageModel:
    """An exported language model with its tokenizer and vocabulary. Threads may share one.

    Args:
        folder: a run directory, or its `lm/`.
        device: where to compute.
        trust_remote_code: whether to call what the model's config names of yours (tokenizer.rules, model.arch).

    Raises:
        UserError: no language model there, or a damaged one.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu", trust_remote_code: bool = False):
        exported = read_bundle(model_folder(Path(folder), "lm"))
        if exported.config.model.backwards:
            raise UserError(f"{exported.folder} reads texts backwards: it cannot go on from a prompt")
        self.vocab, self.device, self.config = exported.vocab, torch.device(device), exported.config.tokenizer
        self.tokenizer = open_tokenizer(exported.config.tokenizer, exported.folder, trust_remote_code)
        self.ids, self.never = token_ids(exported.vocab), never_drawn(exported.vocab)
        self.model = load_model(exported, self.device, trust_remote_code)

    def generate(
        self,
        prompt: str,
        words: int = 40,
        temperature: float = 0.75,
        samples: int = 1,
        seed: int = 42,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        keep_lines: bool = False,
    ) -> list[str]:
        """The prompt and `words` tokens more as running text, once per sample. The same seed gives the same texts.

        Args:
            keep_lines: keep line breaks, in place of a space for each.
            temperature, top_k, top_p, min_p: as those of `Sampling`: how words are drawn.

        Raises:
            UserError: words or samples that are not positive, a value that `Sampling` refuses, or out of memory; or, which
                is a TypeError or ValueError too, a prompt that is not a text.
        """
        check_text(prompt, "prompt")
        for name, value in (("words", words), ("samples", samples)):
            if not 1 <= value <= 1_000_000:
                raise UserError(f"{name}={value}: give a whole number from 1 to a million")
        sampling = Sampling(temperature, top_k, top_p, min_p)
        tokens = self.tokenizer.tokenize([prompt])[0]  # shown as they are, where the vocabulary lacks one
        prompt_T = [self.ids.get(token, UNK_ID) for token in tokens]
        tokens_bT = torch.tensor([prompt_T] * samples, device=self.device)
        with explain_out_of_memory(f"generate of {samples} sample(s)", "give fewer samples, or device='cpu'"):
            texts_bT = continue_tokens(for_one_call(self.model), tokens_bT, words, sampling, self.never, seed, "generate")
        shown = ([*tokens, *(self.vocab[i] for i in row[len(tokens) :])] for row in texts_bT.tolist())
        return [detokenize(text, self.config.type, self.config.lang, keep_lines) for text in shown]
