"""The benchmark and the speedrun measure what they say, in a size that takes seconds."""

import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import gpt
from data.run import disk
from data.run.run import in_round
from data.run.system import UserError
from notebooks import benchmark, speedrun

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


def test_the_reference_step_changes_no_random_number():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    assert speedrun.reference_step(3) > 0
    assert torch.equal(torch.rand(3), expected)


def test_a_speedrun_ends_when_gold_is_reached(tmp_path, monkeypatch):
    """Rounds as needed, measured on `valid`; `test` is judged once, and is not in the seconds."""
    commands, golds = [], iter([.75, .91, .92])

    def run(command, cwd):
        commands.append(command[1:])
        out, name = Path(command[3]), command[1].removesuffix(".py")
        if "--eval" in command:
            judged = {name: dict(mean=.9) for name in ("gold", "preferred", "kl")}
            disk.write(disk.make_folder(out / "eval") / "results.json",
                       json.dumps(dict(models={"ppo": judged, "ppo-2": judged})))
        elif name == "ppo":
            number = int(command[command.index("--round") + 1]) if "--round" in command else 1
            folder = disk.make_folder(out / in_round("ppo", number))
            disk.write(folder / "results.json", json.dumps(dict(ppo=dict(gold=next(golds)))))
        return SimpleNamespace(returncode=0)
    monkeypatch.setattr(speedrun.subprocess, "run", run)
    monkeypatch.setattr(speedrun, "reference_step", lambda: 30.0)
    monkeypatch.setattr(speedrun, "code", lambda: dict(commit="abc"))
    row = speedrun.speedrun(tmp_path / "new", 4, {"gpt": ["--steps", "9"]})
    assert [c[0] for c in commands] == ["gpt.py", "sft.py", "reward.py", "ppo.py", "reward.py",
                                        "ppo.py", "ppo.py"]
    assert commands[0][-2:] == ["--steps", "9"] and commands[-1][-1] == "--eval"
    assert all(c[-2:] == ["--split", "valid"] for c in commands[2:6])
    assert row["rounds"] == 2 and row["at_60"] == 2 * row["seconds"]
    assert "--steps" in speedrun.table([row])
    assert f"| {speedrun.VERSION} | 4 | 2 |" in speedrun.table([row])
    # called again, only `test` is judged again; other flags count from the stage that they change
    del commands[:]
    assert speedrun.speedrun(tmp_path / "new", 4, {"gpt": ["--steps", "9"]}) == row
    assert [c[-1] for c in commands] == ["--eval"]
    again = speedrun.speedrun(tmp_path / "new", 4, {"gpt": ["--steps", "9"], "ppo": ["--lr", "1"]})
    assert [c[0] for c in commands[1:]] == ["ppo.py", "ppo.py"] and again["rounds"] == 1
    assert not (tmp_path / "new" / "ppo-2").exists()
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="begins with nothing"):
        speedrun.speedrun(tmp_path / "other", 4, {})
    golds = itertools.repeat(.5)
    with pytest.raises(UserError, match="not reached in 5 rounds"):
        speedrun.speedrun(tmp_path / "slow", 4, {})


@pytest.mark.parametrize("words, flags", [
    ("gpt:--steps 900 sft:--steps 700", dict(gpt=["--steps", "900"], sft=["--steps", "700"])),
    ("sft:--init gpt", dict(sft=["--init", "gpt"])), ("", {})])
def test_flags_of_stages_are_read_with_their_stage(words, flags, monkeypatch, tmp_path, capsys):
    runs = []
    monkeypatch.setattr(speedrun, "speedrun", lambda *args: runs.append(args) or {})
    monkeypatch.setattr(speedrun, "table", lambda rows: "")
    monkeypatch.setattr(sys, "argv", ["speedrun", "--out", str(tmp_path), *words.split()])
    speedrun.main()
    assert runs == [(tmp_path, 1, flags)]
