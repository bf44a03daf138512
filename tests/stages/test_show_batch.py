"""Batches and results as tables of texts: what is printed is what the documents say."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from conftest import TINY, TOPICS, command_here, make_folder, succeed, succeed_here
from rich.console import Console

from ulmfit_dist import load_config, prepare, show_batch, show_results
from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.tokenizers.spec_tokens import readable
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.bundle import save_bundle
from ulmfit_dist.models.networks import build_classifier, build_language_model
from ulmfit_dist.utils.text_table import TextTable

pytestmark = pytest.mark.usefixtures("no_process_group")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("look")
    make_folder(folder / "texts", per_class=20)
    place = [f"data.path={folder}/texts", f"data.cache_dir={folder}/cache", f"runs_dir={folder}/runs"]
    return load_config(None, [*TINY, *place, "tracking.wandb_mode=disabled"])


@pytest.fixture(scope="module")
def run(config: Config) -> Path:
    """A run of untrained models: what they say is wrong, but theirs."""
    AcceleratorState._reset_state(reset_partial_state=True)
    store = prepare(config)
    training = {"data_fingerprint": store.fingerprint}
    model = build_language_model(len(store.vocab), config.model, config.lm)
    save_bundle(config.run_dir / "lm", model, config, store, None, training)
    model = build_classifier(len(store.vocab), len(store.label_names), config.model, config.classifier)
    save_bundle(config.run_dir / "classifier", model, config, store, store.label_names, training)
    return config.run_dir


def letters(text: str) -> str:
    """Return a text without spaces, marks and capitals: fastai does not mark a single capital."""
    return re.sub(r"\W", "", text.lower())


def documents_of(config: Config) -> dict[str, str]:
    """The letters of each document, and its label."""
    return {letters(file.read_text()): file.parent.name for file in Path(config.data.path or "").rglob("*.txt")}


def drawn_rows(shown: str) -> list[list[str]]:
    """The cells of a table that was drawn with lines between its rows."""
    rows: list[list[str]] = [[]]
    for line in shown.splitlines():
        if line.startswith("│"):
            cells = [cell.strip() for cell in line.split("│")[1:-1]]
            rows[-1] = [f"{before} {more}" for before, more in zip(rows[-1] or [""] * len(cells), cells, strict=True)]
        elif rows[-1]:
            rows.append([])
    return rows[:-1]


@pytest.mark.parametrize("backwards", [False, True])
def test_a_classifiers_batch_is_its_documents_and_their_labels(config: Config, backwards: bool):
    (table,) = show_batch(replace(config, model=replace(config.model, backwards=backwards)), "classifier", rows=5)
    documents = documents_of(config)
    assert table.columns == ("text", "category")
    assert len(table.rows) == 5
    assert [documents[letters(text)] for text, _ in table.rows] == [label for _, label in table.rows]


@pytest.mark.parametrize("backwards", [False, True])
def test_a_language_models_batch_is_the_text_and_the_same_one_token_on(config: Config, backwards: bool):
    (table,) = show_batch(replace(config, model=replace(config.model, backwards=backwards)), "lm", rows=8, tokens=True)
    assert table.columns == ("text", "text_")
    assert len(table.rows) == 8
    known = " ".join(documents_of(config))
    for text, further in table.rows:
        x, y = text.split(), further.split()
        assert x[1:] == y[:-1]
        assert len(x) == config.lm.seq_len
        words = [word for word in (x[::-1] if backwards else x) if not word.startswith("xx")]
        assert letters("".join(words[1:4])) in known.replace(" ", "")


def test_readable_text_has_its_capitals_and_tokens_have_their_marks(config: Config):
    (texts,), (tokens,) = show_batch(config, "classifier"), show_batch(config, "classifier", tokens=True)
    for (text, _), (marked, _) in zip(texts.rows, tokens.rows, strict=True):
        assert text == readable(marked.split(), "word")
        assert marked.startswith("xxbos")


def test_results_are_of_validation_documents_and_name_a_class(config: Config, run: Path):
    lm, classifier = show_results(run, rows=6)
    documents = documents_of(config)
    assert classifier.columns == ("text", "category", "predicted")
    assert [documents[letters(text)] for text, _, _ in classifier.rows] == [label for _, label, _ in classifier.rows]
    assert {predicted for *_, predicted in classifier.rows} <= set(TOPICS)
    assert lm.columns == ("text", "text_", "pred")
    assert len(lm.rows) == 6


def test_the_predicted_tokens_are_those_that_the_model_holds_likeliest(config: Config, run: Path):
    (lm,) = show_results(run, "lm", rows=1, tokens=True)
    ((text, _, predicted),) = lm.rows
    from ulmfit_dist import load_language_model

    model = load_language_model(run)
    ids = [model.ids[token] for token in text.split()]
    import torch

    with torch.no_grad():
        model.model.reset()
        likeliest = model.model[1].decoder(model.model(torch.tensor([ids]))[0]).argmax(2)[0]
    assert predicted.split() == [model.vocab[i] for i in likeliest if model.vocab[i] != "xxpad"]


def test_the_command_prints_the_tables_of_python(config: Config, run: Path, recipe: Path):
    words = [f"{key}={getattr(config.data, key)}" for key in ("path", "cache_dir")]
    shown = succeed(["show-batch", recipe, *TINY, *(f"data.{word}" for word in words)], COLUMNS="100")
    lm, classifier = shown.split("classifier: the first training batch")
    assert "language model: the first training batch" in lm
    documents = documents_of(config)
    rows = drawn_rows(classifier)
    assert len(rows) == 4
    for text, label in rows:
        assert documents[letters(text)] == label.strip()
    results = succeed_here(["show-results", run, "--stage", "classifier", "--rows", "2"])
    assert "predicted" in results
    assert "language model" not in results


def test_what_is_wrong_is_one_line(config: Config, tmp_path: Path):
    for ask, output in [
        (lambda: show_batch(config, rows=0), "rows=0: give a whole number"),
        (lambda: show_results(tmp_path), "no exported model here"),
        (lambda: show_results(tmp_path, "lm"), "no lm model here"),
    ]:
        with pytest.raises(UserError, match=output):
            ask()
    result = command_here(["show-results", tmp_path, "a=1"])
    assert result.returncode == 2
    assert result.stderr == "ulmfit-dist: error: unrecognized arguments: a=1 (see ulmfit-dist --help)\n"


def test_a_cell_is_data_in_terminal_and_notebook():
    table = TextTable("a [title]", ("text",), (("[bold]not bold[/bold] \x1b[31mred\n<b>no tag</b>",),))
    assert "[bold]not bold[/bold] [31mred <b>no tag</b>" in str(table)
    assert "\x1b" not in str(table)
    assert "&lt;b&gt;no tag&lt;/b&gt;" in table._repr_html_()
    assert "<b>" not in table._repr_html_()
    drawn = Console(record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    drawn.print(table)
    assert "[bold]not bold[/bold]" in drawn.export_text()
