"""Choice of the tokenizer: `tokenizer.type` to an object.

Importing this module imports neither spaCy nor SentencePiece: the one that the config needs is imported when its tokenizer
is created. Trade-off: a missing package is reported only then.
"""

from __future__ import annotations

from pathlib import Path

from ulmfit_dist.config.schema import TokenizerConfig
from ulmfit_dist.data.token_store import MODEL_FILE
from ulmfit_dist.data.tokenizers.base import TextTokenizer, import_rule
from ulmfit_dist.data.tokenizers.sentencepiece import SentencePieceTokenizer
from ulmfit_dist.data.tokenizers.word import Tokenizer
from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.imports import check_trust


def open_tokenizer(config: TokenizerConfig, folder: Path, trust_remote_code: bool = True) -> TextTokenizer:
    """Return the tokenizer of a config.

    Args:
        folder: a token store or an exported model, with the SentencePiece model, if any.
        trust_remote_code: allow calls of the user-defined `tokenizer.rules`.

    Raises:
        UserError: an unsupported language; a rule that cannot be imported, or is not trusted; a missing or damaged
            SentencePiece model; a package that is not installed.
    """
    check_trust({"tokenizer.rules": config.rules}, folder, trust_remote_code)
    rules = [import_rule(path) for path in config.rules]
    if config.type == "word":
        return Tokenizer(config.lang, rules)
    try:
        return SentencePieceTokenizer((folder / MODEL_FILE).read_bytes(), rules)
    except OSError as error:
        raise UserError(f"{folder / MODEL_FILE}: cannot be read ({error.strerror})") from None
