#!/usr/bin/env bash
# Check code and text without running the package; .ci/run, `make lint` and pre-commit use these commands.
# bash launch/lint.sh [CHECK ...]: run some of the checks ruff, format, types, shell, schemas, prose; without arguments all.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

checks=(ruff format types shell schemas prose)

# validate SCHEMA FILE ...: compare files with a schema that comes with check-jsonschema, without the network.
validate() { check-jsonschema --quiet --builtin-schema "$@"; }

check() {
    case $1 in
        ruff) ruff check . ;;
        format) ruff format --check . ;;
        types) mypy ;;
        shell)
            type shellcheck > /dev/null 2>&1 || {
                echo "lint: shellcheck is missing: on Debian and Ubuntu, apt-get install shellcheck" >&2
                return 2
            }
            shellcheck --external-sources --source-path=SCRIPTDIR:. slurm/*.sbatch slurm/*.sh launch/*.sh .ci/run
            ;;
        schemas)
            validate vendor.github-workflows .github/workflows/*.yml
            validate custom.github-workflows-require-timeout .github/workflows/*.yml
            validate vendor.dependabot .github/dependabot.yml
            validate vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
            validate vendor.github-issue-forms .github/ISSUE_TEMPLATE/*_*.yml
            validate vendor.citation-file-format CITATION.cff
            pre-commit validate-config
            ;;
        prose) python -m pytest --quiet --durations=0 --durations-min=60 tests/test_style.py tests/test_docs.py ;;
        *)
            echo "lint: $1: no such check; give some of: ${checks[*]}" >&2
            return 2
            ;;
    esac
}

[ $# -gt 0 ] || set -- "${checks[@]}"
for name in "$@"; do
    check "$name"
done
