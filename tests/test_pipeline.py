"""The whole recipe at its default settings, as a reader runs it, against the bars that it is there to reach."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data import metrics

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_from_random_weights_to_an_aligned_assistant(tmp_path):
    for stage in ("gpt", "sft", "reward", "ppo"):
        subprocess.run([sys.executable, f"{stage}.py", "--out", str(tmp_path), "--seed", os.environ.get("SEED", "1")], cwd=ROOT, check=True)
    results = metrics.read_results(tmp_path)
    print("\n" + metrics.table([results]) + "\n\n" + metrics.samples(results))
    ppo, sft = results["ppo"]["ppo"], results["ppo"]["sft"]
    # Seconds are the one figure that depends on the machine. Elsewhere than on a quiet one, they say little.
    assert sum(results["ppo"]["seconds"].values()) <= 8 * 60
    assert max(stage["memory_gb"] for stage in results.values()) < 2
    assert results["reward"]["accuracy"] >= .80
    assert -.3 <= sft["gold"] <= .3 and ppo["gold"] >= .6
    assert results["ppo"]["win_rate"] >= .80
    assert results["ppo"]["kl"] <= 6
    assert ppo["end_rate"] >= .98
    assert ppo["length"] <= 1.5 * sft["length"]
    assert sft["invented"] > .40 and ppo["invented"] < .10
    assert ppo["complied"] < .05
    assert ppo["right"] >= sft["right"]
    log = [json.loads(line) for line in open(tmp_path / "ppo" / "log.jsonl")]
    assert all(record["first_ratio"] == 1 and record["first_approx_kl"] == 0 for record in log)
