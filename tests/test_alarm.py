"""The alarm of PPO: it rings where a run goes wrong, and not in healthy runs."""

import json
from pathlib import Path

import pytest

from data.judge import alarm

CASES = json.loads((Path(__file__).parent / "cases" / "alarm.json").read_text())


def rung(history):
    """The sections of the notebook that the alarms of a whole run name."""
    return [a.section for n in range(len(history)) for a in alarm.ringing(history[:n + 1])]


@pytest.mark.parametrize("name", CASES["failures"])
def test_it_rings_in_the_runs_of_notebook_7_that_break_by_gold(name):
    """small scale: its scores deviate by .05, which a line says before the first step."""
    history = CASES["failures"][name]
    wanted = {"few rankings": [3], "lr too high": [2], "no end": [4]}.get(name, [])
    assert rung(history) == wanted
    broken = history[-1]["gold"] < history[0]["gold"] + .1
    assert broken == (name in ("lr too high", "no end", "small scale"))
