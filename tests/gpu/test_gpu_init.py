"""Tests of `init` on a GPU: its measurement synchronizes with the device, and its config is for a GPU."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest
import yaml
from conftest import TOPICS, make_text
from small_runs import needs_gpu

from ulmfit_dist.config.schema import RuntimeConfig
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.recipes.dataset_profile import TextOptions
from ulmfit_dist.recipes.init import init

pytestmark = needs_gpu


@pytest.mark.parametrize("kind", ["word", "sentencepiece"])
def test_a_recipe_is_sized_for_a_gpu(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = random.Random(0)
    with open(tmp_path / "news.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for _ in range(240):
            topic = rng.choice([*TOPICS])
            table.writerow([make_text(topic, rng.randint(8, 30), rng), topic])
    monkeypatch.chdir(tmp_path)
    options = TextOptions(lang="en", overrides=[f"tokenizer.type={kind}"])
    with Runtime(RuntimeConfig()) as runtime:
        result = init("news.csv", runtime, options)
    assert min(result.minutes["lm"], result.minutes["classifier"]) > 0
    content = result.recipe.read_text()
    assert "(one GPU)" in content
    tokenizer = yaml.safe_load(content)["tokenizer"]
    assert tokenizer["max_vocab"] == 20_000 if kind == "word" else tokenizer["sp_vocab_size"] > 0
