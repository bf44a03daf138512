"""Runs that start from a public model by its name, downloaded from loopback, with its SentencePiece model."""

from __future__ import annotations

import json
from pathlib import Path

import published
import pytest
import yaml
from conftest import TINY, command_here, store_in, succeed_here
from file_server import Server, serving
from published import E, H

from ulmfit_dist.pretrained import registry

SHORT = [word for word in TINY if not word.startswith(("model=", "lm.phases", "classifier.phases"))]
SHORT += ["lm.phases=[{epochs: 1, lr: 1e-3}]", "classifier.phases=[{epochs: 1, lr: 1e-3}]"]


@pytest.fixture
def public(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch):
    """The server of a public model `xx` whose pieces are those of the texts; the cache is empty."""
    texts = [path.read_text() for path in sorted(corpus.rglob("*.txt"))]
    folder = tmp_path / "made"
    published.make_sp_model(folder / "spm/spm.model", [text.lower() for text in texts], 120)
    tokens = published.pieces_of(folder / "spm/spm.model")
    for part, seed in (("fwd", 0), ("bwd", 1)):
        published.write_torch(folder / part / "lm_model.pth", published.lstm_tensors(len(tokens), 2, seed))
        published.write_pickle(folder / part / "lm_vocab.pkl", tokens)
    monkeypatch.setenv("ULMFIT_DIST_CACHE", str(tmp_path / "cache"))
    with serving({"/xx.tgz": published.make_tgz(folder, tmp_path / "xx.tgz").read_bytes()}) as server:
        config = {"tokenizer.type": "sentencepiece", "tokenizer.sp_model": "pretrained", "model.arch": None}
        config |= {"model.emb_sz": E, "model.n_hid": H, "model.n_layers": 2}
        entry = {
            "name": "xx",
            "language": "xx",
            "source": "us",
            "page": "https://example.org",
            "sha256": {},
            "config": config,
        }
        entry |= {key: [f"{server.address}/xx.tgz"] for key in ("forwards", "backwards")}
        entry |= {"tokenizer": "pieces", "trained_on": "texts", "license": "CC0-1.0"}
        (tmp_path / "models.yaml").write_text(yaml.safe_dump([entry]))
        monkeypatch.setattr(registry, "_PATH", tmp_path / "models.yaml")
        registry.public_models.cache_clear()
        yield server
    registry.public_models.cache_clear()


@pytest.mark.distributed
def test_a_name_brings_weights_sizes_and_tokenizer_into_a_run(public: Server, tmp_path: Path, corpus: Path, recipe: Path):
    words = [recipe, *SHORT, f"data.path={corpus}", f"data.cache_dir={tmp_path}/tokens", f"runs_dir={tmp_path}/runs"]
    result = command_here(["run", *words, "name=run", "model.pretrained=xx"])
    assert result.returncode == 0, result.stderr
    assert public.asked == ["/xx.tgz"]
    assert "pretrained xx: downloading" in result.stdout
    assert "tokens of the vocabulary have a pretrained embedding (9" in result.stdout
    model = (tmp_path / "made/spm/spm.model").read_bytes()
    assert (store_in(tmp_path / "tokens") / "sentencepiece.model").read_bytes() == model
    assert (tmp_path / "runs/run/classifier/sentencepiece.model").read_bytes() == model
    assert "sport" in succeed_here(["predict", tmp_path / "runs/run", "A late goal."])

    result = command_here(["run", *words, "name=back", "model.pretrained=xx", "model.backwards=true"])
    assert result.returncode == 0, result.stderr
    assert public.asked == ["/xx.tgz"]


def test_show_and_fetch_print_what_the_files_hold(public: Server, tmp_path: Path):
    assert "cached in   not downloaded" in succeed_here(["pretrained", "show", "xx"])
    folder = Path(succeed_here(["pretrained", "fetch", "xx"]).splitlines()[-1])
    assert folder == tmp_path / "cache/pretrained/xx"
    details = json.loads(succeed_here(["pretrained", "show", "xx", "--backwards", "--json"]))
    assert details[1]["direction"] == "backwards"
    assert details[1]["sizes"] == f"emb_sz={E}, n_hid={H}, n_layers=2"
    both = json.loads(succeed_here(["pretrained", "show", tmp_path / "xx.tgz", "--json"]))
    assert [part["direction"] for part in both] == ["forwards", "backwards"]
    assert "pieces of words, lower-cased" in both[0]["vocabulary"]
    assert public.asked == ["/xx.tgz"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "de"], "list takes no name: show it with `pretrained show de`"),
        (["show"], "pretrained show: no model is given"),
        (["--backwards"], "list shows both directions"),
        (["show", "multifit_d"], "did you mean multifit_de?"),
        (["fetch", "runs/mine"], "runs/mine: neither a public model"),
    ],
)
def test_wrong_arguments_have_one_line(words: list[str], message: str):
    result = command_here(["pretrained", *words])
    assert (result.returncode, message in result.stderr) == (2, True), result.stderr


def test_all_public_models_are_listed_without_a_network():
    printed = succeed_here(["pretrained"])
    assert len(printed.splitlines()) > 50
    assert len(json.loads(succeed_here(["pretrained", "--json"]))) == len(printed.splitlines()) - 1
