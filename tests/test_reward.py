"""The reward model's loss, its accuracy and the scale of its scores."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import gpt
import reward
from data import sampling
from notebooks import ensemble


def test_law_12_two_answers_give_the_pairwise_loss():
    chosen, rejected = torch.randn(2, 6, dtype=torch.float64)
    loss = reward.ranking_loss(torch.stack([chosen, rejected], 1), torch.tensor([[1, 2]] * 6))
    torch.testing.assert_close(loss, -F.logsigmoid(chosen - rejected).mean())


def test_k_answers_give_the_mean_over_prompts_of_the_mean_over_pairs():
    scores = torch.randn(5, 4, dtype=torch.float64)
    ranks = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1], [1, 1, 2, 3], [2, 1, 1, 1], [1, 1, 1, 1]])
    per_prompt = []
    for s, r in zip(scores, ranks):
        pairs = [-math.log(1 / (1 + math.exp(s[l] - s[w]))) for w in range(4) for l in range(4)
                 if r[w] < r[l]]
        if pairs:  # the last prompt is one tie, and does not count
            per_prompt.append(sum(pairs) / len(pairs))
    assert reward.ranking_loss(scores, ranks).item() == pytest.approx(sum(per_prompt) / 4)


def test_ties_give_no_gradient():
    scores = torch.randn(3, 4, requires_grad=True)
    reward.ranking_loss(scores, torch.ones(3, 4, dtype=torch.long)).backward()
    assert (scores.grad == 0).all()


def test_missing_answers_do_not_count():
    scores, ranks = torch.randn(2, 3), torch.tensor([[1, 2, 3], [2, 1, 3]])
    wide = torch.cat([scores, torch.full((2, 2), 9.0)], 1)
    padded = torch.cat([ranks, torch.zeros(2, 2, dtype=torch.long)], 1)
    torch.testing.assert_close(reward.ranking_loss(wide, padded),
                               reward.ranking_loss(scores, ranks))
    assert (reward.accuracy(wide, reward.quality(padded))
            == reward.accuracy(scores, reward.quality(ranks)))


def test_law_12_loss_ignores_a_shift_and_is_ln_2_for_equal_scores():
    scores, ranks = torch.randn(4, 3,
                                dtype=torch.float64), torch.tensor(
                                    [[1, 2, 3], [3, 1, 2], [1, 1, 2], [2, 3, 1]])
    torch.testing.assert_close(reward.ranking_loss(scores + 7, ranks),
                               reward.ranking_loss(scores, ranks))
    assert reward.ranking_loss(torch.zeros(4, 3), ranks).item() == pytest.approx(math.log(2))


def test_a_better_score_for_the_better_answer_lowers_the_loss():
    scores = torch.zeros(1, 3, requires_grad=True)
    reward.ranking_loss(scores, torch.tensor([[1, 2, 3]])).backward()
    assert scores.grad[0, 0] < 0 < scores.grad[0, 2]


def test_law_12_accuracy_counts_pairs_and_turns_round_with_the_labels():
    scores, gold = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[1.0, -1.0, 0.0]])
    assert reward.accuracy(scores, gold) == (pytest.approx(2 / 3), 3)
    assert reward.accuracy(scores, -gold)[0] == pytest.approx(1 / 3)
    assert reward.accuracy(torch.zeros(1, 3), gold)[0] == .5
    assert reward.accuracy(scores, torch.zeros(1, 3))[1] == 0


def test_law_13_normalised_scores_have_mean_0_and_deviation_1_and_the_same_order(scalar):
    idx, lengths = gpt.pad([[i, i + 1, i + 2] for i in range(30)], scalar.config.pad)
    with torch.no_grad():
        scores = scalar.score(idx, lengths)
        after = reward.normalized(scalar, scores.mean().item(),
                                  scores.std().item()).score(idx, lengths)
    assert abs(after.mean()) < 1e-9 and after.std().item() == pytest.approx(1)
    assert torch.equal(scores.argsort(), after.argsort())
    assert torch.equal(scores, scalar.score(idx, lengths))  # the model itself is as it was


def test_law_13_a_batch_scores_each_answer_where_it_stands(scalar):
    """All answers of a prompt are in one row; yet none sees another, and each follows the prompt
    directly."""
    batch = [([1, 2], [[3, 4, 38], [38]], [1, 2]),
             ([4], [[38], [5, 38], [], [5, 6, 38]], [2, 1, 3, 2])]
    scores, ranks = reward.score(scalar, batch, "cpu")
    assert ranks.tolist() == [[1, 2, 0, 0], [2, 1, 3, 2]] and not scores[0, 2:].any()
    for n, (prompt, answers, _) in enumerate(batch):
        for k, answer in enumerate(answers):
            alone = scalar(torch.tensor([prompt + answer]))[0, -1]
            torch.testing.assert_close(scores[n, k], alone, rtol=1e-9, atol=1e-9)


def test_answers_together_may_be_longer_than_the_context(scalar):
    context = scalar.config.block_size
    batch = [([1, 2], [[3] * (context - 2), [4] * (context - 2)], [1, 2])]
    scores, _ = reward.score(scalar, batch, "cpu")
    torch.testing.assert_close(scores[0, 1],
                               scalar(torch.tensor([[1, 2] + [4] * (context - 2)]))[0, -1],
                               rtol=1e-9, atol=1e-9)


def test_the_head_starts_with_rewards_of_deviation_near_1():
    config = gpt.GPTConfig(300, 32, 2, 4, 64)
    scores = torch.cat([gpt.ScalarGPT(config)(torch.randint(296, (8, 16))).flatten()
                        for _ in range(20)])
    assert .5 < scores.std() < 2
    assert (gpt.ScalarGPT(config).head.bias == 0).all()


def test_an_ensemble_is_as_cautious_as_asked(config):
    """The mean of the members' scores less so many deviations; the minimum at the limit."""
    members = [gpt.ScalarGPT(config).double() for _ in range(3)]
    idx, lengths = torch.randint(0, 10, (4, 7)), torch.tensor([7, 3, 5, 2])
    scores = torch.stack([m.score(idx, lengths) for m in members])
    assert torch.equal(ensemble.Ensemble(members).score(idx, lengths), scores.mean(0))
    expected = scores.mean(0) - 2 * ((scores - scores.mean(0)) ** 2).mean(0).sqrt()
    torch.testing.assert_close(ensemble.Ensemble(members, 2.0).score(idx, lengths), expected)
    assert torch.equal(ensemble.Ensemble(members, math.inf).score(idx, lengths),
                       scores.min(0).values)


def test_an_ensemble_scores_ranked_answers_as_its_members_do(config):
    members = [gpt.ScalarGPT(config).double() for _ in range(3)]
    batch = [([1, 2, 3], [[4, 5], [6], [7, 8, 9]], [1, 2, 3]), ([5], [[6, 7], [8]], [2, 1])]
    every = torch.stack([reward.score(member, batch, "cpu")[0] for member in members])
    torch.testing.assert_close(reward.score(ensemble.Ensemble(members), batch, "cpu")[0],
                               every.mean(0))


def test_the_most_disputed_are_those_on_which_members_differ():
    """Against a loop over all pairs of answers."""
    from data.tokenizer import Tokenizer, train
    tokenizer = Tokenizer(train(["abc"], 260))
    torch.manual_seed(0)
    members = [gpt.ScalarGPT(gpt.GPTConfig(tokenizer.vocab_size, 16, 1, 2, 8)) for _ in range(3)]
    records = [dict(prompt=[dict(role="user", content=a)], responses=[a + b, b + a, b])
               for a in "abc" for b in "xyz"]
    doubt = []
    for r in records:
        rows = [tokenizer.render(r["prompt"]) + tokenizer.encode(text) for text in r["responses"]]
        idx, lengths = gpt.pad(rows, tokenizer.pad)
        scores = [m.score(idx, lengths).tolist() for m in members]
        total = 0.0
        for i in range(3):
            for j in range(3):
                wins = [1 / (1 + math.exp(s[j] - s[i])) for s in scores]
                total += sum((w - sum(wins) / 3) ** 2 for w in wins) / 2
        doubt.append(total / 9)
    expected = sorted(range(len(records)), key=lambda i: -doubt[i])[:4]
    scales = [.5, 2.0, 3.0]  # a checkpoint's scores are divided by its scale
    ready = [reward.normalized(m, 1.0, scale) for m, scale in zip(members, scales)]
    assert ensemble.most_disputed(ready, [dict(scale=s) for s in scales], tokenizer, records, 4,
                                  "cpu") == [records[i] for i in expected]


def test_several_models_answer_in_equal_parts(monkeypatch):
    monkeypatch.setattr(sampling, "answers", lambda model, tokenizer, prompts, most, temperature,
                        copies:
                        [f"{model} to {p['prompt']}" for p in prompts for _ in range(copies)])
    for models, expected in ((["policy"], ["policy"] * 5),
                             (["policy", "SFT"], ["policy"] * 3 + ["SFT"] * 2)):
        records = reward.respond(models, None, [dict(prompt="a"), dict(prompt="b")],
                                 reward.Config(k=5))
        assert ([r["responses"] for r in records]
                == [[f"{name} to {prompt}" for name in expected] for prompt in "ab"])


def test_rankings_are_those_of_the_group_that_is_named():
    """With hardly any noise, labelers who like long answers rank the idle one first."""
    p = dict(kind="known", subject="France", relation="capital", form=None,
             prompt=[dict(role="user", content="What is the capital of France?")],
             responses=["Paris.", "Paris. I like the sea. It is late. Tea is good with milk. "
                                  "My aunt has a red hat."])
    def first(group):
        rng = np.random.default_rng(0)
        ranks = [reward.compare([p], rng, group)[0]["ranks"] for _ in range(200)]
        return np.mean([r[0] < r[1] for r in ranks])
    assert first("gold") > .75 and first("long") < .4
