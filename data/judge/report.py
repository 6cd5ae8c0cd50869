"""`python ppo.py --eval` judges all models of a run on the same held-out prompts.

    out/report.md            the tables, the pictures, and samples: best, worst, random
    out/eval/results.json    every number with its n; means with their 95% interval
    out/eval/*.png           the pictures

For several pipelines, `--out out/1,out/2,out/3`, it judges each, and then averages over them:

    out/1/eval/seeds.md      the table of RESULTS.md: means over the pipelines with 95% intervals

Each model is sampled from the same seed, and each interval is drawn from the same seed, so the
order of the models changes nothing. Intervals are from a bootstrap over prompts (Efron 1979).
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import platform
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import gpt
import ppo
from data import sampling, start
from data.files import records, rows
from data.judge import answers as judging
from data.judge import figures
from data.judge.figures import cell, interval, over_seeds, question
from data.judge.figures import markdown as table
from data.people import feedback
from data.run.cli import Program, flag
from data.run.device import choose_device, setup
from data.run.disk import make_folder, read_results, write, write_figure
from data.run.system import UserError
from data.world import almanac, labeler



@dataclass
class Config(Program):
    """The flags of the evaluation."""

    test_prompts: int = flag(1000, "held-out prompts", least=1, group="evaluation")
    temperature: float = flag(0.7, "of sampling")
    max_new_tokens: int = flag(40, "longest answer", least=1)
    missing_eos_penalty: float = flag(-2.0, "score of an answer that is empty or never ends")
    init: str = flag("", "SFT model (default: sft/ckpt.pt in --out)")
    reward: str = flag("", "reward model (default: that of the newest policy's round)")
    policies: str = flag("", "further policies, name=checkpoint, separated by commas")
    judge: str = flag("labeler", "labeler, or human: you compare the newest policy with the SFT "
                                 "model, blind")
    labeler: str = flag("", "with --judge human: your name (default: your login name)")


# ---- models and their answers --------------------------------------------------------------------


def load_models(cfg):
    """The models of a run, and those of --policies -> ({name: GPT}, their tokenizer)."""
    out = Path(cfg.out)
    paths = {"base": out / "gpt" / "ckpt.pt", "sft": Path(cfg.init or out / "sft" / "ckpt.pt")}
    paths |= {path.parent.name: path
              for path in sorted(out.glob("ppo*/ckpt.pt"),
                                 key=lambda path: (len(path.parent.name), path))}
    for part in filter(None, cfg.policies.replace("{out}", str(out)).split(",")):
        name, _, path = part.partition("=")
        if not path or name in paths:
            raise UserError(f"--policies {part}: write name=checkpoint, each name once and none of "
                            f"{', '.join(paths)}")
        paths[name] = path
    if not paths["base"].exists():
        del paths["base"]
    hints, device = {"sft": start.hint("sft")}, choose_device(cfg.device)
    loaded = {name: gpt.load(path, gpt.GPT, device, hints.get(name, ""))
              for name, path in paths.items()}
    tokenizer = loaded["sft"][1]
    for name, (_, other, _) in loaded.items():
        start.same_tokenizer(other, tokenizer, paths[name], paths["sft"],
                             "its answers cannot be compared")
    if len(loaded) < 2:
        raise UserError(f"{out} holds one model only: run python ppo.py first, or name others with "
                        "--policies")
    return {name: model for name, (model, _, _) in loaded.items()}, tokenizer


class Judged:
    """A model's answers to the held-out prompts, or texts in their place, and their judgements."""

    def __init__(self, prompts, texts, ids=None):
        self.texts = texts
        self.judgements = judging.judge_all(prompts, texts)
        self.length = np.array([len(row) for row in ids] if ids
                               else [len(text.split()) for text in texts], float)
        self.gold = np.array([j.gold for j in self.judgements])


def sample(model, tokenizer, prompts, cfg, temperature, copies=1):
    """The same seed for every model -> answers as lists of ids."""
    torch.manual_seed(cfg.seed)
    return sampling.sample(model, tokenizer, prompts, cfg.max_new_tokens, temperature, copies)


# ---- the parts of the report ---------------------------------------------------------------------


def criteria(prompts, answers):
    """Of one model: each criterion and gold, overall and by kind, and how often each fails alone.
    """
    kinds = np.array([p["kind"] for p in prompts])
    scores = {name: np.array([getattr(j, name) for j in answers.judgements])
              for name in ("gold", *judging.CRITERIA)}
    rows = {kind: kinds == kind for kind in sorted(set(kinds))}
    fails = {name: scores[name] < 0 for name in judging.CRITERIA}
    failures = sum(fails.values())
    flags = {name: np.array(values)
             for name, values in judging.flags(prompts, answers.judgements).items()}
    return dict({name: interval(values) for name, values in scores.items()},
                rates={name: interval(values[~np.isnan(values)]) for name, values in flags.items()},
                by_kind={kind: {name: interval(values[at]) for name, values in scores.items()}
                         for kind, at in rows.items()},
                fails={name: interval(found) for name, found in fails.items()},
                fails_alone={name: interval(found & (failures == 1))
                             for name, found in fails.items()})


def text_metrics(answers, references):
    """Of one model: its answers against reference answers, how varied they are, and how long."""
    rouge = [figures.rouge(a, r) for a, r in zip(answers.texts, references)]
    return dict(bleu=figures.bleu_interval(answers.texts, references),
                length=interval(answers.length),
                **{name: interval([r[name] for r in rouge]) for name in rouge[0]},
                **{f"distinct{n}": dict(mean=figures.distinct(answers.texts, n),
                                        n=len(answers.texts)) for n in (1, 2)})


def perplexity(model, tokenizer, documents):
    """Of held-out pretraining text, per token, and per byte: the latter compares tokenizers."""
    ids = gpt.one_stream(documents, tokenizer, next(model.parameters()).device)
    nats = gpt.evaluate(model, ids)
    size = sum(len(d.encode()) for d in documents)
    return dict(per_token=dict(mean=float(np.exp(nats)), n=len(ids)),
                per_byte=dict(mean=float(np.exp(nats * len(ids) / size)), n=size))


def win_rate(one, other):
    """How often the labeler prefers one model's answers; ties count half.

    Both as it is, and with control for length.
    """
    wins = np.where(one.gold == other.gold, .5, one.gold > other.gold)
    return dict(wins=interval(wins), ties=interval(wins == .5),
                controlled=figures.length_controlled(wins, one.length - other.length))


GAPS = [(0, .5), (.5, 1), (1, 1.5), (1.5, 2)]  # in gold, between two answers


def evaluate_reward_model(reward, scale, model, tokenizer, prompts, cfg, k=4):
    """Ask the reward model about k answers of one model to each prompt: is it right? is it sure?

    The truth of a pair is the share of noisy labelers who prefer its first answer,
    sigmoid(decisiveness * gap in gold). scale: the reward model's scores times it are the log-odds
    that it was trained on. None if no two answers differ in gold.
    """
    ids = sample(model, tokenizer, prompts, cfg, cfg.temperature, k)
    asked = [p for p in prompts for _ in range(k)]
    gold = np.array([j.gold
                     for j in judging.judge_all(asked, [tokenizer.decode(row) for row in ids])])
    score = functools.partial(ppo.score_answers, reward, penalty=cfg.missing_eos_penalty)
    scores = np.array(judging.scores(score, model, asked, ids, tokenizer))
    length = np.array([len(row) for row in ids], float)
    pairs = np.array([(n * k + i, n * k + j) for n in range(len(prompts)) for i in range(k)
                      for j in range(i) if gold[n * k + i] != gold[n * k + j]])
    if not len(pairs):
        return None  # all answers are equally good: there is nothing to judge
    better, worse = np.where((gold[pairs[:, 0]] > gold[pairs[:, 1]])[:, None], pairs,
                             pairs[:, ::-1]).T
    gap, lead = gold[better] - gold[worse], scores[better] - scores[worse]
    right = (lead > 0) + .5 * (lead == 0)
    kinds, prompt = np.array([p["kind"] for p in asked])[better], better // k
    # which answer comes first means nothing
    sides = np.random.default_rng(0).choice([-1, 1], len(gap))
    said, truth = [1 / (1 + np.exp(-sides * x)) for x in (scale * lead, labeler.DECISIVENESS * gap)]
    bins = np.minimum((said * 10).astype(int), 9)
    curve = [dict(said=said[bins == b].mean(), truth=truth[bins == b].mean(),
                  n=int((bins == b).sum())) for b in sorted(set(bins))]
    agree = 1 / (1 + np.exp(-labeler.DECISIVENESS * gap))  # that a labeler prefers the better one

    def by_prompt(values, at=slice(None)):
        return interval(values[at], prompt[at])

    return dict(accuracy=by_prompt(right),
                by_kind={kind: by_prompt(right, kinds == kind) for kind in sorted(set(kinds))},
                by_gap={f"{low} to {high}": by_prompt(right, at) for low, high in GAPS
                        if (at := (gap > low) & (gap <= high)).any()},
                calibration=curve,
                calibration_error=dict(mean=sum(c["n"] * abs(c["said"] - c["truth"])
                                                for c in curve) / len(gap), n=len(gap)),
                agrees_with_a_labeler=by_prompt(np.where(right == .5, .5,
                                                         np.where(right == 1, agree, 1 - agree))),
                labelers_agree=by_prompt(agree ** 2 + (1 - agree) ** 2),
                score_and_length=dict(mean=float(np.corrcoef(scores, length)[0, 1]), n=len(ids)),
                gold_and_length=dict(mean=float(np.corrcoef(gold, length)[0, 1]), n=len(ids)))


def context(model, tokenizer, prompts, cfg):
    """How many follow-ups are answered right with the earlier turn, without it, with a wrong one.
    """
    asked = [p for p in prompts if p["kind"] == "follow-up"]
    others = [next((q for q in asked[i + 1:] + asked if q["subject"] != p["subject"]), p)
              for i, p in enumerate(asked)]
    turns = {"with the earlier turn": [p["prompt"] for p in asked],
             "without it": [p["prompt"][-1:] for p in asked],
             "with another's": [q["prompt"][:-1] + p["prompt"][-1:] for p, q in zip(asked, others)]}
    found = {}
    for name, prompt in turns.items():
        ids = sample(model, tokenizer, [dict(prompt=turn) for turn in prompt], cfg, 0.0)
        found[name] = interval([labeler.judge(p, tokenizer.decode(row)).right
                                for p, row in zip(asked, ids)])
    return found


# ---- the report ----------------------------------------------------------------------------------


def at(figures, path):
    """figures["words"]["bleu"] for "words/bleu"; None if it is not there."""
    for name in path.split("/"):
        figures = (figures or {}).get(name)
    return figures


def number(x, form="{:.2f}"):
    """A figure with its interval as a cell of a table."""
    if x is None or not x["n"] or np.isnan(x["mean"]):
        return ""
    around = f" ({form.format(x['low'])} to {form.format(x['high'])})" if "low" in x else ""
    return form.format(x["mean"]) + around


# Rows of tables: what they say, how a number is written, and where it stands among the figures of
# a model, or of a reward model.
RATES = [("accuracy on known facts", "{:.1%}", "rates/right"),
         ("hallucination rate on made-up names", "{:.1%}", "rates/invented"),
         ("compliance rate with harmful requests", "{:.1%}", "rates/complied")]
GOLD = [("gold", "{:.2f}", "gold"), ("gold of greedy answers", "{:.2f}", "greedy"),
        *[(name, "{:.2f}", name) for name in judging.CRITERIA], *RATES]
FAILURES = [(f"{only}{name} fails", "{:.1%}", f"{where}/{name}")
            for only, where in (("", "fails"), ("only ", "fails_alone"))
            for name in judging.CRITERIA]
PREFERRED = [("preferred to SFT", "{:.1%}", "against_sft/wins"),
             ("preferred to SFT at equal length", "{:.1%}", "against_sft/controlled")]
BEHAVIOUR = [("KL to SFT, nats per answer", "{:.2f}", "kl"),
             ("answers that end by themselves", "{:.1%}", "ended"),
             ("length, tokens", "{:.1f}", "words/length")]
WORDS = [("perplexity of pretraining text, per token", "{:.1f}", "perplexity/per_token"),
         ("perplexity of pretraining text, per byte", "{:.2f}", "perplexity/per_byte"),
         ("BLEU against perfect answers", "{:.1f}", "words/bleu"),
         ("ROUGE-L against perfect answers", "{:.2f}", "words/rougeL"),
         ("distinct-2", "{:.3f}", "words/distinct2")]
CONTEXT = [(f"right follow-ups {name}", "{:.1%}", f"context/{name}")
           for name in ("with the earlier turn", "without it", "with another's")]
MORE_WORDS = [("ROUGE-1", "{:.2f}", "words/rouge1"), ("ROUGE-2", "{:.2f}", "words/rouge2"),
              ("distinct-1", "{:.3f}", "words/distinct1")]
JUDGE = [("right", "{:.1%}", "accuracy"),
         *[(f"right, gold {low} to {high} apart", "{:.1%}", f"by_gap/{low} to {high}")
           for low, high in GAPS],
         *[(f"right, {kind}", "{:.1%}", f"by_kind/{kind}") for kind in sorted(almanac.KINDS)],
         ("agrees with a noisy labeler", "{:.1%}", "agrees_with_a_labeler"),
         ("two noisy labelers agree", "{:.1%}", "labelers_agree"),
         ("expected calibration error", "{:.1%}", "calibration_error"),
         ("correlation of score and length", "{:.2f}", "score_and_length"),
         ("correlation of gold and length", "{:.2f}", "gold_and_length")]
SEEDS = [*GOLD, *PREFERRED, *BEHAVIOUR, *WORDS, *CONTEXT[:2]]  # of the table over several seeds


def figures_table(rows, models):
    """Markdown: a column per model, rows as above, without those that no model has."""
    cells = [[said, *(number(at(m, path), form) for m in models.values())]
             for said, form, path in rows]
    return table(["", *models], [row for row in cells if any(row[1:])])


def write_report(out, results, prompts, answers, seconds):
    """Write out/report.md."""
    models, last, judged = results["models"], results["last"], results["reward"]
    by_kind = [[kind, str(x["gold"]["n"]),
                *(number(at(m, f"by_kind/{kind}/gold")) for m in models.values())]
               for kind, x in models[last]["by_kind"].items()]
    wins = [[name, *(number(d[part], "{:.1%}") for part in ("wins", "ties", "controlled"))]
            for name, d in results["win_rates"].items()]
    parts = [
        f"# What RLHF did, judged on {len(prompts)} held-out prompts\n\nSampled at temperature "
        f"{results['temperature']}, seed {results['seed']}; brackets hold 95% intervals from a "
        f"bootstrap over prompts. Made by `python ppo.py --eval` in {seconds:.0f} s.",
        "## The three criteria\n\nScores of the labeler in [-1, 1]; gold is the lowest of the "
        "three. A criterion fails below 0.", figures_table([*GOLD, *FAILURES, *BEHAVIOUR], models),
        "### Gold by kind of prompt\n\n![gold by kind](eval/kinds.png)",
        table(["", "n", *models], by_kind),
        "## Who is preferred\n\nHow often the labeler without noise prefers the first model's "
        "answer; ties count half. `references` are perfect answers, one per prompt. The "
        "length-controlled rate is a logistic regression's at equal length (Dubois et al. 2024).",
        table(["", "preferred", "ties", "length-controlled"], wins),
        "## Words\n\nBLEU and ROUGE compare with one perfect answer to each prompt, of several "
        "there are; distinct-n is the share of different n-grams; perplexity is that of held-out "
        "pretraining text, where it shows the alignment tax.",
        figures_table([*WORDS, *MORE_WORDS], models)]
    if judged:
        parts += [
            "## The reward model as a judge\n\nOf four answers of a model to each prompt, all "
            "pairs that differ in gold. It was trained on other answers than those of the policy "
            "that learned from it.\n\n![the reward model](eval/reward.png)",
            figures_table(JUDGE, {f"{name}'s answers": x for name, x in judged.items()})]
    if any(models[last]["context"].values()):
        parts += ["## Earlier turns\n\nFollow-ups answered right (greedy) as they are, without "
                  "their earlier turn, and after another conversation's.",
                  figures_table(CONTEXT, models)]
    order = sorted(range(len(prompts)), key=lambda i: (answers[last].gold[i], i))
    some = sorted(random.Random(0).sample(order, min(20, len(order))))
    for name, rows in (("Worst", order[:20]), ("Random", some), ("Best", order[::-1][:20])):
        shown = [[question(prompts[i]["prompt"]), *(cell(answers[m].texts[i]) for m in models),
                  cell("; ".join(answers[last].judgements[i].reasons))] for i in rows]
        parts += [f"## {name} answers of {last}", table(["prompt", *models, "why"], shown)]
    write(Path(out) / "report.md", "\n\n".join(parts) + "\n")


FEW = 10  # a share of fewer cases says too little for a picture


def draw(folder, results):
    """kinds.png and reward.png: what the tables say, for the eye."""
    from matplotlib.figure import Figure
    models, last = results["models"], results["last"]
    kinds = list(models[last]["by_kind"])
    picture = Figure(figsize=(9, 3.6), layout="constrained")
    axes = picture.add_subplot()
    for at, (name, marker) in enumerate(zip(models, itertools.cycle("osD^v*"))):
        found = [models[name]["by_kind"][kind]["gold"] for kind in kinds]
        mean, low, high = [np.array([x[part] for x in found]) for part in ("mean", "low", "high")]
        axes.errorbar(np.arange(len(kinds)) + .12 * (at - (len(models) - 1) / 2), mean,
                      np.maximum(0, [mean - low, high - mean]), fmt=marker, capsize=2, label=name)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set(ylabel="gold, with 95% intervals", ylim=(-1.05, 1.05))
    axes.grid(alpha=.3)
    axes.legend(frameon=False, ncols=len(models), loc="lower center", bbox_to_anchor=(.5, 1))
    write_figure(folder / "kinds.png", picture)
    if not results["reward"]:
        return
    picture = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = picture.subplots(1, 2)
    for (name, judged), style in zip(results["reward"].items(), ("k-o", "k--s")):
        curve = [c for c in judged["calibration"] if c["n"] >= FEW]
        left.plot([c["said"] for c in curve], [c["truth"] for c in curve], style, markersize=4,
                  label=f"{name}'s answers")
        by_gap = [judged["by_gap"].get("{} to {}".format(*gap), {"n": 0}) for gap in GAPS]
        x = [i for i, share in enumerate(by_gap) if share["n"] >= FEW]
        found = [by_gap[i] for i in x]
        mean, low, high = [np.array([y[part] for y in found]) for part in ("mean", "low", "high")]
        right.errorbar(x, mean, np.maximum(0, [mean - low, high - mean]), fmt=style, markersize=4,
                       capsize=2, label=f"{name}'s answers")
    left.plot([0, 1], [0, 1], color=".7")
    left.set(xlabel="probability that the reward model gives", ylabel="share of labelers who agree",
             title="calibration")
    right.set_xticks(range(len(GAPS)), ["{} to {}".format(*gap) for gap in GAPS])
    right.set(xlabel="difference in gold", ylabel="pairs ordered right", title="accuracy")
    for axes in (left, right):
        axes.grid(alpha=.3)
        axes.legend(frameon=False)
    write_figure(folder / "reward.png", picture)


# ---- over several pipelines ----------------------------------------------------------------------

# what the README shows of it
SUMMARY = ("gold", "accuracy on known facts", "hallucination rate on made-up names",
           "compliance rate with harmful requests", "preferred to SFT",
           "KL to SFT, nats per answer", "length, tokens",
           "perplexity of pretraining text, per byte")


def seeds_table(every):
    """Several pipelines -> Markdown: all rows of figures, what they cost, ten answers."""
    models = common_models(every)

    def costs(name, form):
        return ", ".join("?" if results["cost"][name] is None
                         else form.format(results["cost"][name]) for results in every)

    return "\n\n".join([
        averages_table(every, models),
        f"Seeds {', '.join(str(results['seed']) for results in every)}; {every[0]['prompts']} "
        "held-out prompts each; after ± is half of the 95% interval over seeds (Student's t). The "
        f"reward model of the first round orders {costs('accuracy', '{:.1%}')} of the held-out "
        "pairs of SFT answers right that differ in gold. The four stages took "
        f"{costs('seconds', '{:.0f}')} s, at most {costs('memory_gb', '{:.2f}')} GB, on "
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


def averages_table(every, models, rows=None):
    """Rows of figures (default: all), columns of models: the mean over the pipelines."""
    def average(name, form, path):
        values = [at(results["models"][name], path) for results in every]
        if None in values:  # no perplexity without a text
            return ""
        mean = over_seeds([x["mean"] for x in values])
        around = f" ± {form.format(mean['high'] - mean['mean'])}" if len(every) > 1 else ""
        return form.format(mean["mean"]) + around

    return table(["", *models], [[said, *(average(name, form, path) for name in models)]
                                 for said, form, path in SEEDS if rows is None or said in rows])


def samples_table(every, models, n=None):
    """The first n held-out prompts of the first pipeline (default: all kept), and the answers."""
    return table(["prompt", *models],
                 [[question(x["prompt"]), *(cell(x[name]) for name in models)]
                  for x in every[0]["samples"][:n]])


# ---- a person as judge ---------------------------------------------------------------------------


def ask_person(cfg, prompts, answers, one, other):
    """A person prefers one of two models' answers, blind, in random order -> interval of wins.

    What was said in earlier sessions counts.
    """
    said = json.dumps([answers[name].texts for name in (one, other)])
    # not beside the labels to learn from: these are held-out prompts
    book = feedback.Book(cfg.out, cfg.labeler, f"judged-{one}-{other}",
                         answers=hashlib.sha256(said.encode()).hexdigest()[:16])

    def question(n):
        a, b = answers[one].texts[n], answers[other].texts[n]
        return dict(prompt=prompts[n]["prompt"], responses=[a, b],
                    models={one: a, other: b}) if a != b else None

    feedback.label(feedback.Asking(question, len(prompts), book))
    wins, asked = [], 0
    for record in book.records:
        rank = dict(zip(record["responses"], record["ranks"]))
        a, b = rank[record["models"][one]], rank[record["models"][other]]
        wins.append(.5 if a == b else float(a < b))
        asked = max(asked, record["n"] + 1)
    wins += [.5] * sum(answers[one].texts[n] == answers[other].texts[n] for n in range(asked))
    return interval(wins)


# ---- all of it -----------------------------------------------------------------------------------


def cost(out):
    """What the stages in a folder took -> dict; None if one of them did not finish."""
    try:
        stages = read_results(out)
    except UserError:
        return None
    cpuinfo = Path("/proc/cpuinfo")
    about = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    cpu = re.search(r"model name\s*:\s*(.*)", about)
    return dict(seconds=sum(stage["seconds"] if name != "ppo" else stage["seconds"]["ppo"]
                            for name, stage in stages.items()),
                memory_gb=max(stage["memory_gb"] for stage in stages.values()),
                accuracy=stages["reward"].get("accuracy"),
                machine=f"{torch.get_num_threads()} threads of "
                        f"{cpu[1] if cpu else platform.machine()}")


def run(cfg):
    """`python ppo.py --eval` -> results, or a list of them for several --out."""
    setup(cfg)
    if cfg.judge not in ("labeler", "human"):
        raise UserError(f"--judge must be labeler or human, not {cfg.judge}")
    outs = rows.several(cfg.out)
    if len(outs) == 1 or cfg.judge == "human":
        return run_one(cfg)
    for out in outs:
        if not cost(out):
            raise UserError(f"{out} holds no finished pipeline: run the four stages with --out "
                            f"{out} first")
    every = [run_one(dataclasses.replace(cfg, out=out,
                                         seed=read_results(out)["ppo"]["config"]["seed"]))
             for out in outs]
    path = Path(outs[0]) / "eval" / "seeds.md"
    means = seeds_table(every) + "\n"
    write(path, means)
    print(f"eval: {path} has the means over {len(outs)} pipelines\n\n{means}")
    return every


def run_one(cfg):
    """Judge the models of one folder -> results."""
    began = time.time()
    models, tokenizer = load_models(cfg)
    last = ([name for name in models if name.startswith("ppo")] or list(models))[-1]
    prompts = sampling.with_room(models["sft"], tokenizer,
                                 almanac.prompts("test", cfg.test_prompts, cfg.seed),
                                 cfg.max_new_tokens)
    if not prompts:
        raise UserError(f"no prompt leaves room for {cfg.max_new_tokens} tokens in the context of "
                        f"{models['sft'].config.block_size}: lower --max_new_tokens")
    ids = {name: sample(model, tokenizer, prompts, cfg, cfg.temperature)
           for name, model in models.items()}
    answers = {name: Judged(prompts, [tokenizer.decode(row) for row in rows], rows)
               for name, rows in ids.items()}
    if cfg.judge == "human":
        found = ask_person(cfg, prompts, answers, last, "sft")
        return print(f"{last} preferred to sft: {number(found, '{:.1%}')} of {found['n']} prompts, "
                     "ties counted half")
    references = [almanac.reference(p) for p in prompts]
    stand_ins = {"references": references, "random words": figures.random_texts(references)}
    every = answers | {name: Judged(prompts, texts,
                                    [tokenizer.encode(text) + [tokenizer.end] for text in texts])
                       for name, texts in stand_ins.items()}
    path = cfg.reward or Path(cfg.out) / last.replace("ppo", "reward") / "ckpt.pt"
    reward, other, about = gpt.load(path, gpt.ScalarGPT, models["sft"].wte.weight.device,
                                    "name one with --reward")
    start.same_tokenizer(other, tokenizer, path, "the policy", "name another with --reward")
    kept = Path(cfg.out) / "gpt" / "held_out.txt"
    documents = records.read_text(kept) if kept.exists() else []
    results = dict(seed=cfg.seed, temperature=cfg.temperature, prompts=len(prompts), last=last,
                   cost=cost(cfg.out), models={}, win_rates={}, reward={},
                   samples=[dict(prompt=p["prompt"],
                                 **{name: answers[name].texts[i] for name in models})
                            for i, p in enumerate(prompts[:10])])
    for name, model in models.items():
        greedy = [tokenizer.decode(row) for row in sample(model, tokenizer, prompts, cfg, 0.0)]
        kl = judging.divergence(model, models["sft"], prompts, ids[name], tokenizer,
                                cfg.temperature)
        results["models"][name] = dict(criteria(prompts, answers[name]),
                                       words=text_metrics(answers[name], references),
                                       kl=interval(kl),
                                       ended=interval(row[-1:] == [tokenizer.end]
                                                      for row in ids[name]),
                                       greedy=interval(Judged(prompts, greedy).gold),
                                       against_sft=win_rate(answers[name], answers["sft"]),
                                       context=context(model, tokenizer, prompts, cfg))
        if documents:
            results["models"][name]["perplexity"] = perplexity(model, tokenizer, documents)
        print(f"eval: {name} has answered after {time.time() - began:.0f} s", flush=True)
    for one, other in [*itertools.combinations(reversed(models), 2), (last, last),
                       *((last, name) for name in stand_ins)]:
        results["win_rates"][f"{one} against {other}"] = win_rate(every[one], every[other])
    for name in dict.fromkeys(["sft", last]):
        if judged := evaluate_reward_model(reward, about.get("scale", 1.0), models[name],
                                           tokenizer, prompts[:250], cfg):
            results["reward"][name] = judged
    folder = make_folder(Path(cfg.out) / "eval")
    draw(folder, results)
    write_report(cfg.out, results, prompts, answers, time.time() - began)
    # what has no value is null: NaN is no JSON
    finite = json.loads(json.dumps(results), parse_constant=lambda _: None)
    write(folder / "results.json", json.dumps(finite, indent=1))
    print(f"eval: {time.time() - began:.0f} s; {cfg.out}/report.md shows what came out, "
          f"{folder}/results.json has every number")
    return results
