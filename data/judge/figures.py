"""Figures: intervals, win rates, BLEU, ROUGE, tables. This file needs no model."""

import html
import math
import random
import re
from collections import Counter

import numpy as np


# ---- intervals -----------------------------------------------------------------------------------

DRAWS = 1000


def mean(values):
    """The mean; None of no values."""
    values = list(values)
    return sum(values) / len(values) if values else None


def _around(mean, drawn, n):
    low, high = np.percentile(drawn, [2.5, 97.5])
    return dict(mean=float(mean), low=float(low), high=float(high), n=int(n))


def interval(values, groups=None):
    """A mean with its 95% interval, from a bootstrap (Efron 1979) -> dict of mean, low, high, n.

    groups: for each value the prompt or topic it belongs to, if several values share one. Then
    groups are drawn, each with all its values: values of one group are alike, and counting them as
    independent makes intervals too narrow.
    """
    values = np.asarray(list(values), float)
    if not len(values):
        return dict(mean=math.nan, n=0)
    groups = np.arange(len(values)) if groups is None else groups
    _, of = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(of, values), np.bincount(of)
    drawn = np.random.default_rng(0).integers(len(sums), size=(DRAWS, len(sums)))
    return _around(values.mean(), sums[drawn].sum(1) / counts[drawn].sum(1), len(values))


# 97.5% quantiles of Student's t, by degrees of freedom from 1.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def over_seeds(values):
    """The mean of a figure over several pipelines, with Student's 95% interval -> as `interval`."""
    values = np.array(values)
    n, half = len(values), np.nan
    if n > 1:
        half = STUDENT[min(n - 2, len(STUDENT) - 1)] * values.std(ddof=1) / np.sqrt(n)
    average = values.mean()
    return dict(mean=float(average), low=float(average - half), high=float(average + half), n=n)


def kappa(a, b):
    """How often two people give the same of several verdicts -> (share, Cohen's kappa).

    kappa = (agreed - expected) / (1 - expected), expected: if each had drawn verdicts at random, as
    often of each sort as they gave (Cohen 1960). a, b: arrays (n,).
    """
    agreed = (a == b).mean()
    expected = sum((a == v).mean() * (b == v).mean() for v in np.union1d(a, b))
    return agreed, (agreed - expected) / (1 - expected) if expected < 1 else 1.0


def length_controlled(wins, longer, draws=200):
    """The win rate at equal length, by logistic regression (Dubois et al. 2024) -> as `interval`.

    wins (n,): 1, 0, or .5 for a tie. longer (n,): by how many tokens the first answer is longer.
    """
    x = np.tanh(longer / (longer.std() + 1e-9))

    def at_equal_length(rows):
        intercept = slope = 0.0
        x_rows = x[rows]
        for _ in range(8):  # Newton's method; a little weight decay, against perfect separation
            p = 1 / (1 + np.exp(-(intercept + slope * x_rows)))
            error, weight = wins[rows] - p, p * (1 - p) + 1e-6
            g = np.array([error.sum() - .1 * intercept, (error * x_rows).sum() - .1 * slope])
            across = (weight * x_rows).sum()
            h = np.array([[weight.sum() + .1, across],
                          [across, (weight * x_rows ** 2).sum() + .1]])
            intercept, slope = np.array([intercept, slope]) + np.linalg.solve(h, g)
        return 1 / (1 + np.exp(-intercept))

    rng, n = np.random.default_rng(0), len(wins)
    drawn = [at_equal_length(rng.integers(n, size=n)) for _ in range(draws)]
    return _around(at_equal_length(np.arange(n)), drawn, n)


# ---- texts against references --------------------------------------------------------------------


def _ngrams(tokens, n):
    return Counter(zip(*[tokens[i:] for i in range(n)]))


def _bleu_tokens(text):
    """Words and marks as sacrebleu's tokenizer "13a" cuts them.

    Marks stand alone, but for a full stop or a comma within a number.
    """
    text = f" {html.unescape(text)} "
    for pattern, apart in ((r"([!-&(-+:-@/\[-`{-~])", r" \1 "), (r"(\D)([.,])", r"\1 \2 "),
                           (r"([.,])(\D)", r" \1 \2"), (r"(\d)(-)", r"\1 \2 ")):
        text = re.sub(pattern, apart, text, flags=re.ASCII)
    return text.split()


def _bleu_counts(answer, reference):
    """Both lengths; for n = 1 ... 4 the answer's n-grams that match, then all -> 10 numbers."""
    a, r = _bleu_tokens(answer), _bleu_tokens(reference)
    found = [(_ngrams(a, n) & _ngrams(r, n)).total() for n in range(1, 5)]
    total = [max(0, len(a) - n + 1) for n in range(1, 5)]
    return [len(a), len(r), *found, *total]


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
    """Corpus BLEU in percent (Papineni et al. 2002) of texts, one reference each; as sacrebleu's.

    The geometric mean of the precisions of 1- to 4-grams, times a penalty if the answers are
    shorter than the references. A precision without a match counts as half a match, the next such
    as a quarter (Chen and Cherry 2014).
    """
    return _bleu_score(np.sum([_bleu_counts(a, r) for a, r in zip(answers, references)], axis=0))


def bleu_interval(answers, references):
    """BLEU as `interval` gives a mean: the corpora of the bootstrap are drawn answer by answer."""
    counts = np.array([_bleu_counts(a, r) for a, r in zip(answers, references)])
    rng, n = np.random.default_rng(0), len(counts)
    drawn = [_bleu_score(counts[rng.integers(n, size=n)].sum(0)) for _ in range(DRAWS)]
    return _around(_bleu_score(counts.sum(0)), drawn, n)


def rouge(answer, reference):
    """F-measures of shared words, word pairs and the longest common subsequence -> dict.

    Lin 2004; as rouge-score computes them.
    """
    a, r = [re.findall("[a-z0-9]+", text.lower()) for text in (answer, reference)]
    lcs = [0] * (len(r) + 1)  # of all of `a` so far with the first j words of r
    for word in a:
        before = 0
        for j, other in enumerate(r, start=1):
            before, lcs[j] = lcs[j], before + 1 if word == other else max(lcs[j], lcs[j - 1])
    shared = {f"rouge{n}": ((_ngrams(a, n) & _ngrams(r, n)).total(), n - 1) for n in (1, 2)}
    shared["rougeL"] = (lcs[-1], 0)
    return {name: 2 * found / (len(a) + len(r) - 2 * less) if found else 0.0
            for name, (found, less) in shared.items()}


def distinct(answers, n):
    """Share of different n-grams of words in all answers (Li et al. 2016): low for repetition."""
    found = sum((_ngrams(answer.split(), n) for answer in answers), Counter())
    return len(found) / max(1, found.total())


def random_texts(texts):
    """As many texts of the same lengths, of the same words in random order: the worst of models."""
    every, rng = [word for text in texts for word in text.split()], random.Random(0)
    return [" ".join(rng.choices(every, k=len(text.split()))) for text in texts]


# ---- tables --------------------------------------------------------------------------------------


def outline(round, results, name):
    """A model's point in the picture of the rounds -> dict. Round 0 is the SFT model, whose answers
    are the zero of each round's score."""
    gold = {"gold": results[name]["gold"]} if "gold" in results[name] else {}
    score = results[name]["score"] - results["sft"]["score"]
    return dict(round=round, **gold, score=score, kl=results["kl"] if round else 0.0)


def markdown(head, rows):
    """A Markdown table. head: list of str; rows: lists of str."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def question(turns):
    """What was asked, the earlier turns too, as a cell of a Markdown table."""
    return "<br>".join(cell(turn["content"]) for turn in turns)


def cell(text):
    """A text as a cell of a Markdown table: one line, no Markdown marks, at most 120 characters."""
    printable = "".join(c if c.isprintable() else " " for c in text.replace("\ufffd", "?"))
    text = " ".join(printable.split())
    shown = text[:120] + ("..." if len(text) > 120 else "")
    return "".join("\\" + c if c in "\\|*_<>`~#[]&" else c for c in shown)
