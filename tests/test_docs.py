"""What the pages say is so: their links lead somewhere, their commands parse, their configs compose, their files exist."""

import ast
import importlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import ROOT
from pages import PAGES, Snippet, anchors, commands, fenced, inline, links, written

import ulmfit_dist
from benchmarks.__main__ import NAMES
from ulmfit_dist.cli.main import COMMANDS
from ulmfit_dist.cli.parser import parse
from ulmfit_dist.config.loading import describe, load_config
from ulmfit_dist.config.reference import page as configuration_page
from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.errors import UserError, did_you_mean

KEYS = {key for key, _, _ in describe(Config())}
SECTIONS = "|".join(sorted({key.partition(".")[0] for key in KEYS if "." in key}))
KEY = rf"(?:{SECTIONS})(?:\.\w+)*|name|seed|runs_dir"
VALUE = r"(?:[\[{].*?[\]}]+|[^\s\[{]\S*)"
SETTINGS = re.compile(rf"""(?:["']?(?:{KEY})={VALUE}["']?\s*)+""")
FOLDERS = r"(ulmfit_dist|tests|docs|configs|launch|slurm|benchmarks|\.ci)"
PLACEHOLDER = re.compile(r"[A-Z_]+")
"""A word of the reader's own, such as CONFIG."""
LEFT_OPEN = re.compile(r"\[.*|\.\.\.\]?")
"""Words that may be left out, or repeated: [RUN ...]."""
SCRIPTS = {
    "quickstart.sh": ["run", "configs/quickstart.yaml"],
    "multi_gpu.sh": ["run"],
    "multi_node.sh": ["run"],
    "prepare.sbatch": ["prepare"],
    "single_node.sbatch": ["run"],
    "multi_node.sbatch": ["run"],
    "array.sbatch": ["run"],
}
"""What the scripts that take words of ours put before them."""


@pytest.fixture(autouse=True)
def _batch_job(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TMPDIR", "/tmp")  # which some recipes name


def test_the_configuration_page_is_that_of_the_configuration():
    committed = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert committed == configuration_page(), "run: python -m ulmfit_dist.config.reference > docs/configuration.md"


def test_every_link_leads_somewhere():
    check(found_by(links), link_error)


def test_every_page_is_in_the_list_of_pages():
    listed = {link.text for link in links(ROOT / "docs/README.md")}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - listed == {"README.md"}, "add them to docs/README.md"


def test_every_command_parses_and_its_config_composes():
    ours = [(place, rest) for place, words in commands() if (rest := words_of_ours(words))]
    assert len(ours) > 30
    wrong = [f"{place}: {told}" for place, words in ours if (told := refusal(run, words))]
    assert not wrong, "\n".join(wrong)


def test_every_config_composes(tmp_path: Path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")  # which a base may name
    check(written("yaml", by=r"\.yaml"), lambda block: refusal(compose, block.text, tmp_path / "recipe.yaml"))


def test_every_key_in_a_line_of_text_exists_and_takes_its_value():
    check(found_by(inline), lambda code: refusal(check_keys, code.text))


def test_python_compiles_and_imports_what_is_there():
    check(written("python", by=r"^python"), lambda block: ", ".join(missing_imports(block.text)))


def test_the_worked_example_makes_texts_with_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for block in fenced(ROOT / "docs/getting-started.md"):
        if "<<'EOF'" in block.text:
            subprocess.run(["bash", "-c", block.text], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    documents = open_source(load_config("meldungen.yaml").data).splits["train"]
    texts, labels = documents.read(0, len(documents))
    assert len(texts) == 600
    assert all(texts)
    assert Counter(labels)[None] == 200
    assert set(labels) == {"Sport", "Wetter", "Küche", None}


def test_every_file_and_test_that_is_named_exists():
    words = [Snippet(place, "", word) for place, words in commands() for word in words]
    check([*found_by(inline), *words], name_error)


def test_every_benchmark_that_is_named_exists():
    modules = [(place, words[2:]) for place, words in commands() if words[:2] == ["python", "-m"]]
    benchmarks = [(place, *words) for place, words in modules if words[0].startswith("benchmarks")]
    assert len(benchmarks) > 3
    for place, module, *words in benchmarks:
        if module != "benchmarks":
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), place
        elif not PLACEHOLDER.fullmatch(words[0]):
            assert words[0] in NAMES, place


def test_the_map_of_the_code_is_whole():
    (code_map, *_) = fenced(ROOT / "docs/architecture.md")
    named = set(re.findall(r"\w+(?:\.py|/)", code_map.text))
    modules = [path for path in (ROOT / "ulmfit_dist").rglob("*.py") if not path.name.startswith("__")]
    missing = [path for path in modules if path.name not in named]
    assert missing == [], "add them to the map in docs/architecture.md"
    assert {name for name in named if name.endswith(".py")} - {path.name for path in modules} == set()


def found_by(read: Callable[[Path], Sequence[Snippet]]) -> list[Snippet]:
    return [snippet for page in PAGES for snippet in read(page)]


def check(snippets: Sequence[Snippet], error_of: Callable[[Snippet], str]) -> None:
    """Fail, naming each place, where anything is wrong."""
    assert snippets
    wrong = [f"{snippet.place}: {told}" for snippet in snippets if (told := error_of(snippet))]
    assert not wrong, "\n".join(wrong)


def refusal(work: Callable[..., object], *args: object) -> str:
    """What the package has against it; empty where nothing."""
    try:
        work(*args)
    except UserError as error:
        return str(error)
    return ""


def link_error(link: Snippet) -> str:
    url = urlsplit(link.text)
    if url.scheme:
        is_address = url.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", url.netloc) and " " not in link.text
        return "" if is_address else f"{link.text} is no address"
    page = ROOT / link.place.partition(":")[0]
    target = page.parent / url.path if url.path else page
    if not target.exists():
        return f"{link.text} is not there"
    if url.fragment and url.fragment not in anchors(target):
        return f"{link.text}: no such heading; {did_you_mean(url.fragment, anchors(target))}"
    return ""


def words_of_ours(words: list[str]) -> list[str]:
    """The words of an `ulmfit-dist` command, however it is started; empty for other commands."""
    words = [word for word in words if not LEFT_OPEN.fullmatch(word)]
    program, rest = Path(words[0]).name if words else "", words[1:]
    if program == "ulmfit-dist":
        return rest
    if program in ("python", "accelerate") and "ulmfit_dist" in rest:
        return rest[rest.index("ulmfit_dist") + 1 :]
    if program in ("bash", "sbatch"):
        for i, word in enumerate(rest):
            if re.match(r"(launch|slurm)/", word) and Path(word).name in SCRIPTS and rest[i + 1 :]:
                return [*SCRIPTS[Path(word).name], *rest[i + 1 :]]
    return []


def run(words: list[str]) -> None:
    """All that a command does with its words before it starts."""
    words = [re.sub(r"\$\w+", "0", word) for word in words]  # a variable of the shell
    if len(words) == 1 and not words[0].startswith("-"):  # its name alone, in a line of text
        if words[0] not in COMMANDS:
            raise UserError(f"no command {words[0]}; {did_you_mean(words[0], COMMANDS)}")
        return
    args = parse(words)
    if getattr(args, "config", None) is None:
        return
    if PLACEHOLDER.fullmatch(args.config) or args.config in recipes_of_readers():
        load_config(None, ["data.path=x", *args.overrides])
    else:
        load_config(ROOT / args.config, args.overrides)


def recipes_of_readers() -> set[str]:
    """Recipes that a page lets its reader write."""
    text = "\n".join(block.text for page in PAGES for block in fenced(page))
    by_init = {f"{name}.yaml" for name in re.findall(r"ulmfit-dist init (\w+)\.\w+", text)}
    return {"my.yaml", *re.findall(r"cat > (\S+\.yaml) <<", text), *by_init}


def compose(text: str, recipe: Path) -> None:
    recipe.write_text(text, encoding="utf-8")
    load_config(recipe, [] if re.search(r"^  path:", text, re.MULTILINE) else ["data.path=x"])


def check_keys(code: str) -> None:
    """A key, or keys with values, as words of the command line or as YAML; other code is none of ours."""
    code = re.sub(rf"^({KEY}): ", r"\1=", code)
    if re.fullmatch(rf"({SECTIONS})\.\w+", code) and not re.search(r"\.(safetensors|py|json|md)$", code):
        if code not in KEYS:
            raise UserError(f"no key {code}; {did_you_mean(code, KEYS)}")
    elif SETTINGS.fullmatch(code) and "..." not in code:
        words = re.split(r"""\s+(?=["']?\w[\w.]*=)""", code)
        load_config(None, ["data.path=x", *(word.strip("\"'") for word in words)])


def missing_imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "ulmfit_dist":
            there = ulmfit_dist.__all__ if node.module == "ulmfit_dist" else vars(importlib.import_module(str(node.module)))
            yield from (f"no {alias.name} in {node.module}" for alias in node.names if alias.name not in there)


def name_error(code: Snippet) -> str:
    pattern = re.sub(r"\b[A-Z]+\b", "*", code.text)  # a name of the reader's own
    if re.fullmatch(rf"{FOLDERS}/[\w./*-]*", pattern) and not list(ROOT.glob(pattern)):
        return f"no {code.text}"
    test = re.fullmatch(r"(?:(?:tests/)?(?:\w+/)?(test_\w+\.py))?(?:::(test_\w+)(?:\[.*\])?)?", code.text)
    if test and code.text:
        files = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob(test[1] or "test_*.py")]
        wanted = f"def {test[2]}(" if test[2] else ""
        if not any(wanted in text for text in files):
            return f"no {code.text}"
    return ""
