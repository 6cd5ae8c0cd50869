"""Stage 3: a reward model learns from rankings what people like.

    loss = - mean over prompts of  1/#pairs * sum over pairs (w ranked above l) of  log sigmoid(r_w - r_l)
                                                                          (Ouyang et al. 2022, equation 1)

The SFT model writes K answers to each prompt, the labeler ranks them, and the SFT model with a scalar head
learns to score answers so that the better of two is likelier to win (Bradley and Terry 1952). All pairs of a
prompt are in one batch element: K forward passes serve K(K-1)/2 comparisons. Ties are dropped. It sees rankings
only, never the labeler's gold.

    python reward.py    needs out/sft/ckpt.pt; about 2 minutes on 2 CPU cores; about 90% of the
                        held-out pairs whose gold differs are ordered right

    python reward.py --label    rank answers yourself; the labels are for --data

From round 2 on the last policy and the SFT model answer, half each, and the reward model of the round before learns
on, from the rankings of all rounds. Several reward models that disagree show what they do not know (Christiano et al.
2017): make them with --bootstrap and different seeds on the same --data, let `ppo.py --reward a.pt,b.pt` use them
together, and `--active a.pt,b.pt` choose what to rank next.
"""

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
from data import almanac, feedback, formats, labeler, metrics, runs
from data.runs import UserError, knob


@dataclass
class Config(runs.Common):
    init: str = knob("", "SFT checkpoint, where the reward model starts (default: sft/ckpt.pt in --out, moved a little towards gpt/ckpt.pt, "
                         "if that is there; in later rounds the reward model of the round before)")
    policy: str = knob("", "who answers (default: the SFT model; in later rounds the policy of the round before, and the SFT model too)")
    label: bool = knob(False, "rank answers of the newest policy yourself; --data: prompts, or answers to rank again")
    labeler: str = knob("", "with --label: whose file in feedback/ the labels go to (default: your login name)")
    round: int = knob(1, "from 2 on, the reward model of the round before learns on, from the rankings of all rounds", least=1)
    prompts: int = knob(0, "prompts whose answers are ranked; 0: 12000, in later rounds 6000, with --label 100", least=0)
    k: int = knob(4, "answers for each prompt, 2 to 9")
    temperature: float = knob(0.7, "of sampling; as in PPO, so that the answers it will judge are like those it has seen")
    max_new_tokens: int = knob(40, "longest answer", least=1)
    steps: int = knob(0, "optimizer steps; 0: one pass over the comparisons, as in Ouyang et al. 2022", least=0)
    active: str = knob("", "reward models, with commas between: of four times as many prompts rank those they disagree on most")
    bootstrap: bool = knob(False, "learn from as many prompts drawn with replacement: for several reward models that differ")
    batch: int = knob(16, "prompts a step, each with its K answers", least=1)
    lr: float = knob(5e-4, "peak learning rate; warm-up, then cosine to 0", least=0)
    test_prompts: int = knob(500, "held-out prompts for the final figures", least=1)
    save_every: int = knob(200, "steps between two checkpoints", least=1)


# ---- equations ------------------------------------------------------------------------------------


def ranking_loss(scores, ranks, count=None):
    """InstructGPT's K-wise loss (Ouyang et al. 2022, equation 1) -> scalar.

    scores (N, K): one number an answer. ranks (N, K): 1 is best, equal ranks are ties, 0 stands for no
    answer where a prompt has fewer than K. Each prompt counts once, however many pairs it has; a prompt
    without a pair does not count. If they are a part of a batch, count is how many of the whole batch do: see gpt.shares.
    """
    wins = (ranks[:, :, None] < ranks[:, None, :]) & (ranks[:, :, None] > 0)  # (N, K, K): is w ranked above l?
    loss = -F.logsigmoid(scores[:, :, None] - scores[:, None, :]) * wins
    pairs = wins.sum((1, 2))
    return (loss.sum((1, 2)) / pairs.clamp(min=1)).sum() / ((pairs > 0).sum().clamp(min=1) if count is None else max(1, count))


def accuracy(scores, quality):
    """Share of the pairs whose quality differs that the scores order alike; equal scores count half -> (share, pairs).

    scores (N, K); quality (N, K), higher is better. NaN quality stands for no answer.
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
    """A copy of the model whose scores average 0 with deviation 1 where the model's average `mean` with deviation `std`.

    The scale goes into the head, so that a checkpoint needs nothing else (Ziegler et al. 2019, section 2). The order
    of answers, and so the accuracy, is unchanged.
    """
    model = copy.deepcopy(model)
    model.head.weight /= std
    model.head.bias.copy_((model.head.bias - mean) / std)
    return model


# ---- data -----------------------------------------------------------------------------------------


def respond(models, tokenizer, prompts, cfg):
    """The prompts that leave room for an answer, each with `responses`: K answers, of the models in equal parts."""
    prompts = gpt.with_room(models[0], tokenizer, prompts, cfg.max_new_tokens)
    copies = [len(range(n, cfg.k, len(models))) for n in range(len(models))]  # of each model, K together
    began, records = time.time(), []
    for start in range(0, len(prompts), 2000):
        part = prompts[start:start + 2000]
        texts = [iter(gpt.answers(model, tokenizer, part, cfg.max_new_tokens, cfg.temperature, k)) for model, k in zip(models, copies)]
        records += [dict(p, responses=[next(text) for text, k in zip(texts, copies) for _ in range(k)]) for p in part]
        print(f"reward: {len(records):,}/{len(prompts):,} prompts answered {cfg.k} times  "
              f"{runs.time_left(began, len(records), len(prompts))}", flush=True)
    return records


def compare(records, rng):
    """Have the labeler rank the `responses` of each record -> the records with `ranks`."""
    return [dict(r, ranks=labeler.rank([labeler.judge(r, answer).gold for answer in r["responses"]], rng)) for r in records]


@torch.no_grad()
def most_doubtful(members, abouts, tokenizer, records, n, device):
    """The n records on whose `responses` reward models differ most (Christiano et al. 2017, section 2.2.4).

    Doubt is the variance between the members of the probability that one answer wins over another, over all pairs; a
    member's scores times the scale in its checkpoint's `about` are log-odds.
    """
    encoded = [(r, e) for r in records if (e := encode(tokenizer, r, members[0].config.block_size))]
    records, examples = [r for r, _ in encoded], [e for _, e in encoded]
    scores = torch.stack([about.get("scale", 1.0) * score_all(member, examples, device)[0] for member, about in zip(members, abouts)])  # (M, N, K)
    doubt = torch.sigmoid(scores[..., :, None] - scores[..., None, :]).var(0).mean((1, 2))  # (N,)
    return [records[i] for i in doubt.argsort(descending=True)[:n]]


def ask(cfg, demands):
    """`python reward.py --label`: a person ranks answers; the file that this makes is one for --data."""
    runs.check(cfg, demands)
    path = cfg.policy or runs.newest_policy(cfg.out, "--policy")
    model, tokenizer, _ = gpt.load(path, gpt.GPT, runs.choose_device(cfg.device), "name a policy's checkpoint with --policy")
    given = formats.read_questions(cfg.data) if cfg.data else almanac.prompts("train", cfg.prompts or 100, f"label {cfg.seed}")

    def question(n):
        """The n-th prompt and its different answers; None if there are not two. The same for all who have this checkpoint."""
        p = given[n]
        if "responses" not in p:
            if not gpt.with_room(model, tokenizer, [p], cfg.max_new_tokens):
                return None
            torch.manual_seed(100_000 * cfg.seed + n)
            p = dict(p, responses=gpt.answers(model, tokenizer, [p], cfg.max_new_tokens, cfg.temperature, cfg.k))
        different = list(dict.fromkeys(p["responses"]))
        return dict(p, responses=different) if len(different) > 1 else None

    book = feedback.Book(cfg.out, cfg.labeler, checkpoint=str(path), seed=cfg.seed, asked=cfg.data or "the almanac")
    feedback.label(question, len(given), book)
    print(f"python reward.py --data {book.path} learns from them")


@torch.no_grad()
def between(sft, base, tokenizer, about):
    """Move the SFT model .3 of the way back to the pretrained model it came from, in place (Wortsman et al. 2022, equation 2).

    SFT forgets which statements are true, and the pretrained model has never read a chat; a mean of the two knows both. Of held-out
    pairs that differ in gold, a reward model that starts from it orders 93.3% right, from the SFT model 92.1%; a right fact it prefers
    to a wrong one in 92%, from the SFT model in 82% (seed 1). Halfway it knows facts better (97%), and harm worse.
    """
    gpt.begin_chat(base, tokenizer, about)
    for p, q in zip(sft.parameters(), base.parameters()):
        p.lerp_(q, .3)


def encode(tokenizer, record, block_size):
    """A comparison -> (list of K id lists, ranks, all 1 if nobody has ranked); None if an answer does not fit in the context.

    The reward model reads an answer at the last token of its text. At <|end|>, one further, SFT has left less of what pretraining
    knew of truth: a linear probe tells 66% of true and false answers apart instead of 85%, and the reward model that learns
    there prefers a right fact to a wrong one in 65% of cases instead of 97% (seed 3).
    """
    prompt = tokenizer.render(record["prompt"])
    rows = [prompt + tokenizer.encode(r) for r in record["responses"]]
    return (rows, record.get("ranks") or [1] * len(rows)) if max(map(len, rows)) <= block_size else None


def score(model, batch, device):
    """A batch of encoded comparisons -> scores (N, K), ranks (N, K); prompts with fewer answers get rank 0 there."""
    K = max(len(ranks) for _, ranks in batch)
    idx, lengths = gpt.pad([row for rows, _ in batch for row in rows], model.config.pad, device)
    ranks = torch.tensor([list(r) + [0] * (K - len(r)) for _, r in batch], device=device)
    scores = torch.zeros(ranks.shape, device=device)
    scores[ranks > 0] = model.score(idx, lengths)
    return scores, ranks


def losses(model, batch, micro_batch, device, agreement):
    """The ranking loss of a batch: yields a scalar for each micro-batch; their sum is the loss. `agreement` counts right pairs."""
    count = sum(len(set(ranks)) > 1 for _, ranks in batch)  # prompts that have a pair
    for part in gpt.shares(batch, micro_batch):
        scores, ranks = score(model, part, device)
        share, pairs = accuracy(scores.detach(), quality(ranks))
        agreement.update(right=share * pairs, pairs=pairs)
        yield ranking_loss(scores, ranks, count)


# ---- evaluation and training ----------------------------------------------------------------------


@torch.no_grad()
def score_all(model, examples, device, size=64):
    """Scores (N, K) and ranks (N, K) of all examples, in their order, on the CPU."""
    order = sorted(range(len(examples)), key=lambda i: max(map(len, examples[i][0])))
    K = max(len(ranks) for _, ranks in examples)
    scores, ranks = torch.zeros(len(examples), K), torch.zeros(len(examples), K, dtype=torch.long)
    for start in range(0, len(order), size):
        rows = order[start:start + size]
        s, r = score(model, [examples[i] for i in rows], device)
        scores[rows, :s.shape[1]], ranks[rows, :s.shape[1]] = s.cpu(), r.cpu()
    return scores, ranks


def spread(scores, ranks):
    """Mean and standard deviation of the scores of all answers there are."""
    return scores[ranks > 0].mean().item(), scores[ranks > 0].std().item()


def evaluate(model, records, examples, device):
    """Accuracy on held-out rankings, and on the labeler's gold if the prompts are the almanac's -> dict."""
    scores, ranks = score_all(model, examples, device)
    agreed, _ = accuracy(scores, quality(ranks))
    shares, pairs = zip(*[accuracy(s[None], q[None]) for s, q in zip(scores, quality(ranks))])  # by prompt
    by_prompt = metrics.interval(np.repeat(shares, pairs), np.repeat(np.arange(len(pairs)), pairs))
    results = dict(accuracy_rankings=agreed, rankings=by_prompt)
    if metrics.judgeable(records):
        gold = torch.full(scores.shape, torch.nan)
        for i, r in enumerate(records):
            gold[i, :len(r["responses"])] = torch.tensor([labeler.judge(r, answer).gold for answer in r["responses"]])
        results["accuracy"], results["pairs"] = accuracy(scores, gold)
        results["by_kind"] = {}
        for kind in sorted({r["kind"] for r in records}):
            rows = [i for i, r in enumerate(records) if r["kind"] == kind]
            results["by_kind"][kind] = accuracy(scores[rows], gold[rows])[0]
    return results


def train(cfg):
    """Collect rankings and train the reward model -> (model, history). Writes out/reward/."""
    demands = [(not cfg.active or "," in cfg.active, "--active asks where reward models disagree: name at least two"),
               (2 <= cfg.k <= 9, "--k must be between 2 and 9 answers"),
               (cfg.temperature > 0, "--temperature must be above 0: equal answers can not be ranked")]
    if cfg.label:
        return ask(cfg, demands)
    run = runs.Run(cfg, "reward", demands)
    sft_path = cfg.init or run.earlier("sft")
    sft_model, tokenizer, about = gpt.load(sft_path, gpt.GPT, run.device, "run python sft.py first")
    block_size = sft_model.config.block_size
    if cfg.data:
        records, test = formats.split(formats.read_comparisons(cfg.data))
        typical = records[:500]
    else:
        policy_path = cfg.policy or (sft_path if cfg.round == 1 else run.earlier("ppo", cfg.round - 1))
        policy, policy_tokenizer, about = gpt.load(policy_path, gpt.GPT, run.device, "check --policy" if cfg.policy else runs.hint("ppo", cfg.round - 1))
        if policy_tokenizer != tokenizer:
            raise UserError(f"{policy_path} has another tokenizer than {sft_path}: give --init the SFT model it comes from")
        earlier = [run.earlier("reward", n).with_name("comparisons.jsonl") for n in range(1, cfg.round)]
        for path in earlier:
            if not path.exists():
                raise UserError(f"{path} not found: its round learned from --data; name the rankings of all rounds with --data")
        seed = f"reward {cfg.seed}" + (f" {cfg.round}" if cfg.round > 1 else "")
        wanted = cfg.prompts or (12000 if cfg.round == 1 else 6000)
        # What PPO has made sharp says the same thing four times, and whoever ranks that can not say that it is wrong: seed 1's policy
        # told all who asked who it was that it was well, and small talk had gold .57 after three rounds of its own answers at
        # temperature 1. With the SFT model's among them, .86 (Stiennon et al. 2020, section 3.1, rank those of several models).
        models = [policy] if cfg.round == 1 else [policy, sft_model]
        records, test = [respond(models, tokenizer, almanac.prompts(split, n, seed), cfg)
                         for split, n in (("train", 4 * wanted if cfg.active else wanted), ("test", cfg.test_prompts))]
        ranked = [r for path in earlier for r in formats.read_comparisons(path)]
        typical = (ranked + records)[:500]
        if cfg.active:
            members, abouts = gpt.load_rewards(cfg.active, tokenizer, run.device, "name reward models with --active", block_size)
            records = most_doubtful(members, abouts, tokenizer, records, wanted, run.device)
        rng = np.random.default_rng(cfg.seed)
        records, test = compare(records, rng), compare(test, rng)
        formats.write_jsonl(run.path("comparisons.jsonl"), records)
        records = ranked + records
    examples, typical = [[e for r in part if (e := encode(tokenizer, r, block_size))] for part in (records, typical)]
    held_out = [(r, e) for r in test if (e := encode(tokenizer, r, block_size))]
    test, test_examples = [r for r, _ in held_out], [e for _, e in held_out]
    print(f"reward: {len(examples):,} ranked prompts after {run.seconds:.0f} s; "
          f"{len(records) - len(examples)} do not fit in {block_size} tokens", flush=True)
    if not examples or not test:
        raise UserError(f"{cfg.data or 'the almanac'}: no comparison fits in the context of {block_size} tokens")

    if cfg.round > 1 and not cfg.init:
        # From the SFT model, one pass over three rounds of rankings orders 78% of the third policy's pairs right, two passes
        # 85%; from the reward model of the round before, one pass 83%.
        model, _, _ = gpt.load(run.earlier("reward", cfg.round - 1), gpt.ScalarGPT, run.device, runs.hint("reward", cfg.round - 1))
    else:
        if not cfg.init and run.earlier("gpt").exists():
            base, base_tokenizer, base_about = gpt.load(run.earlier("gpt"), gpt.GPT, run.device)
            if (base_tokenizer, base.config) != (tokenizer, sft_model.config):
                raise UserError(f"{sft_path} does not come from {run.earlier('gpt')}: say with --init {sft_path} that it alone is the start")
            between(sft_model, base, tokenizer, base_about)
        model = gpt.ScalarGPT(sft_model.config).to(run.device)
        model.trunk.load_state_dict(sft_model.state_dict())
    sft_model = policy = models = None  # their memory is wanted
    before, _ = score_all(model, test_examples[:5], run.device)
    run.prepare("reward", [model], rows=max(len(ranks) for _, ranks in examples))
    opt = gpt.optimizer(model, cfg.lr)
    examples = [e for e in examples if len(set(e[1])) > 1] or examples  # nothing but ties teaches nothing, and costs as much
    if cfg.bootstrap:
        examples = random.Random(cfg.seed).choices(examples, k=len(examples))
    supply = gpt.batches(examples, cfg.batch, random.Random(cfg.seed), length=lambda e: max(map(len, e[0])))
    for step in run.range(cfg.steps or math.ceil(len(examples) / cfg.batch)):
        batch, agreement = next(supply), Counter()
        lr = gpt.learning_rate(step, run.steps, cfg.lr, warmup=min(20, run.steps // 10))
        loss, norm = gpt.update(model, opt, losses(model, batch, run.micro_batch, run.device, agreement), lr)
        if run.due(step, cfg.save_every):
            # PPO wants scores of a known scale: the SFT model's answers shall average 0 with deviation 1.
            mean, std = spread(*score_all(model, typical, run.device))
            ready = normalized(model, mean, std)
            run.save(gpt.checkpoint(ready, tokenizer, scale=std, **run.about(step, about)))
        agreement = runs.add_up_all(agreement)
        tokens = sum(len(row) for rows, _ in batch for row in rows)
        run.log(step, tokens, loss=loss, accuracy=agreement["right"] / max(1, agreement["pairs"]), also={"grad_norm": norm})

    results = evaluate(ready, test, test_examples, run.device)
    after, _ = score_all(ready, test_examples[:5], run.device)
    for r, a, b in zip(test, before.tolist(), after.tolist()):
        print(f"\n{r['prompt'][-1]['content']}")
        for response, rank, old, new in sorted(zip(r["responses"], r["ranks"], a, b), key=lambda row: row[1]):
            print(f"  rank {rank}  score before {old:+.2f}, after {new:+.2f}  {response!r}")
    by_prompt = results["rankings"]
    print(f"\nreward: orders {results['accuracy_rankings']:.1%} of {by_prompt['n']} held-out ranked pairs right" +
          (f" (95% interval over prompts: {by_prompt['low']:.1%} to {by_prompt['high']:.1%})" if by_prompt["n"] else ""))
    if "accuracy" in results:
        print(f"reward: and {results['accuracy']:.1%} of the {results['pairs']} whose gold differs")
    run.draw([["loss"], ["accuracy"], ["grad_norm"]])
    run.finish(**results, seconds=run.seconds,
               samples=[dict(prompt=r["prompt"], responses=r["responses"], ranks=r["ranks"], before=a, after=b)
                        for r, a, b in zip(test, before.tolist(), after.tolist())])
    return ready, run.history


if __name__ == "__main__":
    runs.main(Config, train, __doc__)
