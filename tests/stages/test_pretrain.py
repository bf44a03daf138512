"""A language model pretrained once, and what is trained from it elsewhere: real processes, as a user starts them."""

import json
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY, TOPICS, command, make_folder, make_text, succeed, succeed_here
from killing import finish, start, steps_noted
from safetensors.torch import load_file

from ulmfit_dist import load_classifier, load_language_model

PLACE = ("tracking.wandb_mode=disabled", "runs_dir=.", "data.cache_dir=cache")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """A folder with `wiki`, a language model pretrained on texts without labels, and the `texts` of a task."""
    folder, rng = tmp_path_factory.mktemp("pretrain"), random.Random(5)
    texts = [make_text(topic, rng.randint(10, 40), rng) for topic in TOPICS for _ in range(40)]
    (folder / "wiki.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    source = ["data.source=json", "data.path=wiki.jsonl", "name=wiki"]
    output = succeed(["pretrain", recipe, *TINY, *PLACE, *source], cwd=folder)
    assert "classifier" not in output
    make_folder(folder / "texts", per_class=40)
    return folder


def test_a_pretrained_language_model_is_a_run_of_its_own(place: Path, recipe: Path):
    assert len(load_language_model(place / "wiki").generate("The match", words=3)) == 1
    assert json.loads((place / "wiki/summary.json").read_text()).keys() >= {"lm", "seconds"}
    assert not (place / "wiki/classifier").exists()
    words = ["pretrain", recipe, *TINY, *PLACE, "data.source=json", "data.path=wiki.jsonl", "name=wiki", "--verbose"]
    assert "lm: already trained" in succeed_here(words, cwd=place)


def test_a_classifier_straight_from_a_pretrained_model(place: Path, recipe: Path):
    shared = ["run", recipe, *TINY, *PLACE, "data.path=texts", "runtime.canonical_ranks=2"]
    straight = [*shared, "model.pretrained=wiki", "classifier.encoder=pretrained", "name=straight"]
    output = succeed(straight, processes=2, cwd=place)
    assert "pretrained wiki: " in output
    assert re.search(
        r"tokens of the vocabulary have a pretrained embedding \(\d+\.\d% of the texts\), the others get", output
    )
    assert "\nlm " not in output
    assert "\nreport: " in output
    assert not (place / "straight/lm").exists()
    assert load_classifier(place / "straight").predict([" ".join(TOPICS["food"])])[0].label in TOPICS
    succeed([*shared, "classifier.encoder=wiki/lm", "name=named"], cwd=place)  # the same by its place, on one rank
    ours, reference = (load_file(place / name / "classifier/model.safetensors") for name in ("straight", "named"))
    assert all(torch.equal(ours[name], reference[name]) for name in reference)
    assert "classifier: already trained" in succeed_here([*straight, "lm.wd=0.3", "--verbose"], cwd=place)


def test_a_classifier_on_an_encoder_from_elsewhere_goes_on_where_it_was_stopped(place: Path, recipe: Path, tmp_path: Path):
    phases = "{lr: 1e-2, freeze_to: -1, pct_start: 0.99}, {epochs: 8, lr: [5e-5, 5e-3], pct_start: 0.3, div: 5}"
    words = [
        "run",
        recipe,
        *TINY,
        f"classifier.phases=[{phases}]",
        f"data.path={place}/texts",
        f"data.cache_dir={place}/cache",
        f"runs_dir={tmp_path}",
    ]
    words += [f"classifier.encoder={place}/wiki", "tracking.wandb_mode=disabled"]
    finish(start([*words, "name=whole"], 1, tmp_path / "whole-notes"))
    process = start([*words, "name=stopped"], 1, tmp_path / "notes")
    while steps_noted(tmp_path / "notes") < 150 and process.poll() is None:  # a line per document: in the second phase
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 85
    assert "classifier: resumes from" in finish(start([*words, "name=stopped"], 1, tmp_path / "notes"))
    ours, reference = (load_file(tmp_path / name / "classifier/model.safetensors") for name in ("stopped", "whole"))
    assert all(torch.equal(ours[name], reference[name]) for name in reference)


def test_a_language_model_starts_from_a_pretrained_one(place: Path, recipe: Path):
    words = ["lm", recipe, *TINY, *PLACE, "data.path=texts", "model.pretrained=wiki", "lm.phases=[{lr: 1e-9}]", "name=tuned"]
    assert "pretrained wiki: " in succeed(words, cwd=place)
    ours, reference = (load_file(place / name / "lm/model.safetensors") for name in ("tuned", "wiki"))
    for name in ("0.rnns.0.weight_hh_l0_raw", "0.rnns.1.module.weight_ih_l0"):
        torch.testing.assert_close(ours[name], reference[name], rtol=1e-4, atol=1e-5)


def test_where_wikipedias_weights_cannot_be_fetched_all_ranks_end_with_one_line(place: Path, recipe: Path, tmp_path: Path):
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    sizes_left_out = [word for word in TINY if not word.startswith("model=")]  # they come with the weights
    words = ["run", recipe, *sizes_left_out, *PLACE, "data.path=texts", "model.pretrained=wt103_fwd"]
    words += ["classifier.encoder=pretrained"]
    result = command([*words, "name=wt"], processes=2, cwd=place, FASTAI_HOME=str(tmp_path), **nowhere)
    (output,) = [line for line in result.stderr.splitlines() if line.startswith("ulmfit-dist: error:")]
    assert "cannot be downloaded (URLError): download it on a machine with a network and unpack it to" in output
    assert "exitcode  : 2" in result.stderr  # in the launcher's report
    assert not (place / "wt").exists()
