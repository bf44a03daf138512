"""Models uploaded to a stand-in of the hub by the hub's own client: which files, what is in them, and errors."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import hub_server
import pytest
from conftest import command_here, succeed_here
from fastai_runs import CONFIG, LABELS, make_models
from hub_server import READ, WRITE, HubServer
from huggingface_hub import ModelCard

from ulmfit_dist import load_classifier, load_language_model, push
from ulmfit_dist.config.loading import describe, load_config
from ulmfit_dist.config.schema import Config, TrackingConfig
from ulmfit_dist.errors import UserError
from ulmfit_dist.export.hub_push import choose_model, published_files
from ulmfit_dist.export.model_card import CardOptions, model_card, num_parameters
from ulmfit_dist.export.published import public_keys, published_config, published_sentencepiece
from ulmfit_dist.models.bundle import read_bundle

TEXT = "The team won the match and the cup."
NAME = "maria/reviews"
SECRET = "/home/maria/secret"
FILES = {"model.safetensors", "vocab.json", "config.yaml", "labels.json", "training.json"}
PRIVATE = """
runs_dir
data.source data.path data.splits data.file_col data.valid_pct data.test_pct data.valid_col data.folds data.fold
data.splitter data.get_y data.max_documents data.on_duplicates data.subset data.num_proc data.documents_per_shard
data.min_chars data.min_letter_share data.drop_duplicates data.stream_documents
data.cache_dir data.token_store data.node_cache_dir
tokenizer.sp_model lm.callbacks classifier.callbacks classifier.metrics classifier.pseudo_labels classifier.repeat_labelled
self_training.rounds self_training.teacher self_training.voters self_training.shares self_training.error_ratio
self_training.accepted_error self_training.scored_documents self_training.max_documents
self_training.labelled_share self_training.phases
runtime.micro_batch_size runtime.canonical_ranks runtime.gradient_compression runtime.join_timeout runtime.deterministic
runtime.detect_anomaly runtime.show_first_batch
checkpoint.interval_minutes checkpoint.interval_steps checkpoint.keep_latest
tracking.trackers tracking.wandb_mode tracking.project tracking.group tracking.tags tracking.log_interval tracking.log_text
tracking.num_samples tracking.log_model tracking.wandb_timeout
""".split()
"""Keys whose values stay on this machine; a new key must be in this list, or be published on purpose."""
PERSONAL = dataclasses.replace(
    CONFIG,
    name="marias-run",
    runs_dir=f"{SECRET}/runs",
    data=dataclasses.replace(
        CONFIG.data, source="csv", path=f"{SECRET}/a.csv", cache_dir=f"{SECRET}/cache", splits={"train": f"{SECRET}/a.csv"}
    ),
    model=dataclasses.replace(CONFIG.model, pretrained=f"{SECRET}/german.pth"),
    classifier=dataclasses.replace(CONFIG.classifier, encoder=f"{SECRET}/encoder.pth", callbacks=[f"{SECRET}.Callback"]),
    tracking=TrackingConfig(project="marias-project", group=SECRET, tags=["maria"]),
)
TEST = {
    "num_documents": 90,
    "loss": 0.31,
    "accuracy": 0.9,
    "accuracy_interval": [0.8444, 0.9556],
    "f1_macro": 0.8871,
    "f1_macro_interval": [0.8, 0.95],
}
METRICS = {"valid_loss": 0.4, "accuracy": 0.85, "f1_macro": 0.8}
BASELINE = {"valid": {"accuracy": 0.8, "f1_macro": 0.75}, "test": {"accuracy": 0.8222, "f1_macro": 0.81}}


class Terminal(io.StringIO):
    """Standard input that is a terminal."""

    def isatty(self) -> bool:
        return True


def make_run(folder: Path, config: Config = PERSONAL) -> Path:
    """A run directory of a finished run: models of random weights, figures, and files that must not be uploaded."""
    make_models(folder, config)
    training = {"training_id": "0123", "data_fingerprint": "x", "precision": "fp32", "metrics": METRICS}
    (folder / "classifier/training.json").write_text(json.dumps(training))
    (folder / "lm/training.json").write_text(json.dumps({**training, "metrics": {"valid_loss": 3.0, "perplexity": 20.1}}))
    summary = {"name": "marias-run", "classifier": {**METRICS, "test": TEST}, "baseline": BASELINE, "host": SECRET}
    (folder / "summary.json").write_text(json.dumps(summary))
    for path in ("tables.json", "classifier/old.pkl", "classifier/texts.csv", "classifier/pytorch_model.bin"):
        (folder / path).write_text(TEXT)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("push") / "run")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty server, which this process reaches with a token that may write."""
    with hub_server.serve() as server:
        server.connect(monkeypatch, tmp_path / "home", WRITE)
        yield server


def test_exactly_the_files_of_the_model_are_uploaded_as_one_commit(hub: HubServer, run: Path):
    pushed = push(run, NAME, "apache-2.0")
    assert (pushed.stage, pushed.is_private) == ("classifier", False)
    repository = hub.repositories[NAME]
    assert len(repository.commits) == 2  # the hub makes the first one
    assert pushed.url == f"{hub.url}/{NAME}/commit/{repository.commits[1][0]}"
    files = hub.files(NAME)
    assert files.keys() == {".gitattributes", "README.md", *FILES}
    for name in ("model.safetensors", "vocab.json", "labels.json"):
        assert files[name] == (run / "classifier" / name).read_bytes()


def test_no_path_and_no_name_of_the_run_is_uploaded(hub: HubServer, run: Path):
    push(run, NAME, "apache-2.0")
    written = b"\n".join(hub.files(NAME)[name] for name in ("config.yaml", "training.json", "README.md")).decode()
    for word in (SECRET, "/home", str(run), "marias", "0123", os.uname().nodename, TEXT):
        assert word not in written


def test_the_uploaded_model_computes_the_same_bits(hub: HubServer, run: Path):
    push(run, NAME, "apache-2.0")
    push(run, "maria/lm", "apache-2.0", "lm")
    assert (load_classifier(f"hf:{NAME}").predict_proba([TEXT]) == load_classifier(run).predict_proba([TEXT])).all()
    assert load_language_model("hf:maria/lm").generate(TEXT, 9) == load_language_model(run).generate(TEXT, 9)


def test_every_key_is_either_published_or_private():
    keys = {key for key, _, _ in describe(Config())}
    assert public_keys() | set(PRIVATE) == keys
    assert public_keys() & set(PRIVATE) == set()


def test_private_keys_have_their_defaults(tmp_path: Path):
    default = {key: value for key, value, _ in describe(Config())}
    values = {key: value for key, value, _ in describe(published_config(PERSONAL, "reviews"))}
    assert {key: values[key] for key in PRIVATE if key != "data.source"} == {
        key: default[key] for key in PRIVATE if key != "data.source"
    }
    assert (values["name"], values["model.pretrained"], values["classifier.encoder"]) == ("reviews", "null", "null")
    assert (values["model.emb_sz"], values["classifier.lin_ftrs"]) == ("6", "[7, 5]")


@pytest.mark.parametrize("name", ["wt103_fwd", "de", "hf:maria/lm"])
def test_weights_that_everyone_can_name_stay(name: str):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, pretrained=name))
    assert published_config(config, "x").model.pretrained == name


@pytest.mark.parametrize("value", [f"{SECRET}/x", "~/x", "../x", "./x", r"C:\x"])
def test_a_path_that_the_model_needs_is_refused(value: str):
    model = dataclasses.replace(CONFIG.model, arch="my.Encoder", arch_kwargs={"file": [value]})
    with pytest.raises(UserError, match=r"model\.arch_kwargs\.file\[0\]=.*: a path of this machine cannot be published"):
        published_config(dataclasses.replace(CONFIG, model=model), "x")


def test_a_sentencepiece_model_is_uploaded_without_its_paths():
    pytest.importorskip("sentencepiece")
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.pieces.add(piece="a", score=1.0)
    assert published_sentencepiece(model.SerializeToString()) == model.SerializeToString()
    expected = model.SerializeToString()
    model.trainer_spec.input.append(f"{SECRET}/a.txt")
    model.trainer_spec.model_prefix = f"{SECRET}/german"
    content = published_sentencepiece(model.SerializeToString())
    assert SECRET.encode() not in content
    assert content.startswith(expected)


def test_the_card_has_the_metadata_of_the_hub(hub: HubServer, run: Path):
    push(run, NAME, "cc-by-4.0", languages=["de", "pt-BR"])
    data = ModelCard(hub.files(NAME)["README.md"].decode(), ignore_metadata_errors=False).data
    assert (data.license, data.language, data.library_name) == ("cc-by-4.0", ["de", "pt-BR"], "ulmfit_dist")
    assert (data.pipeline_tag, data.model_name, data.metrics) == ("text-classification", "reviews", ["accuracy", "f1"])
    assert {"ulmfit", "category-classifier"} <= set(data.tags)
    results = [(result.dataset_split, result.metric_name, result.metric_value) for result in data.eval_results]
    assert results == [
        ("test", "accuracy", 0.9),
        ("test", "F1, macro", 0.8871),
        ("validation", "accuracy", 0.85),
        ("validation", "F1, macro", 0.8),
    ]


def test_the_card_shows_metrics_with_intervals_and_the_baseline(run: Path):
    exported = read_bundle(run / "classifier")
    card = model_card(exported, CardOptions(NAME, "mit", ["en"]))
    lines = card.splitlines()
    assert "| test | accuracy | 0.9000 | 0.8444 to 0.9556 | 0.8222 |" in lines
    assert "| validation | F1, macro | 0.8000 |  | 0.7500 |" in lines
    assert f"| vocabulary | {len(exported.vocab)} tokens, each at least 3 times in the training texts |" in lines
    assert "| initial weights | `encoder.pth` |" in lines
    assert 'ulmfit-dist predict hf:maria/reviews "A text to label."' in lines
    assert 'model = load_classifier("hf:maria/reviews")' in lines
    assert "It assigns one of 3 classes to a text: `sport`, `tech`, `food`." in lines
    parameters = sum(math.prod(part.shape) for part in load_classifier(run).model.parameters())
    assert num_parameters(run / "classifier/model.safetensors") == parameters


def test_a_qrnn_has_its_name_on_the_card_and_needs_no_trust(tmp_path: Path):
    make_models(tmp_path / "run", dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, arch="qrnn")))
    _, exported = choose_model(tmp_path / "run", "lm")
    files = published_files(exported, CardOptions("maria/lm", "mit"))
    card = files["README.md"].decode()
    assert "with an AWD-QRNN" in card
    assert "- awd-qrnn\n" in card
    assert "--trust-remote-code" not in card
    assert b"arch: qrnn" in files["config.yaml"]


def test_figures_of_another_training_are_not_on_the_card(run: Path, tmp_path: Path):
    folder = shutil.copytree(run, tmp_path / "run")
    training = json.loads((folder / "classifier/training.json").read_text())
    training["metrics"]["accuracy"] = 0.7
    (folder / "classifier/training.json").write_text(json.dumps(training))
    card = model_card(read_bundle(folder / "classifier"), CardOptions(NAME, "mit"))
    assert "| validation | accuracy | 0.7000 |  |  |" in card
    assert "| test |" not in card


def test_a_language_model_has_a_card_of_its_own(hub: HubServer, run: Path):
    push(run, "maria/lm", "mit", "lm")
    files = hub.files("maria/lm")
    card = ModelCard(files["README.md"].decode())
    assert "labels.json" not in files
    assert (card.data.pipeline_tag, card.data.language) == ("text-generation", ["en"])
    assert "| validation | perplexity | 20.1000 |  |  |" in card.text
    assert "ulmfit-dist run CONFIG model.pretrained=hf:maria/lm" in card.text
    assert "F1" not in card.text


def test_another_stage_replaces_all_files_of_the_first(hub: HubServer, run: Path):
    push(run, NAME, "mit")
    push(run, NAME, "mit", "lm")
    assert hub.files(NAME).keys() == {".gitattributes", "README.md", *FILES} - {"labels.json"}
    assert load_language_model(f"hf:{NAME}").generate(TEXT, 3) == load_language_model(run).generate(TEXT, 3)


def test_the_uploaded_config_is_complete(hub: HubServer, run: Path, tmp_path: Path):
    push(run, NAME, "mit")
    (tmp_path / "config.yaml").write_bytes(hub.files(NAME)["config.yaml"])
    assert load_config(tmp_path / "config.yaml", allow_base=False).model.n_hid == 8


def test_the_command_names_stage_repository_and_words(hub: HubServer, run: Path):
    output = succeed_here(["push", run, NAME, "--license", "mit", "--private", "--language", "en", "de"])
    first, words, use = output.splitlines()
    assert first.startswith(f"classifier: uploaded to {NAME} (private), {hub.url}/{NAME}/commit/")
    assert words.startswith(
        "vocab.json contains words of the training texts, each that occurs at least 3 times: if the texts"
    )
    assert use == f'to use it: ulmfit-dist predict hf:{NAME} "a text"'
    assert hub.repositories[NAME].private


def test_visibility_of_a_repository_never_changes(hub: HubServer, run: Path):
    push(run, NAME, "mit", private=True)
    assert push(run, NAME, "mit").is_private
    push(run, "maria/public", "mit")
    with pytest.raises(UserError, match="maria/public: exists and is public, and --private does not change that"):
        push(run, "maria/public", "mit", private=True)
    assert len(hub.repositories["maria/public"].commits) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reviews", "--license", "mit"], "reviews: expected USER/NAME of a repository, such as maria/reviews"),
        (["a/b/c", "--license", "mit"], "a/b/c: expected USER/NAME"),
        ([NAME], "--license is missing: name the license of the model, such as --license apache-2.0"),
        ([NAME, "--license", "my own"], "--license my own: expected an identifier of the hub"),
        ([NAME, "--license", "mit", "--language", "english"], "--language english: expected a language code, such as en"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], message: str, hub: HubServer, run: Path):
    result = command_here(["push", run, *arguments])
    assert result.returncode == 2
    assert result.stderr.startswith(f"ulmfit-dist: error: {message}")
    assert len(result.stderr.splitlines()) == 1
    assert hub.requests == []


def test_a_folder_without_a_model_is_refused(hub: HubServer, run: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no exported model here: give a run directory, such as runs/quickstart"):
        push(tmp_path, NAME, "mit")
    with pytest.raises(UserError, match="no lm model here"):
        push(run / "classifier", NAME, "mit", "lm")
    with pytest.raises(UserError, match="is on the hub already"):
        push("hf:maria/reviews", NAME, "mit")
    assert hub.requests == []


def test_a_damaged_model_is_not_uploaded(hub: HubServer, run: Path, tmp_path: Path):
    folder = shutil.copytree(run, tmp_path / "run")
    shutil.copy(run / "lm/model.safetensors", folder / "classifier/model.safetensors")
    with pytest.raises(UserError, match="does not fit the config beside it"):
        push(folder, NAME, "mit")
    (folder / "classifier/model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match="damaged or unreadable"):
        push(folder, NAME, "mit")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "no token of the hub: run `hf auth login`, or set HF_TOKEN to a token with write access"),
        ("hf_wrong", r"the hub rejects the token \(401\): run `hf auth login`"),
        (READ, r"the token may not write there \(403\): give your user name or organization"),
    ],
)
def test_a_token_without_rights_is_one_line(
    token: str, message: str, hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=f"^{NAME}: {message}"):
        push(run, NAME, "mit")
    assert NAME not in hub.repositories


def test_without_a_network_nothing_is_uploaded(hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=rf"{NAME}: the hub cannot be reached \(ConnectError: .*\): copy the model's folder"):
        push(run, NAME, "mit")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, so nothing is uploaded: unset it"):
        push(run, NAME, "mit")


def test_a_license_that_the_hub_refuses_is_one_line(hub: HubServer, run: Path):
    message = r"cannot be uploaded \(ValueError: Invalid metadata in README.md. - .license. must be one of apache-2.0, cc-by"
    with pytest.raises(UserError, match=message):
        push(run, NAME, "mine")
    assert len(hub.repositories[NAME].commits) == 1


@pytest.mark.parametrize(("typed", "code"), [("mit", 0), ("", 2)])
def test_a_terminal_asks_for_the_license(typed: str, code: int, hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", Terminal(f"{typed}\n"))
    result = command_here(["push", run, NAME])
    assert result.returncode == code, result.stderr
    assert "license of the model, such as apache-2.0" in result.stdout
    assert (NAME in hub.repositories) == (code == 0)


def test_labels_are_those_of_the_run(hub: HubServer, run: Path):
    push(run, NAME, "mit")
    assert json.loads(hub.files(NAME)["labels.json"]) == LABELS
