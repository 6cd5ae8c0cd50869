"""The equations of PPO against sums written out by hand, and the loop's first step."""

import copy

import pytest
import torch

import gpt
import ppo

MASK = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0]]).bool()


def noise(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_the_score_is_given_once_at_the_last_response_token():
    score, logp = noise(3), noise(3, 6)
    rewards = ppo.kl_rewards(score, logp, noise(3, 6), MASK, beta=0.0)
    assert [row.nonzero().flatten().tolist() for row in rewards] == [[3], [5], [0]]
    torch.testing.assert_close(rewards.sum(1), score)


def test_the_kl_penalty_is_per_token_against_the_reference():
    score, logp, ref = noise(3), noise(3, 6), noise(3, 6)
    rewards = ppo.kl_rewards(score, logp, ref, MASK, beta=.3)
    torch.testing.assert_close(rewards.sum(1), score - .3 * ((logp - ref) * MASK).sum(1))
    assert (rewards[~MASK] == 0).all()
    torch.testing.assert_close(rewards[0, 1], -.3 * (logp - ref)[0, 1])
    # The policy that is its own reference pays nothing.
    assert torch.equal(ppo.kl_rewards(score, logp, logp, MASK, .3), ppo.kl_rewards(score, logp, logp, MASK, 0.0))


@pytest.mark.parametrize("gamma, lam", [(1.0, .95), (.9, .7), (1.0, 1.0), (.9, 0.0)])
def test_gae_is_the_discounted_sum_of_td_errors(gamma, lam):
    rewards, values = noise(3, 6) * MASK, noise(3, 6)
    advantages, returns = ppo.gae(rewards, values, MASK, gamma, lam)
    for b in range(3):
        steps = MASK[b].nonzero().flatten().tolist()
        value = {t: values[b, t].item() for t in steps}
        delta = {t: rewards[b, t].item() + gamma * value.get(t + 1, 0.0) - value[t] for t in steps}
        for t in steps:
            expected = sum((gamma * lam) ** (s - t) * delta[s] for s in steps if s >= t)
            assert advantages[b, t].item() == pytest.approx(expected, abs=1e-12)
            assert returns[b, t].item() == pytest.approx(expected + value[t], abs=1e-12)
            if lam == 1:
                assert returns[b, t].item() == pytest.approx(sum(gamma ** (s - t) * rewards[b, s].item() for s in steps if s >= t))
    assert (advantages[~MASK] == 0).all() and (returns[~MASK] == 0).all()


def test_gae_does_not_see_padding():
    rewards, values = noise(3, 6) * MASK, noise(3, 6)
    changed = torch.where(MASK, values, 99.0)
    for a, b in zip(ppo.gae(rewards, values, MASK, 1.0, .95), ppo.gae(rewards, changed, MASK, 1.0, .95)):
        assert torch.equal(a, b)


def test_whitening_by_published_figures():
    """The table of the "N+ details" reproduction: biased variance, mean kept."""
    x = torch.tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])
    mask = torch.ones(3, 3).bool()
    torch.testing.assert_close(ppo.whiten(x, mask, shift_mean=False)[0], torch.tensor([.0508, .4381, .8254]), atol=1e-4, rtol=0)
    x = noise(3, 6)
    white = ppo.whiten(x, MASK)
    assert white[MASK].mean().abs() < 1e-7 and white[MASK].var(correction=0).item() == pytest.approx(1)
    assert (white[~MASK] == 0).all()
    assert torch.equal(white, ppo.whiten(torch.where(MASK, x, 99.0), MASK))


def test_policy_loss_by_hand():
    logp_old = torch.zeros(1, 4, dtype=torch.float64)
    ratio, advantages = torch.tensor([[1.5, 1.5, .5, .5]], dtype=torch.float64), torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    mask = torch.ones(1, 4).bool()
    expected = (-1.2 + 1.5 - .5 + .8) / 4
    assert ppo.policy_loss(ratio.log(), logp_old, advantages, mask, .2).item() == pytest.approx(expected)


def test_the_gradient_is_zero_just_where_clipping_says_enough():
    logp = torch.tensor([[1.5, 1.5, .5, .5, 1.1, .9]], dtype=torch.float64).log().requires_grad_()
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    ppo.policy_loss(logp, torch.zeros(1, 6, dtype=torch.float64), advantages, torch.ones(1, 6).bool(), .2).backward()
    assert (logp.grad != 0).tolist() == [[False, True, True, False, True, True]]


def test_value_loss_by_hand_and_never_below_the_unclipped():
    values, old, returns = (torch.tensor([[v]], dtype=torch.float64) for v in (1.0, 0.0, 1.0))
    one = torch.ones(1, 1).bool()
    assert ppo.value_loss(values, old, returns, one, .2).item() == pytest.approx(.5 * .8 ** 2)  # perfect, but moved too far
    values, old, returns = noise(3, 6), noise(3, 6), noise(3, 6)
    assert ppo.value_loss(values, old, returns, MASK, .2) >= .5 * gpt.masked_mean((values - returns) ** 2, MASK)
    assert ppo.value_loss(values, old, returns, MASK, 1e9).item() == pytest.approx(.5 * gpt.masked_mean((values - returns) ** 2, MASK).item())


# ---- one iteration with small models --------------------------------------------------------------


@pytest.fixture
def iteration(config):
    """A rollout with advantages, its four models and the config; float32, as in the real loop."""
    policy, rm, value = gpt.GPT(config), gpt.ScalarGPT(config), gpt.ScalarGPT(config)
    reference = copy.deepcopy(policy)
    cfg = ppo.Config(batch=16, minibatches=4, epochs=2, max_new_tokens=6, missing_eos_score=-7.0)
    idx, prompt_lengths = gpt.pad([list(range(1, 2 + i % 5)) for i in range(16)], config.pad)
    batch = ppo.rollout(policy, reference, rm, value, idx, prompt_lengths, cfg)
    rewards = ppo.kl_rewards(batch.score, batch.logp_old, batch.logp_ref, batch.mask, cfg.beta)
    advantages, batch.returns = ppo.gae(rewards, batch.values_old, batch.mask, cfg.gamma, cfg.lam)
    batch.advantages = ppo.whiten(advantages, batch.mask)
    opt = gpt.optimizer(torch.nn.ModuleList([policy, value]), 1e-3, eps=1e-5)
    return policy, reference, rm, value, opt, batch, cfg


def test_the_first_ratio_is_exactly_1(iteration):
    policy, _, _, value, opt, batch, cfg = iteration
    diagnostics = ppo.update(policy, value, opt, batch, cfg, 1e-3)
    assert diagnostics["first_ratio"] == 1 and diagnostics["first_approx_kl"] == 0
    assert diagnostics["ratio"] != 1 and diagnostics["approx_kl"] > 0


def test_the_policy_that_is_the_reference_has_kl_exactly_0(iteration):
    batch = iteration[5]
    assert torch.equal(batch.logp_old, batch.logp_ref) and batch.logp_old.abs().sum() > 0


def test_an_answer_without_end_gets_the_missing_score(iteration):
    _, _, rm, _, _, batch, cfg = iteration
    last = batch.idx.gather(1, batch.lengths[:, None] - 1).squeeze(1)
    unfinished = last != rm.config.end
    assert unfinished.any() and torch.equal(batch.ended, ~unfinished)
    assert (batch.score[unfinished] == cfg.missing_eos_score).all()
    assert torch.equal(batch.score[~unfinished], rm.score(batch.idx, batch.lengths).detach()[~unfinished])


def test_reference_and_reward_model_never_change(iteration):
    policy, reference, rm, value, opt, batch, cfg = iteration
    before = copy.deepcopy([m.state_dict() for m in (reference, rm, policy, value)])
    ppo.update(policy, value, opt, batch, cfg, 1e-3)
    same = [all(torch.equal(a, b) for a, b in zip(old.values(), m.state_dict().values())) for old, m in zip(before, (reference, rm, policy, value))]
    assert same == [True, True, False, False]


def test_tokens_after_the_end_change_nothing(iteration):
    policy, reference, rm, value, _, batch, cfg = iteration
    dirty = batch.idx.clone()
    dirty[torch.arange(dirty.shape[1]) >= batch.lengths[:, None]] = 5
    with torch.no_grad():
        torch.testing.assert_close(gpt.token_logprobs(policy, dirty, cfg.temperature, batch.mask), batch.logp_old)
        torch.testing.assert_close(value(dirty)[:, :-1] * batch.mask, batch.values_old * batch.mask)
        torch.testing.assert_close(rm.score(dirty, batch.lengths)[batch.ended], batch.score[batch.ended])


def test_ppo_finds_the_best_arm_of_a_bandit():
    """One token to say, a reward for one of them: the policy moves to exp(r / beta) times the reference, up to a constant."""
    torch.manual_seed(1)
    config = gpt.GPTConfig(8, 4, 1, 1, 16)
    policy, value = gpt.GPT(config), gpt.ScalarGPT(config)
    reference = copy.deepcopy(policy)

    class Arm(torch.nn.Module):
        def score(self, idx, lengths):
            return (idx[:, 1] == 3).float()

    # The score counts although one token can not end by itself: the arm answers for every row.
    cfg = ppo.Config(batch=256, minibatches=1, epochs=4, max_new_tokens=1, beta=.5, temperature=1.0)
    idx, lengths = gpt.pad([[1]] * 256, config.pad)
    opt = gpt.optimizer(torch.nn.ModuleList([policy, value]), 3e-3, eps=1e-5)
    for step in range(60):
        batch = ppo.rollout(policy, reference, Arm(), value, idx, lengths, cfg)
        score = Arm().score(batch.idx, batch.lengths)
        rewards = ppo.kl_rewards(score, batch.logp_old, batch.logp_ref, batch.mask, cfg.beta)
        advantages, batch.returns = ppo.gae(rewards, batch.values_old, batch.mask, cfg.gamma, cfg.lam)
        batch.advantages = ppo.whiten(advantages, batch.mask)
        ppo.update(policy, value, opt, batch, cfg, 3e-3 * (1 - step / 60))
    with torch.no_grad():
        first = torch.tensor([[1]])
        p = gpt.action_logits(policy, policy.hidden(first)[0, 0], 1.0).softmax(-1)
        ref = gpt.action_logits(reference, reference.hidden(first)[0, 0], 1.0).softmax(-1)
    expected = ref * torch.exp((torch.arange(8) == 3) / cfg.beta)
    expected /= expected.sum()
    assert (p - expected).abs().sum() / 2 < .05
