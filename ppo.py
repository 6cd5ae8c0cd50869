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
                              A: advantage, whitened     (Schulman et al. 2017, eqs. 7 and 9)

Four models: policy and reference start as the SFT model, in later rounds the policy as it last was;
the value model starts as the reward model; reference and reward model never change. An answer is
one short episode: gamma is 1.

    python ppo.py           needs out/sft/ckpt.pt and out/reward/ckpt.pt; 2 minutes on 2 CPU cores
    python ppo.py --eval    judges all models in --out in many ways, and writes out/report.md

One pass of four minibatches over 256 answers resembles InstructGPT's one pass of eight. Four
passes, as in Ziegler et al. and Stiennon et al., bring no more here (notebooks/RESULTS.md).

Options of the papers, off by default: adaptive beta (--kl_target), pretraining gradients (--ptx),
early stopping (--target_kl). `python -m notebooks.experiments options` measures what they do.
Left out: an entropy bonus, reward whitening, a value head on the policy's trunk.
"""

import data.run.system  # before torch: its threads spin only briefly, and Ctrl-C works meanwhile

import functools
from dataclasses import dataclass

import torch
import torch.nn as nn

import gpt
from data import optim, sampling, start
from data.judge import alarm, answers as judge
from data.run.cli import Judged, flag, main
from data.run.run import Run


@dataclass
class Config(Judged):
    """The flags of PPO. Values of None depend on the round (LOG: PPO's defaults)."""

    steps: int = flag(None, "iterations of sampling and updating (default: 20, in later rounds 30)",
                      least=1, group="algorithm")
    beta: float = flag(None, "weight of the KL penalty, in standard deviations of the score per "
                             "nat (default: 0.2, in later rounds 0.1)", least=0)
    lr: float = flag(None, "learning rate, falling linearly to 0 (default: 6e-4, in later rounds "
                           "3e-4)", least=0)
    batch: int = flag(256, "answers per iteration", least=1)
    epochs: int = flag(1, "passes over each batch", least=1)
    minibatches: int = flag(4, "optimizer steps per pass", least=1)
    clip: float = flag(0.2, "clip range of ratio and values", least=0)
    gamma: float = flag(1.0, "discount", least=0)
    lam: float = flag(0.95, "GAE's lambda: 1 is Monte Carlo, 0 is one-step", least=0)
    vf_coef: float = flag(0.1, "weight of the value loss", least=0)
    temperature: float = flag(0.7, "of sampling and of every log-probability (Ziegler et al. 2019)")
    max_new_tokens: int = flag(40, "longest answer", least=1)
    missing_eos_penalty: float = flag(-2.0, "score of an answer that is empty or never ends")
    kl_target: float = flag(0.0, "nats per answer to which beta steers KL; 0: beta stays", least=0)
    kl_horizon: int = flag(1000, "with --kl_target: answers over which beta changes by 20% at most",
                           least=1)
    target_kl: float = flag(0.0, "no further pass over a batch once approx_kl is above this; 0: "
                                 "never stop", least=0)
    ptx: float = flag(0.0, "weight of the loss on pretraining text (Ouyang et al.: 27.8)", least=0)
    round: int = flag(1, "from 2 on, the policy starts where the round before left it; the "
                         "reference stays", least=1, group="data and models")
    init: str = flag("", "SFT model: the reference, and where the policy starts (default: "
                         "sft/ckpt.pt in --out)")
    reward: str = flag("", "reward model (default: that of the same round in --out)")
    data: str = flag("", "prompts to read instead of the embedded world's")
    prompts: int = flag(20000, "prompts that the almanac writes", least=1)
    ptx_text: str = flag("", "with --ptx: the text (default: gpt/text.txt in --out)")
    log_every: int = flag(1, "iterations between two lines of the log", least=1)

    def __post_init__(self):
        first = self.round == 1
        self.steps = (20 if first else 30) if self.steps is None else self.steps
        self.lr = (6e-4 if first else 3e-4) if self.lr is None else self.lr
        self.beta = (.2 if first else .1) if self.beta is None else self.beta

    def demands(self):
        return [(self.minibatches <= self.batch, "--minibatches must not exceed --batch"),
                (self.temperature > 0, "--temperature must be above 0: PPO learns from samples"),
                (self.gamma <= 1 and self.lam <= 1, "--gamma and --lam must be at most 1"),
                (self.missing_eos_penalty <= 0, "--missing_eos_penalty is a score, and must be at "
                 "most 0: above, never to end would be a good answer"),
                (not self.kl_target or self.beta > 0, "--kl_target steers --beta, which must be "
                 "above 0"),
                (not self.target_kl or self.epochs > 1, "--target_kl stops further passes over a "
                 "batch: it needs --epochs above 1")]


# ---- equations -----------------------------------------------------------------------------------
# Everything per token is (B, T-1): in column t the state ends at token t, the action is token t+1.
# `mask` marks the actions that write response tokens, <|end|> included.


def score_answers(reward, idx, lengths, mask, penalty):
    """What PPO maximises: the score, read before <|end|> at the last word, or the penalty -> (B,).

    idx (B, T), lengths (B,): prompt and response; mask (B, T-1): the actions that write the
    response. The penalty is for a response that is empty or never ends. An empty one would be
    scored at the prompt's last token, where the reward model was never trained.
    """
    ended = sampling.has_end(idx, lengths, reward.config.end)
    score = reward.score(idx, lengths - ended.long())
    has_words = mask.sum(1) > 1  # more than <|end|> alone
    return torch.where(ended & has_words, score, penalty)


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

    The loss is that of Schulman et al. 2017, section 5; 1/2 and clip are from OpenAI's baselines: a
    value that has moved further than `clip` has no gradient that moves it on.
    """
    clipped = values_old + (values - values_old).clamp(-clip, clip)
    return 0.5 * gpt.masked_mean(torch.max((values - returns) ** 2, (clipped - returns) ** 2), mask)


class KLController:
    """Beta, and how it is steered to bring KL near a target (Ziegler et al. 2019, section 2.2)."""

    def __init__(self, beta, target=0.0, horizon=1000):
        self.value, self.target, self.horizon = beta, target, horizon

    def update(self, kl, answers):
        """kl: nats per answer, of so many answers. Without a target, beta stays."""
        if self.target:
            error = min(max(kl / self.target - 1, -.2), .2)
            self.value *= 1 + error * min(answers / self.horizon, 1)

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


# ---- rollout -------------------------------------------------------------------------------------


@dataclass
class Rollout:
    """A batch of answers, what the four models say about them, and what follows from that."""

    idx: torch.Tensor                # (B, T)   prompt, response, padding
    lengths: torch.Tensor            # (B,)     prompt and response
    mask: torch.Tensor               # (B, T-1) the actions that write the response
    ended: torch.Tensor              # (B,)     whether the response ends with <|end|>
    score: torch.Tensor = None       # (B,)     the reward model's, or missing_eos_penalty
    logp_old: torch.Tensor = None    # (B, T-1) policy, before the update
    logp_ref: torch.Tensor = None    # (B, T-1) reference
    values_old: torch.Tensor = None  # (B, T-1) value model, before the update
    advantages: torch.Tensor = None  # (B, T-1) whitened
    returns: torch.Tensor = None     # (B, T-1) what the value model should have predicted


@torch.no_grad()
def rollout(policy, reference, reward, value, prompts, prompt_lengths, cfg):
    """Sample a response to each prompt, and ask the four models about it -> Rollout.

    prompts (B, T), prompt_lengths (B,). Log-probabilities are of the forward pass that `update`
    uses, not of the sampler, so the first ratio is 1 up to rounding.
    """
    idx, lengths = sampling.sample_batch(policy, prompts, prompt_lengths, cfg)
    mask = gpt.response_mask(prompt_lengths, lengths, idx.shape[1])
    batch = Rollout(idx, lengths, mask, sampling.has_end(idx, lengths, policy.config.end))
    for part in optim.fill(batch, cfg.micro_batch):  # set on a part: copied to the batch
        part.logp_old = gpt.token_logprobs(policy, part.idx, cfg.temperature, part.mask)
        part.logp_ref = gpt.token_logprobs(reference, part.idx, cfg.temperature, part.mask)
        part.values_old = value(part.idx)[:, :-1]
        part.score = score_answers(reward, part.idx, part.lengths, part.mask,
                                   cfg.missing_eos_penalty)
    return batch


# ---- update --------------------------------------------------------------------------------------


def update(policy, value, opt, batch, cfg, lr, text=None):
    """Improve policy and value on a Rollout: `epochs` passes of `minibatches` steps -> diagnostics.

    text: 1-D ids of the pretraining text, for cfg.ptx. Diagnostics are means over the last pass;
    `first_ratio` and `first_approx_kl` are those of the first minibatch, 1 and 0 up to rounding.
    """
    models, passes = nn.ModuleList([policy, value]), []
    for epoch in range(cfg.epochs):
        passes.append([])
        for rows in torch.randperm(len(batch.idx)).tensor_split(cfg.minibatches):
            sums = optim.Sums()
            # share: how many of the minibatch's tokens are the part's
            for part, share in optim.by_length(batch, rows, cfg.micro_batch):
                logp = gpt.token_logprobs(policy, part.idx, cfg.temperature, part.mask)
                values = value(part.idx)[:, :-1]
                pg_loss = policy_loss(logp, part.logp_old, part.advantages, part.mask, cfg.clip)
                vf_loss = value_loss(values, part.values_old, part.returns, part.mask, cfg.clip)
                sums.add(share, policy_loss=pg_loss, value_loss=vf_loss,
                         **diagnose(logp.detach(), part.logp_old, part.mask, cfg.clip))
                loss = (pg_loss + cfg.vf_coef * vf_loss) * share
                loss.backward()
            if cfg.ptx:
                add_ptx_gradient(policy, text, len(rows), cfg, sums)
            grad_norm = optim.optimizer_step(models, opt, lr)
            passes[-1].append(dict(sums.total(), grad_norm=grad_norm))
        if cfg.target_kl and passes[-1][-1]["approx_kl"] > cfg.target_kl:
            break
    first, last = passes[0][0], passes[-1]
    means = {name: sum(figures[name] for figures in last) / len(last) for name in first}
    return dict(first_ratio=first["ratio"], first_approx_kl=first["approx_kl"],
                passes=len(passes), **means)


def diagnose(logp, logp_old, mask, clip):
    """Means over a part's tokens of what tells how far the policy has moved -> dict of tensors."""
    log_ratio = logp - logp_old
    ratio = log_ratio.exp()
    return dict(ratio=gpt.masked_mean(ratio, mask),
                # Schulman's estimator E[ratio - 1 - log ratio] of KL(old || new) is never negative.
                approx_kl=gpt.masked_mean(ratio - 1 - log_ratio, mask),
                clip_fraction=gpt.masked_mean(((ratio - 1).abs() > clip).float(), mask))


def add_ptx_gradient(policy, text, rows, cfg, sums):
    """Add cfg.ptx times the pretraining gradient (Ouyang et al. 2022, eq. 2), and its loss."""
    batch = gpt.random_rows(text, rows, policy.config.block_size)
    for idx, share in optim.micro_batches(batch, cfg.micro_batch):
        ptx_loss = gpt.next_token_loss(policy, idx) * share
        (cfg.ptx * ptx_loss).backward()
        sums.add(ptx_loss=ptx_loss)


def describe(batch, prompts, tokenizer, beta):
    """What a learner watches: averages over the answers of a Rollout -> dict.

    `kl` is in nats per answer, `kl_token` in nats per token. `entropy` is estimated by -log p of
    the sampled tokens. `gold` is the labeler's, for the reader alone: training never sees it.
    """
    kl, mask = batch.logp_old - batch.logp_ref, batch.mask  # kl is 0 outside the mask
    error = (batch.returns - batch.values_old)[mask]
    figures = dict(
        score=batch.score.mean().item(),
        kl=kl.sum(1).mean().item(),
        entropy=-gpt.masked_mean(batch.logp_old, mask).item(),
        length=mask.sum(1).float().mean().item(),
        score_std=batch.score.std(unbiased=False).item(),
        kl_token=gpt.masked_mean(kl, mask).item(),
        end_rate=batch.ended.float().mean().item(),
        empty=(batch.ended & (mask.sum(1) == 1)).float().mean().item(),
        explained_variance=1 - (error.var() / batch.returns[mask].var()).item())
    figures["objective"] = figures["score"] - beta * figures["kl"]
    return dict(figures, **judge.mean_gold(batch, prompts, tokenizer))


# ---- training ------------------------------------------------------------------------------------


def first_value_model(reward):
    """A copy of the reward model (Ouyang et al. 2022, section 3.5)."""
    value = gpt.ScalarGPT(reward.config).to(reward.head.weight.device)
    value.load_state_dict(reward.state_dict())
    return value


SHOWN = ("score", "gold", "kl", "entropy", "length")  # printed each step; log.jsonl has all figures


def train(cfg):
    """Optimise the policy -> (policy, history). Writes out/ppo/, in later rounds out/ppo-2/ ..."""
    run = Run(cfg, "ppo")
    # Four models: policy and value learn; reference and reward model never change.
    policy, reference, reward, tokenizer = start.for_ppo(cfg, run)
    value = first_value_model(reward)
    opt = optim.adamw(nn.ModuleList([policy, value]), cfg.lr, eps=1e-5)
    beta = KLController(cfg.beta, cfg.kl_target, cfg.kl_horizon)
    prompts, test = start.prompts(cfg, run, policy, tokenizer)
    text = start.pretraining_text(cfg, run, tokenizer, policy.config.block_size)
    compared = start.compared_models(cfg, run, policy, reference, tokenizer)
    supply = gpt.batches(prompts, cfg.batch, cfg.seed, run.first)

    for step in run.steps(cfg.steps, policy=policy, value=value, opt=opt, beta=beta):
        asked, lr = next(supply), cfg.lr * (1 - step / cfg.steps)
        idx, prompt_lengths = gpt.pad([p["ids"] for p in asked], tokenizer.pad, run.device)
        # 1. Sample answers, and ask the four models about them.
        batch = rollout(policy, reference, reward, value, idx, prompt_lengths, cfg)
        # 2. Reward per token: a KL penalty everywhere, the score at the last token.
        rewards = kl_rewards(batch.score, batch.logp_old, batch.logp_ref, batch.mask, beta.value)
        # 3. Advantages, and the returns that the value model should have predicted.
        advantages, batch.returns = gae(rewards, batch.values_old, batch.mask, cfg.gamma, cfg.lam)
        batch.advantages = whiten(advantages, batch.mask)
        # 4. Improve policy and value on this batch.
        stats = update(policy, value, opt, batch, cfg, lr, text)
        # 5. Look for what goes wrong, log, adapt beta if asked, and save.
        figures = describe(batch, asked, tokenizer, beta.value)
        alarm.watch(run, step, figures, batch, asked, tokenizer)
        run.log(step, {**figures, **stats, "lr": lr, "beta": beta.value},
                tokens=int(batch.mask.sum()), show=SHOWN)
        beta.update(figures["kl"], len(asked))
        run.save(step, tokenizer, ckpt=policy, value=value)

    scorer = functools.partial(score_answers, reward, penalty=cfg.missing_eos_penalty)
    judge.report(cfg, run, compared, scorer, test, tokenizer)
    return policy, run.history


if __name__ == "__main__":
    main(Config, train, __doc__, eval="data.judge.report", prefer="data.people.prefer",
         rate="data.people.rate")
