"""SentencePiece (Kudo and Richardson, 2018): pieces of words, learned from the texts, where words are no unit.

fastai's rules come first, as with words. Its special tokens are cut out before SentencePiece sees the text, and put back
whole, so a model that was trained elsewhere keeps them too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ulmfit_dist.config.schema import TokenizerConfig
from ulmfit_dist.data.tokenizers.base import TOKENS_KEPT, Encoded, Rule, TextTokenizer, import_rule
from ulmfit_dist.data.tokenizers.rules import SPECIAL_TOKENS, TEXT_RULES, compose
from ulmfit_dist.data.vocab import StringIndexer
from ulmfit_dist.errors import UserError

SAMPLE_CHARACTERS = 20_000_000
"""Characters that a model is trained on at most: what bounds the memory of training."""
SENTENCE = 1000
"""Characters of a piece of the sample at most: SentencePiece leaves out what is longer than 4192 bytes."""
MOST_PIECES = 30_000
EUROPEAN_LANGUAGES = frozenset("bg cs da de el en es et fi fr ga hr hu it lt lv mt nl pl pt ro sk sl sv".split())
"""Languages of few characters, of which fastai covers more (`eu_langs`)."""
THREADS = 4
"""Of training. The model depends on their number, so it does not depend on the machine's."""

_SPECIAL = re.compile(rf"(?<!\S)({'|'.join(SPECIAL_TOKENS)})(?!\S)")
_SENTENCE = re.compile(rf".{{1,{SENTENCE}}}(?=\s|$)|\S{{{SENTENCE}}}", re.DOTALL)


class SentencePieceTokenizer(TextTokenizer):
    """Texts to pieces.

    Args:
        model: the content of a SentencePiece model file.
        rules: functions from text to text, called after fastai's rules.

    Raises:
        UserError: SentencePiece is not installed, or the model is damaged.
    """

    def __init__(self, model: bytes, rules: Sequence[Rule] = ()):
        self._before = compose(*TEXT_RULES, *rules)
        self._processor = _library().SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise UserError(f"tokenizer.sp_model: not a SentencePiece model ({error})") from None
        self._ids = StringIndexer()

    @property
    def tokens(self) -> list[str]:
        return list(self._ids)

    def encode(self, texts: Iterable[str]) -> Encoded:
        if len(self._ids) > TOKENS_KEPT:
            self._ids = StringIndexer()
        return self._encode(texts, self._ids)

    def encode_with_tokens(self, texts: Iterable[str]) -> tuple[Encoded, list[str]]:
        ids = StringIndexer()
        return self._encode(texts, ids), list(ids)

    def _encode(self, texts: Iterable[str], numbers: StringIndexer) -> Encoded:
        """The texts as ids in `numbers`. SentencePiece itself keeps nothing of a call."""
        parted = [_SPECIAL.split(self._before(str(text))) for text in texts]  # text, special token, text, ...
        pieces = iter(self._processor.encode([part for parts in parted for part in parts[::2]], out_type=str, num_threads=1))
        documents = [
            list(chain.from_iterable([part] if i % 2 else next(pieces) for i, part in enumerate(parts))) for parts in parted
        ]
        ids = numbers.of(list(chain.from_iterable(documents)))
        return Encoded(ids.astype(np.uint32), np.fromiter(map(len, documents), dtype=np.int64, count=len(documents)))


def make_model(config: TokenizerConfig, texts: Iterable[str]) -> bytes:
    """The content of the model file that the config names, or of a model trained on a sample of texts.

    No more of the sample is read than `SAMPLE_CHARACTERS`. The model is the same for the same texts and config, on any
    machine.

    Raises:
        UserError: the file cannot be read; SentencePiece is not installed, or cannot make so many pieces of these texts.
    """
    if config.sp_model is not None:
        try:
            return Path(config.sp_model).read_bytes()
        except OSError as error:
            raise UserError(f"tokenizer.sp_model={config.sp_model}: cannot be read ({error.strerror})") from None
    before = compose(*TEXT_RULES, *map(import_rule, config.rules))
    sentences = list(_within(SAMPLE_CHARACTERS, chain.from_iterable(_sentences(before(text)) for text in texts)))
    num_pieces = config.sp_vocab_size if config.sp_vocab_size is not None else _num_pieces(sentences)
    model = io.BytesIO()
    try:
        _library().SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=config.sp_model_type,
            vocab_size=num_pieces,
            character_coverage=0.99999 if config.lang in EUROPEAN_LANGUAGES else 0.9998,
            hard_vocab_limit=False,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            num_threads=THREADS,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = (str(error).rpartition("] ")[2] or str(error)).strip()
        raise UserError(
            f"tokenizer.sp_vocab_size={num_pieces}: SentencePiece cannot be trained on these texts: {reason}"
        ) from None
    return model.getvalue()


def _sentences(text: str) -> Iterator[str]:
    """Parts of a text without special tokens, none too long for SentencePiece."""
    for part in _SPECIAL.split(text)[::2]:
        yield from filter(str.strip, _SENTENCE.findall(part))


def _within(num_characters: int, sentences: Iterable[str]) -> Iterator[str]:
    for sentence in sentences:
        num_characters -= len(sentence)
        if num_characters < 0:
            return
        yield sentence


def _num_pieces(sentences: Iterable[str]) -> int:
    """fastai's choice: a quarter of the distinct words, in eights."""
    num_words = len(set(chain.from_iterable(map(str.split, sentences))))
    return min(max(num_words // 4 + 7, 32) // 8 * 8, MOST_PIECES)


def _library() -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise UserError(
            "tokenizer.type=sentencepiece needs the package sentencepiece: pip install 'ulmfit-dist[sentencepiece]'"
        ) from None
    return sentencepiece
