"""Files beside the package: hooks, make targets, workflows, metadata and version agree with each other."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import yaml
from conftest import ROOT
from pages import commands

import ulmfit_dist

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = "https://github.com/ulmfit-dist/ulmfit-dist"
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))

pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="a source archive has neither .github nor .ci")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def yaml_of(name: str) -> Any:
    return yaml.load(text_of(name), yaml.BaseLoader)  # in which `on` is no boolean


def project() -> dict[str, Any]:
    return tomllib.loads(text_of("pyproject.toml"))["project"]


def checks_of_lint() -> set[str]:
    (names,) = re.findall(r"^checks=\((.+)\)$", text_of("launch/lint.sh"), re.MULTILINE)
    return set(names.split())


def test_each_hook_is_a_local_check_of_lint_and_none_is_missing():
    (repository,) = yaml_of(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    assert {hook["entry"] for hook in repository["hooks"]} == {f"bash launch/lint.sh {name}" for name in checks_of_lint()}


def test_ci_runs_every_check_of_lint():
    (line,) = re.findall(r"^bash launch/lint\.sh ([\w ]+)", text_of(".ci/run"), re.MULTILINE)
    assert {*line.split(), "prose"} == checks_of_lint()  # all tests contain those of `prose`


def test_every_make_target_on_the_pages_and_in_the_workflows_exists():
    targets = set(re.findall(r"^([\w-]+):.*## ", text_of("Makefile"), re.MULTILINE))
    on_pages = {words[1] for _, words in commands() if words[0] == "make" and len(words) > 1}
    in_workflows = {name for path in WORKFLOWS for name in re.findall(r"\bmake ([\w-]+)", path.read_text(encoding="utf-8"))}
    assert {"setup", "test", "test-fast", "lint"} <= on_pages
    assert on_pages | in_workflows <= targets


def test_the_workflows_test_the_oldest_and_the_newest_python_that_is_declared():
    tested = yaml_of(".github/workflows/ci.yml")["jobs"]["fast"]["strategy"]["matrix"]["python"]
    declared = re.findall(r":: (3\.\d+)$", "\n".join(project()["classifiers"]), re.MULTILINE)
    assert set(tested) <= set(declared)
    assert (tested[0], tested[-1]) == (declared[0], declared[-1])
    assert project()["requires-python"] == f">={declared[0]}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read_and_ends_an_earlier_run_of_its_branch(path):
    workflow = yaml_of(f".github/workflows/{path.name}")
    assert workflow["permissions"] == {"contents": "read"}
    assert "github.ref" in workflow["concurrency"]["group"]
    written = [job.get("permissions", {}) for job in workflow["jobs"].values()]
    assert all(permissions in ({}, {"id-token": "write"}) for permissions in written)
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    actions = [step["uses"] for step in steps if "uses" in step]
    assert all(re.search(r"@(release/)?v\d+$", action) for action in actions)
    checkouts = [step for step in steps if step.get("uses", "").startswith("actions/checkout")]
    assert all(step["with"]["persist-credentials"] == "false" for step in checkouts)


def test_the_address_of_the_repository_is_the_same_everywhere():
    files = ("CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", ".github/ISSUE_TEMPLATE/config.yml")
    for text in (*project()["urls"].values(), *map(text_of, files)):
        assert set(re.findall(r"https://github\.com/[\w-]+/ulmfit[\w-]*", text)) == {REPOSITORY}


def test_the_version_and_its_date_are_the_same_everywhere():
    citation = yaml_of("CITATION.cff")
    newest = re.search(r"^## (.+)$", text_of("CHANGELOG.md"), re.MULTILINE)
    assert newest is not None
    assert citation["version"] == ulmfit_dist.__version__
    assert newest[1] == f"{citation['version']} ({citation['date-released']})"
