"""SentencePiece as the tokenizer."""

import io
from pathlib import Path

import pytest
from conftest import TINY, command_here, store_in, succeed, succeed_here
from fastai.text.core import defaults
from fastcore.basics import compose

from ulmfit_dist.config.schema import TokenizerConfig
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.data.tokenizers.sentencepiece import SentencePieceTokenizer, make_model
from ulmfit_dist.data.tokenizers.spec_tokens import words_of_pieces
from ulmfit_dist.errors import UserError

sentencepiece = pytest.importorskip("sentencepiece")

TEXTS = [f"The {noun} was VERY {word}!!! No no no no, {word} {noun}s\n\nagain." for noun in ("cat", "dog", "bird", "cow")
         for word in ("good", "bad", "small", "lazy", "quick")]  # fmt: skip
TEXTS += ["\u4eca\u65e5\u306f\u3068\u3066\u3082\u826f\u3044\u5929\u6c17\u3067\u3059"]


def config(**settings) -> TokenizerConfig:
    return TokenizerConfig(type="sentencepiece", **settings)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_special_tokens_stay_whole_and_all_words_come_back(model_type: str):
    settings = config(sp_model_type=model_type, sp_vocab_size=64)
    model = make_model(settings, TEXTS)
    assert model == make_model(settings, TEXTS)
    tokenizer = SentencePieceTokenizer(model)
    fastais_rules = compose(*defaults.text_proc_rules)
    documents = tokenizer.tokenize([*TEXTS, "xxbos typed, xxmajor"])
    for text, tokens in zip(TEXTS, documents, strict=False):
        assert tokens[:1] == ["xxbos"]
        assert "".join(words_of_pieces(tokens)) == "".join(fastais_rules(text).split())
        assert any(token.startswith("▁") for token in tokens)
    assert {"xxmaj", "xxup", "xxrep", "xxwrep"} <= set(documents[0])
    assert documents[-1][:2] == ["xxbos", "xxbos"]
    assert "xxmaj" not in documents[-1]


def test_a_model_from_elsewhere_is_used_as_it_is(tmp_path: Path):
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world"] * 9),
        model_writer=content,
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "m.model").write_bytes(content.getvalue())
    model = make_model(config(sp_model=str(tmp_path / "m.model")), [])
    assert words_of_pieces(SentencePieceTokenizer(model).tokenize(["Hello WORLD"])[0]) == [
        "xxbos",
        "xxmaj",
        "hello",
        "xxup",
        "world",
    ]


def test_what_is_wrong_with_a_model_is_told(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere: cannot be read \(No such file"):
        make_model(config(sp_model=str(tmp_path / "nowhere")), [])
    with pytest.raises(UserError, match=r"tokenizer\.sp_vocab_size=3: SentencePiece cannot be trained.*required_chars"):
        make_model(config(sp_model_type="bpe", sp_vocab_size=3), TEXTS)
    with pytest.raises(UserError, match="not a SentencePiece model"):
        SentencePieceTokenizer(b"damaged")


def test_a_run_with_pieces_from_text_to_prediction_is_the_same_on_two_ranks(corpus: Path, recipe: Path, tmp_path: Path):
    shared = [recipe, f"data.path={corpus}", *TINY, "tokenizer.type=sentencepiece", "tokenizer.sp_vocab_size=80"]
    succeed(["run", *shared, f"data.cache_dir={tmp_path}/one", f"runs_dir={tmp_path}", "name=run"])
    succeed(["prepare", *shared, f"data.cache_dir={tmp_path}/two"], processes=2)
    one, two = store_in(tmp_path / "one"), store_in(tmp_path / "two")
    assert {file.name: file.read_bytes() for file in one.iterdir()} == {
        file.name: file.read_bytes() for file in two.iterdir()
    }
    vocab = TokenStore(one).vocab
    assert vocab[:9] == defaults.text_spec_tok
    assert any(token.startswith("▁") for token in vocab)
    assert "▁" not in succeed_here(["generate", tmp_path / "run", "the ball", "--words", "5"])
    assert succeed_here(["predict", tmp_path / "run", "the ball"])
    result = command_here(["prepare", *shared, f"tokenizer.sp_model={tmp_path}/none", f"data.cache_dir={tmp_path}/three"])
    assert result.returncode == 2
    assert "tokenizer.sp_model" in result.stderr
