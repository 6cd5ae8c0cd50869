"""`python ppo.py --eval` judges all models of a run on the same held-out prompts.

    out/report.md            the tables, the picture, and samples: best, worst, random
    out/eval/results.json    every number with its n; means with their 95% interval
    out/eval/reward.png      the reward model as a judge

For several pipelines, `--out out/1,out/2,out/3`, it judges each, and then averages over them:

    out/1/eval/seeds.md      the table of RESULTS.md: means over the pipelines with 95% intervals

Each model is sampled from the same seed, and each interval is drawn from the same seed, so the
order of the models changes nothing. Intervals are from a bootstrap over what prompts are about.
"""

import dataclasses
import functools
import itertools
import json
import platform
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
from data.judge import figures, ratings
from data.judge.figures import interval
from data.judge.tables import DISTANCES, GAPS, TURNS, gap_name, seeds_table, write_report
from data.run.cli import Asking, flag
from data.run.device import setup
from data.run.disk import make_folder, read_results, write, write_figure
from data.run.system import UserError
from data.world import almanac, labeler


@dataclass
class Config(Asking):
    """The flags of the evaluation."""

    test_prompts: int = flag(1000, "held-out prompts", least=1, group="evaluation")
    temperature: float = flag(0.7, "of sampling")
    max_new_tokens: int = flag(40, "longest answer", least=1)
    missing_eos_penalty: float = flag(-2.0, "score of an answer that is empty or never ends")
    init: str = flag("", "SFT model (default: sft/ckpt.pt in --out)")
    reward: str = flag("", "reward model (default: that of the newest policy's round)")
    policies: str = flag("", "further policies, name=checkpoint, separated by commas")


# ---- models and their answers --------------------------------------------------------------------


def load_models(cfg, device):
    """A run's models and those of --policies -> ({name: GPT}, tokenizer, the newest's name)."""
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
    if len(paths) < 2:
        raise UserError(f"{out} holds one model: run python ppo.py, or name others with --policies")
    models, tokenizers = {}, {}
    for name, path in paths.items():
        hint = start.hint("sft") if name == "sft" else ""
        models[name], tokenizers[name], _ = gpt.load(path, gpt.GPT, device, hint)
    for name, path in paths.items():
        start.same_tokenizer(tokenizers[name], tokenizers["sft"], path, paths["sft"],
                             "its answers cannot be compared")
    last = ([name for name in models if re.fullmatch(r"ppo(-\d+)?", name)] or list(models))[-1]
    return models, tokenizers["sft"], last


def held_out_prompts(cfg, model, tokenizer):
    """Prompts of the test split that leave room to answer."""
    prompts = almanac.prompts("test", cfg.test_prompts, cfg.seed, cfg.topic)
    prompts = sampling.with_room(model, tokenizer, prompts, cfg.max_new_tokens)
    if not prompts:
        raise UserError(f"no prompt leaves room for {cfg.max_new_tokens} tokens in the context of "
                        f"{model.config.block_size}: lower --max_new_tokens")
    return prompts


# ---- figures of a model: {name: a dict as `interval` gives it} -----------------------------------


def intervals(columns):
    """{column: its mean with an interval} over the prompts that give occasion.

    `topic` names what each prompt is about: answers to prompts about one thing are alike, so the
    bootstrap draws topics, each with all its prompts.
    """
    topics, found = np.array(columns["topic"]), {}
    for name, column in columns.items():
        if name != "topic":
            values = np.array(column, float)
            occasion = ~np.isnan(values)
            found[name] = interval(values[occasion], topics[occasion])
    return found


def topics(prompts):
    """What each prompt is about."""
    return [f"{p['kind']} {p['subject']} {p['relation']}" for p in prompts]


def failures(columns):
    """How often each criterion fails, and how often it alone -> columns of 0 and 1."""
    fails = {name: [x < 0 for x in columns[name]] for name in judging.CRITERIA}
    count = list(map(sum, zip(*fails.values())))
    return {f"{name} fails": column for name, column in fails.items()} | {
        f"only {name} fails": [x and n == 1 for x, n in zip(column, count)]
        for name, column in fails.items()}


def text_metrics(texts, references, topics):
    """Answers against reference answers, and how varied they are."""
    rouge = [figures.rouge(a, r) for a, r in zip(texts, references)]
    return dict(bleu=figures.bleu_interval(texts, references),
                **{name: interval([r[name] for r in rouge], topics) for name in rouge[0]},
                **{f"distinct{n}": dict(mean=figures.distinct(texts, n), n=len(texts))
                   for n in (1, 2)})


def perplexity(model, tokenizer, documents):
    """Of held-out pretraining text, per token, and per byte: the latter compares tokenizers."""
    if not documents:
        return {}
    ids = gpt.one_stream(documents, tokenizer, model.wte.weight.device)
    nats = gpt.evaluate(model, ids)
    size = sum(len(d.encode()) for d in documents)
    return dict(perplexity_per_token=dict(mean=float(np.exp(nats)), n=len(ids)),
                perplexity_per_byte=dict(mean=float(np.exp(nats * len(ids) / size)), n=size))


def preference(one, other):
    """How often the labeler prefers one model's answers (columns) to another's; ties count half.

    Both as it is, and with control for length; and how often those do who weigh otherwise, from
    whose rankings nothing was learned (Ouyang et al. 2022, section 4.1).
    """
    wins = np.array(judging.wins(one["gold"], other["gold"]))
    longer = np.array(one["length"], float) - other["length"]
    return dict(preferred=interval(wins, one["topic"]), ties=interval(wins == .5, one["topic"]),
                controlled=figures.length_controlled(wins, longer),
                **{f"preferred by {group}": interval(judging.wins(one[group], other[group]),
                                                     one["topic"]) for group in labeler.WEIGHTS})


def preferences(columns, models, last, stand_ins):
    """Of any two models; of the last against itself and stand-ins -> {"a against b": ...}."""
    versus = [*itertools.combinations(reversed(models), 2), (last, last),
              *((last, name) for name in stand_ins)]
    return {f"{one} against {other}": preference(columns[one], columns[other])
            for one, other in versus}


def context(name, model, tokenizer, prompts, cfg):
    """How many follow-ups are answered right with the earlier turns, without, with wrong ones.

    By how many turns back it is said what is meant.
    """
    follow_ups = [p for p in prompts if p["kind"] == "follow-up"]
    others = [next((q for q in follow_ups[i + 1:] + follow_ups if q["subject"] != p["subject"]), p)
              for i, p in enumerate(follow_ups)]
    turns = dict(zip(TURNS, ([p["prompt"] for p in follow_ups],
                             [p["prompt"][-1:] for p in follow_ups],
                             [q["prompt"][:-1] + p["prompt"][-1:]
                              for p, q in zip(follow_ups, others)])))
    topic, distance = np.array(topics(follow_ups)), np.array([p["distance"] for p in follow_ups])
    figures = {}
    for kind, conversations in turns.items():
        asked = [dict(p, prompt=turn) for p, turn in zip(follow_ups, conversations)]
        ids = judging.respond(name, model, tokenizer, asked, cfg, 0.0)
        texts = [tokenizer.decode(row) for row in ids]
        right = np.array(judging.labels(follow_ups, texts).get("right", []))
        for n, back in enumerate(DISTANCES, start=1):
            if (at := distance == n).any():
                figures[f"context {kind}, {back}"] = interval(right[at], topic[at])
    return figures


def evaluate_reward_model(score, scale, model, tokenizer, prompts, cfg, k=4):
    """Ask the reward model about k answers of one model to each prompt: is it right? is it sure?

    The truth of a pair is the share of noisy labelers who prefer its first answer,
    sigmoid(decisiveness * gap in gold). scale: the reward model's scores times it are the log-odds
    that it was trained on. None if no two answers differ in gold.
    """
    torch.manual_seed(cfg.seed)
    ids = sampling.sample(model, tokenizer, prompts, cfg.max_new_tokens, cfg.temperature, k)
    repeated = [p for p in prompts for _ in range(k)]
    gold = np.array(judging.labels(repeated, [tokenizer.decode(row) for row in ids])["gold"])
    scores = np.array(judging.scores(score, model, repeated, ids, tokenizer))
    length = np.array([len(row) for row in ids], float)
    pairs = np.array([(n * k + i, n * k + j) for n in range(len(prompts)) for i in range(k)
                      for j in range(i) if gold[n * k + i] != gold[n * k + j]])
    if not len(pairs):
        return None
    better, worse = np.where((gold[pairs[:, 0]] > gold[pairs[:, 1]])[:, None], pairs,
                             pairs[:, ::-1]).T
    gap, lead = gold[better] - gold[worse], scores[better] - scores[worse]
    right = (lead > 0) + .5 * (lead == 0)
    kinds, prompt = np.array([p["kind"] for p in repeated])[better], better // k
    # which answer comes first means nothing
    sides = np.random.default_rng(0).choice([-1, 1], len(gap))
    claimed, truth = [1 / (1 + np.exp(-sides * x))
                      for x in (scale * lead, labeler.DECISIVENESS * gap)]
    bins = np.minimum((claimed * 10).astype(int), 9)
    curve = [dict(claimed=claimed[bins == b].mean(), truth=truth[bins == b].mean(),
                  n=int((bins == b).sum())) for b in sorted(set(bins))]
    error = sum(c["n"] * abs(c["claimed"] - c["truth"]) for c in curve) / len(gap)
    agree = 1 / (1 + np.exp(-labeler.DECISIVENESS * gap))  # that a labeler prefers the better one

    def by_prompt(values, at=slice(None)):
        return interval(values[at], prompt[at])

    return {"accuracy": by_prompt(right), "calibration": curve,
            **{f"accuracy, {kind}": by_prompt(right, kinds == kind) for kind in sorted(set(kinds))},
            **{gap_name(*ends): by_prompt(right, at) for ends in GAPS
               if (at := (gap > ends[0]) & (gap <= ends[1])).any()},
            "calibration_error": dict(mean=error, n=len(gap)),
            "agrees_with_a_labeler": by_prompt(right * agree + (1 - right) * (1 - agree)),
            "labelers_agree": by_prompt(agree ** 2 + (1 - agree) ** 2),
            "score_and_length": dict(mean=float(np.corrcoef(scores, length)[0, 1]), n=len(ids)),
            "gold_and_length": dict(mean=float(np.corrcoef(gold, length)[0, 1]), n=len(ids))}


# ---- pictures ------------------------------------------------------------------------------------

FEW = 10  # a share of fewer cases says too little for a picture


def draw(folder, judges):
    """reward.png: what the reward model's table says, for the eye."""
    from matplotlib.figure import Figure
    picture = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = picture.subplots(1, 2)
    for (name, judge), style in zip(judges.items(), ("k-o", "k--s")):
        curve = [c for c in judge["calibration"] if c["n"] >= FEW]
        left.plot([c["claimed"] for c in curve], [c["truth"] for c in curve], style, markersize=4,
                  label=f"{name}'s answers")
        points = [(i, judge.get(gap_name(*ends), {"n": 0})) for i, ends in enumerate(GAPS)]
        errorbars(right, [(i, x) for i, x in points if x["n"] >= FEW], style, f"{name}'s answers")
    left.plot([0, 1], [0, 1], color=".7")
    left.set(xlabel="probability that the reward model gives", ylabel="share of labelers who agree",
             title="calibration")
    right.set_xticks(range(len(GAPS)), [f"{low} to {high}" for low, high in GAPS])
    right.set(xlabel="difference in gold", ylabel="pairs ordered right", title="accuracy")
    for axes in (left, right):
        axes.grid(alpha=.3)
        axes.legend(frameon=False)
    write_figure(folder / "reward.png", picture)


def errorbars(axes, points, style, label):
    """Draw [(x, a mean with its interval)]."""
    below, above = [[abs(x[end] - x["mean"]) for _, x in points] for end in ("low", "high")]
    axes.errorbar([x for x, _ in points], [x["mean"] for _, x in points], [below, above], fmt=style,
                  markersize=4, capsize=2, label=label)


# ---- all of it -----------------------------------------------------------------------------------


def cost(out):
    """What the stages in a folder took -> dict; None if not all have finished with this code."""
    try:
        stages = read_results(out)
        seconds = sum(stage["seconds"] for stage in stages.values())
    except (UserError, TypeError):
        return None
    return dict(seconds=seconds,
                memory_gb=max(stage["memory_gb"] for stage in stages.values()),
                accuracy_gold=stages["reward"].get("accuracy_gold"),
                machine=f"{torch.get_num_threads()} threads of {processor()}")


def processor():
    """The name of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    name = re.search(r"model name\s*:\s*(.*)", text)
    return name[1] if name else platform.machine()


def run(cfg):
    """`python ppo.py --eval` -> results, or a list of them for several --out."""
    device, outs = setup(cfg), rows.several(cfg.out)
    if len(outs) == 1:
        return run_one(cfg, device)
    for out in outs:
        if not cost(out):
            raise UserError(f"{out} holds no finished pipeline: run the stages with --out {out}")
    every = [run_one(dataclasses.replace(cfg, out=out,
                                         seed=read_results(out)["ppo"]["config"]["seed"]), device)
             for out in outs]
    path, means = Path(outs[0]) / "eval" / "seeds.md", seeds_table(every) + "\n"
    write(path, means)
    print(f"eval: {path} has the means over {len(outs)} pipelines\n\n{means}")
    return every


def run_one(cfg, device):
    """Judge the models of one folder -> results."""
    began, out = time.time(), Path(cfg.out)
    models, tokenizer, last = load_models(cfg, device)
    prompts = held_out_prompts(cfg, models["sft"], tokenizer)
    score, scale = load_score(cfg, last, tokenizer, device)
    text = out / "gpt" / "held_out.txt"
    documents = records.read_text(text) if text.exists() else []

    # 1. One table of columns per model, and of texts in the place of a model's.
    texts, columns, greedy = {}, {}, {}
    for name in models:
        texts[name], columns[name] = judging.judge(name, models, score, prompts, tokenizer, cfg,
                                                   cfg.temperature)
        columns[name]["topic"] = topics(prompts)
        _, greedy[name] = judging.judge(name, models, None, prompts, tokenizer, cfg, 0.0)
        print(f"eval: {name} has answered after {time.time() - began:.0f} s", flush=True)
    references = [almanac.reference(p) for p in prompts]
    stand_ins = {"references": references, "random words": figures.random_texts(references)}
    for name, answers in stand_ins.items():
        length = [len(tokenizer.encode(text)) + 1 for text in answers]
        columns[name] = dict(judging.labels(prompts, answers), length=length,
                             topic=topics(prompts))

    # 2. Figures: means of columns with their intervals, and those of all texts together.
    samples = [dict(prompt=p["prompt"], **{name: texts[name][i] for name in models})
               for i, p in enumerate(prompts[:10])]
    results = dict(seed=cfg.seed, temperature=cfg.temperature, prompts=len(prompts), last=last,
                   cost=cost(out), models={}, reward={}, people="", samples=samples)
    for name, model in models.items():
        results["models"][name] = dict(
            model_figures(prompts, texts[name], columns[name], greedy[name], references),
            **preference(columns[name], columns["sft"]), **perplexity(model, tokenizer, documents),
            **context(name, model, tokenizer, prompts, cfg))
    results["preferences"] = preferences(columns, list(models), last, list(stand_ins))
    for name in dict.fromkeys(["sft", last]):
        if judge := evaluate_reward_model(score, scale, models[name], tokenizer, prompts[:250],
                                          cfg):
            results["reward"][name] = judge
    if rated := ratings.read(out, models, cfg.temperature):
        results["people"] = ratings.table(rated)
    write_all(out, results, prompts, texts, columns, time.time() - began)
    return results


def model_figures(prompts, texts, columns, greedy, references):
    """The figures that follow from a model's answers alone."""
    return dict(intervals({**columns, **failures(columns)}),
                greedy=interval(greedy["gold"], columns["topic"]),
                greedy_right=intervals(dict(x=greedy["right"], topic=columns["topic"]))["x"],
                **text_metrics(texts, references, columns["topic"]),
                by_kind=judging.by_kind(prompts, columns, intervals))


def load_score(cfg, last, tokenizer, device):
    """The reward model of the newest policy -> (score(idx, lengths, mask), scale)."""
    name = last.replace("ppo", "reward") if last.startswith("ppo") else "reward"
    path = cfg.reward or Path(cfg.out) / name / "ckpt.pt"
    reward, other, about = gpt.load(path, gpt.ScalarGPT, device, "name one with --reward")
    start.same_tokenizer(other, tokenizer, path, "the policy", "name another with --reward")
    score = functools.partial(ppo.score_answers, reward, penalty=cfg.missing_eos_penalty)
    return score, about.get("scale", 1.0)


def write_all(out, results, prompts, texts, columns, seconds):
    """The picture, the tables, every number."""
    folder = make_folder(out / "eval")
    if results["reward"]:
        draw(folder, results["reward"])
    write_report(out, results, prompts, texts, columns, seconds)
    # what has no value is null: NaN is no JSON
    finite = json.loads(json.dumps(results), parse_constant=lambda _: None)
    write(folder / "results.json", json.dumps(finite, indent=1))
    print(f"eval: {seconds:.0f} s; see {out}/report.md; {folder}/results.json has every number")
