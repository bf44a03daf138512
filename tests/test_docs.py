"""Checks of the documentation: links resolve, commands parse, configs load, files and tests exist."""

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
from ulmfit_dist.config.recipes import is_name
from ulmfit_dist.config.reference import page as configuration_page
from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.errors import UserError, did_you_mean

KEYS = {key for key, _, _ in describe(Config())}
SECTIONS = "|".join(sorted({key.partition(".")[0] for key in KEYS if "." in key}))
KEY = rf"(?:{SECTIONS})(?:\.\w+)*|name|seed|runs_dir"
VALUE = r"(?:[\[{].*?[\]}]+|[^\s\[{]\S*)"
SETTINGS = re.compile(rf"""(?:["']?(?:{KEY})={VALUE}["']?\s*)+""")
FOLDERS = r"(ulmfit_dist|tests|docs|configs|examples|launch|slurm|benchmarks|\.ci)"
PLACEHOLDER = re.compile(r"[A-Z_]+")
"""Placeholder of an argument, such as CONFIG."""
LEFT_OPEN = re.compile(r"\[.*|\.\.\.\]?")
"""Optional or repeated arguments, such as [RUN ...]."""
SCRIPTS = {
    "quickstart.sh": ["run", "configs/quickstart.yaml"],
    "multi_gpu.sh": ["run"],
    "multi_node.sh": ["run"],
    "prepare.sbatch": ["prepare"],
    "single_node.sbatch": ["run"],
    "multi_node.sbatch": ["run"],
    "array.sbatch": ["run"],
}
"""Arguments that scripts put in front of their own."""


@pytest.fixture(autouse=True)
def _batch_job(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TMPDIR", "/tmp")  # a variable in some configs


def test_the_configuration_page_is_up_to_date():
    committed = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert committed == configuration_page(), "run: python -m ulmfit_dist.config.reference > docs/configuration.md"


def test_the_readme_has_at_most_700_words():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 700, "move details to docs/"


def test_every_link_resolves():
    check(found_by(links), link_error)


def test_every_page_is_in_the_list_of_pages():
    listed = {link.text for link in links(ROOT / "docs/README.md")}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - listed == {"README.md"}, "add them to docs/README.md"


def test_every_command_parses_and_its_config_loads():
    ours = [(place, argv) for place, words in commands() if (argv := argv_of(words))]
    assert len(ours) > 30
    wrong = [f"{place}: {message}" for place, argv in ours if (message := error_of(run, argv))]
    assert not wrong, "\n".join(wrong)


def test_every_config_loads(tmp_path: Path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")  # which a base may name
    check(written("yaml", by=r"\.yaml"), lambda block: error_of(load, block.text, tmp_path / "config.yaml"))


def test_every_key_in_a_line_of_text_exists_and_takes_its_value():
    inlines = [code for code in found_by(inline) if not code.place.startswith("CHANGELOG.md")]  # which names old keys, too
    check(inlines, lambda code: error_of(check_keys, code.text))


def test_python_compiles_and_its_imports_exist():
    check(written("python", by=r"^python"), lambda block: ", ".join(missing_imports(block.text)))


def test_the_worked_example_creates_texts_with_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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


def test_the_map_of_the_code_is_complete():
    (code_map, *_) = fenced(ROOT / "docs/architecture.md")
    named = set(re.findall(r"\w+(?:\.py|/)", code_map.text))
    modules = [path for path in (ROOT / "ulmfit_dist").rglob("*.py") if not path.name.startswith("__")]
    missing = [path for path in modules if path.name not in named]
    assert missing == [], "add them to the map in docs/architecture.md"
    assert {name for name in named if name.endswith(".py")} - {path.name for path in modules} == set()


def found_by(read: Callable[[Path], Sequence[Snippet]]) -> list[Snippet]:
    return [snippet for page in PAGES for snippet in read(page)]


def check(snippets: Sequence[Snippet], find_error: Callable[[Snippet], str]) -> None:
    """Fail with the place of each snippet that has an error."""
    assert snippets
    wrong = [f"{snippet.place}: {message}" for snippet in snippets if (message := find_error(snippet))]
    assert not wrong, "\n".join(wrong)


def error_of(function: Callable[..., object], *args: object) -> str:
    """Return the message of the UserError that the function raises; empty if none."""
    try:
        function(*args)
    except UserError as error:
        return str(error)
    return ""


def link_error(link: Snippet) -> str:
    url = urlsplit(link.text)
    if url.scheme:
        is_url = url.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", url.netloc) and " " not in link.text
        return "" if is_url else f"{link.text} is not a URL"
    page = ROOT / link.place.partition(":")[0]
    target = page.parent / url.path if url.path else page
    if not target.exists():
        return f"{link.text} does not exist"
    if url.fragment and url.fragment not in anchors(target):
        return f"{link.text}: no such heading; {did_you_mean(url.fragment, anchors(target))}"
    return ""


def argv_of(words: list[str]) -> list[str]:
    """Return the arguments of an `ulmfit-dist` command, however it is started; empty for other commands."""
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


def run(argv: list[str]) -> None:
    """Parse the arguments and load the config, as a command does before it starts."""
    argv = [re.sub(r"\$\w+", "0", argument) for argument in argv]  # a variable of the shell
    if len(argv) == 1 and not argv[0].startswith("-"):  # only a name, in a line of text
        if argv[0] not in COMMANDS:
            raise UserError(f"no command {argv[0]}; {did_you_mean(argv[0], COMMANDS)}")
        return
    args = parse(argv)
    if getattr(args, "config", None) is None:
        return
    if PLACEHOLDER.fullmatch(args.config) or args.config in configs_of_readers():
        load_config(None, ["data.path=x", *args.overrides])
    else:
        load_config(args.config if is_name(args.config) else ROOT / args.config, args.overrides)


def configs_of_readers() -> set[str]:
    """Return the configs that the reader of a page writes."""
    text = "\n".join(block.text for page in PAGES for block in fenced(page))
    by_init = {f"{name}.yaml" for name in re.findall(r"ulmfit-dist init (\w+)\.\w+", text)}
    return {"my.yaml", *re.findall(r"cat > (\S+\.yaml) <<", text), *by_init}


def load(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")
    load_config(path, [] if re.search(r"^  path:", text, re.MULTILINE) else ["data.path=x"])


def check_keys(code: str) -> None:
    """Check a key, or keys with values, as arguments or as YAML; ignore other code."""
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
    pattern = re.sub(r"\b[A-Z]+\b", "*", code.text)  # a placeholder
    if re.fullmatch(rf"{FOLDERS}/[\w./*-]*", pattern) and not list(ROOT.glob(pattern)):
        return f"no {code.text}"
    test = re.fullmatch(r"(?:(?:tests/)?(?:\w+/)?(test_\w+\.py))?(?:::(test_\w+)(?:\[.*\])?)?", code.text)
    if test and code.text:
        files = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob(test[1] or "test_*.py")]
        wanted = f"def {test[2]}(" if test[2] else ""
        if not any(wanted in text for text in files):
            return f"no {code.text}"
    return ""
