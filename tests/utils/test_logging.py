"""Logging: streams, prefixes, levels, ranks, and the user's own configuration."""

import io
import logging
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout

import pytest

from ulmfit_dist.utils import log
from ulmfit_dist.utils.log import ConsoleHandler, console, console_by_default, get_logger, is_quiet
from ulmfit_dist.utils.progress import Progress

logger = get_logger("ulmfit_dist.tests")


@pytest.fixture(autouse=True)
def pristine() -> Iterator[None]:
    """The package's logger as `import ulmfit_dist` leaves it, and a root logger without handlers."""
    root = logging.getLogger()
    before = root.handlers, log.ROOT.handlers, log.ROOT.level, log.ROOT.propagate
    root.handlers, log.ROOT.handlers, log.ROOT.propagate = [], [logging.NullHandler()], True
    log.ROOT.setLevel(logging.NOTSET)
    yield
    root.handlers, log.ROOT.handlers, level, log.ROOT.propagate = before
    log.ROOT.setLevel(level)


def log_each_level() -> tuple[str, str]:
    """Log one message of each level; return standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        for level in ("debug", "info", "warning", "error"):
            getattr(logger, level)(f"a message, 100% {level}")
    return out.getvalue(), err.getvalue()


ERRORS = "warning: a message, 100% warning\nulmfit-dist: error: a message, 100% error\n"


def test_info_is_printed_as_it_is_and_warnings_go_to_standard_error_with_a_prefix():
    with console():
        assert log_each_level() == ("a message, 100% info\n", ERRORS)
        assert not is_quiet()
    with console(logging.DEBUG):
        assert log_each_level() == ("a message, 100% debug\na message, 100% info\n", ERRORS)
    with console(logging.WARNING):
        assert log_each_level() == ("", ERRORS)
        assert is_quiet()


def test_progress_is_hidden_with_quiet():
    with console(logging.WARNING):
        assert not Progress("lm", 2).is_shown
    with console():
        assert Progress("lm", 2).is_shown
    assert Progress("lm", 2).is_shown


def test_only_rank_0_logs_unless_a_message_is_of_every_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("RANK", "1")
    with console(logging.DEBUG):
        assert log_each_level() == ("", "")
        logger.warning("rank 1 only", main_process_only=False)
    assert capsys.readouterr().err == "warning: rank 1 only\n"


def test_a_library_prints_nothing_and_configures_nothing_by_itself():
    assert log_each_level() == ("", "")
    assert [type(handler) for handler in log.ROOT.handlers] == [logging.NullHandler]


def test_a_notebook_gets_a_console_once():
    console_by_default()
    console_by_default()
    assert log_each_level() == ("a message, 100% info\n", ERRORS)
    assert sum(isinstance(handler, ConsoleHandler) for handler in log.ROOT.handlers) == 1


def test_a_console_does_not_print_twice_where_the_root_logger_has_a_handler():
    seen = io.StringIO()
    logging.getLogger().handlers = [logging.StreamHandler(seen)]  # level WARNING, as in some notebooks
    console_by_default()
    assert log_each_level() == ("a message, 100% info\n", ERRORS)
    assert seen.getvalue() == ""


@pytest.mark.parametrize("name", ["ulmfit_dist", None])
def test_a_users_own_configuration_is_left_as_it_is(name: str | None, monkeypatch: pytest.MonkeyPatch):
    seen = io.StringIO()
    configured = logging.getLogger(name)
    monkeypatch.setattr(configured, "handlers", [logging.StreamHandler(seen)])
    monkeypatch.setattr(configured, "level", logging.INFO)
    log.ROOT.manager._clear_cache()  # type: ignore[attr-defined]
    console_by_default()
    assert log_each_level() == ("", "")
    assert seen.getvalue() == "".join(f"a message, 100% {level}\n" for level in ("info", "warning", "error"))
    with console(logging.WARNING):
        assert log_each_level() == ("", ERRORS)
    assert len(configured.handlers) == 1
    assert log.ROOT.propagate
    log.ROOT.manager._clear_cache()  # type: ignore[attr-defined]


def test_a_module_that_is_run_as_a_program_logs_to_the_package():
    assert get_logger("__main__").logger is log.ROOT


def test_a_level_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest has added its own
    log.ROOT.setLevel(logging.DEBUG)
    console_by_default()
    assert log_each_level()[0] == "a message, 100% debug\na message, 100% info\n"


def test_a_closed_pipe_stops_nothing(monkeypatch: pytest.MonkeyPatch):
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    monkeypatch.setattr("sys.stderr", Closed())
    with console():
        logger.info("lost")
        logger.warning("lost, too")
