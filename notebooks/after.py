"""What came after 2022: other ways from the same models, prompts and rankings to a policy.

    python -m notebooks.after --method dpo          from the rankings of stage 3, no reward model
    python -m notebooks.after --method online-dpo   from fresh answers that the reward model ranks
    python -m notebooks.after --method rloo         PPO, but the other answers are the value model
    python -m notebooks.after --method grpo         the same, divided by the group's deviation
    python -m notebooks.after --method best         SFT on the best of K answers (expert iteration)
    python -m notebooks.after --method random       the control: SFT on a random one of the K
    python -m notebooks.after --check truthful      any of them, but a program gives the reward

Needs a finished pipeline in --out and writes OUT/<method>/, which `gpt.py --chat --ckpt` and
`ppo.py --eval --policies` read. The loop is the same for all: K answers to each prompt, what they
are worth, a loss, a step.
"""

import data.run.system  # before torch, as in the stages

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

import gpt
import ppo
import reward
from data import optim, sampling, start
from data.files.records import read_comparisons
from data.judge import answers as judge
from data.run import processes
from data.run.cli import Judged, UserError, flag, main
from data.run.run import Run
from data.world import labeler

# ---- equations -----------------------------------------------------------------------------------


def dpo_loss(logp_w, logp_l, ref_w, ref_l, beta):
    """Direct preference optimisation (Rafailov et al. 2023, equation 7) -> scalar.

    logp of the preferred answer w and of the other, l: sums over the answer's tokens, (N,), of the
    policy and of the reference. The first loss is log 2, as policy and reference are the same.
    """
    return -F.logsigmoid(beta * ((logp_w - ref_w) - (logp_l - ref_l))).mean()


def ranked_dpo_loss(logp, logp_ref, ranks, beta):
    """Its mean over all pairs of K ranked answers, all (N, K): InstructGPT's loss (Ouyang et al.
    2022, equation 1), in which beta log(p / p_ref) stands in the place of the score."""
    return reward.ranking_loss(beta * (logp - logp_ref), ranks)


def rloo_advantages(rewards):
    """Each reward minus the mean of the other K - 1 (Kool et al. 2019; Ahmadian et al. 2024, 2.3).

    (N, K) -> (N, K). The baseline does not depend on the answer itself, so the gradient stays that
    of the expected reward.
    """
    K = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * K / (K - 1)


def grpo_advantages(rewards):
    """Each reward minus the mean of its group, over its deviation (Shao et al. 2024, 4.1.2).

    (N, K) -> (N, K). Prompts whose answers differ little count as much as the others, so this is
    no longer the gradient of the expected reward. Equal rewards have advantage 0. In the paper KL
    is a term of the loss; here it is part of the reward, as in PPO, and is divided, too.
    """
    deviation = rewards.std(1, keepdim=True, unbiased=False)
    return (rewards - rewards.mean(1, keepdim=True)) / (deviation + 1e-6)


# ---- methods: what of a group of answers is learned ----------------------------------------------
# batch: a ppo.Rollout of N * K answers, those to a prompt side by side; logp (N * K, T-1) is of the
# policy that learns.


def rewards(batch, cfg):
    """Score minus beta KL, per answer -> (N, K): what PPO's rewards add up to."""
    kl = (batch.logp_old - batch.logp_ref).sum(1)
    return (batch.score - cfg.beta * kl).view(-1, cfg.k)


def group_loss(advantages, logp, batch, cfg):
    """PPO's clipped objective, with one advantage for all tokens of an answer -> scalar."""
    per_answer = advantages(rewards(batch, cfg)).view(-1, 1)
    return ppo.policy_loss(logp, batch.logp_old, per_answer, batch.mask, cfg.clip)


def preference_loss(logp, batch, cfg):
    """DPO on all pairs of a group; the higher score is the better answer -> scalar."""
    score = batch.score.view(-1, cfg.k)
    ranks = 1 + (score[:, None, :] > score[:, :, None]).sum(2)  # 1: none is better
    logp, logp_ref = [x.sum(1).view(-1, cfg.k) for x in (logp, batch.logp_ref)]
    return ranked_dpo_loss(logp, logp_ref, ranks, cfg.beta)


def imitation_loss(choose, logp, batch, cfg):
    """SFT on one answer of each group -> scalar. choose: (N, K) -> (N,) (Dong et al. 2023)."""
    chosen = choose(batch.score.view(-1, cfg.k))
    rows = torch.arange(len(chosen), device=chosen.device) * cfg.k + chosen
    return -gpt.masked_mean(logp[rows], batch.mask[rows])


LOSSES = {"dpo": preference_loss, "online-dpo": preference_loss,
          "rloo": functools.partial(group_loss, rloo_advantages),
          "grpo": functools.partial(group_loss, grpo_advantages),
          "best": functools.partial(imitation_loss, lambda score: score.argmax(1)),
          "random": functools.partial(imitation_loss, lambda score: torch.randint(
              score.shape[1], score.shape[:1], device=score.device))}
# Steps, learning rate, beta: the best of three tries each (LOG: what came after); online-dpo takes
# dpo's beta, untuned. That is per log-odds of the labelers, and those of RLOO and GRPO are per
# deviation of the score, so methods are compared along KL.
SETTINGS = {"dpo": (190, 2e-4, .1), "online-dpo": (40, 4e-4, .1), "rloo": (20, 6e-4, .2),
            "grpo": (20, 6e-4, .2), "best": (20, 5e-4, 0.0), "random": (20, 5e-4, 0.0)}


@dataclass
class Config(Judged):
    """The flags of all methods; the defaults of some depend on the method."""

    method: str = flag("dpo", "how the policy learns", choices=tuple(LOSSES), group="algorithm")
    steps: int = flag(None, "updates; one pass over a batch each (default: by the method)", least=1)
    batch: int = flag(64, "prompts per step, each with K answers", least=1)
    k: int = flag(4, "answers per prompt", least=2)
    minibatches: int = flag(4, "optimizer steps per batch of fresh answers", least=1)
    lr: float = flag(None, "peak learning rate, falls to 0 (default: by the method)", least=0)
    beta: float = flag(None, "price of KL; of DPO: of log p / p_ref (default: by the method)",
                       least=0)
    clip: float = flag(0.2, "clip range of the ratio, of rloo and grpo", least=0)
    check: str = flag("", "a program in the place of the reward model: criteria of the labeler, "
                          "such as truthful or helpful,truthful; the lowest counts")
    temperature: float = flag(0.7, "of sampling and of every log-probability")
    max_new_tokens: int = flag(40, "longest answer", least=1)
    missing_eos_penalty: float = flag(-2.0, "score of an answer that is empty or never ends")
    init: str = flag("", "SFT model (default: sft/ckpt.pt in --out)", group="data and models")
    reward: str = flag("", "reward model (default: reward/ckpt.pt in --out)")
    rankings: str = flag("", "of dpo (default: those of reward.py in --out)")
    data: str = flag("", "prompts to read instead of the embedded world's")
    prompts: int = flag(20000, "prompts that the almanac writes", least=1)
    log_every: int = flag(1, "updates between two lines of the log", least=1)
    round = 1  # of ppo.py: these methods start from the SFT model

    def __post_init__(self):
        steps, lr, beta = SETTINGS.get(self.method, SETTINGS["dpo"])
        self.steps = steps if self.steps is None else self.steps
        self.lr = lr if self.lr is None else self.lr
        self.beta = beta if self.beta is None else self.beta

    def demands(self):
        known = not self.check or set(self.check.split(",")) <= set(judge.CRITERIA)
        return [(known, f"--check takes {', '.join(judge.CRITERIA)}"),
                (not self.check or self.method != "dpo", "--check judges fresh answers: choose "
                 "another --method than dpo, which learns from rankings"),
                (not self.check or not self.data, "--check knows the embedded world's prompts "
                 "only: leave out --data"),
                (self.minibatches <= self.batch, "--minibatches must not exceed --batch"),
                (self.temperature > 0, "--temperature must be above 0"),
                (not self.micro_batch and processes.world() == 1, "these methods run in one "
                 "process, without --micro_batch")]


# ---- answers to learn from -----------------------------------------------------------------------


def ask(policy, reference, reward_model, asked, tokenizer, cfg):
    """K answers of the policy to each of some prompts -> ppo.Rollout, the prompts K times."""
    prompts = [p for p in asked for _ in range(cfg.k)]
    idx, begin = gpt.pad([p["ids"] for p in prompts], tokenizer.pad, policy.wte.weight.device)
    batch = ppo.rollout(policy, reference, reward_model, no_values, idx, begin, cfg)
    if cfg.check:
        batch.score = checked(batch, prompts, tokenizer, cfg)
    return batch, prompts


def no_values(idx):
    return torch.zeros(idx.shape, device=idx.device)  # these methods have no value model


@torch.no_grad()
def ranked(reference, records, tokenizer, cfg):
    """Rankings as a batch of answers whose score is minus the rank -> ppo.Rollout."""
    prompts = [tokenizer.render(r["prompt"]) for r in records for _ in range(cfg.k)]
    answers = [tokenizer.encode(text) + [tokenizer.end] for r in records for text in r["responses"]]
    device = reference.wte.weight.device
    idx, lengths = gpt.pad([p + a for p, a in zip(prompts, answers)], tokenizer.pad, device)
    begin = torch.tensor([len(p) for p in prompts], device=device)
    mask = gpt.response_mask(begin, lengths, idx.shape[1])
    return ppo.Rollout(
        idx, lengths, mask, sampling.has_end(idx, lengths, tokenizer.end),
        score=-torch.tensor([r["ranks"] for r in records], device=device).flatten().float(),
        logp_ref=gpt.token_logprobs(reference, idx, cfg.temperature, mask))


def checked(batch, prompts, tokenizer, cfg):
    """What a program says of answers: the lowest of the labeler's criteria in --check -> (B,)."""
    judgements = map(labeler.judge, prompts, judge.texts(batch, tokenizer))
    lowest = [min(getattr(j, name) for name in cfg.check.split(",")) for j in judgements]
    written = batch.ended & (batch.mask.sum(1) > 1)
    return torch.where(written, torch.tensor(lowest, device=batch.idx.device),
                       cfg.missing_eos_penalty)


def groups(batch, numbers, k):
    """The answers to some of the prompts, without the padding that only others need."""
    rows = (numbers[:, None] * k + torch.arange(k)).flatten()
    return optim.cut(batch, rows, int(batch.lengths[rows].max()))


# ---- training ------------------------------------------------------------------------------------


def train(cfg):
    """Learn by --method -> (policy, history). Writes OUT/<method>/."""
    run = Run(cfg, cfg.method)
    policy, reference, reward_model, tokenizer = start.for_ppo(cfg, run)
    reward_score = functools.partial(ppo.score_answers, reward_model,
                                     penalty=cfg.missing_eos_penalty)
    opt = optim.adamw(policy, cfg.lr, eps=1e-5)
    prompts, test = start.prompts(cfg, run, policy, tokenizer)
    compared = start.compared_models(cfg, run, policy, reference, tokenizer)
    offline = cfg.method == "dpo"
    records = rankings(run, policy, tokenizer, cfg) if offline else prompts
    size = (lambda r: len(str(r["prompt"]))) if offline else None  # less padding: see gpt.batches
    supply = gpt.batches(records, cfg.batch, cfg.seed, run.first, size)

    for step in run.steps(cfg.steps, policy=policy, opt=opt):
        asked, lr = next(supply), cfg.lr * (1 - step / cfg.steps)
        # 1. K answers to each prompt, and what they are worth: fresh, or ranked long ago.
        if offline:
            batch = ranked(reference, asked, tokenizer, cfg)
        else:
            batch, repeated = ask(policy, reference, reward_model, asked, tokenizer, cfg)
            figures = describe(batch, repeated, tokenizer)
        # 2. One pass over the groups.
        tokens = int(batch.mask.sum())
        parts = 1 if offline else min(cfg.minibatches, len(asked))
        for rows in torch.randperm(len(asked)).tensor_split(parts):
            part = groups(batch, rows, cfg.k)
            logp = gpt.token_logprobs(policy, part.idx, cfg.temperature, part.mask)
            loss = LOSSES[cfg.method](logp, part, cfg)
            loss.backward()
            grad_norm = optim.optimizer_step(policy, opt, lr)
        # 3. Log and save. What the policy of DPO answers is looked at now and then.
        if offline:
            figures = moved(logp.detach(), part, cfg)
        if offline and run.due(step, 20):
            batch, repeated = ask(policy, reference, reward_model, prompts[:64], tokenizer, cfg)
            figures |= describe(batch, repeated, tokenizer)
        run.log(step, dict(figures, loss=loss.item(), grad_norm=grad_norm), tokens=tokens)
        run.save(step, tokenizer, ckpt=policy)

    judge.report(cfg, run, compared, reward_score, test, tokenizer)
    return policy, run.history


def rankings(run, policy, tokenizer, cfg):
    """The rankings that the reward model learned from, or those of --rankings, that teach: of K
    answers that fit and are not all equally good."""
    path = Path(cfg.rankings or run.earlier("reward").with_name("comparisons.jsonl"))
    run.lineage.text("rankings" if cfg.rankings else f"reward/{path.name}", path.read_bytes(), path)
    teaching = [r for r in read_comparisons(path)
                if len(r["responses"]) == cfg.k and len(set(r["ranks"])) > 1
                and reward.encode(tokenizer, r, policy.config.block_size - 1)]
    if not teaching:
        raise UserError(f"{path} has no ranking of {cfg.k} answers that fit in the context and are "
                        "not all equally good: choose another --k, or name others with --rankings")
    return teaching


def moved(logp, batch, cfg):
    """Mean log p - log p_ref of the best and of the worst answer of each group -> dict."""
    shift, score = [x.view(-1, cfg.k) for x in ((logp - batch.logp_ref).sum(1), batch.score)]
    return {name: shift.gather(1, at[:, None]).mean().item() for name, at in
            (("chosen", score.argmax(1)), ("rejected", score.argmin(1)))}


def describe(batch, prompts, tokenizer):
    kl = batch.logp_old - batch.logp_ref
    return dict(score=batch.score.mean().item(), kl=kl.sum(1).mean().item(),
                length=batch.mask.sum(1).float().mean().item(),
                **judge.mean_gold(batch, prompts, tokenizer))


if __name__ == "__main__":
    main(Config, train, __doc__)
