"""The tables of an evaluation: out/report.md, and those of several pipelines in README and RESULTS.

Figures are dicts with `n`, `mean` and, with an interval, `low` and `high`.
"""

import random
from pathlib import Path

import numpy as np

from data.judge.answers import CRITERIA
from data.judge.figures import cell, markdown, over_seeds, question
from data.run.disk import write
from data.world import almanac, labeler

GAPS = [(0, .5), (.5, 1), (1, 1.5), (1.5, 2)]  # in gold, between two answers


def gap_name(low, high):
    return f"accuracy, gold {low} to {high} apart"


DISTANCES = ("1 turn back", "2 turns back", "3 turns back")
TURNS = ("with the earlier turns", "without them", "with another's")

PERCENT, TWO, THREE = "{:.1%}", "{:.2f}", "{:.3f}"
# Rows: what they say, how a number is written, the name of the figure.
GOLD = [("gold", TWO, "gold"), ("gold of greedy answers", TWO, "greedy"),
        *[(name, TWO, name) for name in CRITERIA],
        ("known facts answered right, greedily", PERCENT, "greedy_right"),
        ("known facts answered right", PERCENT, "right"),
        ("right answers from a text", PERCENT, "read"),
        ("says that the text does not say it", PERCENT, "silent"),
        ("hallucination rate on made-up names", PERCENT, "hallucination"),
        ("hallucination rate on texts (closed domain)", PERCENT, "closed_hallucination"),
        ("compliance rate with harmful requests", PERCENT, "compliance"),
        ("false refusals of kind requests", PERCENT, "false_refusal"),
        ("false refusals without new deeds", PERCENT, "seen_refusal"),
        ("false refusals of new kind deeds", PERCENT, "new_refusal")]
BY_KIND = [(f"gold, {kind}", TWO, f"gold, {kind}") for kind in almanac.KINDS]
FAILURES = [(f"{only}{name} fails", PERCENT, f"{only}{name} fails")
            for only in ("", "only ") for name in CRITERIA]
PREFERRED = [("preferred to SFT", PERCENT, "preferred"),
             ("preferred to SFT at equal length", PERCENT, "controlled"),
             *[(f"preferred to SFT by {group} labelers", PERCENT, f"preferred by {group}")
               for group in labeler.WEIGHTS]]
BEHAVIOUR = [("KL to SFT, nats per answer", TWO, "kl"),
             ("answers that end by themselves", PERCENT, "ended"),
             ("length, tokens", "{:.1f}", "length")]
WORDS = [("perplexity of pretraining text, per token", "{:.1f}", "perplexity_per_token"),
         ("perplexity of pretraining text, per byte", TWO, "perplexity_per_byte"),
         ("BLEU against perfect answers", "{:.1f}", "bleu"),
         ("ROUGE-L against perfect answers", TWO, "rougeL"), ("distinct-2", THREE, "distinct2")]
MORE_WORDS = [("ROUGE-1", TWO, "rouge1"), ("ROUGE-2", TWO, "rouge2"),
              ("distinct-1", THREE, "distinct1")]
CONTEXT = [(f"right follow-ups, greedily, {back}: {name}", PERCENT, f"context {name}, {back}")
           for back in DISTANCES for name in TURNS]
JUDGE = [("accuracy", PERCENT, "accuracy"),
         *[(gap_name(*ends), PERCENT, gap_name(*ends)) for ends in GAPS],
         *[(f"accuracy, {kind}", PERCENT, f"accuracy, {kind}") for kind in sorted(almanac.KINDS)],
         ("agrees with a noisy labeler", PERCENT, "agrees_with_a_labeler"),
         ("two noisy labelers agree", PERCENT, "labelers_agree"),
         ("expected calibration error", PERCENT, "calibration_error"),
         ("correlation of score and length", TWO, "score_and_length"),
         ("correlation of gold and length", TWO, "gold_and_length")]
SEEDS = [*GOLD, *BY_KIND, *PREFERRED, *BEHAVIOUR, *WORDS,
         *(row for row in CONTEXT if TURNS[2] not in row[0])]  # of the table over several seeds
# What the README shows of it.
SUMMARY = [row for row in SEEDS if row[-1] in ("gold", "right", "hallucination", "compliance",
                                               "preferred", "kl", "length", "perplexity_per_byte")]


def flat(figures):
    """A model's figures, with gold of each kind, and refusals of what training also asks for."""
    every, new = figures["false_refusal"], figures["new_refusal"]
    refused, refused_new = [x["n"] and x["mean"] * x["n"] for x in (every, new)]
    n = every["n"] - new["n"]
    return {**figures, "seen_refusal": dict(n=n, mean=n and (refused - refused_new) / n),
            **{f"gold, {kind}": x["gold"] for kind, x in figures["by_kind"].items()}}


def number(x, form=TWO):
    """A figure with its interval as a cell of a table."""
    if x is None or not x["n"] or np.isnan(x["mean"]):
        return ""
    around = f" ({form.format(x['low'])} to {form.format(x['high'])})" if "low" in x else ""
    return form.format(x["mean"]) + around


def table(rows, models, write_number):
    """Markdown: a column per model, rows as above, without those that no model has.

    write_number(model's name, name of a figure, form) -> str.
    """
    lines = []
    for label, form, figure in rows:
        cells = [write_number(model, figure, form) for model in models]
        lines += [[label, *cells]] if any(cells) else []
    return markdown(["", *models], lines)


def write_report(out, results, prompts, texts, columns, seconds):
    """Write out/report.md."""
    last, judges = results["last"], results["reward"]
    models = {name: flat(figures) for name, figures in results["models"].items()}

    def figures_table(rows, of=models):
        return table(rows, of, lambda model, name, form: number(of[model].get(name), form))

    preferences = [[name, *(number(x, PERCENT) for x in parts.values())]
                   for name, parts in results["preferences"].items()]
    parts = [
        f"# What RLHF did, judged on {len(prompts)} held-out prompts\n\nSampled at temperature "
        f"{results['temperature']}, seed {results['seed']}; brackets hold 95% intervals from a "
        "bootstrap over what prompts are about, those of BLEU and of length control over "
        f"answers. Made by `python ppo.py --eval` in {seconds:.0f} s.",
        "## The three criteria\n\nScores of the labeler in [-1, 1]; gold is the lowest of the "
        "three. A criterion fails below 0.", figures_table([*GOLD, *FAILURES, *BEHAVIOUR]),
        "### Gold by kind of prompt", figures_table(BY_KIND),
        "## Who is preferred\n\nHow often the labeler without noise prefers the first model's "
        "answer; ties count half. `references` are perfect answers, one per prompt. The "
        "length-controlled rate is a logistic regression's at equal length (Dubois et al. 2024). "
        "The last two are labelers who weigh the criteria otherwise.",
        markdown(["", "preferred", "ties", "length-controlled", *labeler.WEIGHTS], preferences),
        "## Words\n\nBLEU and ROUGE compare with one perfect answer to each prompt, of several "
        "there are; distinct-n is the share of different n-grams; perplexity is that of held-out "
        "pretraining text, where it shows the alignment tax.",
        figures_table([*WORDS, *MORE_WORDS])]
    if results["people"]:
        parts += ["## What people say\n\nRatings by `python ppo.py --rate` beside what the labeler "
                  "says of the same answers.", results["people"]]
    if judges:
        parts += [
            "## The reward model as a judge\n\nOf four answers of a model to each prompt, all "
            "pairs that differ in gold. It was trained on other answers than those of the policy "
            "that learned from it.\n\n![the reward model](eval/reward.png)",
            figures_table(JUDGE, {f"{name}'s answers": x for name, x in judges.items()})]
    if CONTEXT[0][-1] in models[last]:
        parts += ["## Earlier turns\n\nFollow-ups answered right (greedy) as they are, without "
                  "their earlier turns, and after another conversation's.", figures_table(CONTEXT)]
    parts += examples(prompts, texts, columns[last]["gold"], list(models), last)
    write(Path(out) / "report.md", "\n\n".join(parts) + "\n")


def examples(prompts, texts, gold, models, last):
    """The last model's worst, some and best answers, with the others' -> Markdown parts."""
    order, parts = sorted(range(len(prompts)), key=lambda i: (gold[i], i)), []
    some = sorted(random.Random(0).sample(order, min(20, len(order))))
    for name, at in (("Worst", order[:20]), ("Random", some), ("Best", order[::-1][:20])):
        shown = [[question(prompts[i]["prompt"]), *(cell(texts[m][i]) for m in models),
                  cell("; ".join(labeler.judge(prompts[i], texts[last][i]).reasons))] for i in at]
        parts += [f"## {name} answers of {last}", markdown(["prompt", *models, "why"], shown)]
    return parts


# ---- over several pipelines ----------------------------------------------------------------------


def seeds_table(every):
    """Several pipelines -> Markdown: all rows of figures, what they cost, ten answers."""
    def costs(name, form):
        return ", ".join("?" if results["cost"][name] is None
                         else form.format(results["cost"][name]) for results in every)

    models = common_models(every)
    return "\n\n".join([
        averages_table(every, models, SEEDS),
        f"Seeds {', '.join(str(results['seed']) for results in every)}; {every[0]['prompts']} "
        "held-out prompts each; after ± is half of the 95% interval over seeds (Student's t). The "
        f"reward model of the first round orders {costs('accuracy_gold', PERCENT)} of the held-out "
        "pairs of SFT answers right that differ in gold. The four stages took "
        f"{costs('seconds', '{:.0f}')} s, at most {costs('memory_gb', TWO)} GB, on "
        f"{every[0]['cost']['machine']}.",
        samples_table(every, [name for name in ("base", "sft", "ppo") if name in models])])


def summary_table(every):
    """The README's table: eight rows, four models, and the first five answers -> Markdown."""
    models = common_models(every)
    shown = [name for name in ("base", "sft", "ppo", "ppo-3") if name in models]
    return "\n\n".join([averages_table(every, shown, SUMMARY), samples_table(every, shown[1:], 5)])


def common_models(every):
    return [name for name in every[0]["models"]
            if all(name in results["models"] for results in every)]


def averages_table(every, models, rows):
    """Rows of figures, columns of models: the mean over the pipelines."""
    def average(model, name, form):
        values = [flat(results["models"][model]).get(name) for results in every]
        if not all(x and x["n"] for x in values):  # no perplexity without a text
            return ""
        mean = over_seeds([x["mean"] for x in values])
        around = f" ± {form.format(mean['high'] - mean['mean'])}" if len(every) > 1 else ""
        return form.format(mean["mean"]) + around

    return table(rows, models, average)


def samples_table(every, models, n=None):
    """The first n held-out prompts of the first pipeline (default: all kept), and the answers."""
    return markdown(["prompt", *models],
                    [[question(x["prompt"]), *(cell(x[name]) for name in models)]
                     for x in every[0]["samples"][:n]])
