"""Checks of the documentation site: pages read as on the code host, links work, the API reference is complete.

`.ci/run` builds the site, with all warnings as errors; these tests take the parts of it that need no build.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import markdown
import pytest
from conftest import ROOT
from markdown_it import MarkdownIt
from mkdocs.config import load_config
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pages import anchors
from test_dependencies import project

import ulmfit_dist

THEME = ROOT / "docs/theme"
DIRECTIVE = re.compile(r"^::: (\S+)$", re.MULTILINE)
"""An object in the API reference."""
ELEMENTS = {"a", "h1", "h2", "h3", "h4", "img", "li", "pre", "td"}
"""Elements whose number must be the same on the site and on the code host."""


@pytest.fixture(scope="module")
def config() -> MkDocsConfig:
    return load_config(str(ROOT / "mkdocs.yml"))


@pytest.fixture(scope="module")
def site_pages(config: MkDocsConfig) -> list[Path]:
    """The pages in the site's navigation."""
    names = re.findall(r"[\w-]+\.md", str(config.nav))
    return [ROOT / "docs" / name if (ROOT / "docs" / name).is_file() else ROOT / name for name in names]


class Elements(HTMLParser):
    """Counts the elements of a page, and lists the anchors of its headings."""

    def __init__(self, html: str):
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag in ELEMENTS and values.get("class") != "headerlink":
            self.counts[tag] += 1
        if re.fullmatch(r"h\d", tag):
            self.anchors.add(values.get("id") or "")


@pytest.fixture(scope="module")
def on_the_site(config: MkDocsConfig, site_pages: list[Path]) -> dict[Path, Elements]:
    renderer = markdown.Markdown(extensions=config.markdown_extensions, extension_configs=config.mdx_configs)
    return {page: Elements(renderer.reset().convert(page.read_text(encoding="utf-8"))) for page in site_pages}


def on_the_code_host(page: Path) -> Elements:
    return Elements(MarkdownIt("commonmark").enable("table").render(page.read_text(encoding="utf-8")))


def test_the_site_has_every_page(site_pages: list[Path]):
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= {page.name for page in site_pages}, "add it to mkdocs.yml"


def test_a_page_has_the_same_tables_lists_and_code_on_the_site_as_on_the_code_host(on_the_site: dict[Path, Elements]):
    for page, elements in on_the_site.items():
        assert elements.counts == on_the_code_host(page).counts, page


def test_the_anchors_of_the_site_are_those_of_the_code_host(on_the_site: dict[Path, Elements]):
    for page, elements in on_the_site.items():
        assert elements.anchors == anchors(page), page


def test_the_site_names_the_project_and_its_repository(config: MkDocsConfig):
    assert config.repo_url in project()["urls"].values()


@pytest.fixture(scope="module")
def rewrite(config: MkDocsConfig) -> Callable[..., str]:
    """The hook that rewrites links, as a function of Markdown and of the page's path in the repository."""
    spec = importlib.util.spec_from_file_location("links", THEME / "links.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    names = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.*")]
    files = hook.on_files(Files([File(name, str(ROOT / "docs"), "site", True) for name in names]), config)

    def of(text: str, path: str) -> str:
        file = files.get_file_from_path(path.removeprefix("docs/"))
        return str(hook.on_page_markdown(text, type("Page", (), {"file": file}), config, files))

    return of


@pytest.mark.parametrize(
    ("path", "link", "expected"),
    [
        ("docs/data.md", "training.md#a-baseline-first", "training.md#a-baseline-first"),
        ("docs/data.md", "#labels", "#labels"),
        ("docs/data.md", "https://docs.fast.ai", "https://docs.fast.ai"),
        ("docs/data.md", "../configs/imdb.yaml", "REPOSITORY/blob/main/configs/imdb.yaml"),
        ("docs/data.md", "../README.md#commands", "REPOSITORY/blob/main/README.md#commands"),
        ("docs/data.md", "../configs/", "REPOSITORY/tree/main/configs"),
        ("docs/data.md", "../CHANGELOG.md", "CHANGELOG.md"),
        ("docs/data.md", "../CHANGELOG.md#figures", "CHANGELOG.md#figures"),
        ("docs/data.md", "../missing.md", "../missing.md"),
        ("CONTRIBUTING.md", "docs/style.md#prose", "style.md#prose"),
        ("CONTRIBUTING.md", "SECURITY.md", "SECURITY.md"),
        ("CONTRIBUTING.md", "LICENSE", "REPOSITORY/blob/main/LICENSE"),
    ],
)
def test_a_link_leads_to_the_page_of_the_site_or_to_the_code_host(
    rewrite: Callable[..., str], config: MkDocsConfig, path: str, link: str, expected: str
):
    expected = expected.replace("REPOSITORY", str(config.repo_url))
    assert rewrite(f"See [it]({link}), ![it]({link}).", path) == f"See [it]({expected}), ![it]({expected})."


def test_code_that_looks_like_a_link_stays_as_it_is(rewrite: Callable[..., str]):
    text = "`[a](../README.md)`\n\n```\n[a](../README.md)\n```\n"
    assert rewrite(text, "docs/data.md") == text


def test_the_api_reference_has_every_public_name():
    objects = DIRECTIVE.findall((ROOT / "docs/api.md").read_text(encoding="utf-8"))
    public = {f"{module}.{name}" for name, module in ulmfit_dist._PUBLIC.items()}
    assert public <= set(objects), "add it to docs/api.md"


def test_docstrings_of_the_api_reference_name_one_parameter_a_line():
    for path in DIRECTIVE.findall((ROOT / "docs/api.md").read_text(encoding="utf-8")):
        module, name = path.rsplit(".", 1)
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        (node,) = [node for node in tree.body if getattr(node, "name", None) == name]
        for part in ast.walk(node):
            if isinstance(part, ast.FunctionDef | ast.ClassDef) and not part.name.startswith("_"):
                entries = re.findall(
                    r"^    (\w+, [\w, ]+): ", (ast.get_docstring(part) or "").partition("Args:\n")[2], re.MULTILINE
                )
                assert entries == [], f"{path}: {part.name}"
