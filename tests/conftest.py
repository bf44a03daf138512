"""Fixtures and helpers of all tests: a generated corpus, and real processes."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import forked
import kinds
import pytest
from filelock import FileLock

from ulmfit_dist.utils.log import console_by_default

HOME = tempfile.mkdtemp(prefix="ulmfit-dist-tests-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "HF_HOME": f"{HOME}/hf", "FASTAI_HOME": f"{HOME}/fastai"}
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait stop all others on a busy machine

console_by_default()  # as `Runtime` does, for tests that create none

ROOT = Path(__file__).parents[1]
TOPICS = {
    "sport": "match goal team player coach league cup season score win".split(),
    "tech": "computer software phone network chip browser data user code server".split(),
    "food": "bread soup kitchen salt recipe oven cheese pepper plate sauce".split(),
}
FILLERS = "the a of and in with for on was is The A He She they".split()

TINY = (
    "runtime.precision=fp32",
    "data.documents_per_shard=48",
    "data.valid_pct=0.25",
    "tokenizer.min_freq=1",
    "model={emb_sz: 16, n_hid: 20, n_layers: 2}",
    "lm.global_batch_size=8",
    "lm.seq_len=10",
    "lm.phases=[{epochs: 1, lr: 5e-2, freeze_to: -1}, {epochs: 1, lr: 5e-2}]",
    "classifier.baseline=false",
    "classifier.global_batch_size=8",
    "classifier.seq_len=10",
    "classifier.max_len=20",
    "classifier.phases=[{epochs: 1, lr: 2e-2, freeze_to: -1}, {epochs: 5, lr: [8e-3, 1e-2]}]",
)
"""Overrides that make a recipe run in seconds."""

LEARNING = ("lm.drop_mult=0.2", "classifier.drop_mult=0.2", "classifier.grad_clip=0.1", "runtime.canonical_ranks=4")
"""Further overrides of runs that must learn something."""

RECIPE = (
    *TINY,
    "lm.phases=[{epochs: 1, lr: 1e-2, freeze_to: -1}, {epochs: 2, lr: 5e-3}]",
    "classifier.phases=[{epochs: 2, lr: 2e-2, freeze_to: -1}, {epochs: 4, lr: [2.188e-4, 1e-2]}]",
    "checkpoint.interval_steps=7",
    "tracking.log_interval=5",
)
"""A recipe of some steps more, for runs that are stopped."""


LONGEST_FIRST = (
    "test_slurm", "test_world_size", "test_doctor_ranks", "test_resume", "test_self_train", "test_ensemble_runs",
    "test_semi_supervised_ranks", "test_prepare", "test_exit",
    "test_cli", "test_in_memory", "test_evaluate_ensemble", "test_imdb", "test_cross_validation", "test_pretrain",
    "test_rendezvous", "test_home", "test_hub_processes", "test_notebook_learners", "test_slurm_sweep", "test_examples",
    "test_notebooks",
)  # fmt: skip
"""Files that take longest: begun first, so that processes which share the files end together.

The first three wait for different things: one for SLURM, one for its own runs, one for time limits."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        kinds.mark(item)
    place = {name: i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_collection_finish() -> None:
    forked.remember_environment()
    gc.collect()
    gc.freeze()  # each fit collects garbage, which need not look through the libraries again


@pytest.fixture(autouse=True)
def no_process_in_a_unit_test(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test of the kind `unit` that starts a process."""
    is_unit = request.node.get_closest_marker("unit") is not None
    with kinds.guard(monkeypatch) if is_unit else contextlib.nullcontext():
        yield


def make_text(topic: str, words: int, rng: random.Random) -> str:
    """A text of random words, a good share of them of the topic."""
    return " ".join(rng.choice(TOPICS[topic] if rng.random() < 0.4 else FILLERS) for _ in range(words)) + "."


def make_folder(path: Path, per_class: int, seed: int = 0) -> Path:
    """A folder by class; documents differ in length."""
    rng = random.Random(seed)
    for topic in TOPICS:
        (path / topic).mkdir(parents=True)
        for i in range(per_class):
            (path / topic / f"{i}.txt").write_text(make_text(topic, rng.randint(5, 45), rng))
    return path


def store_in(cache: Path) -> Path:
    """The one finished token store in a cache folder."""
    (meta,) = cache.glob("*/meta.json")
    return meta.parent


def launch(
    words: Sequence[object], processes: int = 1, cwd: Path = ROOT, real: bool = False, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run Python on `words`: alone, or on several processes by `accelerate launch`.

    Args:
        real: whether by a new interpreter, for what a fork of the server in `fork_server.py` does not show.
    """
    launcher = [sys.executable]
    if processes > 1:
        config = str(ROOT / "configs/accelerate/multi_gpu.yaml")
        launcher += ["-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", str(processes)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), **env}
    start = forked.real_popen if real else forked.popen
    process = start([*launcher, *map(str, words)], cwd, environment, subprocess.PIPE, subprocess.PIPE)
    try:
        output, errors = process.communicate(timeout=600)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def command(words: Sequence[object], processes: int = 1, **kwargs) -> subprocess.CompletedProcess[str]:
    """As `launch`, for a command of `ulmfit_dist`."""
    return launch(["-m", "ulmfit_dist", *words], processes, **kwargs)


def succeed(words: Sequence[object], processes: int = 1, **kwargs) -> str:
    """As `command`, for one that must succeed; returns what it printed."""
    result = command(words, processes, **kwargs)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def command_here(words: Sequence[object], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """As `command` on one process, in the test's own: for what is the same there, without the seconds of imports."""
    from accelerate.state import AcceleratorState

    from ulmfit_dist.cli.main import main

    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    AcceleratorState._reset_state(reset_partial_state=True)
    os.chdir(cwd)
    try:
        with patch.dict(os.environ, ACCELERATE_USE_CPU="true"), redirect_stdout(out), redirect_stderr(err):
            code = main([str(word) for word in words])
    finally:
        os.chdir(before)
        AcceleratorState._reset_state(reset_partial_state=True)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def succeed_here(words: Sequence[object], cwd: Path = ROOT) -> str:
    """As `succeed` on one process, in the test's own."""
    result = command_here(words, cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A small file system in memory."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root alone")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that is made by the first of the test processes that needs it, for all of them: to be read only."""
    own = factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / f"made-{name}"
    is_made = folder.with_suffix(".whole")
    with FileLock(folder.with_suffix(".lock")):
        if not is_made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            is_made.touch()
    return folder


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """Restore the environment: a variable that a test leaves behind would make later processes of tests differ."""
    before = dict(os.environ)
    yield
    for name in {*os.environ, *before} - {"PYTEST_CURRENT_TEST"}:
        if name not in before:
            del os.environ[name]
        elif os.environ.get(name) != before[name]:
            os.environ[name] = before[name]


@pytest.fixture
def no_process_group() -> Iterator[None]:
    """As a notebook begins: Accelerate knows of no processes, before the test and after it."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def bf16_lstms() -> None:
    """A CPU whose LSTMs compute in bf16; the test is skipped on one that has none."""
    from ulmfit_dist.distributed.precision import has_bf16_lstms

    if not has_bf16_lstms():
        pytest.skip("this CPU has no bf16 LSTMs")


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty recipe, for tests that say all in overrides."""
    return made_once(tmp_path_factory, "recipe", lambda folder: (folder / "empty.yaml").write_text("{}\n")) / "empty.yaml"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 3 classes with 70 short documents each: 158 to train on, not a multiple of the batch."""
    return made_once(tmp_path_factory, "corpus", lambda folder: make_folder(folder / "texts", per_class=70)) / "texts"


@pytest.fixture(scope="session")
def run_dirs(tmp_path_factory: pytest.TempPathFactory, corpus: Path, recipe: Path) -> dict[str, Path]:
    """The same run on one rank and on two, computed as four in both; what the two said is beside it.

    New interpreters, started by the real `accelerate launch`: each has a hash seed and imports of its own.
    """

    def make(folder: Path) -> None:
        shared = [recipe, f"data.path={corpus}", *TINY, *LEARNING, f"runs_dir={folder}"]
        with ThreadPoolExecutor(1) as thread:
            one = thread.submit(
                succeed, ["run", *shared, "name=one", f"data.cache_dir={folder}/cache1"], OMP_NUM_THREADS="2"
            )
            printed = command(["run", *shared, "name=two", f"data.cache_dir={folder}/cache2"], processes=2, real=True)
            one.result()
        assert printed.returncode == 0, printed.stdout + printed.stderr
        (folder / "two.out").write_text(printed.stdout)
        (folder / "two.err").write_text(printed.stderr)

    made = made_once(tmp_path_factory, "runs", make)
    folder = shutil.copytree(made, tmp_path_factory.mktemp("own") / "runs", symlinks=True)  # some tests resume a run
    return {name: folder / name for name in ("one", "two")} | {"caches": folder}


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory, corpus: Path, recipe: Path, run_dirs: dict[str, Path]) -> Path:
    """A folder with `run`, trained by two ranks on `RECIPE` that nobody disturbs, and the `notes` of what they read."""
    from killing import finish, start

    def make(folder: Path) -> None:
        place = [f"data.path={corpus}", f"data.cache_dir={run_dirs['caches']}/cache1", f"runs_dir={folder}", "name=run"]
        finish(start(["run", recipe, *place, *RECIPE], 2, folder / "notes"))

    return made_once(tmp_path_factory, "alone", make)
