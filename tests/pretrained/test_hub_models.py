"""Models of the hub, downloaded by the hub's own client from a stand-in of its server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hub_server
import pytest
from conftest import command_here, succeed_here
from fastai_runs import VOCAB, make_models, make_table
from hub_server import READ, HubServer
from omegaconf import OmegaConf

from ulmfit_dist import load_classifier, load_ensemble, load_language_model
from ulmfit_dist.config.loading import to_yaml
from ulmfit_dist.config.schema import ModelConfig, RuntimeConfig
from ulmfit_dist.distributed.collectives import OneProcess
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.export.published import published_config
from ulmfit_dist.models.bundle import read_bundle
from ulmfit_dist.models.pretrained import fetch, open_pretrained
from ulmfit_dist.pretrained.hub import fetch_hub_model, model_path, model_paths, parse_reference

TEXT = "The team won the match and the cup."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "run"
    make_models(folder)
    return folder


@pytest.fixture
def hub(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A server with a classifier and a language model, which this process reaches with an empty cache."""
    with hub_server.serve() as server:
        server.connect(monkeypatch, tmp_path / "home")
        server.add("maria/reviews", run / "classifier")
        server.add("maria/lm", run / "lm")
        yield server


def lost_network(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections are refused: nothing listens on this port."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def hub_is_offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_classifier_of_the_hub_predicts_as_its_folder(hub: HubServer, run: Path):
    expected = load_classifier(run).predict_proba([TEXT])
    assert (load_classifier("hf:maria/reviews").predict_proba([TEXT]) == expected).all()


def test_a_language_model_of_the_hub_generates_as_its_folder(hub: HubServer, run: Path):
    assert load_language_model("hf:maria/lm").generate(TEXT, 5) == load_language_model(run).generate(TEXT, 5)


def test_only_the_files_of_a_model_are_downloaded(hub: HubServer):
    files = hub.files("maria/reviews")
    hub.repositories["maria/reviews"].commit(
        {**files, "lm.pkl": b"x", "weights.pth": b"x", "a.bin": b"x", "README.md": b"x"}
    )
    folder = fetch_hub_model("hf:maria/reviews")
    assert {path.name for path in folder.iterdir()} == files.keys()


def test_a_commit_names_one_version_of_a_model(hub: HubServer):
    repository = hub.repositories["maria/reviews"]
    (first, files) = repository.commits[0]
    second = repository.commit({**files, "labels.json": b'["a", "b", "c"]'})
    assert fetch_hub_model("hf:maria/reviews").name == second
    assert fetch_hub_model(f"hf:maria/reviews@{first}").name == first


def test_a_model_in_the_cache_is_not_downloaded_again(hub: HubServer):
    fetch_hub_model("hf:maria/reviews")
    hub.requests.clear()
    fetch_hub_model("hf:maria/reviews")
    assert hub.requests == ["GET /api/models/maria/reviews"]


@pytest.mark.parametrize("disconnect", [lost_network, hub_is_offline])
def test_without_a_network_the_cache_is_used(disconnect: Callable, hub: HubServer, monkeypatch: pytest.MonkeyPatch):
    folder = fetch_hub_model("hf:maria/reviews")
    disconnect(hub, monkeypatch)
    assert fetch_hub_model("hf:maria/reviews") == folder
    with pytest.raises(UserError, match=r"hf:maria/lm: not in the cache, .*: on a machine .* `hf download maria/lm` with"):
        fetch_hub_model("hf:maria/lm")


def test_an_interrupted_download_is_completed(hub: HubServer, monkeypatch: pytest.MonkeyPatch):
    folder = fetch_hub_model("hf:maria/reviews")
    (folder / "labels.json").unlink()  # without it, the files are those of a language model
    assert (fetch_hub_model("hf:maria/reviews") / "labels.json").is_file()
    (folder / "labels.json").unlink()
    hub_is_offline(hub, monkeypatch)
    with pytest.raises(UserError, match="not in the cache"):
        fetch_hub_model("hf:maria/reviews")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("hf:maria", "expected hf:USER/NAME or hf:USER/NAME@REVISION, such as"),
        ("hf:maria/a/b", "expected hf:USER/NAME"),
        ("hf:maria/../b", "expected hf:USER/NAME"),
        ("hf:maria/reviews@", "expected hf:USER/NAME"),
        ("hf:/maria/reviews", "expected hf:USER/NAME"),
        ("hf:maria/missing", "no such model on the hub, or a private one: check the name, or set HF_TOKEN"),
        ("hf:maria/reviews@v9", "the model has no revision v9: give a branch, a tag or a commit of maria/reviews"),
    ],
)
def test_a_name_that_is_wrong_is_one_line(reference: str, message: str, hub: HubServer):
    with pytest.raises(UserError) as error:
        load_classifier(reference)
    assert str(error.value).startswith(f"{reference}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_private_model_needs_a_token(hub: HubServer, monkeypatch: pytest.MonkeyPatch):
    hub.repositories["maria/reviews"].private = True
    with pytest.raises(UserError, match="or a private one: check the name, or set HF_TOKEN to a token that may read it"):
        fetch_hub_model("hf:maria/reviews")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=r"the hub rejects the token \(401\): set HF_TOKEN to a valid one"):
        fetch_hub_model("hf:maria/reviews")
    monkeypatch.setenv("HF_TOKEN", READ)
    assert fetch_hub_model("hf:maria/reviews").is_dir()


def test_a_gated_model_needs_its_terms_accepted(hub: HubServer):
    hub.repositories["maria/reviews"].gated = True
    with pytest.raises(UserError, match="access to this model is restricted: accept its terms on its page"):
        fetch_hub_model("hf:maria/reviews")


def test_an_error_of_the_hub_is_one_line(hub: HubServer):
    hub.status = 500
    with pytest.raises(UserError, match=r"the hub cannot be reached|answers with status 500"):
        fetch_hub_model("hf:maria/reviews")


def test_other_models_are_refused_before_the_download(hub: HubServer):
    files = hub.files("maria/reviews")
    hub.repositories["maria/reviews"].commit({"pytorch_model.bin": b"x", "config.json": b"{}"})
    with pytest.raises(
        UserError, match=r"not a model of ulmfit-dist \(no model.safetensors, config.yaml, .*\): give the name"
    ):
        fetch_hub_model("hf:maria/reviews")
    hub.repositories["maria/reviews"].commit({name: content for name, content in files.items() if name != "vocab.json"})
    with pytest.raises(UserError, match=r"not complete \(no vocab.json\)"):
        fetch_hub_model("hf:maria/reviews")
    assert not any("resolve" in request for request in hub.requests)


def test_a_file_of_excessive_size_is_refused_before_the_download(hub: HubServer):
    hub.sizes["vocab.json"] = 5 << 30
    with pytest.raises(UserError, match=r"vocab.json has 5,368,709,120 bytes, but at most 268,435,456 are allowed"):
        fetch_hub_model("hf:maria/reviews")
    assert not any("resolve" in request for request in hub.requests)


def test_code_that_a_model_of_the_hub_names_needs_trust(hub: HubServer):
    repository = hub.repositories["maria/reviews"]
    for section, key, value in (("model", "arch", "os.mkdir"), ("tokenizer", "rules", ["os.mkdir"])):
        files = dict(repository.commits[0][1])
        config = OmegaConf.create(files["config.yaml"].decode())
        config[section][key] = value
        repository.commit({**files, "config.yaml": OmegaConf.to_yaml(config).encode()})
        with pytest.raises(
            UserError, match=rf"its {section}\.{key} would call os\.mkdir: if you trust .* --trust-remote-code"
        ):
            load_classifier("hf:maria/reviews")


def test_pretrained_weights_come_from_the_hub(hub: HubServer, run: Path):
    config = ModelConfig(emb_sz=6, n_hid=8, n_layers=2)
    expected = open_pretrained(str(run), "model.pretrained", config).state
    actual = open_pretrained("hf:maria/lm", "model.pretrained", config).state
    assert actual.keys() == expected.keys()
    assert all((actual[key] == expected[key]).all() for key in expected)
    with pytest.raises(UserError, match=r"model\.pretrained=hf:maria/reviews is a classifier"):
        open_pretrained("hf:maria/reviews", "model.pretrained", config)


def test_training_fetches_weights_before_it_reads_them(hub: HubServer, monkeypatch: pytest.MonkeyPatch):
    with Runtime(RuntimeConfig(), keeps_group=True) as runtime:
        fetch("hf:maria/lm", runtime)
        hub_is_offline(hub, monkeypatch)
        assert len(open_pretrained("hf:maria/lm", "classifier.encoder", ModelConfig(emb_sz=6)).tokens) == len(VOCAB)
        with pytest.raises(UserError, match="hf:maria/reviews: not in the cache"):
            fetch("hf:maria/reviews", runtime)


class SecondRank(OneProcess):
    """The second of two ranks; it keeps the requests that were made by the end of each collective block."""

    rank, world_size = 1, 2

    def __init__(self, hub: HubServer, is_local_main: bool):
        self.hub, self.is_local_main = hub, is_local_main
        self.requests: list[int] = []

    def broadcast_object(self, value: Any) -> Any:
        """Return what rank 0 has sent."""
        return {"hf:maria/reviews": f"hf:maria/reviews@{self.hub.repositories['maria/reviews'].commits[0][0]}"}

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """Run the block."""
        yield
        self.requests.append(len(self.hub.requests))


@pytest.mark.parametrize("is_local_main", [True, False])
def test_the_first_rank_of_a_node_downloads_the_commit_of_rank_0(
    is_local_main: bool, hub: HubServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ulmfit_dist.pretrained.hub._pinned", {})
    (first, files) = hub.repositories["maria/reviews"].commits[0]
    hub.repositories["maria/reviews"].commit({**files, "labels.json": b'["a", "b", "c"]'})  # after rank 0 has looked
    ranks = SecondRank(hub, is_local_main)
    (folder,) = model_paths(["hf:maria/reviews"], ranks)
    assert folder.name == fetch_hub_model("hf:maria/reviews").name == first
    chosen, fetched, read = ranks.requests
    assert (chosen, fetched > 0, read > 0) == (0, is_local_main, True)
    assert (read == fetched) == is_local_main


def test_a_model_of_the_hub_is_evaluated_on_new_texts_only(hub: HubServer, run: Path, tmp_path: Path):
    repository = hub.repositories["maria/reviews"]
    config = published_config(read_bundle(run / "classifier").config, "reviews")
    repository.commit({**hub.files("maria/reviews"), "config.yaml": to_yaml(config).encode()})
    for words in ("evaluate", "show-results"):
        result = command_here([words, "hf:maria/reviews"])
        assert result.returncode == 2
        assert "a model of the hub has no texts of its own: evaluate it on labelled texts with --data FILE" in result.stderr
    make_table(12).to_csv(tmp_path / "new.csv")
    figures = json.loads(succeed_here(["evaluate", "hf:maria/reviews", "--data", tmp_path / "new.csv", "--json"]))
    assert figures["classifier"]["num_documents"] == 12


def test_an_ensemble_has_members_of_the_hub(hub: HubServer, run: Path):
    expected = load_ensemble([run, run]).predict_proba([TEXT])
    assert (load_ensemble([run, "hf:maria/reviews"]).predict_proba([TEXT]) == expected).all()


def test_an_export_is_not_written_to_the_cache(hub: HubServer, tmp_path: Path):
    for target in ("fastai", "onnx"):
        result = command_here(["export", "hf:maria/reviews", "--to", target])
        assert result.returncode == 2
        assert "hf:maria/reviews: a model of the hub: name the files to write with --output" in result.stderr
    succeed_here(["export", "hf:maria/reviews", "--to", "fastai", "--output", tmp_path / "out"])
    assert (tmp_path / "out/classifier.pth").is_file()


def test_other_paths_stay_as_they_are():
    assert model_path("runs/hf:x") == Path("runs/hf:x")
    assert parse_reference("hf:maria/reviews@refs/pr/1") == ("maria/reviews", "refs/pr/1")
