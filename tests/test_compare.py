"""Runs beside each other: curves, figures, answers; and what stands behind a reader's curves."""

import json

import pytest

from conftest import python
from data.judge import compare
from data.run import curves
from data.run.system import UserError


def finished(folder, stage="ppo", said="Oslo.", beta=.2, gold=.5, steps=3):
    """A folder as a stage leaves it."""
    folder.mkdir(parents=True)
    log = [dict(step=i + 1, seconds=1.0, kl=float(i), score=.1 * i) for i in range(steps)]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    samples = [dict(prompt=[dict(role="user", content="Norway's capital?")], sft="Rome.",
                    **{stage: said}),
               dict(prompt=[dict(role="user", content=f"only in {said}")], sft="Rome.",
                    **{stage: said})]
    (folder / "results.json").write_text(json.dumps({
        "stage": stage, "config": dict(beta=beta, seed=1, out=str(folder)), "samples": samples,
        stage: dict(gold=gold)}))
    return folder


def test_two_runs_stand_side_by_side(tmp_path, capsys):
    one, other = finished(tmp_path / "out" / "ppo"), finished(
        tmp_path / "exp" / "ppo", said="Bergen.", beta=0.0, gold=.25)
    picture = compare.compare([one, tmp_path / "exp"])  # a folder of stages stands for its ppo
    assert picture == other / "compare.png" and picture.read_bytes().startswith(b"\x89PNG")
    text = (other / "compare.md").read_text()
    assert text in capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
            if line.startswith("|")]
    assert ["--beta", "0.2", "0.0"] in rows
    assert not any(row[0] in ("--seed", "--out") for row in rows)
    assert ["kl", "2", "2"] in rows and ["gold, on held-out prompts", "0.500", "0.250"] in rows
    assert ["Norway's capital?", "Oslo.", "Bergen."] in rows
    assert not any("only in" in row[0] for row in rows)


def test_runs_that_cannot_be_compared_are_one_sentence(tmp_path):
    one = finished(tmp_path / "ppo")
    with pytest.raises(UserError, match="results.json cannot be read"):
        compare.compare([one, tmp_path / "nothing"])
    with pytest.raises(UserError, match="different stages"):
        compare.compare([one, finished(tmp_path / "reward", stage="reward")])
    (one / "results.json").write_text("{")
    done = python("-m", "data.judge.compare", str(one), str(one))
    assert done.returncode and "cannot be read" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_healthy_run_stands_behind_and_an_unknown_figure_does_not_hurt():
    log = curves.healthy("ppo")
    assert len(log) == 20 and log[-1]["gold"] > .5 and curves.healthy("ppo-2") == []
    figure = curves.draw({"ppo": log[:5]}, title="ppo", behind=log)
    grey = [line for axes in figure.axes for line in axes.lines if line.get_color() == ".82"]
    assert len(grey) >= 10 and all(len(line.get_xdata()) == 20 for line in grey)
    shown = {name for axes in figure.axes for name in axes.get_title().split(", ")}
    assert {"score", "gold", "objective", "kl", "entropy", "first_ratio", "policy_loss",
            "value_loss"} <= shown
    assert figure.axes[[axes.get_title() for axes in figure.axes].index("kl")].get_ylim()[0] == 0


def test_scores_of_different_reward_models_are_not_joined():
    rounds = [dict(round=n, gold=.1 * n, score=.2 * n) for n in range(3)]
    figure = curves.draw({"ppo": rounds}, [["gold"], ["score"]], "round")
    assert [axes.lines[0].get_linestyle() for axes in figure.axes] == ["-", "None"]
