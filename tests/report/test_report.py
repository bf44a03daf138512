"""Report: the page shows the values of the run's files, and has no external links or scripts."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import LABELS, classifier_tables, make_run

from ulmfit_dist.errors import UserError
from ulmfit_dist.report.charts import MOST_POINTS, thin
from ulmfit_dist.report.confusion import read_reliability
from ulmfit_dist.report.figures import stage_charts
from ulmfit_dist.report.page import write_report
from ulmfit_dist.report.runs import read_run

VOID = {"meta", "br", "link", "img", "use", "input"}
HOSTILE = (
    "<script>alert('x')</script>\"'><img src=http://evil.test/x.png onerror=alert(1)> {{ 7 * 7 }} $\\frac{x}$ & \x00 \ud800"
)


class Page(HTMLParser):
    """Parser of a page that requires every tag to be closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(*runs: Path) -> Page:
    return Page(write_report(runs, runs[0] / "report.html").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    """The report of `run`."""
    return read(run)


def assert_has_the_summarys_figures(page: Page, run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    shown = {float(str(data["value"])) for data in page.all("data")}
    assert shown == {value for stage in ("lm", "classifier") for value in summary[stage].values()}


def test_final_figures_are_those_of_the_summary(run: Path, page: Page):
    assert_has_the_summarys_figures(page, run)


def test_a_training_ends_with_its_report(run_dirs: dict[str, Path]):
    page = Page((run_dirs["two"] / "report.html").read_text())
    assert_has_the_summarys_figures(page, run_dirs["two"])
    assert len(page.all("svg")) > 10


def test_nothing_leads_out_of_the_page_and_nothing_runs(run: Path, page: Page):
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "img", "base", "form")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            assert str(attributes.get(name, "#")).startswith("#")
    html = (run / "report.html").read_text()
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "@import" not in html
    assert "//" not in html
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'")


def test_every_reference_has_one_target(run: Path, page: Page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    html = (run / "report.html").read_text()
    targets = {str(attributes["href"])[1:] for _, attributes in page.tags if "href" in attributes}
    assert targets | set(re.findall(r"url\(#([^)]*)\)", html)) <= set(ids)


def test_all_of_a_run_is_there(run: Path, page: Page):
    headings = {text for tag, text in page.texts if tag in ("h2", "h3")}
    assert headings >= {"Loss", "Perplexity", "Learning rate", "Validation accuracy", "Validation accuracy and macro-F1"}
    assert headings >= {"Throughput", "Where the time of a step goes", "Gradient norm", "Memory", "Confusion matrix"}
    assert headings >= {"Most wrong", "Samples of the language model", "How to reproduce"}
    charts = page.all("svg")
    assert len(charts) == 8 + 7
    assert all(str(chart["aria-label"]).startswith("Chart: ") for chart in charts)
    words = [text for _, text in page.texts]
    assert words.count("phase 1") == words.count("phase 2") == 7  # the language model's only phase needs no mark
    assert len(page.all("h1")) == 1
    assert f"ulmfit-dist run {run}/config.yaml\nulmfit-dist run {run}/config.yaml name=quickstart-again" in words


def test_a_validation_stands_where_its_epoch_ends(run: Path):
    charts = {chart.title: chart for chart in stage_charts("classifier", [read_run(run)], "chart")}
    by_epoch, by_step = charts["Validation accuracy and macro-F1"], charts["Loss"]
    assert by_epoch.series[0].x.tolist() == [1, 2, 3, 4, 5]
    assert by_step.series[-1].x.tolist() == [111, 222, 333, 444, 555]
    assert (by_epoch.phases, by_step.phases) == ([0, 1, 5], [0, 111, 555])


def test_the_confusion_matrix_is_that_of_the_run(run: Path):
    html = write_report([run]).read_text()
    rows = re.findall(r"<tr>(.*?)</tr>", html.split('<table class="confusion">')[1].split("</table>")[0], re.DOTALL)[1:]
    shown = [[int(count) for count in re.findall(r"<td[^>]*>(\d+)", row)] for row in rows]
    assert shown == json.loads((run / "tables.json").read_text())["classifier"]["confusion_matrix"]


def test_the_reliability_of_labels_is_that_of_the_run(page: Page):
    words = [text for _, text in page.texts]
    place = words.index("0.60 to 0.67")
    assert words[place : place + 8] == ["0.60 to 0.67", "81", "0.600", "0.900", "0.93 to 1.00", "126", "0.933", "0.900"]


@pytest.mark.parametrize("entry", [5, None, {}, {"low": 0, "high": 1, "documents": 0.5, "confidence": 0.5, "accuracy": 0.5}])
def test_bins_that_are_none_are_left_out(entry: Any):
    sound = {"low": 0, "high": 1, "documents": 3, "confidence": 0.5, "accuracy": 1}
    assert read_reliability([entry, sound, {**sound, "accuracy": "1"}, {**sound, "low": float("nan")}]) == [
        (0, 1, 3, 0.5, 1)
    ]
    assert read_reliability(entry) == []


@pytest.mark.parametrize(
    "matrix", [[[1, 2]], [[1, 2], [3]], [[1, 2], [3, 4, 5]], [[1, -2], [3, 4]], [[1, 0.5], [3, 4]], 5, None]
)
def test_a_matrix_that_is_none_is_left_out(tmp_path: Path, matrix: Any):
    run = make_run(tmp_path / "run", stages=())
    (run / "tables.json").write_text(json.dumps({"classifier": {"labels": ["a", "b"], "confusion_matrix": matrix}}))
    words = [text for _, text in read(run).texts]
    assert any(word.startswith("the confusion matrix of tables.json does not") for word in words)
    assert "Confusion matrix" not in words


def test_what_is_hostile_is_text(tmp_path: Path):
    run = make_run(tmp_path / "run", name=HOSTILE, note={HOSTILE: HOSTILE})
    tables = classifier_tables([HOSTILE, *LABELS]) | {"most_wrong": [{"document": 1, "label": HOSTILE, "text": HOSTILE}]}
    samples = [{"epoch": 1, "text": HOSTILE}]
    (run / "tables.json").write_text(json.dumps({"lm": {"samples": samples}, "classifier": tables}))
    (run / "environment.json").write_text(json.dumps(dict.fromkeys(("command", "revision", "host"), HOSTILE)))
    other = make_run(tmp_path / "<b>", name="</title><script>", note=HOSTILE)
    for runs in ([run], [run, other]):
        page = read(*runs)
        assert not {"script", "img", "b>"} & {tag for tag, _ in page.tags}
        assert sum(HOSTILE[:27] in text for _, text in page.texts) > 5
        assert not any("49" in text and "alert" in text for _, text in page.texts)


def test_a_run_that_was_killed_has_a_report_of_what_there_is(tmp_path: Path):
    run = make_run(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:70]) + lines[70][:40])
    for name in ("summary.json", "tables.json", "environment.json", "config.yaml"):
        (run / name).unlink()
    words = [text for _, text in read(run).texts]
    assert "the last line of metrics.jsonl is truncated and is omitted." in words
    assert any("Language model not finished: 1 epochs, last logged at step 345" in word for word in words)


@pytest.mark.parametrize("content", [b"", b"\n", b"[]\n", b'{"stage": "lm"}\n', b"\xff\xfe\n", b"[" * 100_000 + b"\n"])
def test_metrics_of_any_content_make_a_page(tmp_path: Path, content: bytes):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    assert "Nothing has been measured yet." in [text for _, text in read(tmp_path).texts]


@pytest.mark.parametrize(
    "content", ["[1, 2]", "{", '{"lm": 3, "classifier": {"labels": 1}}', "a: &a [*a]", "[" * 100_000, '"\\ud800"']
)
def test_other_files_of_any_content_make_a_page(tmp_path: Path, content: str):
    run = make_run(tmp_path / "run", stages=())
    for name in ("summary.json", "tables.json", "environment.json", "config.yaml"):
        (run / name).write_text(content)
    assert "How to reproduce" in [text for _, text in read(run).texts]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e308", "1" + "0" * 400, "null", '"x"', "0", "-1"])
def test_values_that_are_no_figures_make_a_page(tmp_path: Path, value: str):
    run = make_run(tmp_path / "run")
    for name, keys in (("metrics.jsonl", r"\w+/\w+"), ("summary.json", r"\w+"), ("tables.json", r"\w+")):
        content = (run / name).read_text()
        (run / name).write_text(re.sub(rf'("{keys}": )-?[\d.]+(e-?\d+)?(?=[,}}])', rf"\g<1>{value}", content))
    page = read(run)
    assert page.all("svg") or value not in ("0", "-1")
    assert not any(re.search("nan|inf", str(path.get("d"))) for path in page.all("path"))


def test_a_run_of_the_language_model_alone(tmp_path: Path):
    run = make_run(tmp_path / "run", stages=("lm",))
    (run / "tables.json").unlink()
    headings = [text for tag, text in read(run).texts if tag == "h2"]
    assert "Language model" in headings
    assert not {"Classifier", "Confusion matrix", "Most wrong"} & set(headings)


def test_metrics_of_older_runs(tmp_path: Path):
    run = make_run(tmp_path / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = ("learning_rate", "valid_loss", "perplexity", "accuracy", "f1_macro", "train_loss")
    older = [
        {
            key.replace("/loss", "/train_loss"): value
            for key, value in line.items()
            if "/" not in key or key.endswith((*kept, "/loss"))
        }
        for line in lines
    ]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in older))
    page = read(run)
    assert len(page.all("svg")) == 4 + 3
    assert "training" in [text for _, text in page.texts]


def test_runs_are_compared(run: Path, tmp_path: Path):
    better = make_run(tmp_path / "better", gain=0.05, speed=2.0, drop_mult=0.5)
    page = read(better, run)
    words = [text for _, text in page.texts]
    assert "2 runs compared" in words
    differing = [text for tag, text in page.texts if tag == "code" and "." in text and not text.startswith("0")]
    assert differing == ["classifier.drop_mult", "lm.drop_mult"]
    for folder in (run, better):
        summary = json.loads((folder / "summary.json").read_text())
        shown = {float(str(data["value"])) for data in page.all("data")}
        assert {value for stage in ("lm", "classifier") for value in summary[stage].values()} <= shown
    best = [attributes for attributes in page.all("td") if "best" in str(attributes.get("class"))]
    assert len(best) == 8
    assert {"Training loss", "Validation loss", "Validation perplexity"} <= set(words)
    assert len(page.all("table")) > 8


def test_phases_are_marked_where_all_runs_have_the_same(run: Path, tmp_path: Path):
    shorter = make_run(tmp_path / "shorter")
    lines = [json.loads(line) for line in (shorter / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["stage"] == "lm" or line["phase"] == 0]
    (shorter / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in kept))
    marks = [{text for _, text in read(*runs).texts if text.startswith("phase ")} for runs in ([run], [shorter, run])]
    assert marks == [{"phase 1", "phase 2"}, set()]


def test_runs_of_one_name_are_told_apart(tmp_path: Path):
    runs = [make_run(tmp_path / folder, name="run", stages=()) for folder in "ab"]
    words = [text for _, text in read(*runs).texts]
    assert {str(path) for path in runs} <= set(words)


@pytest.mark.parametrize("count", [1, 2, 100, 300])
def test_any_number_of_classes(tmp_path: Path, count: int):
    run = make_run(tmp_path / "run", stages=())
    labels = [f"class {i}" for i in range(count)]
    (run / "tables.json").write_text(json.dumps({"classifier": classifier_tables(labels, text=False)}))
    page = read(run)
    assert ("Most frequent mistakes" in [text for _, text in page.texts]) == (count > 2)
    assert any("tracking.log_text=true" in text for _, text in page.texts)


def test_long_curves_keep_their_peaks():
    y = np.random.default_rng(0).normal(size=100_000)
    y[500:60_000] = np.nan
    y[77_777] = 99.0
    x, thinned = thin(np.arange(len(y)), y)
    assert len(x) <= MOST_POINTS
    assert (99.0, 77_777) in zip(thinned, x, strict=True)
    assert np.isnan(thinned).any()
    assert (np.diff(x) > 0).all()


def test_equal_runs_have_equal_reports(run: Path, tmp_path: Path):
    first, second = (write_report([run], tmp_path / name).read_bytes() for name in ("1.html", "2.html"))
    assert first == second


def test_where_the_report_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run, other = (make_run(tmp_path / name, stages=()) for name in ("run", "other"))
    assert write_report([run]) == run / "report.html"
    assert write_report([run, other]) == Path("report.html")
    assert not list(tmp_path.glob("*.tmp"))


def test_what_cannot_be_reported_on_is_said_in_one_line(tmp_path: Path):
    run = make_run(tmp_path / "run", stages=())
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder" / "metrics.jsonl").mkdir(parents=True)
    (tmp_path / "file").touch()
    for runs, output, message in (
        ([], None, "no run to report on"),
        ([tmp_path / "missing"], None, "missing: no such folder: name a run directory"),
        ([tmp_path / "file"], None, "file: no such folder: name a run directory"),
        ([run, tmp_path / "empty"], None, "empty: not a run directory .no metrics.jsonl.: name one"),
        ([tmp_path / "folder"], None, "metrics.jsonl: cannot be read .not a regular file."),
        ([run], tmp_path, "cannot be written .Is a directory.: name another file"),
        ([run], tmp_path / "missing" / "report.html", "missing is not a folder.: name another file"),
        ([run], tmp_path / "file" / "report.html", "file is not a folder.: name another file"),
    ):
        with pytest.raises(UserError, match=message) as error:
            write_report(runs, output)
        assert "\n" not in str(error.value)
