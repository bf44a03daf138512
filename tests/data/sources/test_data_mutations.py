"""Files with faults: read right, or refused in one line (`benchmarks/data_mutations.py` has 2,000 of them)."""

import pytest

from benchmarks.data_mutations import KINDS, run


def test_a_file_with_faults_is_read_as_pandas_does_or_refused_in_one_line():
    outcomes = run(count=80, seed=10_000)
    assert {outcome.kind for _, outcome in outcomes} == set(KINDS)
    assert {outcome.result for _, outcome in outcomes} >= {"as pandas", "refused"}
    for seed, outcome in outcomes:
        assert outcome.result != "failed", f"seed {seed}: {outcome.detail}"
        if outcome.result == "otherwise" and outcome.detail.startswith("strict"):
            pytest.fail(f"seed {seed} is read otherwise than by pandas: {outcome.detail}")
