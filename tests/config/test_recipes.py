"""Names of recipes: of the working directory, else of the package."""

import os
from pathlib import Path

import pytest
from conftest import ROOT, command_here, succeed_here

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.recipes import packaged_recipes, summary_of
from ulmfit_dist.errors import USER_ERROR, UserError
from ulmfit_dist.launch.process_count import main as process_count
from ulmfit_dist.utils import package_files

OWN = "name: own\ndata: {path: x}\n"


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_name_is_a_recipe_of_the_package_from_any_folder(empty: Path):
    assert load_config("quickstart") == load_config(ROOT / "configs/quickstart.yaml")
    assert process_count(["check", "2", "quickstart", "--device", "cpu", "--fresh", "seed=3"]) == 0
    assert process_count(["check", "3", "quickstart", "--device=cpu"]) == USER_ERROR


@pytest.mark.parametrize("file", ["quickstart", "quickstart.yaml"])
def test_a_file_of_that_name_in_the_working_directory_wins(file: str, empty: Path):
    (empty / file).write_text(OWN)
    assert load_config("quickstart").name == "own"
    (empty / file).unlink()
    (empty / file).mkdir()  # as a run directory
    assert load_config("quickstart").name == "quickstart"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("configs/imdb.yaml", "'imdb' is a recipe of the package: give its name"),
        ("imdb.yaml", "'imdb' is a recipe of the package: give its name"),
        ("imdb_huor", "did you mean 'imdb_hour'? `ulmfit-dist config --list` prints"),
        ("reviews", "no such config file or recipe: `ulmfit-dist config --list` prints"),
        ("reviews.yaml", "no such config file; `ulmfit-dist config --list` prints"),
        ("configs/quickstart", "'quickstart' is a recipe of the package"),
        ("sweeps/quickstart", "'quickstart' is a recipe of the package"),
        ("", "no such config file"),
        ("..", "no such config file"),
    ],
)
def test_a_config_that_does_not_exist_is_one_line(config: str, expected: str, empty: Path):
    with pytest.raises(UserError) as error:
        load_config(config)
    message = str(error.value)
    assert message.startswith(f"{config}: no such config file")
    assert expected in message
    assert "\n" not in message


def test_a_base_may_be_a_recipe_of_the_package(empty: Path):
    (empty / "mine.yaml").write_text("base: imdb\nname: mine\n")
    packaged = load_config("imdb")
    assert load_config("mine.yaml").data == packaged.data
    (empty / "imdb.yaml").write_text("base: imdb\nname: second\nlm: {wd: 0.5}\n")  # its own name
    assert load_config("imdb").data == packaged.data
    assert load_config("mine").lm.wd == 0.5  # the file beside it wins
    (empty / "wrong.yaml").write_text("base: imbd\n")
    with pytest.raises(UserError, match=r"base='imbd': no such recipe in .*, or the name of a recipe of the package"):
        load_config("wrong.yaml")


def test_the_list_describes_each_recipe(empty: Path):
    printed = succeed_here(["config", "--list"], empty)
    for name, path in packaged_recipes().items():
        (line,) = [line for line in printed.splitlines() if line.split()[:1] == [name]]
        assert line.split(maxsplit=1)[1] == summary_of(path)
        assert summary_of(path).endswith((".", ":"))
    assert f"files: {ROOT / 'configs'}" in printed


def test_a_printed_recipe_is_a_copy_to_edit(empty: Path):
    (empty / "imdb_scratch.yaml").touch()  # as `> imdb_scratch.yaml` does first
    source = succeed_here(["config", "imdb_scratch", "--source"], empty)
    assert source == (ROOT / "configs/imdb_scratch.yaml").read_text()
    (empty / "imdb_scratch.yaml").write_text(source)
    assert load_config("imdb_scratch") == load_config(ROOT / "configs/imdb_scratch.yaml")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "no config is given: name one, such as quickstart, or list the recipes of the package with --list"),
        (["imdb", "--list"], "--list prints all recipes: leave out imdb"),
        (["imdb", "seed=3", "--source"], "--source prints the recipe as written: leave out seed=3"),
        (["imdb", "--source", "--get", "name"], "not allowed with argument"),
    ],
)
def test_options_of_config_that_would_be_ignored_are_refused(words: list[str], expected: str, empty: Path):
    done = command_here(["config", *words], empty)
    assert (done.returncode, done.stdout) == (USER_ERROR, "")
    assert expected in done.stderr


def test_a_package_without_its_recipes_names_the_fix(empty: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(package_files, "PACKAGE", empty / "ulmfit_dist")
    with pytest.raises(UserError, match="was installed without its recipes and scripts: install ulmfit-dist again"):
        load_config("quickstart")
    (empty / "ulmfit_dist/share/configs").mkdir(parents=True)
    os.symlink(ROOT / "configs/quickstart.yaml", empty / "ulmfit_dist/share/configs/quickstart.yaml")
    assert load_config("quickstart").name == "quickstart"
