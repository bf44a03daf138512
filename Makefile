# Short names for the commands of CONTRIBUTING.md; the work is in launch/*.sh.
.DEFAULT_GOAL := help
.PHONY: help setup test-fast test test-gpu lint docs

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv with the project and its development tools
	bash launch/setup.sh

test-fast: ## run the unit tests, which start no process
	bash launch/test.sh --fast

test: ## run all tests
	bash launch/test.sh

test-gpu: ## run the tests of GPU code on a simulated GPU
	bash launch/test.sh --simulated-gpu

lint: ## check code, types, shell scripts, workflows and text
	bash launch/lint.sh

docs: setup ## build the site of the documentation
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
