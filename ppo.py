"""Stage 4: PPO optimises the policy against the reward model, held near the SFT model by a KL penalty.

    maximise  E[ r(x, y) ] - beta * KL(policy || reference)                    (Ouyang et al. 2022, equation 2)

Each iteration: sample answers with the current policy; score them; turn scores and KL into a reward per token;
estimate advantages with the value model; improve policy and value on the batch. In the papers' order:

    reward_t    = -beta * (logp_t - logp_ref_t), plus the score at the last token       (Ziegler et al. 2019, eq. 2)
    delta_t     = reward_t + gamma V_{t+1} - V_t
    advantage_t = sum over l of (gamma lambda)^l delta_{t+l}                            (Schulman et al. 2016, eq. 16)
    ratio_t     = exp(logp_t - logp_old_t)
    loss        = mean max(-A ratio, -A clip(ratio, 1-eps, 1+eps)) + vf_coef * value loss   (Schulman et al. 2017, eq. 7)

Four models: policy and reference start as the SFT model, the value model as the reward model's trunk with a head of
its own; reference and reward model never change. An answer is one episode: gamma is 1.

    python ppo.py       needs out/sft/ckpt.pt and out/reward/ckpt.pt; about a minute on 2 CPU cores
    python ppo.py --eval    judges all models there are in every way that the field knows, and writes out/report.md

One pass of four minibatches over 256 answers, like InstructGPT's one pass of eight. Four passes, as Ziegler et al.
and their successors make, go too far at this learning rate (measured: README, options).

Options of the papers, off unless asked for: adaptive beta (--kl_target), pretraining gradients (--ptx), reward whitening,
the estimator k3 of KL, early stopping (--target_kl), a value model that starts as the SFT model; what each does here is
measured by `python -m notebooks.experiments options`. Left out: entropy bonus, a value head on the policy's trunk.
"""

import dataclasses
import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

import gpt
from data import almanac, evaluation, formats, metrics, runs
from data.runs import UserError, knob


@dataclass
class Config(runs.Common):
    init: str = knob("", "SFT model: the reference, and the policy's start (default: sft/ckpt.pt in --out)")
    reward: str = knob("", "reward model, or several with commas between (default: that of the same round in --out)")
    caution: float = knob(0.0, "of several reward models: deviations to subtract from their mean; inf: take the minimum", least=0)
    round: int = knob(1, "from 2 on, the policy starts where the round before left it; the reference stays", least=1)
    steps: int = knob(None, "iterations of sampling and updating (default: 20, in later rounds 30)", least=1)
    batch: int = knob(256, "answers an iteration", least=1)
    epochs: int = knob(1, "passes over each batch", least=1)
    minibatches: int = knob(4, "optimizer steps a pass", least=1)
    lr: float = knob(None, "learning rate, falling linearly to 0 (default: 6e-4, in later rounds 3e-4)", least=0)
    beta: float = knob(None, "weight of the KL penalty, in standard deviations of the reward model's score per nat (default: 0.2, in later rounds 0.1)")
    kl_target: float = knob(0.0, "nats an answer to which beta steers KL (Ziegler et al. 2019, section 2.2); 0: beta stays", least=0)
    kl_horizon: int = knob(1000, "with --kl_target: answers in which beta grows or falls by 20% at most", least=1)
    kl_estimator: str = knob("k1", "of each token's KL in the reward: k1 = logp - logp_ref, or k3 = exp(-k1) - 1 + k1")
    whiten_rewards: bool = knob(False, "scale the rewards per token to deviation 1 (Ziegler et al. 2019, their code)")
    ptx: float = knob(0.0, "weight of the loss on pretraining text (Ouyang et al. 2022, eq. 2: 27.8)", least=0)
    ptx_text: str = knob("", "with --ptx: the text (default: gpt/text.txt in --out)")
    gamma: float = knob(1.0, "discount", least=0)
    lam: float = knob(0.95, "GAE's lambda: 1 is Monte Carlo, 0 is one-step", least=0)
    clip: float = knob(0.2, "clip range of ratio and values", least=0)
    vf_coef: float = knob(0.1, "weight of the value loss", least=0)
    value_init: str = knob("reward", "where the value model starts: reward, or sft")
    target_kl: float = knob(0.0, "no further pass over a batch once approx_kl is above this; 0: never stop", least=0)
    temperature: float = knob(0.7, "of sampling, and so of every log-probability, as in Ziegler et al. 2019")
    max_new_tokens: int = knob(40, "longest answer", least=1)
    missing_eos_score: float = knob(-2.0, "score of an answer that does not end or has not a word, instead of the reward model's")
    prompts: int = knob(20000, "prompts to practise on", least=1)
    eval: bool = knob(False, "judge all models of --out instead of training one; writes report.md there")
    judge: str = knob("labeler", "with --eval: labeler, or human: you compare the newest policy with the SFT model, blind")
    labeler: str = knob("", "with --judge human: your name (default: your login name)")
    policies: str = knob("", "with --eval: further policies, name=checkpoint, with commas between")
    test_prompts: int = knob(1000, "held-out prompts for the final figures", least=1)
    save_every: int = knob(20, "iterations between two checkpoints", least=1)
    log_every: int = knob(1, "iterations between two lines of the log", least=1)

    def __post_init__(self):
        # With an earlier almanac 4e-4 reached the same gold as 6e-4 within noise; at 8e-4 kind requests were refused. With an earlier
        # reward model, seed 1: gold .63 and KL 3.1 nats at beta .1, gold .65 and KL 1.9 at .2; with an earlier almanac, at .4 .07 less.
        # Two runs that differ in nothing that matters differ by up to .07. What the first round made is sharp, and steps as large as
        # its own hurt it. Gold of a third round of 40 iterations, seed 1, 4000 held-out prompts: at 4e-4 .84 with beta .05, .87 with .1,
        # .77 with .2; with beta .1 .85 at 2e-4; at 3e-4 .88 with beta .07. Of 20 iterations at 2e-4 and .05: .83.
        defaults = dict(steps=20, lr=6e-4, beta=.2) if self.round == 1 else dict(steps=30, lr=3e-4, beta=.1)
        for name, default in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, default)


SHOWN = ("score", "gold", "kl", "entropy", "length")  # of all that is logged, what the screen has room for

# ---- equations ------------------------------------------------------------------------------------
# Everything per token is (B, T-1): in column t the state ends at token t and the action is token t+1.
# `mask` marks the actions that write response tokens, the end token included.


def kl_rewards(score, logp, logp_ref, mask, beta, estimator="k1"):
    """Reward per token: a KL penalty everywhere, the score at the response's last token (Ziegler et al. 2019, eq. 2).

    score (B,); logp, logp_ref, mask (B, T-1) -> (B, T-1). The estimators of KL are Schulman's: both average KL over
    samples of the policy; k3 is never negative and varies less, but its expectation has another gradient.
    """
    kl = logp - logp_ref
    if estimator == "k3":
        kl = torch.exp(-kl) - 1 + kl
    rewards = -beta * kl * mask
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
    rewards[torch.arange(len(rewards), device=mask.device), last] += score
    return rewards


def adapt(beta, kl, target, horizon, answers):
    """The next beta, so that KL (nats an answer) comes near its target (Ziegler et al. 2019, section 2.2)."""
    error = min(max(kl / target - 1, -.2), .2)
    return beta * (1 + error * answers / horizon)


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


def policy_loss(logp, logp_old, advantages, mask, clip, count=None):
    """The clipped surrogate objective, negated (Schulman et al. 2017, eq. 7) -> scalar. count: see gpt.masked_mean."""
    ratio = torch.exp(logp - logp_old)
    return gpt.masked_mean(torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)), mask, count)


def value_loss(values, values_old, returns, mask, clip, count=None):
    """Half the squared error -> scalar: mean of 1/2 max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2).

    The loss is Schulman et al. 2017, equation 9; the clip is OpenAI's baselines': a value that moved further than `clip` gets
    no credit for it.
    """
    clipped = values_old + (values - values_old).clamp(-clip, clip)
    return 0.5 * gpt.masked_mean(torch.max((values - returns) ** 2, (clipped - returns) ** 2), mask, count)


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


def answer(policy, prompts, prompt_lengths, cfg):
    """Sample an answer to each prompt: (B, T), (B,) -> idx (B, T'), lengths (B,). Several processes answer a part each."""
    B, T = prompts.shape
    noise = torch.rand(B, cfg.max_new_tokens, device=prompts.device)
    mine = torch.arange(B, device=prompts.device).tensor_split(runs.world())[runs.rank()]
    idx, lengths = prompts.new_zeros(B, T + cfg.max_new_tokens), torch.zeros_like(prompt_lengths)
    idx[mine] = policy.config.pad
    for rows in mine.split(8 * cfg.micro_batch or B) if len(mine) else ():  # a row's keys and values take an eighth of what its gradient needs
        answers, lengths[rows] = gpt.generate(policy, prompts[rows], prompt_lengths[rows], cfg.max_new_tokens, cfg.temperature, noise=noise[rows])
        idx[rows, :answers.shape[1]] = answers
    idx, lengths = runs.add_up(idx), runs.add_up(lengths)
    return idx[:, :int(lengths.max())], lengths


@torch.no_grad()
def rollout(policy, reference, reward, value, prompts, prompt_lengths, cfg):
    """Sample an answer to each prompt and evaluate it. prompts (B, T), prompt_lengths (B,) -> Rollout.

    Log-probabilities are recomputed in the parts that the first pass of `update` works on: the same shapes give the same
    bits, so that the first ratio of every iteration is exactly 1, and the KL of a policy that is its own reference exactly 0.
    """
    idx, lengths = answer(policy, prompts, prompt_lengths, cfg)
    mask = gpt.response_mask(prompt_lengths, lengths, idx.shape[1])
    ended = idx.gather(1, lengths[:, None] - 1).squeeze(1) == policy.config.end
    parts = [rows for minibatch in torch.arange(len(idx), device=idx.device).tensor_split(cfg.minibatches)
             for rows in gpt.shares(minibatch, cfg.micro_batch)]

    def of_all(compute, like):
        """What compute(rows) says of the parts of this process and of the others'."""
        out = torch.zeros_like(like, dtype=value.head.weight.dtype)
        for rows in parts:
            out[rows] = compute(rows)
        return runs.add_up(out)

    score = of_all(lambda rows: reward.score(idx[rows], (lengths - ended.long())[rows]), lengths)
    logp_old, logp_ref = [of_all(lambda rows: gpt.token_logprobs(model, idx[rows], cfg.temperature, mask[rows]), mask)
                          for model in (policy, reference)]
    values_old = of_all(lambda rows: value(idx[rows])[:, :-1], mask)
    # Where there is no word, the reward model would read the prompt, of which it has learned nothing.
    score = torch.where(ended & (mask.sum(1) > 1), score, cfg.missing_eos_score)
    return Rollout(idx, lengths, mask, score, logp_old, logp_ref, values_old, ended)


def estimate(batch, cfg, beta):
    """From a Rollout's scores, log-probabilities and values to its advantages and returns."""
    rewards = kl_rewards(batch.score, batch.logp_old, batch.logp_ref, batch.mask, beta, cfg.kl_estimator)
    if cfg.whiten_rewards:
        rewards = whiten(rewards, batch.mask, shift_mean=False)
    with gpt.exact(rewards):
        advantages, batch.returns = gae(rewards, batch.values_old, batch.mask, cfg.gamma, cfg.lam)
    batch.advantages = whiten(advantages, batch.mask)


def losses(policy, value, batch, rows, cfg, text, seen):
    """PPO's loss on a minibatch, the given rows of a Rollout: yields a scalar for each micro-batch; their sum is the loss.

    text (rows, T): ids of pretraining text, or None. `seen` gets the minibatch's diagnostics added.
    """
    count = batch.mask[rows].sum()
    for at in gpt.shares(torch.arange(len(rows), device=rows.device), cfg.micro_batch):
        part = rows[at]
        idx, mask, logp_old = batch.idx[part], batch.mask[part], batch.logp_old[part]
        logp = gpt.token_logprobs(policy, idx, cfg.temperature, mask)
        pg_loss = policy_loss(logp, logp_old, batch.advantages[part], mask, cfg.clip, count)
        vf_loss = value_loss(value(idx)[:, :-1], batch.values_old[part], batch.returns[part], mask, cfg.clip, count)
        log_ratio = (logp - logp_old).detach()
        ratio = log_ratio.exp()
        seen.update(policy_loss=pg_loss.item(), value_loss=vf_loss.item(), ratio=gpt.masked_mean(ratio, mask, count).item(),
                    # Schulman's estimator E[ratio - 1 - log ratio] of KL(old || new): never negative.
                    approx_kl=gpt.masked_mean(ratio - 1 - log_ratio, mask, count).item(),
                    clip_fraction=gpt.masked_mean(((ratio - 1).abs() > cfg.clip).float(), mask, count).item())
        yield pg_loss + cfg.vf_coef * vf_loss
        if text is not None:
            ptx_loss = -gpt.token_logprobs(policy, text[at]).sum() / text[:, 1:].numel()
            seen.update(ptx_loss=ptx_loss.item())
            yield cfg.ptx * ptx_loss


def update(policy, value, opt, batch, cfg, lr, text=None):
    """Improve policy and value on a Rollout: `epochs` passes of `minibatches` steps -> dict of diagnostics.

    text: 1-D ids of the pretraining text, of which each step with cfg.ptx sees as many rows as of answers.
    `first_ratio` and `first_approx_kl` are those of the first minibatch, exactly 1 and 0; the other figures are those of
    the last pass.
    """
    models, passes = nn.ModuleList([policy, value]), []
    for epoch in range(cfg.epochs):
        # The prompts come in random order, so the first pass need not shuffle them.
        order = torch.arange(len(batch.idx)) if epoch == 0 else torch.randperm(len(batch.idx))
        passes.append([])
        for rows in order.to(batch.idx.device).tensor_split(cfg.minibatches):
            extra = gpt.random_rows(text, len(rows), policy.config.block_size) if cfg.ptx else None
            seen = Counter()
            _, grad_norm = gpt.update(models, opt, losses(policy, value, batch, rows, cfg, extra, seen), lr)
            passes[-1].append({**runs.add_up_all(seen), "grad_norm": grad_norm})
        if cfg.target_kl and passes[-1][-1]["approx_kl"] > cfg.target_kl:
            break
    first, last = passes[0][0], passes[-1]
    return {"first_ratio": first["ratio"], "first_approx_kl": first["approx_kl"], "passes": len(passes),
            **{name: sum(seen[name] for seen in last) / len(last) for name in first}}


def describe(batch, prompts, tokenizer):
    """What a learner watches: averages over the answers of a Rollout -> dict.

    `kl` is nats an answer, `kl_token` nats a token. `entropy` is estimated by -log p of the sampled tokens. `gold` is
    the labeler's, for the reader alone: training never sees it.
    """
    kl = (batch.logp_old - batch.logp_ref).sum(1)
    residual = (batch.returns - batch.values_old)[batch.mask]
    figures = dict(score=batch.score.mean().item(), kl=kl.mean().item(), length=batch.mask.sum(1).float().mean().item(),
                   entropy=-gpt.masked_mean(batch.logp_old, batch.mask).item(), end_rate=batch.ended.float().mean().item(),
                   kl_token=gpt.masked_mean(batch.logp_old - batch.logp_ref, batch.mask).item(),
                   explained_variance=1 - (residual.var() / batch.returns[batch.mask].var()).item())
    if metrics.judgeable(prompts):
        answers = [tokenizer.decode(row[mask].tolist()) for row, mask in zip(batch.idx[:, 1:].cpu(), batch.mask.cpu())]
        figures["gold"] = sum(j.gold for j in metrics.judge_all(prompts, answers)) / len(prompts)
    return figures


# ---- training -------------------------------------------------------------------------------------


def train(cfg):
    """Optimise the policy -> (model, history). Writes out/ppo/, in later rounds out/ppo-2/ and so on."""
    if cfg.eval:
        return evaluation.run(cfg)
    run = runs.Run(cfg, "ppo", demands=[
        (cfg.minibatches <= cfg.batch, "--minibatches must not exceed --batch"),
        (cfg.temperature > 0, "--temperature must be above 0: PPO learns from samples"),
        (cfg.kl_estimator in ("k1", "k3"), f"--kl_estimator must be k1 or k3, not {cfg.kl_estimator}"),
        (not cfg.target_kl or cfg.epochs > 1, "--target_kl stops further passes over a batch: it needs --epochs above 1"),
        (cfg.value_init in ("reward", "sft"), f"--value_init must be reward or sft, not {cfg.value_init}")])
    sft_path, rm_path = cfg.init or run.earlier("sft"), cfg.reward or run.earlier("reward", cfg.round)
    policy_path = sft_path if cfg.round == 1 else run.earlier("ppo", cfg.round - 1)
    reference, tokenizer, _ = gpt.load(sft_path, gpt.GPT, run.device, runs.hint("sft"))
    policy, policy_tokenizer, _ = gpt.load(policy_path, gpt.GPT, run.device, runs.hint("ppo", cfg.round - 1))
    rewards, abouts = gpt.load_rewards(rm_path, tokenizer, run.device, runs.hint("reward", cfg.round), policy.config.block_size)
    reward = rewards[0] if len(rewards) == 1 else gpt.Ensemble(rewards, cfg.caution)
    if policy_tokenizer != tokenizer:
        raise UserError(f"{policy_path} has another tokenizer than {sft_path}: {runs.hint('ppo', cfg.round - 1)}")
    models, held_out, text = {"sft": reference, "ppo": policy}, None, None
    if run.earlier("gpt").exists():
        base, base_tokenizer, _ = gpt.load(run.earlier("gpt"), gpt.GPT, run.device)
        if base_tokenizer == tokenizer and base.config.block_size >= policy.config.block_size:
            models = {"base": base, **models} if cfg.round == 1 else models  # it has answered in the first
            if (kept := run.earlier("gpt").with_name("held_out.txt")).exists():
                held_out = gpt.one_stream(formats.read_text(kept), tokenizer, run.device)
    if cfg.ptx:
        text_path = Path(cfg.ptx_text or run.earlier("gpt").with_name("text.txt"))
        if not text_path.exists():
            raise UserError(f"{text_path} not found: name the pretraining text with --ptx_text")
        text = gpt.one_stream(formats.read_text(text_path), tokenizer, run.device)
        if len(text) <= policy.config.block_size:
            raise UserError(f"{text_path} has {len(text)} tokens, the context {policy.config.block_size}: --ptx needs more text")
    value = gpt.ScalarGPT(reward.config).to(run.device)
    value.trunk.load_state_dict((rewards[0].trunk if cfg.value_init == "reward" else reference).state_dict())
    for frozen in (reference, reward):
        frozen.requires_grad_(False)
    run.prepare("ppo", [policy, reference, reward, value], further=len(rewards) - 1 + ("base" in models))
    cfg = dataclasses.replace(cfg, micro_batch=run.micro_batch)
    opt = gpt.optimizer(nn.ModuleList([policy, value]), cfg.lr, eps=1e-5)
    if cfg.data:
        prompts, test = formats.split(formats.read_prompts(cfg.data))
        test = test[:cfg.test_prompts]
    else:
        prompts = almanac.prompts("train", cfg.prompts, f"ppo {cfg.seed}" + (f" {cfg.round}" if cfg.round > 1 else ""))
        test = almanac.prompts("test", cfg.test_prompts, cfg.seed)
    given = len(prompts) + len(test)
    prompts, test = [gpt.with_room(policy, tokenizer, ps, cfg.max_new_tokens) for ps in (prompts, test)]
    if left_out := given - len(prompts) - len(test):
        print(f"ppo: {left_out} of {given} prompts leave no room for {cfg.max_new_tokens} tokens in the context of "
              f"{policy.config.block_size}: left out", flush=True)
    if not prompts or not test:
        raise UserError(f"{cfg.data or 'the almanac'}: no prompt leaves room for {cfg.max_new_tokens} tokens in the context of "
                        f"{policy.config.block_size}: lower --max_new_tokens")
    if cfg.minibatches > len(prompts) % cfg.batch > 0:
        prompts = prompts[:-(len(prompts) % cfg.batch)] or prompts  # no batch too small to be divided
    if cfg.minibatches > len(prompts):
        raise UserError(f"{cfg.data} holds {len(prompts)} prompts to practise on: too few for --minibatches {cfg.minibatches}")
    supply, beta = gpt.batches(prompts, cfg.batch, random.Random(cfg.seed), length=lambda p: 0), cfg.beta

    for step in run.range(cfg.steps):
        asked, began = next(supply), run.seconds
        idx, prompt_lengths = gpt.pad([tokenizer.render(p["prompt"]) for p in asked], tokenizer.pad, run.device)
        batch = rollout(policy, reference, reward, value, idx, prompt_lengths, cfg)
        estimate(batch, cfg, beta)
        rolled = run.seconds
        lr = cfg.lr * (1 - step / cfg.steps)
        diagnostics = update(policy, value, opt, batch, cfg, lr, text)
        updated = run.seconds
        if run.due(step, cfg.save_every):
            run.save(gpt.checkpoint(policy, tokenizer, **run.about(step, abouts[0])))
        figures = describe(batch, asked, tokenizer)
        run.log(step, tokens=int(batch.mask.sum()), **{name: figures[name] for name in SHOWN if name in figures},
                also={**figures, **diagnostics, "lr": lr, "beta": beta,
                      "rollout_seconds": rolled - began, "update_seconds": updated - rolled})
        if cfg.kl_target:
            beta = adapt(beta, figures["kl"], cfg.kl_target, cfg.kl_horizon, len(asked))

    results, answers = metrics.evaluate(models, reward, test, tokenizer, cfg, held_out)
    metrics.report(results, answers, test)
    run.draw([["score", "gold"], ["kl"], ["entropy"], ["length"], ["policy_loss", "value_loss"], ["explained_variance"],
              ["approx_kl"], ["clip_fraction"], ["rollout_seconds", "update_seconds"]])
    kept = run.earlier("ppo", cfg.round - 1).with_name("results.json")
    rounds = json.loads(kept.read_text())["rounds"] if cfg.round > 1 and kept.exists() else [metrics.outline(0, results, "sft")]
    rounds.append(metrics.outline(cfg.round, results, "ppo"))
    run.draw([["gold"], ["score"], ["kl"]], rounds, "round", "rounds.png")
    samples = [dict(prompt=p["prompt"], **{name: texts[i] for name, texts in answers.items()}) for i, p in enumerate(test[:20])]
    run.finish(**results, round=cfg.round, rounds=rounds, seconds=run.about(cfg.steps - 1, abouts[0])["seconds"], samples=samples)
    return policy, run.history


if __name__ == "__main__":
    runs.main(Config, train, __doc__)
