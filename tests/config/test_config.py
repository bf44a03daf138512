from pathlib import Path

import pytest
from conftest import ROOT

from ulmfit_dist.config.loading import describe, load_config, to_yaml
from ulmfit_dist.errors import UserError


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_load_and_survive_a_round_trip(recipe: Path, tmp_path: Path):
    config = load_config(recipe)
    copy = tmp_path / "config.yaml"
    copy.write_text(to_yaml(config))
    assert load_config(copy) == config


def test_every_key_has_a_meaning():
    keys = list(describe(load_config(None, ["data.path=x"])))
    assert len(keys) > 50
    assert all(meaning.strip() and "\n" not in meaning for _, _, meaning in keys)


def test_overrides_win_over_the_recipe_and_later_ones_over_earlier():
    config = load_config(ROOT / "configs/quickstart.yaml", ["lm.global_batch_size=8", "lm.global_batch_size=16"])
    assert config.lm.global_batch_size == 16
    assert config.model.n_layers == 1


def test_a_map_that_is_given_whole_replaces_the_recipes_and_one_key_of_it_does_not():
    for overrides, expected in (
        (["data.splits={train: train, valid: test}"], {"train": "train", "valid": "test"}),
        (["data.splits.valid=dev"], {"train": "train", "test": "test", "unlabelled": "unsupervised", "valid": "dev"}),
        (["data.splits={train: a}", "data.splits.valid=b"], {"train": "a", "valid": "b"}),
        (["data.splits={}"], {}),
        (["data={splits: {train: a}}"], {"train": "a"}),
    ):
        assert load_config(ROOT / "configs/imdb.yaml", overrides).data.splits == expected, overrides


def test_a_bare_no_is_a_precision():
    assert load_config(None, ["data.path=x", "runtime.precision=no"]).runtime.precision == "fp32"


def test_the_imdb_recipe_is_the_tutorials():
    config = load_config(ROOT / "configs/imdb.yaml")
    assert config.model.pretrained == "wt103_fwd"
    assert (config.model.n_layers, config.model.n_hid, config.lm.drop_mult, config.lm.wd) == (3, 1152, 1.0, 0.1)
    assert [(p.freeze_to, p.epochs, p.lr) for p in config.lm.phases] == [(-1, 1, 1e-2), (0, 10, 1e-3)]
    assert [(p.freeze_to, p.epochs) for p in config.classifier.phases] == [(-1, 1), (-2, 1), (-3, 1), (0, 2)]
    assert config.classifier.phases[1].lr == pytest.approx([1e-2 / 2.6**4, 1e-2], rel=1e-4)
    assert config.classifier.phases[2].lr == pytest.approx([5e-3 / 2.6**4, 5e-3], rel=1e-4)
    assert config.classifier.phases[3].lr == pytest.approx([1e-3 / 2.6**4, 1e-3], rel=1e-4)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("lm.global_batchsize=32", "did you mean 'global_batch_size'"),
        ("lm.phases=[{epoch: 1}]", "lm.phases[0].epoch; did you mean 'epochs'"),
        ("data.source=parket", "did you mean 'parquet'"),
        ("lm.global_batch_size=many", "lm.global_batch_size"),
        ("lm.global_batch_size=0", "at least 1"),
        ("data.valid_pct=20", "between 0 and 1"),
        ("lm.phases=[{lr: fast}]", "lm.phases[0].lr"),
        ("lm=3", "lm is a section"),
        ("lm.phases=[{lr: []}]", "lm.phases[0].lr=[]"),
        ("lm.phases=[{lr: .inf}]", "lm.phases[0].lr=inf"),
        ("lm.phases=[]", "lm.phases=[]: give at least one phase"),
        ("classifier.phases=[{freeze_to: 9}]", "has 5 layer groups"),
        ("classifier.phases=${nope}", "nope"),
        ("runs_dir=${oc.env:NOPE}", "NOPE"),
        ("data.splits=[a]", "config"),
        ("classifier.drop_mult=3", "from 0 to below 2"),
        ("classifier.lin_ftrs=[0]", "widths of at least 1"),
        ("classifier.max_len=100", "less than twice"),
        ("lm.phases=[{pct_start: 1}]", "lm.phases[0].pct_start=1.0: give a share between 0 and 1"),
        ("classifier.phases=[{div: 0}]", "classifier.phases[0].div=0.0: give a number of at least 1"),
        ("classifier.encoder=pretrained", "classifier.encoder=pretrained needs model.pretrained"),
        ("model={pretrained: wt103_fwd, backwards: true}", "set model.pretrained=wt103_bwd"),
        ("model.pretrained=wt103_bwd", "wt103_bwd does not read in the direction of model.backwards=false"),
        ("lm.grad_clip=-1", "a norm above 0"),
        ("lm.wd=.nan", "at least 0"),
        ("lm.moms=[2,-1,0]", "three values from 0"),
        ("seed", "expected key=value"),
        ("name=a/b", "plain folder name"),
        ("data.splits={dev: x}", "known are: train, valid, unlabelled"),
    ],
)
def test_wrong_keys_and_values_are_named_with_their_fix(override: str, expected: str):
    with pytest.raises(UserError) as error:
        load_config(None, ["data.path=x", override])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_recipe_that_is_not_yaml_is_one_line(tmp_path: Path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("lm: [1,\nname: x: y")
    with pytest.raises(UserError, match="not valid YAML") as error:
        load_config(broken)
    assert "\n" not in str(error.value)
