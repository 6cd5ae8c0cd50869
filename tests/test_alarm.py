"""The alarm of PPO: it rings where a run goes wrong, and not in healthy runs."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ppo
from data.judge import alarm
from data.tokenizer import Tokenizer, train
from data.world import almanac

# Figures of the runs of notebook 7, and of three rounds of seeds that no rule was fixed on.
CASES = json.loads((Path(__file__).parent / "cases" / "alarm.json").read_text())
BROKEN = {"few rankings": [3], "lr too high": [2, 3], "no end": [4], "small scale": []}
QUIET = dict(score=0.0, score_std=1.0, kl_token=.1, end_rate=1.0, length=20.0, empty=0.0)


def sections(history):
    """What rings during a whole run: the sections of the notebook that are named."""
    return [a.section for n in range(len(history)) for a, _ in alarm.ringing(history[:n + 1])]


@pytest.mark.parametrize("name", CASES["failures"])
def test_it_rings_in_the_runs_of_notebook_7_that_break_by_gold(name):
    """small scale: there a line says before the first update that the scores hardly differ."""
    last = {run: alarm.last_three(CASES["failures"][run])["gold"] for run in (name, "healthy")}
    assert (last[name] < last["healthy"] - .25) == (name in BROKEN)
    assert sections(CASES["failures"][name]) == BROKEN.get(name, [])
    assert (CASES["failures"][name][0]["score_std"] < .2) == (name in ("small scale", "no end"))


@pytest.mark.parametrize("name", CASES["unseen"])
def test_it_is_silent_in_healthy_runs(name):
    assert sections(CASES["unseen"][name]) == [] and len(CASES["unseen"][name]) >= 20


def test_of_own_data_it_looks_at_the_length():
    history = [dict(QUIET, score=.2 * n, length=20.0 + 10 * n) for n in range(9)]
    assert sections(history) == [3]
    assert sections([dict(record, length=20.0) for record in history]) == []
    assert sections([dict(record, gold=.2 * n) for n, record in enumerate(history)]) == []


def watched(history, batch, prompts, tokenizer, log_every=1):
    """What `watch` says during a run with these figures."""
    said = []
    run = SimpleNamespace(history=[], say=said.append, show=lambda text: None,
                          cfg=SimpleNamespace(log_every=log_every),
                          due=lambda step, every: (step + 1) % every == 0)
    for step, figures in enumerate(history):
        alarm.watch(run, step, figures, batch, prompts, tokenizer)
        if run.due(step, log_every):
            run.history.append(figures)
    return said


@pytest.fixture(scope="module")
def rollout():
    """Three answers to made-up prompts: a bad one scores highest -> (batch, prompts, tokenizer)."""
    tokenizer = Tokenizer(train(almanac.text(100, "alarm"), 400))
    prompts = [p for p in almanac.prompts("train", 200, 1) if p["kind"] == "made-up"][:3]
    rows = [tokenizer.render(p["prompt"]) for p in prompts]
    ids = [tokenizer.encode(text) + [tokenizer.end] for text in
           ("I do not know.", "Shut up.", "It has four legs.")]
    idx, lengths = ppo.gpt.pad([a + b for a, b in zip(rows, ids)], tokenizer.pad)
    mask = ppo.gpt.response_mask(torch.tensor([len(row) for row in rows]), lengths, idx.shape[1])
    zeros = torch.zeros(mask.shape)
    batch = ppo.Rollout(idx, lengths, mask, torch.ones(3).bool(), torch.tensor([3.0, .5, 1.5]),
                        zeros, zeros)
    return batch, prompts, tokenizer


@pytest.mark.parametrize("log_every", [1, 4])
def test_it_speaks_once_with_a_bad_answer_that_scores_high(rollout, log_every):
    history = [dict(QUIET, score=.1 * n, gold=0.0) for n in range(24)]
    sentence, = watched(history, *rollout, log_every)
    assert "but gold went from 0.00 to 0.00" in sentence and "'It has four legs.'" in sentence
    assert "score +1.50 (notebooks/7_failures.ipynb, section 3)" in sentence


def test_figures_that_a_log_does_not_have_are_no_error(rollout):
    history = [dict(QUIET, explained_variance=.1), dict(QUIET, gold=.5), QUIET, QUIET]
    assert watched(history, *rollout) == []


@pytest.mark.parametrize("figures, said", [
    (dict(empty=1.0), "all answers are empty"), (dict(score_std=0.0), "all answers have the same"),
    (dict(score_std=.05), "section 10"), (dict(score=-6.0), "where --beta and --clip expect")])
def test_scores_that_teach_nothing_or_have_another_scale_are_named(rollout, figures, said):
    sentence, = watched([{**QUIET, **figures}], *rollout)
    assert said in sentence
