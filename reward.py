"""Stage 3: a reward model learns from rankings which answers people like.

    loss = - mean over prompts of  1/#pairs * sum over pairs (w above l) of log sigmoid(r_w - r_l)
                                                                 (Ouyang et al. 2022, equation 1)

The SFT model writes K answers to each prompt and the labeler ranks them. A model between SFT and
pretraining (--base_weight), with a scalar head, then learns scores that make the better of two
answers likelier to win (Bradley and Terry 1952). All K answers to a prompt are in one row: reading
them once serves K(K-1)/2 comparisons. Ties are dropped. Training sees rankings only, never the
labeler's gold; what is true, the pretraining text has said before.

    python reward.py            needs out/gpt/ckpt.pt and out/sft/ckpt.pt; about 3 minutes on 2 CPU
                                cores; orders about nine of ten held-out pairs as gold does
    python reward.py --label    rank answers yourself; the labels are for --data

From round 2 on, the last policy and the SFT model each write half of the answers, and the reward
model of the round before learns on, from these rankings and as many earlier ones.
"""

import data.run.system  # before torch: its threads spin only briefly, and Ctrl-C works meanwhile

import copy
import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

import gpt
import sft
from data import optim, sampling, start
from data.files.records import read_comparisons, split, to_jsonl
from data.judge import answers as judge
from data.judge.figures import interval
from data.run.cli import Judged, UserError, flag, main
from data.run.run import Run, seed_for
from data.world import almanac, labeler


@dataclass
class Config(Judged):
    """The flags of the reward model."""

    prompts: int = flag(0, "prompts whose answers are ranked; 0: 12000, in later rounds 6000",
                        least=0, group="algorithm")
    k: int = flag(4, "answers per prompt, 2 to 9")
    batch: int = flag(16, "prompts per step, each with its K answers", least=1)
    lr: float = flag(5e-4, "peak learning rate; warm-up, then a cosine to 0", least=0)
    steps: int = flag(0, "optimizer steps; 0: one pass over the comparisons, as in Ouyang et al. "
                         "2022", least=0)
    temperature: float = flag(0.7, "of sampling; as in PPO, whose answers it will judge")
    max_new_tokens: int = flag(40, "longest answer", least=1)
    labelers: str = flag("gold", "who ranks; careful and eager weigh the criteria otherwise, long "
                                 "likes long answers, a fault", choices=labeler.GROUPS)
    base_weight: float = flag(None, "where training starts: this share of the pretrained model, "
                                    "the rest of the SFT model; later rounds start from the round "
                                    "before (default: 0.6, with --init 0)", least=0)
    round: int = flag(1, "from 2 on, the reward model of the round before learns on, from new "
                         "rankings and as many earlier ones", least=1, group="data and models")
    init: str = flag("", "SFT checkpoint, where the reward model starts (default: sft/ckpt.pt in "
                         "--out; in later rounds the reward model of the round before)")
    policy: str = flag("", "checkpoint that answers (default: the SFT model; in later rounds the "
                           "policy of the round before, and the SFT model too)")
    data: str = flag("", "rankings to read instead of the embedded world's")
    test_prompts: int = flag(500, "held-out prompts for the final figures", least=1)

    def __post_init__(self):
        if self.base_weight is None:
            self.base_weight = 0.0 if self.init else 0.6

    def demands(self):
        return [(2 <= self.k <= 9, "--k must be between 2 and 9 answers"),
                (self.base_weight <= 1, "--base_weight must be at most 1"),
                (self.temperature > 0,
                 "--temperature must be above 0: identical answers cannot be ranked")]


# ---- equations -----------------------------------------------------------------------------------


def ranking_loss(scores, ranks):
    """InstructGPT's K-wise loss (Ouyang et al. 2022, equation 1) -> scalar.

    scores (N, K): one number per answer. ranks (N, K): 1 is best, equal ranks are ties, 0 stands
    for no answer where a prompt has fewer than K. Each prompt counts once, however many pairs it
    has; a prompt without a pair does not count.
    """
    wins = (ranks[:, :, None] < ranks[:, None, :]) & (ranks[:, :, None] > 0)  # (N, K, K): w above l
    loss = -F.logsigmoid(scores[:, :, None] - scores[:, None, :]) * wins
    pairs = wins.sum((1, 2))
    return (loss.sum((1, 2)) / pairs.clamp(min=1)).sum() / (pairs > 0).sum().clamp(min=1)


def accuracy(scores, quality):
    """Share of the pairs of different quality that the scores order alike -> (share, pairs).

    scores (N, K); quality (N, K), higher is better, NaN for no answer. Equal scores count half.
    """
    better = quality[:, :, None] > quality[:, None, :]  # NaN compares false
    gap = scores[:, :, None] - scores[:, None, :]
    right = ((gap > 0) + .5 * (gap == 0)) * better
    return float(right.sum() / better.sum().clamp(min=1)), int(better.sum())


def quality(ranks):
    """Ranks -> a number that is higher for the better answer, NaN where there is none."""
    return torch.where(ranks > 0, -ranks.float(), torch.nan)


@torch.no_grad()
def normalized(model, mean, std):
    """A copy whose scores average 0 with standard deviation 1, where the model's have mean and std.

    The scale goes into the head (Ziegler et al. 2019, section 2). The order of answers stays.
    """
    model = copy.deepcopy(model)
    model.head.weight /= std
    model.head.bias.copy_((model.head.bias - mean) / std)
    return model


# ---- data ----------------------------------------------------------------------------------------


def respond(models, tokenizer, prompts, cfg):
    """The prompts, each with `responses`: K answers, of the models in equal parts."""
    answered = [dict(p, responses=[]) for p in prompts]
    writers = [models[k % len(models)] for k in range(cfg.k)]  # policy, SFT, policy, SFT, ...
    for model in models:
        n = writers.count(model)
        texts = sampling.answers(model, tokenizer, prompts, cfg.max_new_tokens, cfg.temperature, n)
        for i, p in enumerate(answered):
            p["responses"] += texts[i * n:(i + 1) * n]
    return answered


def compare(records, rng, group="gold"):
    """Have labelers of a group rank the `responses` of each record -> the records with `ranks`."""
    values = [[labeler.worth(labeler.judge(r, text), text, group) for text in r["responses"]]
              for r in records]
    return [dict(r, ranks=labeler.rank(value, rng)) for r, value in zip(records, values)]


def rankings(cfg, run, sft_model, tokenizer):
    """Collect rankings, or read them from --data -> (records, held-out ones, typical ones).

    typical: records on whose answers the scores will be normalised: the model's own, or, in later
    rounds, those that were ranked.
    """
    if cfg.data:
        records, test = split(start.with_preference(cfg, run, read_comparisons(cfg.data)))
        prompts = [dict(prompt=r["prompt"]) for r in records[:125]]
        prompts = sampling.with_room(sft_model, tokenizer, prompts, cfg.max_new_tokens)
        typical = respond([sft_model], tokenizer, prompts, cfg) or records[:500]
    else:
        policy = start.answering_policy(cfg, run, tokenizer)
        # After PPO a policy is almost deterministic, and ranking identical answers teaches nothing:
        # the SFT model writes half of them (LOG: half of the answers are the SFT model's).
        models = [sft_model] if not policy else [policy] if cfg.round == 1 else [policy, sft_model]
        wanted = cfg.prompts or (12000 if cfg.round == 1 else 6000)
        earlier = start.earlier_rankings(cfg, run, wanted)
        records = collect(cfg, run, models, tokenizer, "train", wanted)
        test = collect(cfg, run, models, tokenizer, cfg.split, cfg.test_prompts)
        typical = (earlier + records)[:500]
    run.keep("comparisons.jsonl", to_jsonl(records), own=not cfg.data)
    run.lineage.text(f"{run.stage}/held_out", to_jsonl(test))
    if not cfg.data:
        records = start.with_preference(cfg, run, earlier + records)
    return records, test, typical


def collect(cfg, run, models, tokenizer, split, n):
    """The models' answers to n prompts of a split, ranked by the labeler."""
    seed = f"reward {cfg.seed}" + (f" {cfg.round}" if cfg.round > 1 else "")
    prompts = sampling.with_room(models[0], tokenizer, almanac.prompts(split, n, seed, cfg.topic),
                                 cfg.max_new_tokens)

    def ranked(chunk, part):
        rng = np.random.default_rng(seed_for(cfg.seed, cfg.round, split, chunk))
        return compare(respond(models, tokenizer, part, cfg), rng, cfg.labelers)
    return run.collect(f"{split}-answers", prompts, run.lineage.ancestors, ranked)


def encode(tokenizer, record, block_size):
    """A comparison -> (the prompt's ids, K answers' ids, ranks); None if an answer is too long.

    Without `ranks`, all answers tie. An answer's last id is that of its last word, where the score
    is read: at <|end|> SFT has forgotten more of what is true (LOG: scores are read at the last
    word).
    """
    prompt = tokenizer.render(record["prompt"])
    answers = [tokenizer.encode(r) for r in record["responses"]]
    if len(prompt) + max(map(len, answers)) > block_size:
        return None
    return prompt, answers, record.get("ranks") or [1] * len(answers)


def tokens(example):
    """How many tokens a comparison has: the prompt's once, and those of all answers."""
    prompt, answers, _ = example
    return len(prompt) + sum(map(len, answers))


def ranked_prompts(batch):
    """How many prompts of a batch have a pair to learn from: not all of their answers tie."""
    return sum(len(set(ranks)) > 1 for _, _, ranks in batch)


def one_row_each(batch, pad_id, device):
    """A row per comparison, the prompt and then its answers -> idx, at (N, T), mask (N, 1, T, T),
    last (N, K).

    So a prompt is read once and not K times. at: a token's position, as if its answer stood alone
    after the prompt; mask: an answer sees the prompt and itself; last: the place of each answer's
    last token, -1 for no answer. Example, prompt [7 8] with answers [1 2] and [3]:
        idx 7 8 1 2 3    owner 0 0 1 1 2    at 0 1 2 3 2    last 3 4
    """
    rows, owner, last = [], [], []
    for prompt, answers, _ in batch:
        row, owners, ends = list(prompt), [0] * len(prompt), []
        for k, answer in enumerate(answers, 1):
            row += answer
            owners += [k] * len(answer)
            ends.append(len(row) - 1 if answer else len(prompt) - 1)
        rows.append(row)
        owner.append(owners)
        last.append(ends)
    idx, _ = gpt.pad(rows, pad_id, device)
    owner, _ = gpt.pad(owner, -1, device)
    last, _ = gpt.pad(last, -1, device)
    seen = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
    seen = seen.tril()  # (N, T, T)
    at = (seen.sum(2) - 1) * (owner >= 0)  # a token stands after all that it sees; padding at 0
    return idx, at, seen[:, None], last


# ---- scores --------------------------------------------------------------------------------------


def score(model, batch, device):
    """Encoded comparisons -> scores and ranks, both (N, K), 0 where a prompt has fewer answers."""
    idx, at, mask, last = one_row_each(batch, model.config.pad, device)
    ranks, _ = gpt.pad([ranks for _, _, ranks in batch], 0, device)
    scores = model(idx, at, mask).gather(1, last.clamp(min=0))
    return scores * (last >= 0), ranks


@torch.no_grad()
def score_all(model, examples, device):
    """Scores (N, K) and ranks (N, K) of all examples, in their order, on the CPU."""
    order = sorted(range(len(examples)), key=lambda i: tokens(examples[i]))
    K = max((len(ranks) for _, _, ranks in examples), default=0)
    scores = torch.zeros(len(examples), K)
    ranks = torch.zeros(len(examples), K, dtype=torch.long)
    longest = max(map(tokens, examples), default=1)
    size = min(64, max(1, 25_000_000 // longest ** 2))  # so that masks (N, T, T) take 25 MB
    for first in range(0, len(order), size):
        rows = order[first:first + size]
        s, r = score(model, [examples[i] for i in rows], device)
        scores[rows, :s.shape[1]], ranks[rows, :s.shape[1]] = s.cpu(), r.cpu()
    return scores, ranks


def for_ppo(model, typical, device):
    """A copy that gives typical answers scores of mean 0 and deviation 1 -> (it, metadata).

    Multiplied by `scale`, the copy's scores are log-odds again, up to a constant.
    """
    scores, ranks = score_all(model, typical, device)
    mean, std = scores[ranks > 0].mean().item(), scores[ranks > 0].std().item()
    if not std > 0:
        raise UserError(f"the reward model gives all typical answers the same score, {mean:.3g}: "
                        "check the rankings, or lower --lr")
    return normalized(model, mean, std), dict(scale=std)


def evaluate(model, records, examples, device):
    """Accuracy on held-out rankings, and on gold if the labeler knows the prompts -> dict.

    Empty if nothing is held out.
    """
    if not records:
        return {}
    scores, ranks = score_all(model, examples, device)
    # Pairs of one prompt are not independent: the interval is one over prompts.
    shares, pairs = zip(*(accuracy(s[None], q[None]) for s, q in zip(scores, quality(ranks))))
    every = interval(np.repeat(shares, pairs), np.repeat(np.arange(len(pairs)), pairs))
    results = dict(accuracy=accuracy(scores, quality(ranks))[0], rankings=every)
    if judge.judgeable(records):
        results["accuracy_gold"], results["pairs"] = accuracy(
            scores, judge.golds(records, scores.shape[1]))
    return results


# ---- training ------------------------------------------------------------------------------------


@torch.no_grad()
def interpolate_weights(model, other, share):
    """(1 - share) model + share other, in place (WiSE-FT: Wortsman et al. 2022, equation 2)."""
    for p, q in zip(model.parameters(), other.parameters()):
        p.lerp_(q, share)


def first_reward_model(cfg, sft_model, other):
    """The reward model before its first step: ScalarGPT.

    In round 1 it is the SFT model, moved --base_weight of the way back to the pretrained one
    (`other`), with a new head; in later rounds it is the reward model of the round before (`other`;
    LOG: later rounds learn on).
    """
    if isinstance(other, gpt.ScalarGPT):
        return other
    if other is not None:
        interpolate_weights(sft_model, other, cfg.base_weight)
    model = gpt.ScalarGPT(sft_model.config).to(sft_model.wte.weight.device)
    model.trunk.load_state_dict(sft_model.state_dict())
    return model


def train(cfg):
    """Collect rankings and train the reward model -> (model, history). Writes out/reward/."""
    run = Run(cfg, "reward")
    sft_model, other, tokenizer = start.for_reward(cfg, run, sft.begin_chat)
    records, test, typical = start.encoded(cfg, run, encode, tokenizer, sft_model.config.block_size,
                                           *rankings(cfg, run, sft_model, tokenizer))
    examples, held_out, typical = [[r["ids"] for r in part] for part in (records, test, typical)]
    model = first_reward_model(cfg, sft_model, other)
    del sft_model, other  # free their memory before training
    before, _ = score_all(model, held_out[:5], run.device)
    opt = optim.adamw(model, cfg.lr)
    supply = gpt.batches(examples, cfg.batch, cfg.seed, run.first, tokens)
    steps = cfg.steps or math.ceil(len(examples) / cfg.batch)
    ready = functools.partial(for_ppo, model, typical or examples, run.device)

    for step in run.steps(steps, model=model, opt=opt):
        # 1. Draw ranked prompts.
        batch, sums = next(supply), optim.Sums()
        lr = optim.learning_rate(step, steps, cfg.lr, min(20, steps // 10))
        # 2. Sum the gradient over micro-batches, each weighted by its share of the prompts; step.
        for part, share in optim.micro_batches(batch, cfg.micro_batch, ranked_prompts):
            scores, ranks = score(model, part, run.device)
            right, pairs = accuracy(scores.detach(), quality(ranks))
            counts = scores.new_tensor([right * pairs, pairs]) * (share > 0)
            loss = ranking_loss(scores, ranks) * share
            loss.backward()
            sums.add(loss=loss, ordered=counts[0], pairs=counts[1])
        figures = dict(sums.total(), grad_norm=optim.optimizer_step(model, opt, lr))
        # 3. Log, and save the model as PPO expects it.
        figures["accuracy"] = figures.pop("ordered") / max(1, figures.pop("pairs"))
        run.log(step, figures, tokens=sum(map(tokens, batch)), show=("loss", "accuracy"))
        run.save(step, tokenizer, ckpt=ready)

    model, _ = ready()
    after, _ = score_all(model, held_out[:5], run.device)
    judge.report_rankings(run, evaluate(model, test, held_out, run.device), test, before, after)
    return model, run.history


if __name__ == "__main__":
    main(Config, train, __doc__, label="data.people.feedback")
