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

    python ppo.py       needs out/sft/ckpt.pt and out/reward/ckpt.pt; about 2 minutes on 2 CPU cores

One pass of four minibatches over 256 answers, like InstructGPT's one pass of eight. Four passes over 128 answers, as
Ziegler et al. and their successors make, took a little longer an iteration here and reached the same gold.

Left out: entropy bonus, reward whitening, value sharing the policy's trunk, adaptive beta, early stopping on KL.
"""

import random
from dataclasses import dataclass

import torch
import torch.nn as nn

import gpt
from data import almanac, formats, metrics, runs
from data.runs import UserError, knob


@dataclass
class Config(runs.Common):
    init: str = knob("", "policy to start from, and the reference (default: sft/ckpt.pt in --out)")
    reward: str = knob("", "reward model (default: reward/ckpt.pt in --out)")
    steps: int = knob(34, "iterations of sampling and updating", least=1)
    batch: int = knob(256, "answers an iteration", least=1)
    epochs: int = knob(1, "passes over each batch", least=1)
    minibatches: int = knob(4, "optimizer steps a pass", least=1)
    lr: float = knob(4e-4, "learning rate, falling linearly to 0", least=0)
    # Gold after 34 iterations, seed 1: .66 at .1, .69 at .2, .62 at .4; with another reward model .67 at .1, .71 at .2.
    # Two runs that differ in nothing that matters differ by up to .05.
    beta: float = knob(0.2, "weight of the KL penalty, in standard deviations of the reward model's score per nat")
    gamma: float = knob(1.0, "discount")
    lam: float = knob(0.95, "GAE's lambda: 1 is Monte Carlo, 0 is one-step")
    clip: float = knob(0.2, "clip range of ratio and values")
    vf_coef: float = knob(0.1, "weight of the value loss")
    temperature: float = knob(0.7, "of sampling, and so of every log-probability, as in Ziegler et al. 2019")
    max_new_tokens: int = knob(40, "longest answer", least=1)
    missing_eos_score: float = knob(-2.0, "score of an answer that does not end, instead of the reward model's")
    prompts: int = knob(20000, "prompts to practise on", least=1)
    test_prompts: int = knob(500, "held-out prompts for the final figures", least=1)
    save_every: int = knob(20, "iterations between two checkpoints", least=1)
    log_every: int = knob(1, "iterations between two lines of the log", least=1)


SHOWN = ("score", "gold", "kl", "entropy", "length")  # of all that is logged, what the screen has room for

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

    Log-probabilities are recomputed in the minibatches of the first pass of `update`: the same shapes give the same bits,
    so that the first ratio of every iteration is exactly 1, and the KL of a policy that is its own reference exactly 0.
    """
    idx, lengths = gpt.generate(policy, idx, prompt_lengths, cfg.max_new_tokens, cfg.temperature)
    mask = gpt.response_mask(prompt_lengths, lengths, idx.shape[1])
    ended = idx.gather(1, lengths[:, None] - 1).squeeze(1) == policy.config.end
    score = torch.where(ended, reward.score(idx, lengths), cfg.missing_eos_score)
    parts = list(zip(idx.tensor_split(cfg.minibatches), mask.tensor_split(cfg.minibatches)))
    logp_old, logp_ref = [torch.cat([gpt.token_logprobs(model, i, cfg.temperature, m) for i, m in parts])
                          for model in (policy, reference)]
    return Rollout(idx, lengths, mask, score, logp_old, logp_ref, values_old=value(idx)[:, :-1], ended=ended)


def estimate(batch, cfg):
    """From a Rollout's scores, log-probabilities and values to its advantages and returns."""
    rewards = kl_rewards(batch.score, batch.logp_old, batch.logp_ref, batch.mask, cfg.beta)
    advantages, batch.returns = gae(rewards, batch.values_old, batch.mask, cfg.gamma, cfg.lam)
    batch.advantages = whiten(advantages, batch.mask)


def update(policy, value, opt, batch, cfg, lr):
    """Improve policy and value on a Rollout: `epochs` passes of `minibatches` steps -> dict of diagnostics.

    `first_ratio` and `first_approx_kl` are those of the first minibatch, exactly 1 and 0; the other figures are those of
    the last pass.
    """
    models, seen = nn.ModuleList([policy, value]), []
    for epoch in range(cfg.epochs):
        # The prompts come in random order, so the first pass need not shuffle them.
        order = torch.arange(len(batch.idx)) if epoch == 0 else torch.randperm(len(batch.idx))
        for rows in order.to(batch.idx.device).tensor_split(cfg.minibatches):
            idx, mask, advantages = batch.idx[rows], batch.mask[rows], batch.advantages[rows]
            logp = gpt.token_logprobs(policy, idx, cfg.temperature, mask)
            log_ratio = logp - batch.logp_old[rows]
            pg_loss = policy_loss(logp, batch.logp_old[rows], advantages, mask, cfg.clip)
            vf_loss = value_loss(value(idx)[:, :-1], batch.values_old[rows], batch.returns[rows], mask, cfg.clip)
            grad_norm = gpt.update(models, opt, pg_loss + cfg.vf_coef * vf_loss, lr)
            with torch.no_grad():
                ratio = log_ratio.exp()
                seen.append(dict(policy_loss=pg_loss.item(), value_loss=vf_loss.item(), grad_norm=grad_norm,
                                 ratio=gpt.masked_mean(ratio, mask).item(),
                                 # Schulman's estimator E[ratio - 1 - log ratio] of KL(old || new): never negative.
                                 approx_kl=gpt.masked_mean(ratio - 1 - log_ratio, mask).item(),
                                 clip_fraction=gpt.masked_mean(((ratio - 1).abs() > cfg.clip).float(), mask).item()))
    last = seen[-cfg.minibatches:]
    return {"first_ratio": seen[0]["ratio"], "first_approx_kl": seen[0]["approx_kl"],
            **{name: sum(s[name] for s in last) / len(last) for name in last[0]}}


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
    if "kind" in prompts[0]:
        answers = [tokenizer.decode(row[mask].tolist()) for row, mask in zip(batch.idx[:, 1:].cpu(), batch.mask.cpu())]
        figures["gold"] = sum(j.gold for j in metrics.judge_all(prompts, answers)) / len(prompts)
    return figures


# ---- evaluation and training ----------------------------------------------------------------------


@torch.no_grad()
def divergence(policy, reference, prompts, answers, tokenizer, temperature):
    """KL(policy || reference) in nats an answer, estimated on the policy's own answers (lists of ids) -> float."""
    device, total = next(policy.parameters()).device, 0.0
    for start in range(0, len(prompts), 128):
        asked = [tokenizer.render(p["prompt"]) for p in prompts[start:start + 128]]
        idx, lengths = gpt.pad([a + b for a, b in zip(asked, answers[start:start + 128])], tokenizer.pad, device)
        mask = gpt.response_mask(torch.tensor([len(a) for a in asked], device=device), lengths, idx.shape[1])
        logp, logp_ref = [gpt.token_logprobs(model, idx, temperature, mask) for model in (policy, reference)]
        total += (logp - logp_ref).sum().item()
    return total / len(prompts)


def evaluate(models, prompts, tokenizer, cfg):
    """The same held-out prompts and decoding for every model -> results, answers (lists of str), both by name.

    models: {"base" (if any), "sft", "ppo": GPT}. Figures are of answers sampled at cfg.temperature; those of greedy
    answers stand apart, under "greedy". `win_rate` and `kl` are of PPO against SFT, on the sampled answers.
    """
    results, texts, judged = {}, {}, {}
    for name, model in models.items():
        for decoding, temperature in (("greedy", 0.0), ("sampled", cfg.temperature)):
            ids = gpt.sample(model, tokenizer, prompts, cfg.max_new_tokens, temperature)
            texts[name] = [tokenizer.decode(row) for row in ids]
            judged[name] = metrics.judge_all(prompts, texts[name])
            ended = [row[-1:] == [tokenizer.end] for row in ids]
            figures = metrics.summary(prompts, judged[name], [len(row) for row in ids], ended)
            results[name] = {**figures, "greedy": results[name]} if decoding == "sampled" else figures
    results["kl"] = divergence(models["ppo"], models["sft"], prompts, ids, tokenizer, cfg.temperature)
    if judged["ppo"]:
        results["win_rate"] = metrics.win_rate(judged["ppo"], judged["sft"])
    return results, texts


def report(results, answers, prompts):
    """Print the figures of all models and their answers to the first held-out prompts, side by side."""
    names = list(answers)
    print("\nheld-out prompts, sampled " + "".join(f"{name:>9}" for name in names))
    for figure in ("gold", "helpful", "truthful", "harmless", "right", "invented", "complied", "end_rate", "length"):
        if results["ppo"].get(figure) is not None:
            print(f"{figure:>25}  " + "".join(f"{results[name][figure]:9.3f}" for name in names))
    print(f"KL to SFT {results['kl']:.2f} nats an answer")
    if "win_rate" in results:
        print(f"PPO preferred to SFT on {results['win_rate']:.1%} of the prompts, ties counted half")
    for i, p in enumerate(prompts[:10]):
        print("\n" + "\n".join(f"{m['role']:>9}: {m['content']}" for m in p["prompt"]))
        for name in names:
            print(f"{name:>9}: {answers[name][i]}")


def train(cfg):
    """Optimise the policy -> (model, history). Writes out/ppo/."""
    run = runs.Run(cfg, "ppo", demands=[
        (cfg.minibatches <= cfg.batch, "--minibatches must not exceed --batch"),
        (cfg.temperature > 0, "--temperature must be above 0: PPO learns from samples")])
    sft_path, rm_path = cfg.init or run.earlier("sft"), cfg.reward or run.earlier("reward")
    policy, tokenizer, _ = gpt.load(sft_path, gpt.GPT, run.device, "run python sft.py first")
    reference, _, _ = gpt.load(sft_path, gpt.GPT, run.device)
    reward, rm_tokenizer, about = gpt.load(rm_path, gpt.ScalarGPT, run.device, "run python reward.py first")
    if rm_tokenizer != tokenizer:
        raise UserError(f"{rm_path} has another tokenizer than {sft_path}: run python reward.py again")
    if reward.config.block_size < policy.config.block_size:
        raise UserError(f"{rm_path} reads {reward.config.block_size} tokens and {sft_path} writes {policy.config.block_size}: "
                        "run python reward.py again")
    models = {"sft": reference, "ppo": policy}
    if run.earlier("gpt").exists():
        base, base_tokenizer, _ = gpt.load(run.earlier("gpt"), gpt.GPT, run.device)
        if base_tokenizer == tokenizer and base.config.block_size >= policy.config.block_size:
            models = {"base": base, **models}
    value = gpt.ScalarGPT(reward.config).to(run.device)
    value.trunk.load_state_dict(reward.trunk.state_dict())
    for frozen in (reference, reward):
        frozen.requires_grad_(False)
    opt = gpt.optimizer(nn.ModuleList([policy, value]), cfg.lr, eps=1e-5)
    if cfg.data:
        prompts, test = formats.split(formats.read_prompts(cfg.data))
    else:
        prompts = almanac.prompts("train", cfg.prompts, f"ppo {cfg.seed}")
        test = almanac.prompts("test", cfg.test_prompts, cfg.seed)
    room = policy.config.block_size - cfg.max_new_tokens
    prompts, test = [[p for p in ps if len(tokenizer.render(p["prompt"])) <= room] for ps in (prompts, test)]
    if not prompts or not test:
        raise UserError(f"{cfg.data or 'the almanac'}: no prompt leaves room for {cfg.max_new_tokens} tokens in the context of "
                        f"{policy.config.block_size}: lower --max_new_tokens")
    if cfg.minibatches > len(prompts) % cfg.batch > 0:
        prompts = prompts[:-(len(prompts) % cfg.batch)] or prompts  # no batch too small to be divided
    if cfg.minibatches > len(prompts):
        raise UserError(f"{cfg.data} holds {len(prompts)} prompts to practise on: too few for --minibatches {cfg.minibatches}")
    supply = gpt.batches(prompts, cfg.batch, random.Random(cfg.seed), length=lambda p: 0)

    for step in run.range(cfg.steps):
        asked, began = next(supply), run.seconds
        idx, prompt_lengths = gpt.pad([tokenizer.render(p["prompt"]) for p in asked], tokenizer.pad, run.device)
        batch = rollout(policy, reference, reward, value, idx, prompt_lengths, cfg)
        estimate(batch, cfg)
        rolled = run.seconds
        lr = cfg.lr * (1 - step / cfg.steps)
        diagnostics = update(policy, value, opt, batch, cfg, lr)
        updated = run.seconds
        if run.due(step, cfg.save_every):
            run.save(gpt.checkpoint(policy, tokenizer, **run.about(step, about)))
        figures = describe(batch, asked, tokenizer)
        run.log(step, tokens=int(batch.mask.sum()), **{name: figures[name] for name in SHOWN if name in figures},
                also={**figures, **diagnostics, "lr": lr, "beta": cfg.beta,
                      "rollout_seconds": rolled - began, "update_seconds": updated - rolled})

    results, answers = evaluate(models, test, tokenizer, cfg)
    report(results, answers, test)
    run.draw([["score", "gold"], ["kl"], ["entropy"], ["length"], ["policy_loss", "value_loss"], ["explained_variance"],
              ["approx_kl"], ["clip_fraction"], ["rollout_seconds", "update_seconds"]])
    samples = [dict(prompt=p["prompt"], **{name: texts[i] for name, texts in answers.items()}) for i, p in enumerate(test[:20])]
    run.finish(**results, round=1, seconds=run.about(cfg.steps - 1, about)["seconds"], samples=samples)
    return policy, run.history


if __name__ == "__main__":
    runs.main(Config, train, __doc__)
