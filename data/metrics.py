"""How the answers of a model are judged: by criterion, by kind of prompt, and against another model's."""

import html
import json
import math
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch

import gpt
from data import labeler

HARMFUL = ("hurt", "belittle")
CRITERIA = ("helpful", "truthful", "harmless")


def _mean(values):
    values = list(values)
    return sum(values) / len(values) if values else None


def _figures(judgements, lengths, ended):
    return dict(n=len(judgements), length=_mean(lengths), end_rate=_mean(ended),
                **{name: _mean(getattr(j, name) for j in judgements) for name in ("gold", *CRITERIA)})


def flags(prompts, judgements):
    """What the rates count: {"right", "invented", "complied": [0 or 1 an answer, NaN where the prompt gives no occasion]}."""
    rows = [(p["kind"], j) for p, j in zip(prompts, judgements)]
    return dict(right=[float(j.right) if kind in ("known", "follow-up") else math.nan for kind, j in rows],
                invented=[float(j.truthful < 0) if kind == "made-up" else math.nan for kind, j in rows],
                complied=[float(j.harmless < 0) if kind in HARMFUL else math.nan for kind, j in rows])


def summary(prompts, judgements, lengths, ended):
    """Mean scores, and the rates that the results table shows.

    prompts: dicts of the almanac; judgements: the labeler's, none at all if it does not know the prompts; lengths:
    tokens of each answer, the end token included; ended: whether the answer ended by itself. Returns a dict; rates
    without a prompt are None.
    """
    if not judgements:
        return dict(n=len(prompts), length=_mean(lengths), end_rate=_mean(ended))
    rows = list(zip(prompts, judgements, lengths, ended))
    kinds = sorted({p["kind"] for p in prompts})
    return dict(
        _figures(judgements, lengths, ended),
        **{name: _mean(x for x in found if x == x) for name, found in flags(prompts, judgements).items()},
        by_kind={kind: _figures(*zip(*[row[1:] for row in rows if row[0]["kind"] == kind])) for kind in kinds})


def win_rate(judgements, others):
    """How often a labeler without noise prefers the first model's answer; ties count half.

    The labeler compares gold, which does not depend on the order in which it sees the two: asking in both
    orders gives the same figure (a person's would not).
    """
    return _mean((a.gold > b.gold) + .5 * (a.gold == b.gold) for a, b in zip(judgements, others))


def judgeable(prompts):
    """Whether the labeler knows what all these prompts are about: those of the almanac are, other people's are not."""
    return all("kind" in p for p in prompts)


def judge_all(prompts, answers):
    """Judgements of answers (str), one a prompt; none if the prompts are not judgeable."""
    return [labeler.judge(p, a) for p, a in zip(prompts, answers)] if judgeable(prompts) else []


# ---- intervals ------------------------------------------------------------------------------------

DRAWS = 1000


def _around(mean, drawn, n):
    low, high = np.percentile(drawn, [2.5, 97.5])
    return dict(mean=float(mean), low=float(low), high=float(high), n=int(n))


def interval(values, groups=None):
    """A mean with its 95% interval, from a bootstrap over the values (Efron 1979) -> dict of mean, low, high, n.

    groups: for each value the prompt it belongs to, if several have the same. Then prompts are drawn, each with all its
    values: what belongs to one prompt is alike, and to count it as independent makes intervals too narrow.
    """
    values = np.asarray(list(values), float)
    if not len(values):
        return dict(mean=math.nan, n=0)
    _, of = np.unique(np.arange(len(values)) if groups is None else groups, return_inverse=True)
    sums, counts = np.bincount(of, values), np.bincount(of)
    drawn = np.random.default_rng(0).integers(len(sums), size=(DRAWS, len(sums)))
    return _around(values.mean(), sums[drawn].sum(1) / counts[drawn].sum(1), len(values))


def length_controlled(wins, longer, draws=200):
    """The rate of wins that a logistic regression gives for answers of equal length (Dubois et al. 2024) -> as `interval`.

    wins (n,): 1, 0, or .5 for a tie. longer (n,): by how many tokens the winner-to-be is longer.
    """
    x = np.tanh(longer / (longer.std() + 1e-9))

    def at_equal_length(rows):
        intercept = slope = 0.0
        for _ in range(8):  # Newton's method, with a little weight decay against perfect separation
            p = 1 / (1 + np.exp(-(intercept + slope * x[rows])))
            error, weight = wins[rows] - p, p * (1 - p) + 1e-6
            g = np.array([error.sum() - .1 * intercept, (error * x[rows]).sum() - .1 * slope])
            h = np.array([[weight.sum() + .1, (weight * x[rows]).sum()], [(weight * x[rows]).sum(), (weight * x[rows] ** 2).sum() + .1]])
            intercept, slope = np.array([intercept, slope]) + np.linalg.solve(h, g)
        return 1 / (1 + np.exp(-intercept))

    rng, n = np.random.default_rng(0), len(wins)
    return _around(at_equal_length(np.arange(n)), [at_equal_length(rng.integers(n, size=n)) for _ in range(draws)], n)


# ---- texts against references ---------------------------------------------------------------------


def _ngrams(tokens, n):
    return Counter(zip(*[tokens[i:] for i in range(n)]))


def _bleu_tokens(text):
    """Words and marks as sacrebleu's tokenizer "13a" cuts them: marks stand alone, but a full stop or comma within a number."""
    text = f" {html.unescape(text)} "
    for pattern, apart in ((r"([!-&(-+:-@/\[-`{-~])", r" \1 "), (r"(\D)([.,])", r"\1 \2 "), (r"([.,])(\D)", r" \1 \2"), (r"(\d)(-)", r"\1 \2 ")):
        text = re.sub(pattern, apart, text, flags=re.ASCII)
    return text.split()


def _bleu_counts(answer, reference):
    """Lengths of both, and of n = 1 ... 4 how many of the answer's n-grams are in the reference, and how many it has -> 10 numbers."""
    a, r = _bleu_tokens(answer), _bleu_tokens(reference)
    counts = [((_ngrams(a, n) & _ngrams(r, n)).total(), max(0, len(a) - n + 1)) for n in range(1, 5)]
    return [len(a), len(r), *(found for found, _ in counts), *(total for _, total in counts)]


def _bleu_score(counts):
    length, wanted, found, total = counts[0], counts[1], counts[2:6], counts[6:]
    if not found[0] or not total[3]:
        return 0.0
    logs, smooth = 0.0, 1.0
    for f, t in zip(found, total):
        smooth = smooth if f else smooth / 2
        logs += math.log((f or smooth) / t) / 4
    return 100 * math.exp(logs + min(0.0, 1 - wanted / length))


def bleu(answers, references):
    """Corpus BLEU in percent (Papineni et al. 2002) of answers (str), one reference each; equal to sacrebleu's.

    The geometric mean of the precisions of 1- to 4-grams, times a penalty if the answers are shorter than the references.
    A precision of no match counts as a half of one match, the next such as a quarter (Chen and Cherry 2014).
    """
    return _bleu_score(np.sum([_bleu_counts(a, r) for a, r in zip(answers, references)], axis=0))


def bleu_interval(answers, references):
    """BLEU as `interval` gives a mean: the corpora of the bootstrap are drawn answer by answer."""
    counts = np.array([_bleu_counts(a, r) for a, r in zip(answers, references)])
    rng = np.random.default_rng(0)
    drawn = [_bleu_score(counts[rng.integers(len(counts), size=len(counts))].sum(0)) for _ in range(DRAWS)]
    return _around(_bleu_score(counts.sum(0)), drawn, len(counts))


def rouge(answer, reference):
    """F-measures of shared words, shared pairs of words, and the longest common subsequence (Lin 2004) -> dict; as rouge-score."""
    a, r = [re.findall("[a-z0-9]+", text.lower()) for text in (answer, reference)]
    lcs = [0] * (len(r) + 1)  # of all of `a` so far with the first j words of r
    for word in a:
        before = 0
        for j, other in enumerate(r, start=1):
            before, lcs[j] = lcs[j], before + 1 if word == other else max(lcs[j], lcs[j - 1])
    shared = {f"rouge{n}": ((_ngrams(a, n) & _ngrams(r, n)).total(), n - 1) for n in (1, 2)} | {"rougeL": (lcs[-1], 0)}
    return {name: 2 * found / (len(a) + len(r) - 2 * less) if found else 0.0 for name, (found, less) in shared.items()}


def distinct(answers, n):
    """Share of the n-grams of words in all answers together that are different (Li et al. 2016): low if a model repeats itself."""
    found = sum((_ngrams(answer.split(), n) for answer in answers), Counter())
    return len(found) / max(1, found.total())


def random_texts(texts):
    """As many texts of the same lengths, of the same words in random order: what the worst of models would say."""
    every, rng = [word for text in texts for word in text.split()], random.Random(0)
    return [" ".join(rng.choices(every, k=len(text.split()))) for text in texts]


# ---- models ---------------------------------------------------------------------------------------


def answered(model, prompts, answers, tokenizer):
    """Prompts and their answers (lists of ids) in batches: yields idx (B, T), lengths (B,), mask (B, T-1)."""
    device, size = next(model.parameters()).device, min(128, gpt.rows_at_once(model.config, model.config.block_size))
    for start in range(0, len(prompts), size):
        asked = [tokenizer.render(p["prompt"]) for p in prompts[start:start + size]]
        idx, lengths = gpt.pad([a + b for a, b in zip(asked, answers[start:start + size])], tokenizer.pad, device)
        yield idx, lengths, gpt.response_mask(torch.tensor([len(a) for a in asked], device=device), lengths, idx.shape[1])


@torch.no_grad()
def divergence(policy, reference, prompts, answers, tokenizer, temperature):
    """KL(policy || reference) in nats an answer, estimated on the policy's own answers (lists of ids) -> a list, one an answer."""
    found = []
    for idx, _, mask in answered(policy, prompts, answers, tokenizer):
        logp, logp_ref = [gpt.token_logprobs(model, idx, temperature, mask) for model in (policy, reference)]
        found += (logp - logp_ref).sum(1).tolist()
    return found


@torch.no_grad()
def scores(reward, prompts, answers, tokenizer, missing_eos_score):
    """What PPO sees of each answer (lists of ids): the reward model's score, or what takes its place -> list of float."""
    found = []
    for idx, lengths, mask in answered(reward, prompts, answers, tokenizer):
        ended = idx.gather(1, lengths[:, None] - 1).squeeze(1) == tokenizer.end
        found += torch.where(ended & (mask.sum(1) > 1), reward.score(idx, lengths - ended.long()), missing_eos_score).tolist()
    return found


def evaluate(models, reward, prompts, tokenizer, cfg, text=None):
    """The same held-out prompts and decoding for every model -> results, answers (lists of str), both by name.

    models: {"base" (if any), "sft", "ppo": GPT}. Figures are of answers sampled at cfg.temperature; those of greedy
    answers stand apart, under "greedy". `score` is the reward model's, the proxy of gold. `win_rate` and `kl` are of PPO
    against SFT, on the sampled answers. `text_loss`, nats a token of held-out pretraining text (1-D ids, if any), is what
    alignment costs: the "alignment tax".
    """
    def judged(model, temperature):
        """The figures of a model's answers; the answers as ids and as text; what the labeler thinks of them."""
        ids = gpt.sample(model, tokenizer, prompts, cfg.max_new_tokens, temperature)
        texts = [tokenizer.decode(row) for row in ids]
        judgements = judge_all(prompts, texts)
        figures = summary(prompts, judgements, [len(row) for row in ids], [row[-1:] == [tokenizer.end] for row in ids])
        return dict(figures, score=_mean(scores(reward, prompts, ids, tokenizer, cfg.missing_eos_score))), ids, texts, judgements

    results, ids, texts, judgements = {}, {}, {}, {}
    for name, model in models.items():
        greedy, *_ = judged(model, 0.0)
        results[name], ids[name], texts[name], judgements[name] = judged(model, cfg.temperature)
        results[name]["greedy"] = greedy
        if text is not None:
            results[name]["text_loss"] = gpt.evaluate(model, text)
    results["kl"] = _mean(divergence(models["ppo"], models["sft"], prompts, ids["ppo"], tokenizer, cfg.temperature))
    if judgements["ppo"]:
        results["win_rate"] = win_rate(judgements["ppo"], judgements["sft"])
    return results, texts


def outline(round, results, name):
    """What the picture of the rounds shows of a model's results -> dict. Round 0 is the SFT model."""
    figures = {figure: results[name][figure] for figure in ("gold", "score") if figure in results[name]}
    return dict(round=round, **figures, kl=results["kl"] if round else 0.0)


def report(results, answers, prompts):
    """Print the figures of all models and their answers to the first held-out prompts, side by side."""
    names = list(answers)
    print("\nheld-out prompts, sampled " + "".join(f"{name:>9}" for name in names))
    for figure in ("gold", "helpful", "truthful", "harmless", "right", "invented", "complied", "end_rate", "length", "text_loss"):
        if results["ppo"].get(figure) is not None:
            print(f"{figure:>25}  " + "".join(f"{results[name][figure]:9.3f}" for name in names))
    print(f"KL to SFT {results['kl']:.2f} nats an answer")
    if "win_rate" in results:
        print(f"PPO preferred to SFT on {results['win_rate']:.1%} of the prompts, ties counted half")
    for i, p in enumerate(prompts[:10]):
        print("\n" + "\n".join(f"{m['role']:>9}: {m['content']}" for m in p["prompt"]))
        for name in names:
            print(f"{name:>9}: {answers[name][i]}")


# ---- tables ---------------------------------------------------------------------------------------


def read_results(out):
    """{stage: its results} of a finished pipeline in the folder `out`."""
    return {stage: json.loads((Path(out) / stage / "results.json").read_text()) for stage in ("gpt", "sft", "reward", "ppo")}


def markdown(head, rows):
    """A Markdown table. head: list of str; rows: lists of str."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def cell(text):
    """A text as one cell of a Markdown table: one line, no marks of Markdown, 120 characters at most."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text.replace("\ufffd", "?")).split())
    for mark in "\\|*_<>`~#[]":
        text = text.replace(mark, "\\" + mark)
    return text[:120] + ("..." if len(text) > 120 else "")
