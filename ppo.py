"""Stage 4: PPO optimises the policy against the reward model, held near the SFT model by a KL penalty.

    maximise  E[ r(x, y) ] - beta * KL(policy || reference)                    (Ouyang et al. 2022, equation 2)

Each iteration: sample answers with the current policy; score them; turn scores and KL into a reward per token;
estimate advantages with the value model; improve policy and value for a few epochs. In the papers' order:

    reward_t    = -beta * (logp_t - logp_ref_t), plus the score at the last token       (Ziegler et al. 2019, eq. 2)
    delta_t     = reward_t + gamma V_{t+1} - V_t
    advantage_t = sum over l of (gamma lambda)^l delta_{t+l}                            (Schulman et al. 2016, eq. 16)
    ratio_t     = exp(logp_t - logp_old_t)
    loss        = mean max(-A ratio, -A clip(ratio, 1-eps, 1+eps)) + vf_coef * value loss   (Schulman et al. 2017, eq. 7)

Four models: policy and reference start as the SFT model, the value model as the reward model's trunk with a head of
its own; reference and reward model never change. An answer is one episode: gamma is 1.

    python ppo.py       needs out/sft/ckpt.pt and out/reward/ckpt.pt; about 2 minutes on 2 CPU cores

Left out: entropy bonus, reward whitening, value sharing the policy's trunk, adaptive beta, early stopping on KL.
"""

import random
from dataclasses import dataclass, field

import torch
import torch.nn as nn

import gpt
from data import almanac, formats, metrics, runs
from data.runs import UserError, knob


@dataclass
class Config(runs.Common):
    init: str = knob("", "policy to start from, and the reference (default: sft/ckpt.pt in --out)")
    reward: str = knob("", "reward model (default: reward/ckpt.pt in --out)")
    steps: int = knob(60, "iterations of sampling and updating")
    batch: int = knob(128, "answers an iteration")
    epochs: int = knob(4, "passes over each batch")
    minibatches: int = knob(2, "optimizer steps a pass")
    lr: float = knob(1e-4, "learning rate, falling linearly to 0")
    beta: float = knob(0.1, "weight of the KL penalty, in standard deviations of the reward model's score per nat")
    gamma: float = knob(1.0, "discount")
    lam: float = knob(0.95, "GAE's lambda: 1 is Monte Carlo, 0 is one-step")
    clip: float = knob(0.2, "clip range of ratio and values")
    vf_coef: float = knob(0.1, "weight of the value loss")
    temperature: float = knob(1.0, "of sampling, and so of every log-probability")
    max_new_tokens: int = knob(40, "longest answer")
    missing_eos_score: float = knob(-2.0, "score of an answer that does not end, instead of the reward model's")
    test_prompts: int = knob(500, "held-out prompts for the final figures")
    save_every: int = knob(20, "iterations between two checkpoints")


# ---- equations ------------------------------------------------------------------------------------
# Everything per token is (B, T-1): in column t the state ends at token t and the action is token t+1.
# `mask` marks the actions that write response tokens, the end token included.


def kl_rewards(score, logp, logp_ref, mask, beta):
    """Reward per token: a KL penalty everywhere, the score at the response's last token (Ziegler et al. 2019, eq. 2).

    score (B,); logp, logp_ref, mask (B, T-1) -> (B, T-1).
    """
    rewards = -beta * (logp - logp_ref) * mask
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
    rewards[torch.arange(len(rewards), device=mask.device), last] += score
    return rewards


def gae(rewards, values, mask, gamma, lam):
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) -> advantages, returns, both (B, T-1).

    After the last action comes nothing: the value there is 0. Returns are advantages + values, the targets of V.
    """
    values = values * mask
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    delta = (rewards + gamma * following - values) * mask  # (B, T-1)
    t = torch.arange(mask.shape[1], device=mask.device)
    power = t[:, None] - t[None, :]  # row s, column t: how far s lies ahead of t
    weights = torch.where(power >= 0, (gamma * lam) ** power.clamp(min=0).to(delta.dtype), 0)  # (T-1, T-1)
    advantages = delta @ weights * mask
    return advantages, advantages + values


def whiten(x, mask, shift_mean=True):
    """Give x unit variance where mask is true, and zero mean unless shift_mean is False; elsewhere 0."""
    mean = gpt.masked_mean(x, mask)
    var = gpt.masked_mean((x - mean) ** 2, mask)
    white = (x - mean) * torch.rsqrt(var + 1e-8)
    return (white if shift_mean else white + mean) * mask


def policy_loss(logp, logp_old, advantages, mask, clip):
    """The clipped surrogate objective, negated (Schulman et al. 2017, eq. 7) -> scalar."""
    ratio = torch.exp(logp - logp_old)
    return gpt.masked_mean(torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)), mask)


def value_loss(values, values_old, returns, mask, clip):
    """Half the squared error; a value that moved further than `clip` gets no credit for it -> scalar."""
    clipped = values_old + (values - values_old).clamp(-clip, clip)
    return 0.5 * gpt.masked_mean(torch.max((values - returns) ** 2, (clipped - returns) ** 2), mask)


# ---- rollout --------------------------------------------------------------------------------------


@dataclass
class Rollout:
    """A batch of answers and what the four models say about them."""

    idx: torch.Tensor         # (B, T) prompt, response, padding
    lengths: torch.Tensor     # (B,)   prompt and response
    mask: torch.Tensor        # (B, T-1)
    score: torch.Tensor       # (B,)   the reward model's, or missing_eos_score
    logp_old: torch.Tensor    # (B, T-1) policy, before the update
    logp_ref: torch.Tensor    # (B, T-1) reference
    values_old: torch.Tensor  # (B, T-1) value model, before the update
    ended: torch.Tensor       # (B,)   whether the response ends with <|end|>
    advantages: torch.Tensor = None  # (B, T-1) whitened
    returns: torch.Tensor = None     # (B, T-1)


@torch.no_grad()
def rollout(policy, reference, reward, value, idx, prompt_lengths, cfg):
    """Sample an answer to each prompt and evaluate it. idx (B, T), prompt_lengths (B,) -> Rollout.

    The policy's log-probabilities are recomputed in the minibatches of the first epoch: the same shapes give the same
    bits, and the first ratio of every iteration is exactly 1.
    """
    idx, lengths = gpt.generate(policy, idx, prompt_lengths, cfg.max_new_tokens, cfg.temperature)
    mask = gpt.response_mask(prompt_lengths, lengths, idx.shape[1])
    ended = idx.gather(1, lengths[:, None] - 1).squeeze(1) == policy.config.end
    score = torch.where(ended, reward.score(idx, lengths), cfg.missing_eos_score)
    parts = list(zip(idx.chunk(cfg.minibatches), mask.chunk(cfg.minibatches)))
    return Rollout(idx, lengths, mask, score,
                   logp_old=torch.cat([gpt.token_logprobs(policy, i, cfg.temperature, m) for i, m in parts]),
                   logp_ref=gpt.token_logprobs(reference, idx, cfg.temperature, mask),
                   values_old=value(idx)[:, :-1], ended=ended)


def update(policy, value, opt, batch, cfg, lr):
    """Improve policy and value on a Rollout: `epochs` passes of `minibatches` steps -> dict of what happened."""
    models = nn.ModuleList([policy, value])
    seen = []
    for epoch in range(cfg.epochs):
        # The prompts come in random order, so the first epoch need not shuffle them.
        order = torch.arange(len(batch.idx)) if epoch == 0 else torch.randperm(len(batch.idx))
        for rows in order.to(batch.idx.device).chunk(cfg.minibatches):
            mask, logp_old, advantages = batch.mask[rows], batch.logp_old[rows], batch.advantages[rows]
            logp = gpt.token_logprobs(policy, batch.idx[rows], cfg.temperature, mask)
            values = value(batch.idx[rows])[:, :-1]
            pg_loss = policy_loss(logp, logp_old, advantages, mask, cfg.clip)
            vf_loss = value_loss(values, batch.values_old[rows], batch.returns[rows], mask, cfg.clip)
            norm = gpt.update(models, opt, pg_loss + cfg.vf_coef * vf_loss, lr)
            with torch.no_grad():
                log_ratio = logp - logp_old
                ratio = log_ratio.exp()
                seen.append(dict(pg_loss=pg_loss, vf_loss=vf_loss, ratio=gpt.masked_mean(ratio, mask),
                                 approx_kl=gpt.masked_mean(ratio - 1 - log_ratio, mask),  # k3, always >= 0
                                 clip_fraction=gpt.masked_mean(((ratio - 1).abs() > cfg.clip).float(), mask), grad_norm=norm))
    return seen


def train(cfg):
    """Optimise the policy -> (model, history). Writes out/ppo/."""
    run = runs.Run(cfg, "ppo", cfg.steps)
    sft_path, rm_path = cfg.init or run.earlier("sft"), cfg.reward or run.earlier("reward")
    policy, tokenizer, about = gpt.load(sft_path, gpt.GPT, run.device, "run python sft.py first")
    reference, _, _ = gpt.load(sft_path, gpt.GPT, run.device)
    reward, rm_tokenizer, rm_about = gpt.load(rm_path, gpt.ScalarGPT, run.device, "run python reward.py first")
    if rm_tokenizer != tokenizer:
        raise UserError(f"{rm_path} has another tokenizer than {sft_path}: run python reward.py again")
    value = gpt.ScalarGPT(reward.config).to(run.device)
    value.trunk.load_state_dict(reward.trunk.state_dict())
    for frozen in (reference, reward):
        frozen.requires_grad_(False)
    opt = gpt.optimizer(nn.ModuleList([policy, value]), cfg.lr, eps=1e-5)
    prompts = almanac.prompts("train", 20000, f"ppo {cfg.seed}")
    supply = gpt.batches(prompts, cfg.batch, random.Random(cfg.seed), length=lambda p: 0)
    for step in run.range():
        asked = next(supply)
        idx, prompt_lengths = gpt.pad([tokenizer.render(p["prompt"]) for p in asked], tokenizer.pad, run.device)
        clock = run.seconds
        batch = rollout(policy, reference, reward, value, idx, prompt_lengths, cfg)
        rewards = kl_rewards(batch.score, batch.logp_old, batch.logp_ref, batch.mask, cfg.beta)
        advantages, batch.returns = gae(rewards, batch.values_old, batch.mask, cfg.gamma, cfg.lam)
        batch.advantages = whiten(advantages, batch.mask)
        rollout_seconds = run.seconds - clock
        lr = cfg.lr * (1 - step / cfg.steps)
        seen = update(policy, value, opt, batch, cfg, lr)
        kl = ((batch.logp_old - batch.logp_ref) * batch.mask).sum(1)
        texts = [tokenizer.decode(row[a:b]) for row, a, b in zip(batch.idx.tolist(), prompt_lengths.tolist(), batch.lengths.tolist())]
        js = metrics.judge_all(asked, texts)
        residual = (batch.returns - batch.values_old)[batch.mask]
        run.log(step, score=batch.score.mean().item(), gold=sum(j.gold for j in js) / len(js), kl=kl.mean().item(),
                entropy=-gpt.masked_mean(batch.logp_old, batch.mask).item(), length=batch.mask.sum(1).float().mean().item(), ended=batch.ended.float().mean().item(),
                approx_kl=seen[-1]["approx_kl"].item(), clipfrac=seen[-1]["clip_fraction"].item(), ratio=seen[0]["ratio"].item(), ratio0=abs(seen[0]["approx_kl"].item()),
                ev=1 - (residual.var() / batch.returns[batch.mask].var()).item(), vf=seen[0]["vf_loss"].item(), roll=rollout_seconds, upd=run.seconds - clock - rollout_seconds)
        if run.due(step, cfg.save_every):
            run.save(gpt.checkpoint(policy, tokenizer, stage="ppo", step=step + 1, seconds={**rm_about["seconds"], "ppo": run.seconds}))
    return policy, run.history


if __name__ == "__main__":
    runs.main(Config, train, __doc__)
