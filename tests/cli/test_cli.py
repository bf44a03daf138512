"""The command line: output, exit codes, and one line for each error."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import LEARNING, TINY, TOPICS, command, command_here, launch, make_folder, store_in, succeed, succeed_here

from ulmfit_dist.cli.main import main
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.bundle import load_encoder, read_bundle
from ulmfit_dist.models.networks import build_classifier, encoder_of


def refused(argv: list[object], message: str, processes: int | None = None) -> None:
    """Assert that a command fails with exit code 2 and one line that contains a message.

    Args:
        processes: number of processes to start; None: run in the test's process.
    """
    result = command_here(argv) if processes is None else command(argv, processes)
    errors = [line for line in result.stderr.splitlines() if "ulmfit-dist: error:" in line]
    assert len(errors) == 1, result.stdout + result.stderr
    assert message in errors[0]
    if processes in (None, 1):
        assert result.returncode == 2
        assert result.stderr.splitlines() == errors
    else:  # Accelerate's launcher has its own exit code and report
        assert result.returncode != 0
        assert "exitcode  : 2" in result.stderr.partition("Root Cause")[2]
        assert "Traceback" not in result.stderr.partition(errors[0])[0]


def test_help_names_every_command():
    text = succeed(["--help"], real=True)
    commands = (
        "prepare",
        "lm",
        "classifier",
        "run",
        "pretrain",
        "export",
        "evaluate",
        "predict",
        "ensemble",
        "export",
        "generate",
        "report",
        "dashboard",
        "show-batch",
        "show-results",
        "submit",
        "config",
    )
    for name in commands:
        assert re.search(rf"^ +{name}\b", text, re.MULTILINE)
    assert "--temperature" in succeed(["generate", "--help"])


def test_arguments_are_parsed_without_heavy_imports():
    code = """
import sys
from ulmfit_dist.cli.main import main
assert main(["run", "--frsh"]) == 2
print(sorted({"torch", "numpy", "fastai", "accelerate", "omegaconf", "rich"} & sys.modules.keys()))
"""
    assert launch(["-c", code], real=True).stdout == "[]\n"


def test_config_prints_each_key_with_its_meaning():
    text = succeed_here(["config", "configs/quickstart.yaml", "lm.global_batch_size=48"])
    (line,) = [line for line in text.splitlines() if line.startswith("lm.global_batch_size")]
    assert line.startswith("lm.global_batch_size: 48 ")
    assert "# Rows that the token stream is cut into" in line


def test_config_gives_scripts_single_values(capsys: pytest.CaptureFixture[str]):
    words = ["config", "configs/quickstart.yaml", "runs_dir=my runs"]
    assert main([*words, "--get", "runs_dir", "--get", "lm.global_batch_size"]) == 0
    assert capsys.readouterr().out == "my runs\n16\n"
    assert main([*words, "--get", "runs_dri"]) == 2
    assert "--get runs_dri: unknown key; did you mean 'runs_dir'?" in capsys.readouterr().err


def test_an_unexpected_error_names_its_rank(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def broken(recipe: str, overrides: list[str]) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("ulmfit_dist.config.loading.load_config", broken)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(ZeroDivisionError):
        main(["config", "configs/quickstart.yaml"])
    assert re.match(r"ulmfit-dist: rank 3 \(\S+, process \d+\) failed:\n", capsys.readouterr().err)


def test_overrides_and_options_may_come_in_any_order():
    refused(["run", "configs/quickstart.yaml", "a=1", "--fresh", "b=2"], "unknown key a", processes=1)
    refused(["run", "configs/quickstart.yaml", "--frsh"], "unrecognized arguments: --frsh", processes=1)
    refused(["prepare"], "required: CONFIG")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with one error each."""
    folder = tmp_path_factory.mktemp("wrong")
    make_folder(folder / "good", per_class=12)
    (folder / "one" / "only").mkdir(parents=True)
    for i in range(12):
        (folder / "one" / "only" / f"{i}.txt").write_text(f"the same class, text {i}")
    for split, classes in (("train", "ab"), ("valid", "abc")):
        for name in classes:
            (folder / "unseen" / split / name).mkdir(parents=True)
            for i in range(6):
                (folder / "unseen" / split / name / f"{i}.txt").write_text(f"text {i} of class {name}, {split}")
    (folder / "empty").mkdir()
    (folder / "file").write_text("not a folder")
    return folder


@pytest.mark.parametrize(
    ("data", "overrides", "printed"),
    [
        ("nowhere", [], "no such file or folder"),
        ("empty", [], "no .txt files"),
        ("one", [], "a single class, 'only'"),
        ("unseen", [], "label 'c' is in validation only (6 documents)"),
        ("good", ["lm.batch=3"], "unknown key lm.batch"),
        ("good", ["runtime.precision=fp16"], "use bf16"),
        ("good", ["runs_dir={place}/file"], "set runs_dir to a writable folder"),
        ("good", ["data.cache_dir={place}/file/cache"], "set data.cache_dir to a writable folder"),
        ("good", ["model.pretrained=/nowhere"], "model.pretrained=/nowhere"),
        ("good", ["tokenizer.lang=klingon"], "tokenizer.lang='klingon'"),
        ("good", ["data.token_store=/nowhere"], "no token store here"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_trained(
    place: Path, recipe: Path, data: str, overrides: list[str], printed: str
):
    words = ["run", recipe, *TINY, f"data.path={place / data}", f"runs_dir={place}/runs", f"data.cache_dir={place}/cache"]
    refused([*words, *(word.format(place=place) for word in overrides), "--quiet"], printed)
    assert not (place / "runs").exists()


def test_a_mistake_ends_all_ranks(place: Path, recipe: Path, tmp_path: Path):
    words = ["run", recipe, *TINY, f"data.path={place / 'good'}", f"runs_dir={tmp_path}", f"data.cache_dir={place}/cache"]
    refused([*words, "lm.global_batch_size=9"], "lm.global_batch_size=9 cannot be shared evenly by 2 ranks", processes=2)
    broken = make_folder(tmp_path / "broken", per_class=12)
    (broken / "sport" / "3.txt").write_bytes(b"\xff\xff")
    refused([*words, f"data.path={broken}"], "3.txt: byte 1 is not UTF-8", processes=2)


def test_the_classifier_alone_needs_a_language_model(place: Path, recipe: Path, tmp_path: Path):
    words = ["classifier", recipe, *TINY, f"data.path={place / 'good'}", f"data.cache_dir={place}/cache"]
    refused([*words, f"runs_dir={tmp_path}"], "no exported model here")


def test_an_encoder_of_another_vocabulary_is_refused(run_dirs: dict[str, Path], place: Path, recipe: Path, tmp_path: Path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "lm").symlink_to(run_dirs["one"] / "lm")
    words = ["classifier", recipe, *TINY, f"data.path={place / 'good'}", f"data.cache_dir={place}/cache", "name=other"]
    refused([*words, "tokenizer.min_freq=9", f"runs_dir={tmp_path}"], "was trained with another tokenizer.min_freq")
    exported = read_bundle(run_dirs["one"] / "lm")
    model = build_classifier(len(exported.vocab), 3, exported.config.model, exported.config.classifier)
    with pytest.raises(UserError, match=r"its vocabulary .* is not that of the texts"):
        load_encoder(encoder_of(model), exported, [*exported.vocab[:-1], "another"], exported.config.model)


def test_a_finished_run_is_not_trained_again_and_another_config_is_refused(
    run_dirs: dict[str, Path], corpus: Path, recipe: Path
):
    words = ["run", recipe, f"data.path={corpus}", *TINY, *LEARNING, f"runs_dir={run_dirs['caches']}", "name=one"]
    words += [f"data.cache_dir={run_dirs['caches']}/cache1"]
    before = (run_dirs["one"] / "metrics.jsonl").read_bytes()
    assert succeed_here([*words, "--verbose"]).count("already trained") == 2
    quiet, usual = succeed_here([*words, "--quiet"]), succeed_here(words)
    assert "train_loss" in usual  # the table of epochs
    assert "train_loss" not in quiet
    assert "report: " in quiet
    refused([*words, "lm.wd=0.2"], "lm.wd (now 0.2, then 0.1)")
    refused(["classifier", *words[1:], "seed=7"], "seed (now 7, then 42)")
    assert (run_dirs["one"] / "metrics.jsonl").read_bytes() == before


def test_training_needs_no_text_once_a_store_is_prepared(run_dirs: dict[str, Path], recipe: Path, tmp_path: Path):
    store = store_in(run_dirs["caches"] / "cache1")
    words = ["lm", recipe, *TINY, f"data.token_store={store}", f"runs_dir={tmp_path}", "tracking.wandb_mode=disabled"]
    assert re.search(r"^lm +2 +1/1 ", succeed(words, cwd=tmp_path), re.MULTILINE)
    assert not (tmp_path / "run" / "wandb").exists()
    refused([*words, "tokenizer.lang=de"], "was made with tokenizer.lang=en, but the config has de")


@pytest.mark.parametrize("processes", [None, 2])
def test_evaluate_finds_the_figures_of_the_training(run_dirs: dict[str, Path], processes: int | None):
    words = ["evaluate", "--json", run_dirs["one"], "--precision", "fp32"]
    text = succeed(words, processes) if processes else succeed_here(words)
    actual = json.loads(text[text.index("{") :])
    summary = json.loads((run_dirs["one"] / "summary.json").read_text())
    classifier = actual["classifier"]
    confusion = np.array(classifier.pop("confusion_matrix"))
    assert confusion.sum() == 52  # every document of the validation split, once
    assert confusion.trace() / 52 == classifier["accuracy"]
    classes, bins = classifier.pop("classes"), classifier.pop("reliability")
    assert [scores["label"] for scores in classes] == ["food", "sport", "tech"]
    assert [scores["support"] for scores in classes] == confusion.sum(1).tolist()
    assert np.mean([scores["f1"] for scores in classes]) == pytest.approx(classifier["f1_macro"])
    assert sum(entry["documents"] for entry in bins) == 52
    distances = [entry["documents"] * abs(entry["confidence"] - entry["accuracy"]) for entry in bins]
    assert sum(distances) / 52 == pytest.approx(classifier.pop("expected_calibration_error"))
    assert 0 < classifier.pop("brier_score") < 2
    # fp32: the training read these documents in smaller micro-batches (`runtime.canonical_ranks`), the language model's not
    for stage, tolerance in {"lm": 1e-9, "classifier": 1e-6}.items():
        for name, value in actual[stage].items():
            assert value == pytest.approx(summary[stage][name], rel=tolerance), (stage, name)


def test_predict_reads_the_command_line_a_file_and_standard_input(run_dirs: dict[str, Path], tmp_path: Path):
    texts = [" ".join(TOPICS[topic] * 3) for topic in ("food", "sport", "tech", "sport")]
    listed, output = tmp_path / "texts.txt", tmp_path / "labels.jsonl"
    listed.write_text("\n".join(texts) + "\n\none\u2028line\n")
    succeed(["predict", run_dirs["two"], "--file", listed, "--output", output])
    predictions = [json.loads(line) for line in output.read_text().split("\n")[:-1]]
    assert len(predictions) == 6  # one for each line, the empty one too
    assert [p["predicted_label"] for p in predictions[:4]] == ["food", "sport", "tech", "sport"]
    assert [p["text"] for p in predictions] == [*texts, "", "one\u2028line"]
    for row in predictions:
        assert sum(row[f"predicted_probability_{topic}"] for topic in ("food", "sport", "tech")) == pytest.approx(1)
    assert succeed_here(["predict", run_dirs["two"] / "classifier", texts[2]]).startswith("tech (2)")
    refused(["predict", run_dirs["two"], "--file", tmp_path / "none.txt"], "none.txt")
    (tmp_path / "empty").mkdir()
    refused(["predict", run_dirs["two"], "--file", tmp_path / "empty"], "no .txt file in it")
    refused(["predict", run_dirs["two"], "a text", "--output", tmp_path / "no" / "file.csv"], "no folder")
    refused(["predict", tmp_path, "a text"], "no classifier model here")
    refused(["predict", run_dirs["two"], "a text", "--file", listed], "give one of them")


def test_generate_prints_samples_that_a_seed_repeats(run_dirs: dict[str, Path]):
    words = ["generate", run_dirs["one"], "The match", "--words", "12"]
    first, second = succeed(words, real=True).splitlines()  # in a process of its own: what it draws does not depend on it
    assert first.startswith("1: The match ")
    assert second.startswith("2: The match ")
    assert first[3:] != second[3:]
    assert succeed_here(words).splitlines() == [first, second]
    assert "xxunk" not in first + second
    refused([*words, "--temperature", "0"], "temperature=0.0")
