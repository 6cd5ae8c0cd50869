"""What came after 2022 (notebooks/after.py): each loss by hand, and where it ends."""

import itertools
import math
import shutil
from types import SimpleNamespace

import pytest
import torch

import gpt
import ppo
from data import optim
from data.run.system import UserError
from data.world import almanac
from notebooks import after
from conftest import decide, optimum, probabilities


def noise(*shape):
    return torch.randn(*shape, dtype=torch.float64)


# ---- DPO -----------------------------------------------------------------------------------------


def test_dpo_begins_at_log_2_with_half_beta_times_the_difference_of_gradients(model):
    idx = torch.randint(30, (6, 12))
    mask = gpt.response_mask(torch.full((6,), 4), torch.tensor([12, 9, 7, 12, 10, 5]), 12)
    logp = gpt.token_logprobs(model, idx, mask=mask).sum(1)
    ref = logp.detach()
    loss = after.dpo_loss(logp[:3], logp[3:], ref[:3], ref[3:], beta=.3)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-12)
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters, retain_graph=True)
    wanted = torch.autograd.grad(-.3 / 2 * (logp[:3] - logp[3:]).mean(), parameters)
    torch.testing.assert_close(found, wanted)


def test_dpo_of_k_ranked_answers_is_that_of_its_pairs():
    logp, ref = noise(2, 3), noise(2, 3)
    ranks = torch.tensor([[2, 1, 2], [3, 1, 2]])
    pairs = [[(1, 0), (1, 2)], [(1, 2), (1, 0), (2, 0)]]
    by_hand = [sum(after.dpo_loss(logp[n, w], logp[n, l], ref[n, w], ref[n, l], .7)
                   for w, l in of) / len(of) for n, of in enumerate(pairs)]
    torch.testing.assert_close(after.ranked_dpo_loss(logp, ref, ranks, .7), sum(by_hand) / 2)


def test_dpo_finds_the_optimum_that_theory_gives(toy):
    """From nothing but preferences of the Bradley-Terry model, of answers that the reference
    gives: r is never shown."""
    out, asked, answers = toy
    beta, steps = .8, 250
    policy, tokenizer, _ = gpt.load(out / "sft" / "ckpt.pt")
    answers = [y for y in answers if y[-1] == tokenizer.end]
    ref, best, score = optimum(out, asked, answers, beta)
    idx, lengths = gpt.pad([asked + y for y in answers], tokenizer.pad)
    mask = gpt.response_mask(torch.full_like(lengths, len(asked)), lengths, idx.shape[1])
    logp_ref = gpt.token_logprobs(policy, idx, mask=mask).sum(1).detach()
    opt = optim.adamw(policy, 3e-3)
    for step in range(steps):
        one, other = torch.multinomial(ref, 2 * 1024, replacement=True).view(2, -1)
        wins = torch.rand(1024) < torch.sigmoid(score[one] - score[other])
        w, l = torch.where(wins, one, other), torch.where(wins, other, one)
        logp = gpt.token_logprobs(policy, idx, mask=mask).sum(1)
        loss = after.dpo_loss(logp[w], logp[l], logp_ref[w], logp_ref[l], beta)
        loss.backward()
        optim.optimizer_step(policy, opt, optim.learning_rate(step, steps, 3e-3))
    p = probabilities(policy, asked, answers)
    p = p / p.sum()  # pairs tell nothing of the answers that are in none
    assert (p - best / best.sum()).abs().sum() / 2 < .04
    assert (ref / ref.sum() - best / best.sum()).abs().sum() / 2 > .15


# ---- groups --------------------------------------------------------------------------------------


@pytest.mark.parametrize("advantages, unbiased", [
    (after.rloo_advantages, True), (after.grpo_advantages, False),
    (lambda rewards: rewards - rewards.mean(1, keepdim=True), False)],
    ids=["rloo", "grpo", "mean of all"])
def test_rloo_is_unbiased_by_enumeration_and_dividing_by_the_deviation_is_not(advantages, unbiased):
    """The mean gradient over all groups of three answers, each as often as it is drawn, is that of
    the expected reward. The mean of all K leaves (K - 1) / K of it, in the same direction; to
    divide by the deviation turns it."""
    logits, r = noise(4).requires_grad_(), noise(4)
    p = logits.softmax(0)
    wanted, = torch.autograd.grad((p * r).sum(), logits, retain_graph=True)
    groups = torch.tensor(list(itertools.product(range(4), repeat=3)))  # (64, 3)
    chance = p[groups].prod(1).detach()
    surrogate = (advantages(r[groups]) * p.log()[groups]).mean(1)
    found, = torch.autograd.grad((chance * surrogate).sum(), logits)
    assert torch.allclose(found, wanted) == unbiased
    along = torch.nn.functional.cosine_similarity(found, wanted, dim=0)
    assert (along < .999) == (advantages is after.grpo_advantages)


@pytest.mark.parametrize("advantages", [after.rloo_advantages, after.grpo_advantages])
def test_answers_that_are_equally_good_teach_nothing(advantages):
    found = advantages(torch.tensor([[1.0, 1.0, 3.0, -1.0], [.3, .3, .3, .3]]))
    assert found[0, 0] == found[0, 1] and (found[1] == 0).all()
    assert found.sum(1).abs().max() < 1e-6
    pair = advantages(torch.tensor([[2.0, 2.0]]))
    assert (pair == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_groups_find_the_optimum_that_theory_gives(method, toy):
    """Both: the penalty is part of the reward, so at the optimum all rewards are equal, and what
    they are divided by does not matter."""
    out, asked, answers = toy
    policy, _ = after.train(after.Config(
        out=str(out), data=str(out / "prompts.jsonl"), method=method, beta=.8, steps=120,
        batch=64, minibatches=2, lr=1.5e-3, temperature=1.0, max_new_tokens=3, log_every=50))
    ref, best, _ = optimum(out, asked, answers, .8)
    distance = (probabilities(policy, asked, answers) - best).abs().sum() / 2
    assert distance < .04


# ---- the command ---------------------------------------------------------------------------------


def decided(out, folder):
    """Rankings of random answers, of which no two tie -> their path."""
    shutil.copy(out / "reward" / "comparisons.jsonl", folder / "rankings.jsonl")
    return str(decide(folder / "rankings.jsonl"))


def test_rankings_that_teach_nothing_are_one_sentence(pipeline, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(pipeline[0], out)
    with pytest.raises(UserError, match="has no ranking of 7 answers that fit"):
        after.train(after.Config(out=str(out), k=7, max_new_tokens=8, prompts=40))


@pytest.mark.parametrize("methods", [
    ("dpo", "rloo"),
    pytest.param(("online-dpo", "grpo", "best", "random"), marks=pytest.mark.slow)])
def test_every_method_writes_a_policy_that_is_judged(methods, pipeline, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(pipeline[0], out)
    small = dict(out=str(out), steps=2, k=3, batch=4, minibatches=2, prompts=40, test_prompts=12,
                 max_new_tokens=8, rankings=decided(out, tmp_path))
    for method in methods:
        policy, history = after.train(after.Config(method=method, **small))
        saved, _, about = gpt.load(out / method / "ckpt.pt")
        assert about["stage"] == method and all(
            torch.equal(a, b) for a, b in zip(saved.parameters(), policy.parameters())), method
        assert [record["step"] for record in history] == [1, 2]
    _, history = after.train(after.Config(method="rloo", check="helpful,truthful", **small))
    assert all(-2 <= record["score"] <= 1 for record in history)


def test_dpo_learns_the_rankings_that_the_reward_model_learned(pipeline):
    """The score of an answer is minus its rank, and the mask holds the answer with its end."""
    out = pipeline[0]
    model, tokenizer, _ = gpt.load(out / "sft" / "ckpt.pt")
    records = [dict(prompt=[dict(role="user", content="a")], responses=["b", "cc"], ranks=[2, 1])]
    batch = after.ranked(model, records, tokenizer, after.Config(k=2))
    assert batch.score.tolist() == [-2, -1]
    rows = [row[1:][written].tolist() for row, written in zip(batch.idx, batch.mask)]
    assert rows == [tokenizer.encode(text) + [tokenizer.end] for text in ("b", "cc")]
    logp = batch.logp_ref.clone().requires_grad_()
    loss = after.preference_loss(logp, batch, after.Config(k=2, beta=.5))
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert (logp.grad[1][batch.mask[1]] < 0).all() and (logp.grad[0][batch.mask[0]] > 0).all()


def test_expert_iteration_imitates_the_best_answer_of_each_group():
    logp = noise(6, 3).requires_grad_()
    batch = SimpleNamespace(score=torch.tensor([1., 3, 2, 0, -1, -2]), mask=torch.ones(6, 3))
    batch.mask[1, 2] = 0
    cfg = SimpleNamespace(k=3)
    loss = after.LOSSES["best"](logp, batch, cfg)
    torch.testing.assert_close(loss, -(logp[1, :2].sum() + logp[3].sum()) / 5)
    batch.mask, logp = torch.ones(6, 3), torch.arange(6.)[:, None].repeat(1, 3)
    drawn = {after.LOSSES["random"](logp, batch, cfg).item() for _ in range(50)}
    assert drawn == {-1.5, -2, -2.5, -3, -3.5}  # minus the mean of 0, 1 or 2 and of 3, 4 or 5


def test_a_minibatch_holds_whole_groups_and_no_padding_of_others():
    rows = torch.arange(8)
    lengths = torch.tensor([4, 5, 9, 9, 6, 3, 9, 9])
    idx = rows[:, None].repeat(1, 9)
    batch = ppo.Rollout(idx, lengths, idx[:, 1:] * 0 + 1, rows > 3, score=rows.float(),
                        logp_ref=idx[:, 1:] + .5)
    part = after.groups(batch, torch.tensor([2, 0]), 2)
    assert part.score.tolist() == [4, 5, 0, 1] and part.lengths.tolist() == [6, 3, 4, 5]
    assert part.idx.shape == (4, 6) and part.mask.shape == part.logp_ref.shape == (4, 5)
    assert part.idx[:, -1].tolist() == [4, 5, 0, 1] and part.logp_old is None


def test_a_check_is_the_lowest_criterion_and_the_penalty_without_an_end(pipeline):
    model, tokenizer, _ = gpt.load(pipeline[0] / "sft" / "ckpt.pt")
    prompts = [p for p in almanac.prompts("train", 60, 1) if p["kind"] == "made-up"][:1] * 3
    texts = ["I do not know.", "Leave me alone.", "I do not know."]
    asked = tokenizer.render([dict(role="user", content="a")])
    rows = [asked + tokenizer.encode(text) + [tokenizer.end] * (i < 2)
            for i, text in enumerate(texts)]
    idx, lengths = gpt.pad(rows, tokenizer.pad)
    mask = gpt.response_mask(torch.full((3,), len(asked)), lengths, idx.shape[1])
    batch = ppo.Rollout(idx, lengths, mask, torch.tensor([True, True, False]))
    found = {check: after.checked(batch, prompts, tokenizer, after.Config(
        method="rloo", check=check)).tolist() for check in ("truthful", "truthful,helpful")}
    assert found == {"truthful": [1, 1, -2], "truthful,helpful": [1, -1, -2]}


def test_policy_and_reference_are_compared_at_the_temperature_of_the_samples(pipeline, tmp_path):
    """At first DPO's loss is log 2, also at a temperature of .7."""
    out = tmp_path / "out"
    shutil.copytree(pipeline[0], out)
    cfg = after.Config(out=str(out), steps=1, k=3, batch=4, prompts=40, test_prompts=6,
                       max_new_tokens=8, temperature=.7, rankings=decided(out, tmp_path))
    _, history = after.train(cfg)
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    model, tokenizer, _ = gpt.load(out / "sft" / "ckpt.pt")
    asked = [dict(ids=tokenizer.render([dict(role="user", content="a")]))]
    reward, _, _ = gpt.load(out / "reward" / "ckpt.pt", gpt.ScalarGPT)
    batch, _ = after.ask(model, model, reward, asked, tokenizer, cfg)
    for temperature in (.7, 1.0):
        logp = gpt.token_logprobs(model, batch.idx, temperature, batch.mask)
        same = torch.allclose(logp, batch.logp_old) and torch.allclose(logp, batch.logp_ref)
        assert same == (temperature == .7)


@pytest.mark.parametrize("flags, said", [
    (dict(check="kind"), "--check takes helpful, truthful, harmless"),
    (dict(batch=3), "--minibatches must not exceed --batch"),
    (dict(method="drpo"), "--method must be dpo or online-dpo or"),
    (dict(check="truthful,"), "--check takes"),
    (dict(check="truthful", data="a.jsonl"), "leave out --data"),
    (dict(micro_batch=4), "without --micro_batch"),
    (dict(check="truthful", method="dpo"), "--check judges fresh answers")])
def test_flags_that_cannot_be_are_refused(flags, said, tmp_path):
    with pytest.raises(UserError, match=said):
        after.train(after.Config(out=str(tmp_path), **dict(dict(method="rloo"), **flags)))
