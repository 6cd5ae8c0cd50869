"""Stage 3: a reward model learns from rankings which answers people like.

    loss = - mean over prompts of  1/#pairs * sum over pairs (w above l) of log sigmoid(r_w - r_l)
                                                                 (Ouyang et al. 2022, equation 1)

The SFT model writes K answers to each prompt and the labeler ranks them. A model between SFT and
pretraining (--base_weight), with a scalar head, then learns scores that make the better of two
answers likelier to win (Bradley and Terry 1952). All K answers to a prompt are in one row: reading
them once serves K(K-1)/2 comparisons. Ties are dropped. Training sees rankings only, never the
labeler's gold.

    python reward.py            needs out/gpt/ckpt.pt and out/sft/ckpt.pt; about 2 minutes on 2 CPU
                                cores; orders about 93% of the held-out pairs that differ in
                                gold correctly
    python reward.py --label    rank answers yourself; the labels are for --data

From round 2 on, the last policy and the SFT model each write half of the answers, and the reward
model of the round before learns on, from these rankings and as many earlier ones. Where several
reward models disagree, they have not learned enough (Christiano et al. 2017): train them with
--bootstrap, different seeds and the same --data; `ppo.py --reward a.pt,b.pt` uses them together,
and `--active a.pt,b.pt` chooses what to rank next.
"""

import data.run.signals  # before torch, which loads for seconds: Ctrl-C works meanwhile

import copy
import math
import random
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

import gpt
import sft
from data import optim, sampling, start
from data.files.records import read_comparisons, split, to_jsonl
from data.judge.answers import judgeable
from data.judge.figures import interval
from data.run.checkpoint import write
from data.run.cli import Common, UserError, knob, main
from data.run.processes import all_gather, micro_batches
from data.run.run import Run, time_left
from data.world import almanac, labeler


@dataclass
class Config(Common):
    """The flags of the reward model."""

    prompts: int = knob(0, "prompts whose answers are ranked; 0: 12000, in later rounds 6000, with "
                           "--label 100", least=0, group="algorithm")
    k: int = knob(4, "answers per prompt, 2 to 9")
    batch: int = knob(16, "prompts per step, each with its K answers", least=1)
    lr: float = knob(5e-4, "peak learning rate; warm-up, then a cosine to 0", least=0)
    steps: int = knob(0, "optimizer steps; 0: one pass over the comparisons, as in Ouyang et al. "
                         "2022", least=0)
    temperature: float = knob(0.7, "of sampling; as in PPO, so that the reward model learns from "
                                   "answers like those it will judge")
    max_new_tokens: int = knob(40, "longest answer", least=1)
    base_weight: float = knob(None, "where training starts: this share of the pretrained model, "
                                    "the rest of the SFT model; later rounds start from the round "
                                    "before (default: 0.6, with --init 0)",
                              least=0)
    round: int = knob(1, "from 2 on, the reward model of the round before learns on, from new "
                         "rankings and as many earlier ones", least=1, group="data and models")
    init: str = knob("", "SFT checkpoint, where the reward model starts (default: sft/ckpt.pt in "
                         "--out; in later rounds the reward model of the round before)")
    policy: str = knob("", "checkpoint that answers (default: the SFT model; in later rounds the "
                           "policy of the round before, and the SFT model too)")
    data: str = knob("", "rankings to read instead of the embedded world's")
    test_prompts: int = knob(500, "held-out prompts for the final figures", least=1)
    label: bool = knob(False, "rank answers of the newest policy yourself; --data: prompts, or "
                              "answers to rank again", group="instead of training",
                       command="data.people.feedback:rank_by_hand")
    labeler: str = knob("", "with --label: whose file in feedback/ the labels go to (default: your "
                            "login name)")

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

    The scale goes into the head, so a checkpoint needs nothing else (Ziegler et al. 2019, section
    2). The order of answers, and so the accuracy, is unchanged.
    """
    model = copy.deepcopy(model)
    model.head.weight /= std
    model.head.bias.copy_((model.head.bias - mean) / std)
    return model


# ---- data ----------------------------------------------------------------------------------------


def respond(models, tokenizer, prompts, cfg, name="", once=lambda name, work: work()):
    """The prompts that leave room, each with `responses`: K answers, of the models in equal parts.

    once: a run's, which keeps each 2000 prompts' answers under `name`: --resume need not sample
    them again.
    """
    prompts = sampling.with_room(models[0], tokenizer, prompts, cfg.max_new_tokens)
    copies = [len(range(n, cfg.k, len(models))) for n in range(len(models))]  # together K
    began, found = time.time(), []
    for first in range(0, len(prompts), 2000):
        part = prompts[first:first + 2000]

        def work():
            return [sampling.answers(model, tokenizer, part, cfg.max_new_tokens, cfg.temperature, n)
                    for model, n in zip(models, copies)]

        texts = list(map(iter, once(f"{name}-{first}", work)))
        for p in part:
            responses = [next(text) for text, n in zip(texts, copies) for _ in range(n)]
            found.append(dict(p, responses=responses))
        print(f"reward: {len(found):,}/{len(prompts):,} prompts answered {cfg.k} times  "
              f"{time_left(began, len(found), len(prompts))}", flush=True)
    return found


def compare(records, rng):
    """Have the labeler rank the `responses` of each record -> the records with `ranks`."""
    ranked = []
    for r in records:
        golds = [labeler.judge(r, response).gold for response in r["responses"]]
        ranked.append(dict(r, ranks=labeler.rank(golds, rng)))
    return ranked


def rankings(cfg, run, sft_model, tokenizer):
    """Collect rankings, or read them from --data -> (records, held-out ones, typical ones).

    typical: records on whose answers the scores will be normalised.
    """
    if cfg.data:
        records, test = split(start.preferring(cfg, run, read_comparisons(cfg.data)))
        run.lineage.made(f"{run.stage}/comparisons.jsonl", to_jsonl(records))
        run.lineage.made(f"{run.stage}/held_out", to_jsonl(test))
        return records, test, records[:500]
    models = start.responders(cfg, run, sft_model, tokenizer)
    seed = f"reward {cfg.seed}" + (f" {cfg.round}" if cfg.round > 1 else "")
    wanted = cfg.prompts or (12000 if cfg.round == 1 else 6000)
    earlier = start.earlier_rankings(cfg, run, wanted)
    asked = almanac.prompts("train", wanted, seed)
    held_out = almanac.prompts("test", cfg.test_prompts, seed)
    records = respond(models, tokenizer, asked, cfg, "answers", run.once)
    test = respond(models, tokenizer, held_out, cfg, "test-answers", run.once)
    typical = (earlier + records)[:500]
    rng = np.random.default_rng(cfg.seed)
    records, test = run.once("rankings", lambda: (compare(records, rng), compare(test, rng)))
    text = to_jsonl(records)
    write(run.path("comparisons.jsonl"), text)
    run.lineage.made(f"{run.stage}/comparisons.jsonl", text)
    run.lineage.made(f"{run.stage}/held_out", to_jsonl(test))
    return start.preferring(cfg, run, earlier + records), test, typical


def encode(tokenizer, record, block_size):
    """A comparison -> (the prompt's ids, K answers' ids, ranks); None if an answer is too long.

    No ranks: all are 1. An answer's last id is that of its last word, where the score is read. At
    <|end|>, one token further, SFT has forgotten more of what is true (LOG: scores are read at the
    last word).
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

    So a prompt is read once and not K times. Each answer stands directly after the prompt, as `at`
    says, and sees the prompt and itself, as `mask` says. last: the place of each answer's last
    token; -1 for no answer.
    """
    rows, owner, last = [], [], []  # owner: the number of a token's answer, 0 in the prompt
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
    """Encoded comparisons -> scores (N, K), ranks (N, K); a prompt with fewer answers has 0 there.
    """
    idx, at, mask, last = one_row_each(batch, model.config.pad, device)
    ranks, _ = gpt.pad([ranks for _, _, ranks in batch], 0, device)
    scores = model(idx, at, mask).gather(1, last.clamp(min=0))
    return scores * (last >= 0), ranks


@torch.no_grad()
def score_all(model, examples, device, size=64):
    """Scores (N, K) and ranks (N, K) of all examples, in their order, on the CPU."""
    order = sorted(range(len(examples)), key=lambda i: tokens(examples[i]))
    K = max((len(ranks) for _, _, ranks in examples), default=0)
    scores = torch.zeros(len(examples), K)
    ranks = torch.zeros(len(examples), K, dtype=torch.long)
    for first in range(0, len(order), size):
        rows = order[first:first + size]
        s, r = score(model, [examples[i] for i in rows], device)
        scores[rows, :s.shape[1]], ranks[rows, :s.shape[1]] = s.cpu(), r.cpu()
    return scores, ranks


def spread(scores, ranks):
    """Mean and standard deviation of the scores of all answers there are; UserError if all equal.
    """
    mean, std = scores[ranks > 0].mean().item(), scores[ranks > 0].std().item()
    if not std > 0:
        raise UserError(f"the reward model gives all typical answers the same score, {mean:.3g}: "
                        "check the rankings, or lower --lr")
    return mean, std


def for_ppo(model, typical, device):
    """A copy that gives typical answers scores of mean 0 and standard deviation 1 -> (it, scale).

    The copy's scores times the scale are the model's, but for a constant: log-odds.
    """
    mean, std = spread(*score_all(model, typical, device))
    return normalized(model, mean, std), std


def evaluate(model, records, examples, device):
    """Accuracy on held-out rankings, and on gold if the labeler knows the prompts -> dict.

    Empty if nothing is held out.
    """
    if not records:
        return {}
    scores, ranks = score_all(model, examples, device)
    agreed, _ = accuracy(scores, quality(ranks))
    # By prompt, for an interval: pairs of the same prompt are not independent.
    each = [accuracy(s[None], q[None]) for s, q in zip(scores, quality(ranks))]
    shares, pairs = zip(*each)
    prompt = np.repeat(np.arange(len(pairs)), pairs)
    results = dict(accuracy_rankings=agreed, rankings=interval(np.repeat(shares, pairs), prompt))
    if judgeable(records):
        gold = torch.full(scores.shape, torch.nan)
        for i, r in enumerate(records):
            golds = [labeler.judge(r, response).gold for response in r["responses"]]
            gold[i, :len(golds)] = torch.tensor(golds)
        results["accuracy"], results["pairs"] = accuracy(scores, gold)
        results["by_kind"] = {}
        for kind in sorted({r["kind"] for r in records}):
            rows = [i for i, r in enumerate(records) if r["kind"] == kind]
            results["by_kind"][kind] = accuracy(scores[rows], gold[rows])[0]
    return results


@torch.no_grad()
def interpolate_weights(model, other, share):
    """(1 - share) model + share other, in place (WiSE-FT: Wortsman et al. 2022, equation 2)."""
    for p, q in zip(model.parameters(), other.parameters()):
        p.lerp_(q, share)


def first_reward_model(cfg, run, sft_model, tokenizer):
    """The reward model before its first step: ScalarGPT.

    In round 1 it is the SFT model, moved --base_weight of the way back to the pretrained one, with
    a new head; in later rounds it is the reward model of the round before. `for_reward` has noted
    which.
    """
    if start.learns_on(cfg):
        path = run.earlier("reward", cfg.round - 1)
        run.say(f"reward model from {path}")
        return gpt.load(path, gpt.ScalarGPT, run.device, start.hint("reward", cfg.round - 1))[0]
    if cfg.base_weight:
        path = run.earlier("gpt")
        base, other, about = gpt.load(path, gpt.GPT, run.device, start.BASE_HINT)
        run.say(f"{cfg.base_weight:g} of the start from {path}")
        if (other, base.config) != (tokenizer, sft_model.config):
            raise UserError(f"{cfg.init or run.earlier('sft')} does not come from {path}: "
                            "choose --base_weight 0, so that it alone is the start")
        sft.begin_chat(base, tokenizer, about)
        interpolate_weights(sft_model, base, cfg.base_weight)
    model = gpt.ScalarGPT(sft_model.config).to(run.device)
    model.trunk.load_state_dict(sft_model.state_dict())
    return model


# ---- training ------------------------------------------------------------------------------------


def train(cfg):
    """Collect rankings and train the reward model -> (model, history). Writes out/reward/."""
    run = Run(cfg, "reward")
    sft_model, tokenizer = start.for_reward(cfg, run)
    records, test, typical = rankings(cfg, run, sft_model, tokenizer)
    examples, test, test_examples, typical = prepare(cfg, run, records, test, typical, tokenizer,
                                                     sft_model.config.block_size)
    model = first_reward_model(cfg, run, sft_model, tokenizer)
    del sft_model  # its memory is needed
    before, _ = score_all(model, test_examples[:5], run.device)
    run.prepare(model)
    opt = optim.adamw(model, cfg.lr)
    supply = gpt.batches(examples, cfg.batch, random.Random(cfg.seed), tokens)
    steps = cfg.steps or math.ceil(len(examples) / cfg.batch)

    for step in run.range(steps, supply, model=model, opt=opt):
        # 1. Draw ranked prompts.
        batch, warmup, agreed = next(supply), min(20, steps // 10), Counter()
        lr = optim.learning_rate(step, steps, cfg.lr, warmup)
        # 2. Sum the gradient over micro-batches, each weighted by its share of the prompts; step.
        total = torch.zeros((), device=run.device)
        for part in micro_batches(batch, cfg.micro_batch):
            scores, ranks = score(model, part, run.device)
            share = ranked_prompts(part) / max(1, ranked_prompts(batch))
            loss = ranking_loss(scores, ranks) * share
            total += loss.detach()
            loss.backward()
            right, pairs = accuracy(scores.detach(), quality(ranks))
            agreed.update(right=right * pairs, pairs=pairs)
        grad_norm = optim.optimizer_step(model, opt, lr)
        # 3. Log, and save the model as PPO expects it.
        agreed = all_gather(agreed)
        run.log(step, sum(map(tokens, batch)), total, also={"grad_norm": grad_norm},
                accuracy=agreed["right"] / max(1, agreed["pairs"]))
        if run.time_to_save(step):
            ready, scale = for_ppo(model, typical, run.device)
            run.save(step, gpt.to_bytes(ready, tokenizer, scale=scale, **run.about(step)))

    ready, _ = for_ppo(model, typical, run.device)
    after, _ = score_all(ready, test_examples[:5], run.device)
    report(run, evaluate(ready, test, test_examples, run.device), test, before, after)
    return ready, run.history


def prepare(cfg, run, records, test, typical, tokenizer, block_size):
    """Encode what fits -> (examples, held-out records, held-out examples, typical examples)."""
    _, examples, test, test_examples = start.fitting(cfg, run, "comparisons", records, test, encode,
                                                     tokenizer, block_size)
    typical = [e for r in typical if (e := encode(tokenizer, r, block_size))] or examples
    run.say(f"{len(examples):,} ranked prompts after {run.seconds:.0f} s")
    return examples, test, test_examples, typical


def report(run, results, test, before, after):
    """Write results.json; print scores of five prompts' answers, and the accuracy; draw curves."""
    shown = list(zip(test, before.tolist(), after.tolist()))
    samples = [dict(prompt=r["prompt"], responses=r["responses"], ranks=r["ranks"], before=a,
                    after=b)
               for r, a, b in shown]
    run.write_results(**results, seconds=run.seconds, samples=samples)
    for r, olds, news in shown:
        print(f"\n{r['prompt'][-1]['content']}")
        rows = zip(r["responses"], r["ranks"], olds, news)
        for response, rank, old, new in sorted(rows, key=lambda row: row[1]):
            print(f"  rank {rank}  score before {old:+.2f}, after {new:+.2f}  {response!r}")
    pairs = results.get("rankings", {"n": 0})
    if pairs["n"]:
        print(f"\nreward: orders {results['accuracy_rankings']:.1%} of {pairs['n']} held-out "
              f"ranked pairs right (95% interval over prompts: {pairs['low']:.1%} to "
              f"{pairs['high']:.1%})")
    if "accuracy" in results:
        print(f"reward: and {results['accuracy']:.1%} of the {results['pairs']} that differ in "
              "gold")
    run.draw()
    run.finish()


if __name__ == "__main__":
    main(Config, train, __doc__)
