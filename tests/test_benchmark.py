"""python -m notebooks.benchmark measures what it says, in a size that takes seconds."""

import pytest

import gpt
from notebooks import benchmark

TINY = gpt.GPTConfig(64, 16, 1, 2, 8)
SIZES = benchmark.Sizes(TINY, [(TINY, 4, 16)], answers=16, prompt=4, response=4, turns=2)


def test_exponents_and_arithmetic_by_hand():
    assert benchmark.exponent([1, 2, 4], [3, 6, 12]) == pytest.approx(1)
    assert benchmark.exponent([1, 2, 4], [1, 4, 16]) == pytest.approx(2)
    # A token meets 12 C^2 weights of a block and V C of the head, and half of 16 keys and values:
    # 6 operations each.
    assert benchmark.arithmetic(TINY, 4, 16) == 6 * 64 * (12 * 64 + 64 * 8 + 2 * 8 * 8)


@pytest.mark.slow
def test_all_tables_are_measured():
    pytest.importorskip("transformers")
    speed, rows = benchmark.measure(SIZES, "cpu", benchmark.torch.float32)
    found = dict(machine="this one", parts=[dict(precision="fp32", speed=speed, rows=rows)],
                 operations=benchmark.operations(SIZES, "cpu"),
                 growth=benchmark.growth("cpu", SIZES))
    assert all(ours > 0 and ratio > 0 for _, ours, _, ratio, _ in rows) and rows[0][4] < 1
    assert all(0 < sum(shares.values()) <= 1 for shares in found["operations"].values())
    text = benchmark.table(found)
    assert all(name in text
               for name in ("PPO iteration, 16 x 4", "rollout, 16 x (4 + 4)",
                            "answers of a rollout", "ours / theirs"))
