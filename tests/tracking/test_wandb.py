"""W&B runs, online with a server on loopback and offline: every row arrives exactly once, despite failures."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import wandb
from conftest import TINY, succeed
from killing import history
from wandb_server import Server, wandb_server

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import Config, TrackingConfig
from ulmfit_dist.errors import UserError
from ulmfit_dist.tracking.metric_logger import MetricRow
from ulmfit_dist.tracking.wandb_files import files_of, last_row, records
from ulmfit_dist.tracking.wandb_process import wandb_mode
from ulmfit_dist.tracking.wandb_run import WandbRun, where_offline

pytestmark = pytest.mark.distributed  # W&B has a process of its own
KEY = "a" * 40


@pytest.fixture
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """Remove the login, and reset wandb's cached environment before and after."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    yield monkeypatch
    wandb.teardown()


@pytest.fixture
def server(no_login: pytest.MonkeyPatch) -> Iterator[Server]:
    no_login.setattr("ulmfit_dist.tracking.wandb_run.SHUTDOWN_SECONDS", 120)  # on a busy machine W&B's service takes long
    with wandb_server() as server:
        no_login.setenv("WANDB_BASE_URL", server.url)
        no_login.setenv("WANDB_API_KEY", KEY)
        yield server
        wandb.teardown()


def config(folder: Path, **tracking: Any) -> Config:
    words = [f"tracking.{key}={value}" for key, value in {"wandb_timeout": 120, **tracking}.items()]
    composed = load_config(overrides=["data.source=bbc_news", f"runs_dir={folder}", "name=a", *words])
    composed.run_dir.mkdir(parents=True, exist_ok=True)
    return composed


def rows(numbers: range, factor: float = 1.0) -> list[MetricRow]:
    return [MetricRow(number, {"lm/loss": number * factor}) for number in numbers]


def files(folder: Path, run_id: str) -> list[Path]:
    """Return the files of a run after its last start has ended in them, which wandb's service process delays."""
    while not any(record.HasField("exit") for record in records(files_of(folder, run_id)[-1])):
        time.sleep(0.01)
    return files_of(folder, run_id)


def written(folder: Path, run_id: str) -> list[dict[str, Any]]:
    """Return the history in all files of a run."""
    return history(*files(folder, run_id))


def test_auto_is_offline_unless_logged_in(no_login: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert wandb_mode(TrackingConfig()) == "offline"
    no_login.setenv("WANDB_API_KEY", KEY)
    wandb.teardown()
    assert wandb_mode(TrackingConfig()) == "online"
    no_login.setenv("WANDB_API_KEY", "short")
    wandb.teardown()
    assert wandb_mode(TrackingConfig()) == "offline"
    assert "warning: no login to W&B (" in capsys.readouterr().err
    no_login.setenv("WANDB_MODE", "garbage")
    with pytest.raises(UserError, match="WANDB_MODE=garbage: give online, offline or disabled"):
        wandb_mode(TrackingConfig())
    no_login.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(TrackingConfig()) == "disabled"
    assert wandb_mode(TrackingConfig(wandb_mode="offline")) == "offline"


def test_an_online_run_sends_its_history_its_texts_and_its_model(
    corpus: Path, recipe: Path, run_dirs: dict[str, Path], tmp_path: Path
):
    words = [
        "lm",
        recipe,
        *TINY,
        f"data.path={corpus}",
        f"data.cache_dir={run_dirs['caches']}/cache1",
        f"runs_dir={tmp_path}",
    ]
    words += ["tracking.log_text=true", "tracking.log_model=true", "tracking.num_samples=2", "tracking.tags=[short]"]
    with wandb_server() as server:
        output = succeed(words, WANDB_MODE="online", WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    ((run_id, run),) = server.runs.items()
    assert f"W&B: {server.url}/me/ulmfit/runs/{run_id}" in output
    assert run.exit_code == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["lm/step"] for row in run.history.values()] == [line["step"] for line in lines]
    for row, line in zip(run.history.values(), lines, strict=True):
        metrics = {name: value for name, value in line.items() if "/" in name}
        assert {name: row[name] for name in metrics} == pytest.approx(metrics)
    tables = [json.loads(content)["data"] for name, content in run.files.items() if "lm/samples" in name]
    texts = json.loads((tmp_path / "run/tables.json").read_text())["lm"]["samples"]
    assert max(tables, key=len) == [[sample["epoch"], sample["text"]] for sample in texts]
    assert len(texts) == 2 * 2
    (model,), (source,) = server.versions("run-lm"), server.versions("run-texts")
    assert (model.made_by, source.used_by) == (run_id, [run_id])
    assert source.metadata["num_documents"] == 210
    assert model.files["model.safetensors"] == (tmp_path / "run/lm/model.safetensors").read_bytes()
    assert run.upserts[0]["tags"] == ["short"]
    assert "environment" in json.loads(run.config)


def test_a_run_that_goes_on_sends_what_the_server_lacks_and_nothing_twice(server: Server, tmp_path: Path):
    run = WandbRun(config(tmp_path), "online", {})
    for row in rows(range(5)):
        run.log(row)
    assert run.finish(1) == [f"W&B: {server.url}/me/ulmfit/runs/{run.id}"]
    again = WandbRun(config(tmp_path), "online", {"world_size": 1}, run.id, rows(range(3), factor=9))
    for row in rows(range(3, 7), factor=9):
        again.log(row)
    again.finish(0)
    lost = WandbRun(config(tmp_path), "online", {"world_size": 2}, run.id, rows(range(9)))
    lost.finish(0)
    ((run_id, kept),) = server.runs.items()
    assert run_id == run.id
    expected = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 45, 6: 54, 7: 7, 8: 8}
    assert [(row["_step"], row["lm/loss"]) for row in kept.history.values()] == list(expected.items())


def test_starts_without_a_network_make_one_run_when_they_are_sent(server: Server, tmp_path: Path):
    folder = tmp_path / "a/wandb"
    first = WandbRun(config(tmp_path), "offline", {})
    for row in rows(range(5)):
        first.log(row)
    first.finish(1)
    (path,) = files(folder, first.id)
    content = path.read_bytes()
    path.write_bytes(content[:-200])  # as a kill leaves it
    assert last_row(folder, first.id) == 3
    time.sleep(1)  # W&B's folders are named by the second
    again = WandbRun(config(tmp_path), "offline", {}, first.id, rows(range(4)))
    for row in rows(range(4, 7)):
        again.log(row)
    output = again.finish(0)
    assert [row["_step"] for row in written(folder, first.id)] == list(range(7))
    command = output[0].removeprefix("W&B is offline: send it with: ")
    subprocess.run(f"{sys.executable} -m {command}", shell=True, check=True, cwd=tmp_path, capture_output=True)
    assert [row["_step"] for row in server.runs[first.id].history.values()] == list(range(7))


def test_an_online_start_takes_over_what_offline_ones_have_not_sent(server: Server, tmp_path: Path):
    offline = WandbRun(config(tmp_path), "offline", {})
    for row in rows(range(3)):
        offline.log(row)
    output = offline.finish(1)
    time.sleep(1)  # W&B's folders are named by the second
    WandbRun(config(tmp_path), "online", {}, offline.id, rows(range(3))).finish(0)
    command = output[0].removeprefix("W&B is offline: send it with: ")
    subprocess.run(f"{sys.executable} -m {command}", shell=True, check=True, cwd=tmp_path, capture_output=True)
    assert [row["_step"] for row in server.runs[offline.id].history.values()] == [0, 1, 2]
    assert where_offline(tmp_path / "a/wandb", offline.id) == []


def test_a_run_that_the_environment_names_appends_to_what_the_server_has(server: Server, tmp_path: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_RUN_ID", "mine")
        for name, resume in (("first", None), ("second", "allow")):
            if resume is not None:
                patch.setenv("WANDB_RESUME", resume)
            wandb.teardown()
            run = WandbRun(config(tmp_path / name), "online", {})
            for row in rows(range(3)):
                run.log(row)
            run.finish(1)
    wandb.teardown()
    again = WandbRun(config(tmp_path / "second"), "online", {}, run.id, rows(range(3)))
    for row in rows(range(3, 5)):
        again.log(row)
    again.finish(0)
    history = [(row["_step"], row["lm/loss"]) for row in server.runs["mine"].history.values()]
    assert history == [*enumerate([0, 1, 2, 0, 1, 2, 3, 4])]


def test_a_process_of_wandbs_that_hangs_is_not_waited_for(
    no_login: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    no_login.setattr("ulmfit_dist.tracking.wandb_run.SHUTDOWN_SECONDS", 1)
    run = WandbRun(config(tmp_path, wandb_timeout=0.5), "offline", {})
    run.log(rows(range(1))[0])
    run._thread.submit(lambda: None).result()
    (core,) = [child for child in psutil.Process().children() if child.name().startswith("wandb")]
    core.suspend()
    began = time.monotonic()
    assert run.finish(0) == []
    assert time.monotonic() - began < 60  # it waits for 1.5 seconds, and a suspended process would hang for good
    assert capsys.readouterr().err.startswith(
        "warning: W&B did not receive all data within 0.5 seconds: send it with: wandb sync "
    )


def test_where_no_server_answers_the_run_goes_on_offline(
    no_login: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    no_login.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    no_login.setenv("WANDB_API_KEY", KEY)
    run = WandbRun(config(tmp_path), "online", {})
    run.log(rows(range(1))[0])
    send, look = run.finish(0)
    warning = "warning: W&B cannot be reached (http://127.0.0.1:9: ConnectionError): the run continues offline\n"
    assert capsys.readouterr().err == warning
    assert send == f"W&B is offline: send it with: wandb sync {tmp_path}/a/wandb/offline-run-*-{run.id}"
    assert look.startswith("view the run in the terminal: wandb beta leet ")
    assert [row["_step"] for row in written(tmp_path / "a/wandb", run.id)] == [0]


def test_a_server_that_never_answers_counts_as_none(
    no_login: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    no_login.setattr("ulmfit_dist.tracking.wandb_run.ANSWER_SECONDS", 0.5)
    no_login.setenv("WANDB_API_KEY", KEY)
    with socket.create_server(("127.0.0.1", 0)) as door:
        no_login.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{door.getsockname()[1]}")
        run = WandbRun(config(tmp_path), "online", {})
        run.log(rows(range(1))[0])
        assert run.finish(0)[0].startswith("W&B is offline: ")
    assert re.fullmatch(r"warning: W&B cannot be reached \(.*: ReadTimeout\): .* offline\n", capsys.readouterr().err)
    assert [row["_step"] for row in written(tmp_path / "a/wandb", run.id)] == [0]


def test_a_server_that_is_none_of_wandbs_counts_as_none(
    no_login: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    no_login.setenv("WANDB_INIT_TIMEOUT", "2")
    no_login.setattr(BaseHTTPRequestHandler, "log_message", lambda *_: None)
    no_login.setenv("WANDB_API_KEY", KEY)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:  # answers every request with 501
        threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.05}).start()
        no_login.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{other.server_port}")
        run = WandbRun(config(tmp_path), "online", {})
        run.log(rows(range(1))[0])
        output = run.finish(0)
        other.shutdown()
    assert output[0].startswith("W&B is offline: ")
    assert re.fullmatch(r"warning: W&B could not start \(.*\): the run continues offline\n", capsys.readouterr().err)
    assert [row["_step"] for row in written(tmp_path / "a/wandb", run.id)] == [0]


def test_a_server_that_dies_costs_no_more_than_the_timeout_and_nothing_is_lost(
    no_login: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    no_login.setenv("WANDB_API_KEY", KEY)
    with wandb_server() as server:
        no_login.setenv("WANDB_BASE_URL", server.url)
        run = WandbRun(config(tmp_path, wandb_timeout=1), "online", {})
        for row in rows(range(3)):
            run.log(row)
        while run.id not in server.runs:
            time.sleep(0.01)
    for row in rows(range(3, 200)):
        run.log(row)
    run.finish(0)
    errors = capsys.readouterr().err
    assert "W&B did not receive all data within tracking.wandb_timeout=1 seconds: send it with: wandb sync " in errors
    assert errors.endswith(f"/run-*-{run.id} --include-online\n")
    assert [row["_step"] for row in written(tmp_path / "a/wandb", run.id)] == list(range(200))
