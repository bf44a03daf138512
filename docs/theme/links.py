"""Hooks of mkdocs: links between the pages of the repository work on the site as they do on the code host.

Pages link to files by relative paths. Here a link to a file that the site does not have becomes one to the code host, and
pages at the repository's root become pages of the site. Trade-off: links in raw HTML are left as they are.

The site requests nothing from other servers, so that it works in a network of its own.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
ROOT_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""Pages at the root that the site has."""
CODE_OR_LINK = re.compile(r"(^```.*?^```|`[^`\n]+`)|(?<=\]\()([^)\s]+)(?=\))", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages at the root."""
    for name in ROOT_PAGES:
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page with links that the site can follow."""
    folder = "" if page.file.src_uri in ROOT_PAGES else "docs"

    def replace(match: re.Match[str]) -> str:
        return match[1] or _on_site(match[2], folder, str(config.repo_url), files)

    return CODE_OR_LINK.sub(replace, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Return the page without the mark by which the theme's script asks the code host for stars and releases."""
    return output.replace('data-md-component="source"', "")


def _on_site(target: str, folder: str, repo_url: str, files: Files) -> str:
    """Return a link from a page in a folder of the repository, as one from a page of the site."""
    path, _, anchor = target.partition("#")
    if not path or "://" in path or path.startswith("mailto:"):
        return target
    in_repo = posixpath.normpath(posixpath.join(folder, path))
    on_site = in_repo.removeprefix("docs/")
    if not (in_repo in ROOT_PAGES or in_repo.startswith("docs/")) or files.get_file_from_path(on_site) is None:
        if not (ROOT / in_repo).exists():
            return target  # which mkdocs reports
        kind = "tree" if (ROOT / in_repo).is_dir() else "blob"
        on_site = f"{repo_url}/{kind}/main/{in_repo}"
    return f"{on_site}#{anchor}" if anchor else on_site
