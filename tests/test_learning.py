"""RLHF as a whole, in a world so small that it takes seconds: it fails if any part of it stops
working.

Two letters are asked, "bd"; demonstrations answer with one of the two or with any other; noisy
rankings prefer the first
of the two, alone. Every stage is the real one, on files as a user would give them.
"""

import json
import random

import numpy as np
import pytest
import torch

import gpt
import ppo
import reward
import sft
from data import sampling
from data.files import records as files
from data.world import labeler
from data.tokenizer import Tokenizer, train

LETTERS = "abcdef"


def demonstrate(rng, asked):
    answer = rng.choice(asked) if rng.random() < .6 else rng.choice(LETTERS)
    return answer + (rng.choice(LETTERS) if rng.random() < .3 else "")


def gold(asked, answer):
    return 1.0 if answer == asked[0] else -.2 if answer[:1] == asked[0] else -1.0


def compare(rng, asked, n):
    """The n-th comparison: four answers, ranked by a labeler who is seldom wrong."""
    answers = [demonstrate(rng, asked) for _ in range(4)]
    return dict(prompt=asked, responses=answers,
                ranks=labeler.rank([gold(asked, a) for a in answers], np.random.default_rng(n),
                                   3.0))


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The whole of RLHF -> share of other answers' pairs that the reward model orders right,
    results and history of ppo.py, and mean gold of SFT and PPO."""
    out, rng = tmp_path_factory.mktemp("letters"), random.Random(0)
    torch.manual_seed(0)
    asked = [a + b for a in LETTERS for b in LETTERS if a != b]
    asked[19:19] = ["aa"]  # the twentieth, which is held out
    demonstrations = [dict(prompt=p, response=demonstrate(rng, p)) for p in asked * 100]
    comparisons = [compare(rng, p, n) for n, p in enumerate(asked * 200)]
    for name, records in (("demonstrations", demonstrations), ("comparisons", comparisons),
                          ("prompts", [dict(prompt=p) for p in asked * 40])):
        files.write_jsonl(out / f"{name}.jsonl", records)
    tokenizer = Tokenizer(train([LETTERS], 260))
    (out / "gpt").mkdir()
    gpt.save(out / "gpt" / "ckpt.pt", gpt.GPT(gpt.GPTConfig(tokenizer.vocab_size, 12, 2, 2, 32)),
             tokenizer)
    common = dict(out=str(out), log_every=50, threads=1)
    sft_model, _ = sft.train(sft.Config(data=str(out / "demonstrations.jsonl"), steps=500, lr=5e-3,
                                        **common))
    judge, _ = reward.train(reward.Config(data=str(out / "comparisons.jsonl"), lr=3e-3, batch=16,
                                          **common))
    files.write_jsonl(out / "others.jsonl",
                      [compare(rng, p, 10 ** 6 + n) for n, p in enumerate(asked * 10)])
    others = files.read_comparisons(out / "others.jsonl")
    ordered = reward.evaluate(judge, others, [reward.encode(tokenizer, r, 12) for r in others],
                              "cpu")["accuracy"]
    policy, history = ppo.train(ppo.Config(data=str(out / "prompts.jsonl"), steps=80, batch=256,
                                           lr=2e-3, max_new_tokens=4, temperature=1.0, **common))
    golds = []
    for model in (sft_model, policy):
        every = asked * 50  # so many that the mean is known to .02
        answers = sampling.answers(model, tokenizer,
                                   [dict(prompt=[dict(role="user", content=p)]) for p in every], 4)
        golds.append(sum(gold(p, a) for p, a in zip(every, answers)) / len(answers))
    return ordered, json.loads((out / "ppo" / "results.json").read_text()), history, golds


def test_rlhf_learns_what_rankings_prefer(learned):
    ordered, results, history, (before, after) = learned
    assert ordered > .85  # .98 was seen
    assert before < -.25 and after > .9  # -.31 and .99; demonstrations have -.38
    assert history[-1]["score"] > .8  # 1.4; the SFT model's is 0
    assert .5 < history[-1]["kl"] < 3 and results["ppo"]["ended"] > .98
    assert history[-1]["explained_variance"] > .5
