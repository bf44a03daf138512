"""Valid values of single keys, rules across keys, and recipes that inherit."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from ulmfit_dist.cli.main import main
from ulmfit_dist.config.fields import is_optional, rule_of, type_hints
from ulmfit_dist.config.loading import describe, field_docs, load_config, to_dict, to_yaml
from ulmfit_dist.config.schema import ClassifierConfig, Config, DataConfig, LMConfig, Phase, StageConfig
from ulmfit_dist.config.validation import check_config
from ulmfit_dist.errors import UserError

SECTIONS = {
    item.name: item.default_factory
    for item in dataclasses.fields(Config)
    if dataclasses.is_dataclass(item.default_factory) and isinstance(item.default_factory, type)
}
FIELDS = [
    (f"{section}.{item.name}", item, type_hints(cls)[item.name])
    for section, cls in SECTIONS.items()
    for item in dataclasses.fields(cls)
]
CHOICES = [(key, item, hint) for key, item, hint in FIELDS if (rule := rule_of(item)) and rule.choices]
COUNTS = [(key, item, hint) for key, item, hint in FIELDS if (rule := rule_of(item)) and "whole number" in rule.expected]


def load(*overrides: str) -> Config:
    return load_config(None, ["data.path=x", *overrides])


def refusal(*overrides: str) -> str:
    """The message about overrides, through OmegaConf."""
    with pytest.raises(UserError) as error:
        load(*overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def check(key: str, value: Any, **data: Any) -> None:
    """Check a config with one value set, past OmegaConf, whose layers take a tenth of a second."""
    config = Config(data=DataConfig(path="x", **data))
    *sections, name = key.split(".")
    section = getattr(config, sections[0]) if sections else config
    assert hasattr(section, name)
    setattr(section, name, value)
    check_config(config)


def message_of(key: str, value: Any) -> str:
    with pytest.raises(UserError) as error:
        check(key, value)
    assert "\n" not in str(error.value)
    return str(error.value)


def write(folder: Path, **recipes: str) -> Path:
    """Write NAME.yaml for each recipe; return the path of the first."""
    for name, text in recipes.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(recipes))}.yaml"


@pytest.mark.parametrize(("key", "item", "hint"), CHOICES, ids=[key for key, _, _ in CHOICES])
def test_a_choice_takes_its_values_and_no_other(key: str, item: dataclasses.Field, hint: Any):
    rule = rule_of(item)
    assert rule is not None
    for choice in rule.choices:
        check(key, choice, missing_label=None)
    nearest = rule.choices[-1]
    assert message_of(key, f"{nearest}x") == f"{key}='{nearest}x' is not known; did you mean {nearest!r}?"
    assert message_of(key, "QQQ") == f"{key}='QQQ' is not known; known are: {', '.join(rule.choices)}"
    if is_optional(hint):
        check(key, None)


@pytest.mark.parametrize(("key", "item", "hint"), COUNTS, ids=[key for key, _, _ in COUNTS])
def test_a_count_has_a_lowest_value(key: str, item: dataclasses.Field, hint: Any):
    lowest = 2 if key == "data.folds" else 1
    null = ", or null" if is_optional(hint) else ""
    for value in (lowest - 1, -3):
        assert message_of(key, value) == f"{key}={value}: give a whole number of at least {lowest}{null}"
    if key != "classifier.max_len":  # at least twice seq_len
        check(key, lowest)


def test_every_number_of_a_section_has_a_rule_or_needs_none():
    free = {"data.fold", "model.n_layers", "seed"}
    numbers = [(key, item) for key, item, hint in FIELDS if hint in (int, float, int | None, float | None)]
    assert [key for key, item in numbers if rule_of(item) is None and key not in free] == []


@pytest.mark.parametrize(
    ("key", "valid", "invalid", "expected"),
    [
        ("name", ["a", "a.b-c+d_1"], ["a/b", ".a", "''"], "a plain folder name of letters, digits, '.', '+', '-' and '_'"),
        ("data.valid_pct", ["0.5"], ["0", "1", "20", ".nan"], "a share between 0 and 1, such as 0.1"),
        ("data.test_pct", ["0.5"], ["0", "1", "-1"], "a share between 0 and 1, such as 0.1, or null"),
        ("lm.valid_pct", ["0.5"], ["0", "1"], "a share between 0 and 1, such as 0.1, or null"),
        ("data.text_col", ["[a]", "[a, b]"], ["[]"], "at least one column"),
        ("data.label_delim", ["','", "' '"], ["''"], "the text between a document's labels, such as ';'"),
        ("data.encoding", ["utf-8", "cp1252"], ["utf-9", "base64"], "the name of an encoding, such as utf-8, cp1252"),
        ("runtime.canonical_ranks", ["1", "8"], ["0", "3", "-2"], "a power of two, such as 2, 4 or 8, or null"),
        ("runtime.join_timeout", ["0.1"], ["0", "-1", ".inf", ".nan"], "a number of minutes above 0, such as 5"),
        ("checkpoint.interval_minutes", ["0.1"], ["0", ".inf"], "a number above 0, or null"),
        ("tracking.wandb_timeout", ["1"], ["0", ".inf"], "a number of seconds above 0"),
        ("tracking.project", ["a b"], ["a/b", "''", "x" * 129], "at most 128 characters, none of / \\ # ? % :"),
        ("lm.drop_mult", ["0", "3.9"], ["4", "-0.1", ".nan"], "a factor from 0 to below 4"),
        ("classifier.drop_mult", ["0", "1.9"], ["2", "-0.1", ".nan"], "a factor from 0 to below 2"),
        ("lm.wd", ["0", "1"], ["-1", ".inf", ".nan"], "a number of at least 0"),
        ("classifier.alpha", ["0"], ["-1"], "a number of at least 0"),
        ("classifier.beta", ["0"], ["-1"], "a number of at least 0"),
        ("lm.moms", ["[0, 0.5, 0.9]"], ["[0.9]", "[1, 0.5, 0.5]"], "three values from 0 to below 1"),
        ("lm.grad_clip", ["0.1", ".inf"], ["0", "-1", ".nan"], "a norm above 0, or null"),
        ("lm.phases", [], ["[]"], "at least one phase, such as [{epochs: 1, lr: 1e-2}]"),
        ("classifier.threshold", ["0.1"], ["0", "1"], "a probability between 0 and 1"),
        ("classifier.head_dropout", ["0", "0.9"], ["1", "-0.1"], "a probability from 0 to below 1"),
        ("classifier.label_smoothing", ["0", "0.9"], ["1", "-0.1"], "a share from 0 to below 1, such as 0.1"),
        ("classifier.lin_ftrs", ["[]", "[1, 2]"], ["[0]", "[50, -1]"], "widths of at least 1"),
        ("classifier.class_weights", ["balanced", "[1, 2]", "null"], ["even", "[0, 1]", "3"], "balanced, null, or a list"),
    ],
)
def test_a_range_ends_where_its_message_says(key: str, valid: list[str], invalid: list[str], expected: str):
    for value in valid:
        check(key, yaml.safe_load(value))
    for value in invalid:
        message = message_of(key, yaml.safe_load(value))
        assert message.startswith(f"{key}=")
        assert f": give {expected}" in message


@pytest.mark.parametrize("override", ["data.source=null", "lm.seq_len=1.5", "lm.seq_len=null", "lm.moms=[a]", "lm.wd=x"])
def test_a_value_of_the_wrong_type_is_named(override: str):
    assert refusal(override).startswith(f"command line, {override}: {override.partition('=')[0]}")


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("{epochs: 0}", "lm.phases[0].epochs=0: give a whole number of at least 1"),
        ("{lr: [1, 2, 3]}", "lm.phases[0].lr=[1, 2, 3]: give one rate, such as 1e-2, or [low, high]"),
        ("{lr: null}", "lm.phases[0].lr=None: give one rate"),
        ("{lr: true}", "lm.phases[0].lr=True: give one rate"),
        ("{pct_start: 0}", "lm.phases[0].pct_start=0.0: give a share between 0 and 1, such as 0.3, or null"),
        ("{div: 0.5}", "lm.phases[0].div=0.5: give a number of at least 1, such as 5, or null"),
        ("{freeze_to: 4}", "lm.phases[0].freeze_to=4: the model has 4 layer groups"),
        ("{freeze_to: -5}", "lm.phases[0].freeze_to=-5: the model has 4 layer groups"),
    ],
)
def test_each_phase_is_checked(phase: str, expected: str):
    assert expected.replace("[0]", "[1]") in refusal(f"lm.phases=[{{epochs: 1}}, {phase}]")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.path=null"], "data.path is not set: data.source=folder requires it"),
        (["data.splits={dev: a}"], "a key of data.splits='dev' is not known; known are: train, valid, unlabelled, test"),
        (["data.fold=1"], "data.fold=1: give a number from 0 to below data.folds=None"),
        (["data.folds=3", "data.fold=-1"], "data.fold=-1: give a number from 0 to below data.folds=3"),
        (["data.valid_col=a"], "data.valid_col=a: data.source=folder has no columns: set it to null"),
        (
            ["data.source=csv", "data.valid_col=a", "data.splitter=m.f"],
            "data.valid_col=a and data.splitter=m.f: set one of them to null",
        ),
        (["data.file_col=a"], "data.file_col: data.source=folder has no column: it is for csv, json and parquet"),
        (
            ["runtime.canonical_ranks=2", "runtime.gradient_compression=bf16"],
            "runtime.gradient_compression=bf16 rounds the gradients whose sums runtime.canonical_ranks=2 keeps exact",
        ),
        (["classifier.encoder=pretrained"], "classifier.encoder=pretrained needs model.pretrained: set it"),
        (["model.pretrained=wt103_bwd"], "set model.pretrained=wt103_fwd"),
        (["model.pretrained=wt103_fwd", "model.backwards=true"], "set model.pretrained=wt103_bwd"),
        (["classifier.max_len=143"], "classifier.max_len=143 is less than twice classifier.seq_len=72"),
        (["classifier.target=regression"], "set data.missing_label to null"),
        (["classifier.target=multicategory", "classifier.label_smoothing=0.1"], "leave out label_smoothing"),
        (["classifier.target=multicategory", "classifier.class_weights=balanced"], "leave out label_smoothing"),
        (["classifier.y_range=[0, 5]"], "classifier.y_range=[0.0, 5.0] is for classifier.target=regression"),
        (
            ["classifier.target=regression", "data.missing_label=null", "classifier.temperature_scaling=true"],
            "classifier.temperature_scaling is for probabilities: leave it out of a regression",
        ),
        (
            ["classifier.target=regression", "data.missing_label=null", "classifier.baseline_features=naive_bayes"],
            "classifier.baseline_features=naive_bayes is for classes: set tfidf or lsa for a regression",
        ),
        (
            ["classifier.target=regression", "data.missing_label=null", "classifier.unlabelled.entropy_weight=1"],
            "classifier.unlabelled: entropy_weight and virtual_adversarial_weight are for probabilities: a regression has",
        ),
        (["classifier.unlabelled.entropy_weight=1"], "entropy_weight is of unlabelled documents: set classifier.unlabelled"),
        (["classifier.unlabelled.batch_size=8"], "batch_size=8, but no loss reads unlabelled documents: set entropy_weight"),
        (
            ["classifier.unlabelled={batch_size: 8, adversarial_weight: 1}"],
            "batch_size=8, but no loss reads unlabelled documents: set entropy_weight or virtual_adversarial_weight above 0",
        ),
        (["classifier.y_range=[5, 0]"], "classifier.y_range=[5.0, 0.0]: give the lowest and the highest number"),
    ],
)
def test_keys_that_contradict_each_other_are_named(overrides: list[str], expected: str):
    assert expected in refusal(*overrides)


def test_a_later_layer_may_replace_an_invalid_value(tmp_path: Path):
    recipe = write(tmp_path, a="data: {path: x, on_error: nonsense}\nlm: {wd: -1}")
    assert load_config(recipe, ["data.on_error=skip", "lm.wd=0"]).data.on_error == "skip"


def test_fp32_has_accelerates_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MIXED", "no")
    for value in ("no", "'no'", "${oc.env:MIXED}"):
        assert load(f"runtime.precision={value}").runtime.precision == "fp32"
        recipe = write(tmp_path, a=f"data: {{path: x}}\nruntime:\n  precision: {value}")
        assert load_config(recipe).runtime.precision == "fp32"


def test_the_stages_share_fields_and_document_them_once():
    shared = [item.name for item in dataclasses.fields(StageConfig)]
    for cls in (LMConfig, ClassifierConfig):
        assert [item.name for item in dataclasses.fields(cls)][: len(shared)] == shared
        assert set(field_docs(cls)) == {item.name for item in dataclasses.fields(cls)}
        assert field_docs(cls)["moms"] == field_docs(StageConfig)["moms"]
    assert field_docs(LMConfig)["drop_mult"] != field_docs(ClassifierConfig)["drop_mult"]
    assert LMConfig().phases[0] is not LMConfig().phases[0]
    assert (LMConfig().wd, ClassifierConfig().wd) == (0.1, 0.01)


def test_a_meaning_fits_its_line():
    meanings = [*describe(Config()), *describe(Phase())]
    assert [key for key, _, meaning in meanings if len(meaning) > 115] == []


def test_a_recipe_inherits_the_keys_that_it_does_not_set(tmp_path: Path):
    recipe = write(
        tmp_path,
        a="base: b.yaml\nname: a\ndata: {splits: {train: a}}\nlm: {phases: [{epochs: 3}]}",
        b="base: c.yaml\nname: b\nlm: {wd: 0.5}",
        c="data: {path: x, splits: {train: c, valid: c}}\nlm: {wd: 0.2, seq_len: 9, phases: [{epochs: 1}, {epochs: 2}]}",
    )
    config = load_config(recipe, ["lm.seq_len=10"])
    assert (config.name, config.data.path, config.lm.wd, config.lm.seq_len) == ("a", "x", 0.5, 10)
    assert config.data.splits == {"train": "a"}
    assert config.lm.phases == [Phase(epochs=3)]
    assert load_config(recipe, ["data.splits.valid=b"]).data.splits == {"train": "a", "valid": "b"}


def test_a_base_is_relative_to_the_recipe_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "sub/deeper").mkdir(parents=True)
    write(tmp_path, root="data: {path: x}")
    write(tmp_path / "sub", middle="base: ../root.yaml\nseed: 3")
    write(tmp_path / "sub/deeper", leaf="base: ../middle.yaml\nname: leaf")
    monkeypatch.chdir(tmp_path / "sub")
    config = load_config("deeper/leaf.yaml")
    assert (config.name, config.seed, config.data.path) == ("leaf", 3, "x")
    absolute = write(tmp_path, other=f"base: {tmp_path}/sub/deeper/leaf.yaml")
    assert load_config(absolute) == config


def test_a_merged_config_has_no_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = write(tmp_path, a="base: b.yaml\nname: a", b="data: {path: x}\nlm: {wd: 0.5}")
    config = load_config(recipe)
    assert "base" not in to_dict(config)
    whole = tmp_path / "sub/config.yaml"
    whole.parent.mkdir()
    whole.write_text(to_yaml(config))
    assert load_config(whole, allow_base=False) == config
    assert main(["config", str(recipe), "--get", "lm.wd", "--get", "name", "--get", "data.path"]) == 0
    assert capsys.readouterr().out.split() == ["0.5", "a", "x"]


@pytest.mark.parametrize(
    ("recipes", "expected"),
    [
        ({"a": "base: a.yaml"}, "{}/a.yaml: base='a.yaml': the recipe inherits from itself: remove one base"),
        ({"a": "base: ./b.yaml", "b": "base: a.yaml"}, "{}/b.yaml: base='a.yaml': the recipe inherits from itself"),
        ({"a": "base: b.yaml"}, "{}/a.yaml: base='b.yaml': no such recipe in {}: give a path relative to that folder"),
        ({"a": "base: ."}, "{}/a.yaml: base='.': no such recipe in {}"),
        ({"a": "base: b.yaml", "b": "base: c.yaml"}, "{}/b.yaml: base='c.yaml': no such recipe in {}"),
        ({"a": "base: [b.yaml, c.yaml]"}, "{}/a.yaml: base=['b.yaml', 'c.yaml']: give the path of one recipe"),
        ({"a": "base: 3"}, "{}/a.yaml: base=3: give the path of one recipe, relative to this one"),
        ({"a": "base: null"}, "{}/a.yaml: base=None: give the path of one recipe"),
        ({"a": "base: ''"}, "{}/a.yaml: base='': give the path of one recipe"),
        ({"a": "base: ${oc.env:NOPE}"}, "{}/a.yaml: base: KeyError raised while resolving interpolation"),
        ({"a": "base: b.yaml", "b": "lm: [1,"}, "{}/b.yaml: not valid YAML: "),
        ({"a": "base: b.yaml", "b": "- 1"}, "{}/b.yaml: expected keys and values at the top level"),
        ({"a": "base: b.yaml", "b": "lm: {bs: 1}"}, "{}/b.yaml: unknown key lm.bs; "),
        ({"a": "base: b.yaml", "b": "lm: {seq_len: many}"}, "{}/b.yaml: lm.seq_len: "),
        ({"a": "data: {base: b.yaml}"}, "{}/a.yaml: unknown key data.base; "),
    ],
)
def test_a_wrong_base_is_one_line(recipes: dict[str, str], expected: str, tmp_path: Path):
    with pytest.raises(UserError) as error:
        load_config(write(tmp_path, **recipes), ["data.path=x"])
    message = str(error.value)
    assert message.startswith(expected.format(tmp_path, tmp_path))
    assert "\n" not in message


def test_the_command_line_sets_no_base():
    assert refusal("base=configs/imdb.yaml").startswith("command line, base=configs/imdb.yaml: only a recipe sets base: ")


def test_the_config_of_a_model_may_not_name_other_files(tmp_path: Path):
    recipe = write(tmp_path, config="base: b.yaml", b="data: {path: x}")
    with pytest.raises(UserError, match=r"config\.yaml: base='b\.yaml': a model's config must be complete: export"):
        load_config(recipe, allow_base=False)


def test_a_linked_recipe_is_found_in_a_cycle(tmp_path: Path):
    recipe = write(tmp_path, a="base: link.yaml", b="base: a.yaml")
    os.symlink(tmp_path / "b.yaml", tmp_path / "link.yaml")
    with pytest.raises(UserError, match="the recipe inherits from itself"):
        load_config(recipe)


def test_imdb_from_scratch_differs_from_the_tutorial_in_three_keys():
    tutorial, scratch = (
        {key: value for key, value, _ in describe(load_config(ROOT / f"configs/{name}.yaml"))}
        for name in ("imdb", "imdb_scratch")
    )
    assert {key for key in tutorial if tutorial[key] != scratch[key]} == {"name", "model.pretrained", "lm.use_test_texts"}
