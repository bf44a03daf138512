"""Tests of this folder run on the simulated GPU only: `bash launch/test.sh --simulated-gpu`."""

import pytest


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return None if config.pluginmanager.has_plugin("simulated_gpu.plugin") else True
