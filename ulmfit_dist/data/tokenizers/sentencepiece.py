"""SentencePiece tokenizer (Kudo and Richardson, 2018): subwords learned from the texts.

fastai's rules run first, as with words. Special tokens are removed before SentencePiece reads the text and inserted again,
so they stay whole with a model that was trained elsewhere. Trade-off: texts are encoded in several parts, which is slower
than adding them to the model as user-defined symbols.
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
"""Maximum number of characters for training, which bounds its memory."""
SENTENCE = 1000
"""Maximum length of a training sentence, in characters: SentencePiece ignores sentences longer than 4192 bytes."""
MOST_PIECES = 30_000
EUROPEAN_LANGUAGES = frozenset("bg cs da de el en es et fi fr ga hr hu it lt lv mt nl pl pt ro sk sl sv".split())
"""Languages of few characters, of which fastai covers more (`eu_langs`)."""
THREADS = 4
"""Number of training threads; fixed, because the model depends on it."""

_SPECIAL = re.compile(rf"(?<!\S)({'|'.join(SPECIAL_TOKENS)})(?!\S)")
_SENTENCE = re.compile(rf".{{1,{SENTENCE}}}(?=\s|$)|\S{{{SENTENCE}}}", re.DOTALL)


class SentencePieceTokenizer(TextTokenizer):
    """Tokenizer with a SentencePiece model.

    Args:
        model: content of a SentencePiece model file.
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
        """Return texts as ids in `numbers`. The SentencePiece processor itself has no state."""
        parted = [_SPECIAL.split(self._before(str(text))) for text in texts]  # text, special token, text, ...
        pieces = iter(self._processor.encode([part for parts in parted for part in parts[::2]], out_type=str, num_threads=1))
        documents = [
            list(chain.from_iterable([part] if i % 2 else next(pieces) for i, part in enumerate(parts))) for parts in parted
        ]
        ids = numbers.of(list(chain.from_iterable(documents)))
        return Encoded(ids.astype(np.uint32), np.fromiter(map(len, documents), dtype=np.int64, count=len(documents)))


def make_model(config: TokenizerConfig, texts: Iterable[str]) -> bytes:
    """Return the content of `tokenizer.sp_model`, or of a model trained on a sample of texts.

    At most `SAMPLE_CHARACTERS` are read. The same texts and config give the same model on any machine.

    Raises:
        UserError: the file cannot be read; SentencePiece is not installed, or cannot learn that many tokens.
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
    """Yield the parts of a text between special tokens, cut to sentences that SentencePiece accepts."""
    for part in _SPECIAL.split(text)[::2]:
        yield from filter(str.strip, _SENTENCE.findall(part))


def _within(num_characters: int, sentences: Iterable[str]) -> Iterator[str]:
    for sentence in sentences:
        num_characters -= len(sentence)
        if num_characters < 0:
            return
        yield sentence


def _num_pieces(sentences: Iterable[str]) -> int:
    """Return the vocabulary size, as fastai chooses it: a quarter of the distinct words, a multiple of eight."""
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
