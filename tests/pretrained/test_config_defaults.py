"""Keys of a config that pretrained weights determine, and that a recipe may not contradict."""

from __future__ import annotations

from pathlib import Path

import published
import pytest
from fastai_runs import make_models
from published import PIECES, WORDS

from ulmfit_dist.config.loading import load_config, to_yaml
from ulmfit_dist.errors import UserError

DATA = "data.path=texts"


def test_a_public_name_is_all_that_a_user_writes():
    config = load_config(None, [DATA, "model.pretrained=de"])
    assert (config.tokenizer.type, config.tokenizer.lang, config.tokenizer.sp_model) == ("sentencepiece", "de", "pretrained")
    assert (config.model.emb_sz, config.model.n_hid, config.model.n_layers, config.model.arch) == (400, 1152, 3, None)
    config = load_config(None, [DATA, "model.pretrained=thai2fit_th"])
    assert (config.model.n_hid, config.model.n_layers, config.tokenizer.type) == (1550, 4, "word")


def test_a_model_without_the_direction_is_refused_when_the_config_is_read():
    assert load_config(None, [DATA, "model.pretrained=de", "model.backwards=true"]).model.backwards
    with pytest.raises(UserError, match=r"model\.pretrained=thai2fit_th: PyThaiNLP has only a model that reads forwards"):
        load_config(None, [DATA, "model.pretrained=thai2fit_th", "model.backwards=true"])


def test_a_recipe_that_contradicts_the_weights_is_told_so_in_one_line(tmp_path: Path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("data: {path: texts}\nmodel: {pretrained: de, n_hid: 1150}\n")
    with pytest.raises(UserError, match=r"mine\.yaml: model\.n_hid=1150, but the weights de have 1152: leave the key out"):
        load_config(recipe)
    with pytest.raises(UserError, match=r"command line, tokenizer\.type=word: .* but the weights de have"):
        load_config(None, [DATA, "model.pretrained=de", "tokenizer.type=word"])
    load_config(None, [DATA, "model.pretrained=de", "model.n_hid=1152", "tokenizer.sp_model=my.model"])


def test_sizes_and_pieces_of_a_folder_come_along(tmp_path: Path):
    published.write_torch(tmp_path / "model.pth", published.lstm_tensors(len(PIECES), 4))
    published.write_pickle(tmp_path / "vocab.pkl", PIECES)
    (tmp_path / "spm.model").write_bytes(b"")
    config = load_config(None, [DATA, f"model.pretrained={tmp_path}"])
    assert (config.model.emb_sz, config.model.n_hid, config.model.n_layers) == (6, 8, 4)
    assert (config.tokenizer.type, config.tokenizer.sp_model) == ("sentencepiece", "pretrained")


def test_without_a_sentencepiece_model_the_tokenizer_is_the_recipes(tmp_path: Path):
    published.write_torch(tmp_path / "model.pth", published.lstm_tensors(len(WORDS), 1))
    published.write_pickle(tmp_path / "vocab.pkl", WORDS)
    config = load_config(None, [DATA, f"classifier.encoder={tmp_path}", "tokenizer.type=word"])
    assert (config.model.emb_sz, config.model.n_layers, config.tokenizer.sp_model) == (6, 1, None)


def test_a_run_gives_its_sizes_and_its_config_is_read_again_as_it_is(tmp_path: Path):
    make_models(tmp_path / "run", pieces=b"pieces")
    config = load_config(None, [DATA, f"model.pretrained={tmp_path / 'run'}"])
    assert (config.model.emb_sz, config.model.n_hid, config.model.n_layers) == (6, 8, 2)
    assert config.tokenizer.sp_model == "pretrained"
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config


def test_an_exported_config_needs_none_of_the_weights_it_began_with(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(to_yaml(load_config(None, [DATA, "model.pretrained=de"])).replace("1152", "1150"))
    assert load_config(tmp_path / "config.yaml", allow_base=False).model.n_hid == 1150


def test_the_class_of_a_strangers_encoder_does_not_come_along(tmp_path: Path):
    make_models(tmp_path / "run")
    path = tmp_path / "run/lm/config.yaml"
    path.write_text(path.read_text().replace("arch: null", "arch: stranger.Encoder"))
    assert load_config(None, [DATA, f"model.pretrained={tmp_path / 'run'}"]).model.arch is None


@pytest.mark.parametrize("line", ["n_hid: many", "n_hid: [1]", "n_hid: 1.5"])
def test_a_damaged_config_of_a_run_is_one_line(tmp_path: Path, line: str):
    make_models(tmp_path / "run")
    path = tmp_path / "run/lm/config.yaml"
    path.write_text(path.read_text().replace("n_hid: 8", line))
    with pytest.raises(UserError, match=r"config\.yaml: missing or damaged \(a value of another type\)"):
        load_config(None, [DATA, f"model.pretrained={tmp_path / 'run'}"])


def test_pieces_of_no_weights_are_refused():
    with pytest.raises(UserError, match=r"tokenizer\.sp_model=pretrained needs model\.pretrained"):
        load_config(None, [DATA, "tokenizer.sp_model=pretrained", "tokenizer.type=sentencepiece"])
