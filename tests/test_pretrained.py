"""Wikipedia-shaped weight files, made here in fastai's layout."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from fastai.text.learner import load_ignore_keys, match_embeds
from fastai.text.models import awdlstm, core

from ulmfit_dist.config import LMConfig, ModelConfig
from ulmfit_dist.errors import UserError
from ulmfit_dist.model.awd_lstm import build_language_model
from ulmfit_dist.model.pretrained import load_pretrained

SIZES = ModelConfig(emb_sz=6, n_hid=8, n_layers=2)
OLD_VOCAB = ["xxunk", "xxpad", "xxbos", "the", "cat", "sat"]
NEW_VOCAB = ["xxunk", "xxpad", "the", "dog", "sat", "xxfake"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a fastai language model's state and its tokens."""
    config = {**awdlstm.awd_lstm_lm_config, "emb_sz": 6, "n_hid": 8, "n_layers": 2}
    model = core.get_language_model(awdlstm.AWD_LSTM, len(OLD_VOCAB), config)
    torch.save(model.state_dict(), tmp_path / "lstm_wt103.pth")
    (tmp_path / "itos_wt103.pkl").write_bytes(pickle.dumps(OLD_VOCAB))
    return tmp_path


def fresh():
    return build_language_model(len(NEW_VOCAB), SIZES, LMConfig())


def test_weights_are_matched_to_the_vocabulary_as_fastai_does(files: Path):
    ours, theirs = fresh(), fresh()
    assert load_pretrained(ours, str(files), NEW_VOCAB, SIZES) == 4
    load_ignore_keys(theirs, match_embeds(torch.load(files / "lstm_wt103.pth"), OLD_VOCAB, NEW_VOCAB))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_weights_of_another_size_are_refused(files: Path):
    with pytest.raises(UserError, match="n_hid=8, n_layers=2, the model section asks for 6, 9, 2"):
        load_pretrained(fresh(), str(files), NEW_VOCAB, ModelConfig(emb_sz=6, n_hid=9, n_layers=2))
    (files / "itos_wt103.pkl").write_bytes(pickle.dumps(OLD_VOCAB[:-1]))
    with pytest.raises(UserError, match=r"weights for 6 words, but 5 in the \.pkl"):
        load_pretrained(fresh(), str(files), NEW_VOCAB, SIZES)


class Hostile:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["lstm_wt103.pth", "itos_wt103.pkl"])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(files: Path, name: str):
    (files / name).write_bytes(pickle.dumps(Hostile(files / "made")))
    with pytest.raises(UserError, match=f"{name}: refused"):
        load_pretrained(fresh(), str(files), NEW_VOCAB, SIZES)
    assert not (files / "made").exists()


def test_without_a_network_the_file_to_bring_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from fastai.data import external

    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(external, "untar_data", no_network)
    with pytest.raises(UserError, match=r"wt103-fwd\.tgz cannot be fetched .* unpack it to .*wt103-fwd"):
        load_pretrained(fresh(), "wt103_fwd", NEW_VOCAB, SIZES)
