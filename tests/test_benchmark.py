"""python -m notebooks.benchmark measures what it says, in a size that takes seconds."""

import pytest

import gpt
from notebooks import benchmark

TINY = gpt.GPTConfig(64, 16, 1, 2, 8)


def test_a_row_has_both_speeds_and_the_median_ratio():
    times = iter([9.0, 9.0, 1.0, 2.0, 1.0, 4.0, 2.0, 3.0])
    row, = benchmark.compare("work | peer", 8, lambda: next(times), lambda: next(times), 3, "cpu")
    assert row == ["work | peer", 8.0, 8 / 3, 2.0]
    assert benchmark.compare("work | TRL", 8, None, None, 3, "cpu") == []


@pytest.mark.slow
def test_all_rows_are_measured(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(benchmark, "PRETRAINING", {"cpu": [(TINY, 4, 16)]})
    monkeypatch.setattr(benchmark, "ROLLOUT", {"cpu": (TINY, 16, 4, 4)})
    rows = benchmark.measure("cpu", 2)
    assert all(ours > 0 and ratio > 0 for _, ours, _, ratio in rows) and len(rows) >= 3
    text = benchmark.table(dict(where="here", rows=rows))
    assert "sampling, 16 x (4 + 4) | transformers" in text and "ours / theirs" in text
