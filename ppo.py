"""Stage 4: PPO optimises the policy against the reward model, held near the SFT model by KL.

    maximise  E[ r(x, y) ] - beta * KL(policy || reference)       (Ouyang et al. 2022, equation 2)

Each iteration samples answers with the current policy, scores them, turns scores and KL into a
reward per token, estimates advantages with the value model, and improves policy and value on the
batch. In the papers' order:

    reward_t    = -beta (logp_t - logp_ref_t), plus the score at the last token
                                                                      (Ziegler et al. 2019, eq. 2)
    delta_t     = reward_t + gamma V_{t+1} - V_t
    advantage_t = delta_t + gamma lambda advantage_{t+1}            (Schulman et al. 2016, eq. 16)
    ratio_t     = exp(logp_t - logp_old_t)
    loss        = mean max(-A ratio, -A clip(ratio, 1 - eps, 1 + eps)) + vf_coef * value loss
                                                                     (Schulman et al. 2017, eq. 7)

Four models: policy and reference start as the SFT model; the value model starts as the reward
model's trunk with a head of its own; reference and reward model never change. An answer is one
episode, so gamma is 1.

    python ppo.py           needs out/sft/ckpt.pt and out/reward/ckpt.pt; a minute on 2 CPU cores
    python ppo.py --eval    judges all models in --out in many ways, and writes out/report.md

One pass of four minibatches over 256 answers resembles InstructGPT's one pass of eight. Four
passes, as in Ziegler et al. and their successors, bring no more here (notebooks/RESULTS.md).

Options of the papers, off by default: adaptive beta (--kl_target), pretraining gradients (--ptx),
early stopping (--target_kl). `python -m notebooks.experiments options` measures what they do.
Left out: an entropy bonus, reward whitening, a value head on the policy's trunk.
"""

import data.run.signals  # before torch, which loads for seconds: Ctrl-C works meanwhile

import math
import random
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn as nn

import gpt
from data import optim, sampling, start
from data.judge.answers import compare_models, judge_all, judgeable, print_report
from data.judge.figures import outline
from data.run.cli import Common, knob, main
from data.run.processes import all_gather, all_reduce, micro_batches, rank, world
from data.run.run import Run


@dataclass
class Config(Common):
    """The flags of PPO. Values of None depend on the round (LOG: PPO's defaults)."""

    steps: int = knob(None, "iterations of sampling and updating (default: 20, in later rounds 30)",
                      least=1, group="algorithm")
    beta: float = knob(None, "weight of the KL penalty, in standard deviations of the score per "
                             "nat (default: 0.2, in later rounds 0.1)")
    lr: float = knob(None, "learning rate, falling linearly to 0 (default: 6e-4, in later rounds "
                           "3e-4)", least=0)
    batch: int = knob(256, "answers per iteration", least=1)
    epochs: int = knob(1, "passes over each batch", least=1)
    minibatches: int = knob(4, "optimizer steps per pass", least=1)
    clip: float = knob(0.2, "clip range of ratio and values", least=0)
    gamma: float = knob(1.0, "discount", least=0)
    lam: float = knob(0.95, "GAE's lambda: 1 is Monte Carlo, 0 is one-step", least=0)
    vf_coef: float = knob(0.1, "weight of the value loss", least=0)
    temperature: float = knob(0.7, "of sampling, and so of every log-probability, as in Ziegler et "
                                   "al. 2019")
    max_new_tokens: int = knob(40, "longest answer", least=1)
    missing_eos_penalty: float = knob(-2.0, "score given to an answer that is empty or never ends")
    kl_target: float = knob(0.0, "nats per answer to which beta steers KL (Ziegler et al. 2019, "
                                 "section 2.2); 0: beta stays", least=0)
    kl_horizon: int = knob(1000, "with --kl_target: answers over which beta changes by at most 20%",
                           least=1)
    target_kl: float = knob(0.0, "no further pass over a batch once approx_kl is above this; 0: "
                                 "never stop", least=0)
    ptx: float = knob(0.0, "weight of the loss on pretraining text (Ouyang et al. 2022, eq. 2: "
                           "27.8)", least=0)
    round: int = knob(1, "from 2 on, the policy starts where the round before left it; the "
                         "reference stays", least=1, group="data and models")
    init: str = knob("", "SFT model: the reference, and where the policy starts (default: "
                         "sft/ckpt.pt in --out)")
    reward: str = knob("", "reward model, or several separated by commas (default: that of the "
                           "same round in --out)")
    data: str = knob("", "prompts to read instead of the embedded world's")
    prompts: int = knob(20000, "prompts that the almanac writes", least=1)
    test_prompts: int = knob(1000, "held-out prompts for the final figures", least=1)
    ptx_text: str = knob("", "with --ptx: the text (default: gpt/text.txt in --out)")
    log_every: int = knob(1, "iterations between two lines of the log", least=1)
    show_every: int = knob(5, "iterations between two answers that are shown", least=1)
    eval: bool = knob(False, "judge all models of --out; writes report.md there",
                      group="instead of training", command="data.judge.report:run")
    judge: str = knob("labeler", "with --eval: labeler, or human: you compare the newest policy "
                                 "with the SFT model, blind")
    labeler: str = knob("", "with --judge human: your name (default: your login name)")
    policies: str = knob("", "with --eval: further policies, name=checkpoint, separated by commas")

    def __post_init__(self):
        first = self.round == 1
        defaults = dict(steps=20 if first else 30, lr=6e-4 if first else 3e-4,
                        beta=.2 if first else .1)
        for name, default in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, default)

    def demands(self):
        return [(self.minibatches <= self.batch, "--minibatches must not exceed --batch"),
                (self.temperature > 0, "--temperature must be above 0: PPO learns from samples"),
                (not self.target_kl or self.epochs > 1, "--target_kl stops further passes over a "
                 "batch: it needs --epochs above 1")]


# ---- equations -----------------------------------------------------------------------------------
# Everything per token is (B, T-1): in column t the state ends at token t, the action is token t+1.
# `mask` marks the actions that write response tokens, <|end|> included.


def score_answers(reward, idx, lengths, mask, penalty):
    """What PPO maximises: the score at each response's last word, or the penalty -> (B,).

    idx (B, T), lengths (B,): prompt and response; mask (B, T-1): the actions that write the
    response. The penalty is for a response that is empty or never ends. An empty one would be
    scored at the prompt's last token, where the reward model was never trained.
    """
    ended = gpt.has_end(idx, lengths, reward.config.end)
    score = reward.score(idx, lengths - ended.long())
    return torch.where(ended & (mask.sum(1) > 1), score, penalty)


def kl_rewards(score, logp, logp_ref, mask, beta):
    """Reward per token: a KL penalty everywhere, the score at the response's last token.

    score (B,); logp, logp_ref, mask (B, T-1) -> (B, T-1) (Ziegler et al. 2019, eq. 2).
    """
    kl = logp - logp_ref
    rewards = -beta * kl * mask
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
    rewards[torch.arange(len(rewards), device=mask.device), last] += score
    return rewards


def gae(rewards, values, mask, gamma, lam):
    """Generalised advantage estimation -> advantages, returns, both (B, T-1).

    A_t = delta_t + gamma lam A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t (Schulman et al. 2016,
    eq. 16). After the last action V and A are 0. Returns, the targets of V, are A + V.
    """
    values = values * mask
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = advantages[:, t] = delta + gamma * lam * next_advantage
        next_value = values[:, t]
    advantages = advantages * mask
    return advantages, advantages + values


def whiten(x, mask, shift_mean=True):
    """Give x unit variance where mask is true, and mean 0 unless shift_mean is False; else 0."""
    mean = gpt.masked_mean(x, mask)
    var = gpt.masked_mean((x - mean) ** 2, mask)
    white = (x - mean) * torch.rsqrt(var + 1e-8)
    return (white if shift_mean else white + mean) * mask


def policy_loss(logp, logp_old, advantages, mask, clip):
    """The clipped surrogate objective, negated (Schulman et al. 2017, eq. 7) -> scalar."""
    ratio = torch.exp(logp - logp_old)
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return gpt.masked_mean(torch.max(-advantages * ratio, -advantages * clipped), mask)


def value_loss(values, values_old, returns, mask, clip):
    """Mean of 1/2 max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2) -> scalar.

    The loss is Schulman et al. 2017, eq. 9. The clip is from OpenAI's baselines: a value that moved
    further than `clip` gets no credit for it.
    """
    clipped = values_old + (values - values_old).clamp(-clip, clip)
    return 0.5 * gpt.masked_mean(torch.max((values - returns) ** 2, (clipped - returns) ** 2), mask)


def adapt(beta, kl, target, horizon, answers):
    """The next beta, to bring KL (nats per answer) near its target (Ziegler et al. 2019, 2.2)."""
    error = min(max(kl / target - 1, -.2), .2)
    return beta * (1 + error * answers / horizon)


# ---- rollout -------------------------------------------------------------------------------------


@dataclass
class Rollout:
    """A batch of answers and what the four models say about them."""

    idx: torch.Tensor         # (B, T)   prompt, response, padding
    lengths: torch.Tensor     # (B,)     prompt and response
    mask: torch.Tensor        # (B, T-1) the actions that write the response
    score: torch.Tensor       # (B,)     the reward model's, or missing_eos_penalty
    logp_old: torch.Tensor    # (B, T-1) policy, before the update
    logp_ref: torch.Tensor    # (B, T-1) reference
    values_old: torch.Tensor  # (B, T-1) value model, before the update
    ended: torch.Tensor       # (B,)     whether the response ends with <|end|>


def sample_responses(policy, prompts, prompt_lengths, cfg):
    """Sample a response to each prompt: (B, T), (B,) -> idx (B, T'), lengths (B,).

    Of several processes, each answers its part of the prompts.
    """
    B, T = prompts.shape
    noise = torch.rand(B, cfg.max_new_tokens, device=prompts.device)
    idx = prompts.new_zeros(B, T + cfg.max_new_tokens)
    lengths = torch.zeros_like(prompt_lengths)
    mine = torch.arange(B, device=prompts.device).tensor_split(world())[rank()]
    idx[mine] = policy.config.pad
    # A row's keys and values take about an eighth of the memory that its gradient takes.
    for rows in mine.split(8 * cfg.micro_batch or B) if len(mine) else ():
        sampled, lengths[rows] = sampling.generate(
            policy, prompts[rows], prompt_lengths[rows], cfg.max_new_tokens, cfg.temperature,
            noise=noise[rows])
        idx[rows, :sampled.shape[1]] = sampled
    idx, lengths = all_reduce(idx), all_reduce(lengths)
    return idx[:, :int(lengths.max())], lengths


def parts(rows, lengths, size):
    """Micro-batches of rows of similar length -> [(rows, T)]; T is the longest of them, in tokens.

    Padding costs as much as tokens do. Without a size, four parts, sorted, leave little of it.
    """
    by_length = rows[lengths[rows].argsort(stable=True)]
    found = micro_batches(by_length, size or math.ceil(len(rows) / 4))
    return [(part, int(lengths[part].max())) for part in found]


@torch.no_grad()
def rollout(policy, reference, reward, value, prompts, prompt_lengths, cfg):
    """Sample a response to each prompt, and ask the four models about it -> Rollout.

    prompts (B, T), prompt_lengths (B,). Log-probabilities are recomputed in the parts on which
    `update` makes its first pass: equal shapes give equal bits, so the first ratio is exactly 1.
    """
    idx, lengths = sample_responses(policy, prompts, prompt_lengths, cfg)
    mask = gpt.response_mask(prompt_lengths, lengths, idx.shape[1])
    score = torch.zeros(lengths.shape, dtype=value.head.weight.dtype, device=idx.device)
    logp_old = torch.zeros(mask.shape, dtype=score.dtype, device=idx.device)
    logp_ref, values_old = torch.zeros_like(logp_old), torch.zeros_like(logp_old)
    for minibatch in torch.arange(len(idx), device=idx.device).tensor_split(cfg.minibatches):
        for rows, T in parts(minibatch, lengths, cfg.micro_batch):
            answers, actions = idx[rows, :T], (rows, slice(T - 1))
            logp_old[actions] = gpt.token_logprobs(policy, answers, cfg.temperature, mask[actions])
            logp_ref[actions] = gpt.token_logprobs(reference, answers, cfg.temperature,
                                                   mask[actions])
            score[rows] = score_answers(reward, answers, lengths[rows], mask[actions],
                                          cfg.missing_eos_penalty)
            values_old[actions] = value(answers)[:, :-1]
    for tensor in (score, logp_old, logp_ref, values_old):
        all_reduce(tensor)
    ended = gpt.has_end(idx, lengths, policy.config.end)
    return Rollout(idx, lengths, mask, score, logp_old, logp_ref, values_old, ended)


# ---- update --------------------------------------------------------------------------------------


def update(policy, value, opt, batch, advantages, returns, cfg, lr, text=None):
    """Improve policy and value on a Rollout: `epochs` passes of `minibatches` steps -> diagnostics.

    advantages (whitened), returns (B, T-1); text: 1-D ids of the pretraining text, for cfg.ptx.
    Diagnostics are means over the last pass; `first_ratio` and `first_approx_kl` are those of the
    first minibatch, exactly 1 and 0.
    """
    models, passes = nn.ModuleList([policy, value]), []
    for epoch in range(cfg.epochs):
        # Prompts come in random order, so the first pass need not shuffle them.
        order = torch.arange(len(batch.idx)) if epoch == 0 else torch.randperm(len(batch.idx))
        passes.append([])
        for minibatch in order.to(batch.idx.device).tensor_split(cfg.minibatches):
            stats, tokens = Counter(), batch.mask[minibatch].sum().item()
            for rows, T in parts(minibatch, batch.lengths, cfg.micro_batch):
                answers, actions = batch.idx[rows, :T], (rows, slice(T - 1))
                mask, logp_old = batch.mask[actions], batch.logp_old[actions]
                share = mask.sum() / tokens
                logp = gpt.token_logprobs(policy, answers, cfg.temperature, mask)
                values = value(answers)[:, :-1]
                pg_loss = policy_loss(logp, logp_old, advantages[actions], mask, cfg.clip)
                vf_loss = value_loss(values, batch.values_old[actions], returns[actions], mask,
                                     cfg.clip)
                stats.update(diagnose(logp.detach(), logp_old, mask, cfg.clip,
                                      policy_loss=pg_loss.detach(), value_loss=vf_loss.detach()))
                loss = (pg_loss + cfg.vf_coef * vf_loss) * share
                loss.backward()
            if cfg.ptx:
                stats["ptx_loss"] += tokens * add_ptx_gradient(policy, text, len(minibatch), cfg)
            grad_norm = optim.optimizer_step(models, opt, lr)
            averages = {name: total / tokens for name, total in all_gather(stats).items()}
            passes[-1].append({**averages, "grad_norm": grad_norm})
        if cfg.target_kl and passes[-1][-1]["approx_kl"] > cfg.target_kl:
            break
    first, last = passes[0][0], passes[-1]
    means = {name: sum(stats[name] for stats in last) / len(last) for name in first}
    return {"first_ratio": first["ratio"], "first_approx_kl": first["approx_kl"],
            "passes": len(passes), **means}


def diagnose(logp, logp_old, mask, clip, **losses):
    """Sums over a micro-batch's tokens, of which the diagnostics are means -> dict of float."""
    log_ratio = logp - logp_old
    ratio = log_ratio.exp()
    figures = dict(
        losses, ratio=gpt.masked_mean(ratio, mask),
        # Schulman's estimator E[ratio - 1 - log ratio] of KL(old || new) is never negative.
        approx_kl=gpt.masked_mean(ratio - 1 - log_ratio, mask),
        clip_fraction=gpt.masked_mean(((ratio - 1).abs() > clip).float(), mask))
    return {name: (figure * mask.sum()).item() for name, figure in figures.items()}


def add_ptx_gradient(policy, text, rows, cfg):
    """Add cfg.ptx times the pretraining gradient (Ouyang et al. 2022, eq. 2) -> its loss."""
    batch, total = gpt.random_rows(text, rows, policy.config.block_size), 0.0
    for idx in micro_batches(batch, cfg.micro_batch):
        loss = gpt.next_token_loss(policy, idx) * (len(idx) / len(batch))
        (cfg.ptx * loss).backward()
        total += loss.item()
    return total


def describe(batch, returns, prompts, tokenizer):
    """What a learner watches: averages over the answers of a Rollout -> dict.

    `kl` is in nats per answer, `kl_token` in nats per token. `entropy` is estimated by -log p of
    the sampled tokens. `gold` is the labeler's, for the reader alone: training never sees it.
    """
    kl, mask = batch.logp_old - batch.logp_ref, batch.mask
    residual = (returns - batch.values_old)[mask]
    figures = dict(
        score=batch.score.mean().item(),
        score_std=batch.score.std(unbiased=False).item(),
        kl=kl.sum(1).mean().item(),
        kl_token=gpt.masked_mean(kl, mask).item(),
        entropy=-gpt.masked_mean(batch.logp_old, mask).item(),
        length=mask.sum(1).float().mean().item(),
        end_rate=batch.ended.float().mean().item(),
        empty=(batch.ended & (mask.sum(1) == 1)).float().mean().item(),
        explained_variance=1 - (residual.var() / returns[mask].var()).item())
    if judgeable(prompts):
        rows = zip(batch.idx[:, 1:].cpu(), mask.cpu())
        texts = [tokenizer.decode(row[written].tolist()) for row, written in rows]
        figures["gold"] = sum(j.gold for j in judge_all(prompts, texts)) / len(prompts)
    return figures


def example(batch, prompts, tokenizer):
    """The first question of a batch, its answer and score, in one line."""
    answer = tokenizer.decode(batch.idx[0, 1:][batch.mask[0]].tolist())
    return f"{prompts[0]['prompt'][-1]['content']!r} -> {answer!r}, score {batch.score[0]:+.2f}"


# ---- training ------------------------------------------------------------------------------------


def first_value_model(reward):
    """The value model before its first step: the reward model's trunk with a head of its own."""
    value = gpt.ScalarGPT(reward.config).to(reward.head.weight.device)
    value.trunk.load_state_dict(reward.trunk.state_dict())
    return value


def train(cfg):
    """Optimise the policy -> (policy, history). Writes out/ppo/, in later rounds out/ppo-2/ ..."""
    run = Run(cfg, "ppo")
    policy, reference, reward, tokenizer = start.ppo_models(cfg, run)
    value = first_value_model(reward)
    prompts, test = start.ppo_prompts(cfg, run, policy, tokenizer)
    text = start.pretraining_text(cfg, run, tokenizer, policy.config.block_size)
    compared, held_out = start.compared_models(cfg, run, policy, reference, tokenizer)
    run.prepare(policy, reference, reward, value)
    opt = optim.adamw(nn.ModuleList([policy, value]), cfg.lr, eps=1e-5)
    supply = gpt.batches(prompts, cfg.batch, random.Random(cfg.seed), length=lambda p: 0)
    beta = torch.tensor(cfg.beta, dtype=torch.double)

    for step in run.range(cfg.steps, supply, policy=policy, value=value, opt=opt, beta=beta):
        asked, lr, began = next(supply), cfg.lr * (1 - step / cfg.steps), run.seconds
        rendered = [tokenizer.render(p["prompt"]) for p in asked]
        idx, prompt_lengths = gpt.pad(rendered, tokenizer.pad, run.device)
        # 1. Sample answers, and ask the four models about them.
        batch = rollout(policy, reference, reward, value, idx, prompt_lengths, cfg)
        # 2. Reward per token: a KL penalty everywhere, the score at the last token.
        rewards = kl_rewards(batch.score, batch.logp_old, batch.logp_ref, batch.mask, beta)
        # 3. Advantages, and the returns that the value model should have predicted.
        advantages, returns = gae(rewards, batch.values_old, batch.mask, cfg.gamma, cfg.lam)
        rolled = run.seconds
        # 4. Improve policy and value on this batch.
        stats = update(policy, value, opt, batch, whiten(advantages, batch.mask), returns, cfg, lr,
                       text)
        stats.update(lr=lr, beta=beta.item(), rollout_seconds=rolled - began,
                     update_seconds=run.seconds - rolled)
        # 5. Log, adapt beta if asked, and save.
        figures = describe(batch, returns, asked, tokenizer)
        figures["objective"] = figures["score"] - beta.item() * figures["kl"]
        if run.due(step, cfg.show_every):
            run.show(example(batch, asked, tokenizer))
        shown = {name: figures[name] for name in SHOWN if name in figures}
        run.log(step, int(batch.mask.sum()), also={**figures, **stats}, **shown)
        if cfg.kl_target:
            beta.fill_(adapt(beta, figures["kl"], cfg.kl_target, cfg.kl_horizon, len(asked)))
        if run.time_to_save(step):
            run.save(step, gpt.to_bytes(policy, tokenizer, **run.about(step)),
                     value=gpt.to_bytes(value, tokenizer, **settings(cfg, beta), **run.about(step)))

    report(cfg, run, compared, reward, test, tokenizer, held_out)
    return policy, run.history


def settings(cfg, beta):
    """What advantages depend on: it is kept with the value model, for gpt.py --page."""
    names = ("gamma", "lam", "temperature", "missing_eos_penalty")
    return {"beta": beta.item(), **{name: getattr(cfg, name) for name in names}}


SHOWN = ("score", "gold", "kl", "entropy", "length")  # what the screen has room for


def report(cfg, run, models, reward, test, tokenizer, held_out):
    """Compare the models on held-out prompts, write results.json, draw the curves."""
    def score(idx, lengths, mask):
        return score_answers(reward, idx, lengths, mask, cfg.missing_eos_penalty)

    results, answers = compare_models(models, score, test, tokenizer, cfg, held_out, run.once)
    rounds = start.rounds_before(cfg, run) or [outline(0, results, "sft")]
    rounds.append(outline(cfg.round, results, "ppo"))
    samples = [dict(prompt=p["prompt"], **{name: texts[i] for name, texts in answers.items()})
               for i, p in enumerate(test[:20])]
    run.write_results(**results, round=cfg.round, rounds=rounds, samples=samples,
                      seconds=run.about(cfg.steps - 1)["seconds"])
    print_report(results, answers, test)
    run.draw()
    run.draw([["gold"], ["score"], ["kl"]], rounds, "round", "rounds.png")
    run.finish()


if __name__ == "__main__":
    main(Config, train, __doc__)
