"""The long sweeps behind the README's tables and pictures, one command each.

    python -m notebooks.experiments options OUT ...            PPO's options, a PPO run each
    python -m notebooks.experiments details OUT ...            what is always on, taken away
    python -m notebooks.experiments rounds OUT ...             what further rounds brought
    python -m notebooks.experiments feedback OUT ...           what feedback buys: RM and PPO each
    python -m notebooks.experiments groups OUT ...             whose rankings, and a fault of theirs
    python -m notebooks.experiments sources OUT ...            what else the world gives away
    python -m notebooks.experiments after OUT ...              DPO, RLOO, GRPO and others
    python -m notebooks.experiments reading OUT ...            the second topic, all four stages
    python -m notebooks.experiments ensembles OUT ...          several reward models
    python -m notebooks.experiments best_of_n OUT ...          the baseline without training
    python -m notebooks.experiments overoptimisation OUT ...   how far to trust a reward model
    python -m notebooks.experiments story OUT                  the README's picture of all rounds
    python -m notebooks.experiments healthy OUT                the run behind a reader's curves
    python -m notebooks.experiments all OUT                    all of it, into notebooks/results

OUT is the folder of a finished pipeline (--out of the four stages): out/1 out/2 out/3. Each prints
a Markdown table and writes its figures, and its picture if there is one, beside the first pipeline,
in experiments/. Finished runs are kept: a second call continues. Every file names the code that it
was made with, without its docstrings. `all` trains the pipelines, too, into OUT/1, OUT/2 and OUT/4
to OUT/6: it takes many hours.
"""

import data.run.system  # before torch, as in the stages

import argparse
import ast
import collections
import contextlib
import functools
import json
import math
import shutil
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import gpt
import ppo
import reward
import sft
from data import optim, sampling
from data.files import records as files
from data.files import rows
from data.judge import answers as judging
from data.judge import report
from data.judge.figures import markdown
from data.run import curves as drawn
from data.run.cli import polite
from data.run.disk import read_json, read_results, write_figure
from data.run.lineage import fingerprint
from data.run.run import in_round, time_left
from data.run.system import UserError
from data.world import almanac, labeler
from notebooks import after, ensemble

ROOT = Path(__file__).parent.parent
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)

# ---- running and reporting -----------------------------------------------------------------------


@dataclass
class Trial:
    """A way from a finished pipeline's SFT model to a policy: what differs from the default."""

    name: str
    # fields of ppo.Config; {root} stands for the pipeline's folder
    ppo: dict = field(default_factory=dict)
    # pipeline folder -> records to learn the reward model from; None: its own
    comparisons: object = None
    # what of the code is replaced meanwhile: "module.name" -> value
    patch: dict = field(default_factory=dict)
    # stages before PPO that run again: {stage: fields of its Config}, with {root} as in ppo
    again: dict = field(default_factory=dict)
    # pipeline folder -> demonstrations to fine-tune the SFT model on; PPO only with a reward model
    demonstrations: object = None


FIGURES = {
    "gold": lambda r: r["ppo"]["ppo"]["gold"],
    "by careful labelers": lambda r: r["ppo"]["win_rates"]["careful"],
    "by eager labelers": lambda r: r["ppo"]["win_rates"]["eager"],
    "length": lambda r: r["ppo"]["ppo"]["length"],
    "preferred to SFT": lambda r: r["ppo"]["win_rate"],
    "KL, nats": lambda r: r["ppo"]["kl"],
    "loss on pretraining text": lambda r: r["ppo"]["ppo"]["text_loss"],
    "RM accuracy": lambda r: r["accuracy_gold"],
}


@functools.cache
def held_out_rankings(root):
    """Four ranked answers of a pipeline's SFT model to each of 500 held-out prompts.

    They are the same for all reward models of the pipeline.
    """
    model, tokenizer, _ = gpt.load(root / "sft" / "ckpt.pt")
    torch.manual_seed(0)
    records = answers_of(model, tokenizer, almanac.prompts("test", 500, "experiments"))
    return tokenizer, reward.compare(records, np.random.default_rng(0))


def answers_of(model, tokenizer, prompts, k=4):
    """The prompts that leave room, each with `responses`: K answers of a model."""
    cfg = reward.Config(k=k)
    prompts = sampling.with_room(model, tokenizer, prompts, cfg.max_new_tokens)
    return reward.respond([model], tokenizer, prompts, cfg)


def accuracy(root, paths, caution=0.0):
    """Of reward models "a.pt,b.pt" together: share of held-out pairs that they order as gold does.
    """
    _, records = held_out_rankings(root)
    _, tokenizer, _ = gpt.load(rows.several(paths)[0], gpt.ScalarGPT)  # a trial may have its own
    members, _ = ensemble.load(paths, tokenizer)
    known = [(r, e) for r in records
             if (e := reward.encode(tokenizer, r, members[0].config.block_size))]
    judge = ensemble.Ensemble(members, caution)
    return reward.evaluate(judge, *zip(*known), "cpu")["accuracy_gold"]


def file_name(name):
    return "".join(c if c.isalnum() else "-" for c in name)


def place(out, root, stages):
    """Make a folder in which these stages are those of the pipeline -> its path."""
    out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if not (out / stage).exists():
            (out / stage).symlink_to((root / stage).resolve())
    return out


def claimed(out):
    """A folder for what the code of today makes; UserError if other code has begun it."""
    made_by = out / "code"
    if made_by.exists() and made_by.read_text() != code_hash():
        raise UserError(f"{out} was made by other code: remove it, or use other pipelines")
    out.mkdir(parents=True, exist_ok=True)
    made_by.write_text(code_hash())
    return out


def trained(module, name, **flags):
    """Train a stage into the folder `name` of out, unless that is done."""
    if not (Path(flags["out"]) / name / "results.json").exists():
        module.train(module.Config(**flags))


def in_root(fields, root):
    """Fields of a Config, with a pipeline's folder in the place of {root}."""
    return {name: value.format(root=root) if isinstance(value, str) else value
            for name, value in fields.items()}


def run(trial, root, experiment, figures):
    """Carry out a trial on one pipeline, unless it is done -> results and log of ppo.py.

    With the reward model's accuracy, if that is asked for.
    """
    out = claimed(root / experiment / file_name(trial.name))
    common = dict(out=str(out), seed=read_results(root)["ppo"]["config"]["seed"])
    changes, stages = in_root(trial.ppo, root), {
        stage: in_root(fields, root) for stage, fields in trial.again.items()}
    if trial.comparisons:
        stages["reward"] = dict(data=written(out, "comparisons", trial.comparisons, root))
    if trial.demonstrations:
        stages["sft"] = dict(data=written(out, "demonstrations", trial.demonstrations, root),
                             init=str(root / "sft" / "ckpt.pt"), steps=140, lr=5e-4)
    place(out, root, [name for name in ("gpt", "sft", "reward") if name not in stages])
    with contextlib.ExitStack() as patched:
        for target, new in trial.patch.items():
            patched.enter_context(mock.patch(target, new))
        for module in (gpt, sft, reward):
            name = module.__name__
            if name in stages:
                trained(module, name, **common, **stages[name])
        if not (out / "ppo" / "results.json").exists():
            if trial.demonstrations and "reward" not in stages:
                return dict(ppo=against_sft(root, out / "sft" / "ckpt.pt", trial.ppo["split"]))
            module = ensemble if "," in changes.get("reward", "") else ppo
            module.train(module.Config(**common, **changes))
    results = dict(ppo=read_json(out / "ppo" / "results.json"),
                   log=read_json(out / "ppo" / "log.jsonl", lines=True))
    if trial.demonstrations:  # its own SFT model is another than the pipeline's
        results["ppo"] = against_sft(root, out / "ppo" / "ckpt.pt", trial.ppo["split"])
    if "RM accuracy" in figures:
        results["accuracy_gold"] = accuracy(root, changes.get("reward", out / "reward" / "ckpt.pt"),
                                       changes.get("caution", 0.0))
    return results


def written(out, name, records, root):
    """The path of a trial's records (records(root) makes them), written once."""
    path = out / f"{name}.jsonl"
    if not path.exists():
        files.write_jsonl(path, records(root))
    return str(path)


def against_sft(root, path, split):
    """A model beside the pipeline's SFT model, as ppo.py compares them at its end -> results."""
    cfg = ppo.Config(seed=read_results(root)["ppo"]["config"]["seed"])
    model, tokenizer, _ = gpt.load(path)
    models = {"sft": gpt.load(root / "sft" / "ckpt.pt")[0], "ppo": model}
    prompts = almanac.prompts(split, SHORT["test_prompts"], cfg.seed)
    prompts = sampling.with_room(model, tokenizer, prompts, cfg.max_new_tokens)
    return judging.compare_models(models, None, prompts, tokenizer, cfg)[0]


@functools.cache
def code_hash():
    """16 digits for the code that decides figures: stages, optimisers, sampling, world and judge.

    Docstrings, comments and layout do not count, nor do data/files/, reports and these sweeps.
    """
    parts = []
    for path in sorted([*ROOT.glob("*.py"), *(ROOT / "data").glob("*.py"),
                        *(ROOT / "data" / "world").glob("*.py"),
                        ROOT / "data" / "judge" / "answers.py",
                        ROOT / "data" / "judge" / "figures.py"]):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
                del node.body[0]
        parts.append(f"{path.relative_to(ROOT)} {ast.unparse(tree)}")
    return fingerprint("\n".join(parts))


def sweep(trials, roots, experiment, figures):
    """Carry out trials on all pipelines -> {trial: {figure: one number per pipeline}}; kept as
    JSON.
    """
    found = {}
    for trial in trials:
        results = [run(trial, root, experiment, figures) for root in roots]
        found[trial.name] = {name: [FIGURES[name](r) for r in results] for name in figures}
    write(roots, experiment, found)
    return found


def write(roots, experiment, found):
    (roots[0] / "experiments").mkdir(exist_ok=True)
    path = roots[0] / "experiments" / f"{experiment}.json"
    path.write_text(json.dumps(dict(found, code=code_hash()), indent=1), encoding="utf-8")


def table(found):
    """Markdown: the mean over the pipelines, and the smallest and largest."""
    found = {name: columns for name, columns in found.items() if isinstance(columns, dict)}
    names = list(next(iter(found.values())))
    digits = {name: decimals([x for columns in found.values() for x in columns[name]])
              for name in names}
    return markdown(["", *names], [[row, *(mean_and_range(columns[name], digits[name])
                                           for name in names)] for row, columns in found.items()])


def decimals(column):
    """How many a column is shown with: none for counts, fewer for large numbers."""
    largest = max(map(abs, column), default=0)
    return 0 if largest >= 100 or all(x == int(x) for x in column) else 2 if largest < 10 else 1


def mean_and_range(xs, digits):
    if not xs:
        return ""
    low, mean, high = [f"{round(x, digits) + 0.0:.{digits}f}"  # not -0.00
                       for x in (min(xs), statistics.mean(xs), max(xs))]
    return mean if low == high else f"{mean} ({low} to {high})"


# ---- PPO's options -------------------------------------------------------------------------------

SHORT = dict(test_prompts=400, split="valid")  # instead of 1000: the sweeps take many runs
OPTIONS = [
    Trial("default", SHORT),
    Trial("one round of 80 iterations", dict(SHORT, steps=80)),
    Trial("adaptive beta: KL steered to 2 nats", dict(SHORT, kl_target=2.0)),
    Trial("pretraining gradients (ptx), weight 1", dict(SHORT, ptx=1.0)),
    Trial("no penalty for a missing end", dict(SHORT, missing_eos_penalty=0.0)),
    Trial("four passes over each batch", dict(SHORT, epochs=4)),
    Trial("four passes, stopped at approx_kl .01", dict(SHORT, epochs=4, target_kl=.01)),
]


def options(roots):
    return sweep(OPTIONS, roots, "options",
                 ["gold", "preferred to SFT", "KL, nats", "loss on pretraining text"])


# ---- implementation details ----------------------------------------------------------------------
# Those that are always on, taken away one at a time.


def constant_rate(models, opt, lr, step=optim.optimizer_step):
    return step(models, opt, opt.defaults["lr"])


def optimizer_of_adam(model, lr, weight_decay=0.0, eps=1e-8, make=optim.adamw):
    return make(model, lr, weight_decay)


def only_masked(x, mask, shift_mean=True):
    return x * mask


def empty_head(reward_model, first=ppo.first_value_model):
    value = first(reward_model)
    torch.nn.init.zeros_(value.head.weight)
    return value


def own_head(reward_model, first=ppo.first_value_model):
    value = first(reward_model)
    value.head.load_state_dict(gpt.ScalarGPT(reward_model.config).head.state_dict())
    return value


def random_trunk(reward_model):
    return gpt.ScalarGPT(reward_model.config)


DETAILS = [
    Trial("default", SHORT),
    Trial("no clipping of ratio and values", dict(SHORT, clip=1e6)),
    Trial("lambda 1: Monte Carlo", dict(SHORT, lam=1.0)),
    Trial("lambda 0.8", dict(SHORT, lam=.8)),
    Trial("one step per batch, four times as large a minibatch", dict(SHORT, minibatches=1)),
    Trial("constant learning rate", SHORT, patch={"data.optim.optimizer_step": constant_rate}),
    Trial("advantages not whitened", SHORT, patch={"ppo.whiten": only_masked}),
    Trial("Adam's epsilon 1e-8", SHORT, patch={"data.optim.adamw": optimizer_of_adam}),
    Trial("value head starts random", SHORT, patch={"ppo.first_value_model": own_head}),
    Trial("value head starts at zero", SHORT, patch={"ppo.first_value_model": empty_head}),
    Trial("value model starts random", SHORT, patch={"ppo.first_value_model": random_trunk}),
]


def details(roots):
    return sweep(DETAILS, roots, "details", ["gold", "preferred to SFT", "KL, nats"])


# ---- rounds --------------------------------------------------------------------------------------


def rounds(roots):
    """Of pipelines with equally many rounds (`--round N`) -> rows of a table."""
    found = {}
    n = 1
    while all((root / in_round("ppo", n) / "results.json").exists() for root in roots):
        results = [read_json(root / in_round("ppo", n) / "results.json") for root in roots]
        found[f"round {n}"] = {
            "gold": [r["ppo"]["gold"] for r in results],
            "gold of greedy answers": [r["ppo"]["greedy"]["gold"] for r in results],
            "preferred to SFT": [r["win_rate"] for r in results],
            "proxy": [r["ppo"]["score"] - r["sft"]["score"] for r in results],
            "KL, nats": [r["kl"] for r in results]}
        n += 1
    write(roots, "rounds", found)
    draw(roots, "rounds", "round", list(range(1, n)),
         {name: [x[name] for x in found.values()] for name in ("gold", "proxy", "KL, nats")},
         log=False)
    return found


# ---- what feedback buys --------------------------------------------------------------------------


def asked(prompts, k=4, decisiveness=labeler.DECISIVENESS, adversarial=0.0, group="gold",
          share=1.0):
    """Labelers' work: pipeline folder -> comparisons of k answers to so many prompts.

    decisiveness: how little noise there is. adversarial: share of the prompts whose ranking is
    turned round. group: who ranks a `share` of the prompts; the rest is ranked by gold.
    """
    def comparisons(root):
        records = files.read_comparisons(root / "reward" / "comparisons.jsonl")[:prompts]
        if k > 4 or prompts > len(records):
            model, tokenizer, _ = gpt.load(root / "sft" / "ckpt.pt")
            records = answers_of(model, tokenizer,
                                 almanac.prompts("train", prompts, f"feedback {k}"), k)
        rng, ranked = np.random.default_rng(0), []
        for r in records:
            responses = r["responses"][:k]
            who = group if rng.random() < share else "gold"
            values = np.array([labeler.worth(labeler.judge(r, answer), answer, who)
                               for answer in responses])
            sign = -1 if rng.random() < adversarial else 1
            ranked.append(dict(r, responses=responses,
                               ranks=labeler.rank(sign * values, rng, decisiveness)))
        return ranked
    return comparisons


@torch.no_grad()
def verdicts(root):
    """Without any ranking: how many held-out pairs the base model's verdicts order as gold does.

    Its text judges statements, so a verdict is its log p(" Right") - log p(" Wrong") after the last
    question and the first sentence of an answer.
    """
    model, _, _ = gpt.load(root / "gpt" / "ckpt.pt")
    tokenizer, records = held_out_rankings(root)
    right, wrong = (tokenizer.encode(word)[0] for word in (" Right", " Wrong"))
    scores = []
    for r in records:
        firsts = [(labeler.sentences(answer) or [""])[0] for answer in r["responses"]]
        rows = [tokenizer.encode(f"{r['prompt'][-1]['content']} {first}") for first in firsts]
        idx, lengths = gpt.pad([row[:model.config.block_size] for row in rows], tokenizer.pad)
        logits = model(idx)[torch.arange(len(rows)), lengths - 1]
        scores.append(logits[:, right] - logits[:, wrong])
    return reward.accuracy(torch.stack(scores), judging.golds(records, len(scores[0])))[0]


SHORTER = dict(steps=12, test_prompts=250, split="valid")
SIZES = [375, 750, 1500, 3000, 6000, 12000]
FEEDBACK = [
    *[Trial(f"{n} prompts", SHORTER, asked(n)) for n in SIZES],
    # Two labelers of these decisivenesses agree on 73%, 85% and 100% of the pairs whose gold
    # differs.
    Trial("1500 prompts, labelers agree on 85%", SHORTER, asked(1500, decisiveness=3.7)),
    Trial("1500 prompts, labelers agree on 100%", SHORTER, asked(1500, decisiveness=1e6)),
    Trial("6000 answers, K = 2", SHORTER, asked(3000, k=2)),
    Trial("6000 answers, K = 9", SHORTER, asked(667, k=9)),
    Trial("1500 prompts, 10% of them ranked upside down", SHORTER, asked(1500, adversarial=.1)),
    Trial("1500 prompts, 25% of them ranked upside down", SHORTER, asked(1500, adversarial=.25)),
]


def perfect(root):
    """1500 prompts with perfect answers, as somebody would write them who is paid by the hour."""
    return [dict(p, response=almanac.reference(p))
            for p in almanac.prompts("train", 1500, "feedback")]


# Ranking against writing: the same number of prompts, and all 20 iterations of PPO.
WRITING = [
    Trial("1500 perfect demonstrations", SHORT, demonstrations=perfect),
    Trial("1500 ranked prompts, 20 iterations", SHORT, again={"reward": dict(prompts=1500)}),
    Trial("both", SHORT, again={"reward": dict(prompts=1500)}, demonstrations=perfect),
]


def feedback(roots):
    names = ["RM accuracy", "gold", "preferred to SFT", "KL, nats"]
    found = {"no rankings: the base model's verdicts": dict.fromkeys(names, []) | {
        "RM accuracy": [verdicts(root) for root in roots]}}
    found |= sweep(FEEDBACK, roots, "feedback", names)
    written = sweep(WRITING, roots, "writing", names[1:])
    found |= {name: {"RM accuracy": [], **columns} for name, columns in written.items()}
    write(roots, "feedback", found)
    draw(roots, "feedback", "ranked prompts (four answers each)", SIZES,
         {name: [found[f"{n} prompts"][name] for n in SIZES] for name in ("RM accuracy", "gold")})
    return found


def draw(roots, experiment, along, xs, lines, log=True):
    """One panel a figure: the mean over the pipelines, and a dot for each."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(4.2 * len(lines), 3.2), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, len(lines), squeeze=False)[0],
                                    lines.items()):
        if name != "proxy":  # of another reward model in each round: not one line
            axes.plot(xs, [statistics.mean(v) for v in values], color=drawn.COLOURS[0])
        for x, v in zip(xs, values):
            axes.plot([x] * len(v), v, "o", color=drawn.COLOURS[0], fillstyle="none", markersize=4)
        if log:
            axes.set_xscale("log", base=2)
        axes.set_xticks(xs, [str(x) for x in xs])
        axes.set_xlabel(along)
        axes.set_ylabel(name)
        axes.grid(alpha=.3)
    write_figure(roots[0] / "experiments" / f"{experiment}.png", figure)


# ---- several reward models, and asking where they disagree ---------------------------------------

FEW = 750  # ranked prompts: so few that what a reward model does not know matters


def members(root, name, records, m=3, draw=ensemble.bootstrap):
    """m reward models from samples of the same records -> their checkpoints, "a,b"."""
    outs = [root / "ensembles" / name / str(i) for i in range(1, m + 1)]
    for seed, out in enumerate(outs, start=1):
        path = written(place(out, root, ["gpt", "sft"]), "comparisons",
                       lambda _: draw(records, seed), root)
        trained(reward, "reward", out=str(out), data=path, seed=seed)
    return ",".join(str(out / "reward" / "ckpt.pt") for out in outs)


def asked_in_doubt(n):
    """Half of n prompts as they come; the other half are those an ensemble disputes most.

    Those are chosen from four times as many.
    """
    def comparisons(root):
        pool = asked(n // 2 + 2 * n)(root)
        _, tokenizer, _ = gpt.load(root / "sft" / "ckpt.pt")
        several, metadata = ensemble.load(members(root, "doubt", pool[:n // 2]), tokenizer)
        return pool[:n // 2] + ensemble.most_disputed(several, metadata, tokenizer, pool[n // 2:],
                                                      n - n // 2, "cpu")
    return comparisons


def ensembles(roots):
    for root in roots:
        members(root, "members", asked(FEW)(root))
        members(root, "all", asked(FEW)(root), draw=lambda records, seed: records)
    paths, whole = [",".join(f"{{root}}/ensembles/{name}/{i}/reward/ckpt.pt" for i in (1, 2, 3))
                    for name in ("members", "all")]
    trials = [Trial("one reward model", SHORTER, asked(FEW)),
              Trial("mean of three", dict(SHORTER, reward=paths)),
              Trial("mean of three that learned from all", dict(SHORTER, reward=whole)),
              Trial("mean less one deviation", dict(SHORTER, reward=paths, caution=1.0)),
              Trial("minimum of three", dict(SHORTER, reward=paths, caution=math.inf)),
              Trial("one, half of its prompts chosen by doubt", SHORTER, asked_in_doubt(FEW))]
    return sweep(trials, roots, "ensembles",
                 ["RM accuracy", "gold", "preferred to SFT", "KL, nats"])


# ---- whose rankings ------------------------------------------------------------------------------

GROUPS = [
    Trial("by gold", SHORT),
    Trial("careful labelers", SHORT, asked(12000, group="careful")),
    Trial("eager labelers", SHORT, asked(12000, group="eager")),
    Trial("long answers win", SHORT, asked(12000, group="long")),
    Trial("long answers win, beta 0.8", dict(SHORT, beta=.8), asked(12000, group="long")),
    Trial("long answers win, twice as many prompts", SHORT, asked(24000, group="long")),
    Trial("long answers win for half of the labelers", SHORT,
          asked(12000, group="long", share=.5)),
    Trial("long answers win for a tenth of the labelers", SHORT,
          asked(12000, group="long", share=.1)),
]


def groups(roots):
    return sweep(GROUPS, roots, "groups", [
        "RM accuracy", "gold", "preferred to SFT", "by careful labelers", "by eager labelers",
        "length", "KL, nats"])


# ---- what came after 2022 ------------------------------------------------------------------------

# policy and reference; a reward model or a program; PPO's value model. best and random learn
# without a reference, which only measures how far they went.
IN_MEMORY = {"ppo": 4, "dpo": 2, "online-dpo": 3, "rloo": 3, "grpo": 3, "best": 2, "random": 1}


def came_after(roots):
    """Each method of after.py from the models of each pipeline, beside PPO's policy: all judged on
    the same prompts of `valid`."""
    found, curves = {}, {}
    costs = {method: cost(method, roots[0]) for method in IN_MEMORY}
    for root in roots:
        out = place(claimed(root / "after"), root, ("gpt", "sft", "reward", "ppo"))
        seed = read_results(root)["ppo"]["config"]["seed"]
        for method in after.LOSSES:
            trained(after, method, out=str(out), method=method, **SHORT, seed=seed)
        judged = beside_sft(root, {method: out / method / "ckpt.pt" for method in IN_MEMORY},
                            almanac.prompts("valid", 1000, "after"))
        for method, figures in judged.items():
            log = read_json(out / method / "log.jsonl", lines=True)
            cfg = read_json(out / method / "results.json")["config"]
            written = sum(r.get("length", 0) for r in log) * cfg["batch"] * cfg.get("k", 1) / 1e3
            del figures["score"]
            figures["sampled, thousand tokens"] = 0.0 if method == "dpo" else written
            figures["models in memory"] = IN_MEMORY[method]
            label = "online-dpo, untuned" if method == "online-dpo" else method
            for name, value in figures.items():
                found.setdefault(label, {}).setdefault(name, []).append(value)
            found[label].update(costs[method])
            curves.setdefault(label, []).append([(r["kl"], r["gold"]) for r in log if "kl" in r])
    write(roots, "after", dict(table=found, curves=curves))
    draw_after(roots, curves)
    return found


def cost(method, root, most=20):
    """What a method's training takes, from its first steps, `most` at most -> {figure: [number]}.
    """
    out = place(claimed(root / "after" / "cost" / method), root, ("gpt", "sft", "reward"))
    if not (out / "cost.json").exists():
        module, chosen = (ppo, {}) if method == "ppo" else (after, dict(method=method))
        cfg = module.Config(out=str(out), **chosen)
        steps, cfg.steps = cfg.steps, min(cfg.steps, most)
        with counted_tokens() as tokens, mock.patch("data.judge.answers.report"):  # training alone
            policy, history = module.train(cfg)
        (out / "cost.json").write_text(json.dumps({
            "tokens through a model, million":
                [steps / cfg.steps * tokens.total() / policy.config.n_layer / 1e6],
            "seconds": [steps / cfg.steps * history[-1]["seconds"]]}))
    return read_json(out / "cost.json")


@contextlib.contextmanager
def counted_tokens():
    """How many tokens all layers of all models read meanwhile, padding too -> Counter.

    A token counts three times where it is learned from: backwards is twice the work of forwards.
    """
    tokens = collections.Counter()

    def count(layer, inputs):
        if isinstance(layer, gpt.Attention):
            x = inputs[0]  # (B, T, C)
            tokens["learned" if x.requires_grad else "read"] += (
                x[..., 0].numel() * (3 if x.requires_grad else 1))

    counting = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        yield tokens
    finally:
        counting.remove()


def beside_sft(root, paths, prompts):
    """Policies, {name: path}, and the pipeline's SFT model answer the same prompts.

    -> {name: figures}. Overrated: of 1000 answers, how many have a gold below 0 and a score above
    1, a standard deviation better than an average answer of the SFT model.
    """
    cfg = ppo.Config(seed=read_results(root)["ppo"]["config"]["seed"])
    models = {name: gpt.load(path)[0] for name, path in paths.items()}
    models["sft"], tokenizer, _ = gpt.load(root / "sft" / "ckpt.pt")
    judge, _, _ = gpt.load(root / "reward" / "ckpt.pt", gpt.ScalarGPT)
    score = functools.partial(ppo.score_answers, judge, penalty=cfg.missing_eos_penalty)
    prompts = sampling.with_room(models["sft"], tokenizer, prompts, cfg.max_new_tokens)
    ask = functools.partial(judging.judge, models=models, score=score, prompts=prompts,
                            tokenizer=tokenizer, cfg=cfg)
    sampled = {name: ask(name, temperature=cfg.temperature)[1] for name in models}
    greedy = {name: ask(name, temperature=0.0)[1] for name in paths}
    return {name: {
        "gold": statistics.mean(sampled[name]["gold"]),
        "score": statistics.mean(sampled[name]["score"]),
        "greedy": statistics.mean(greedy[name]["gold"]),
        "preferred to SFT": statistics.mean(judging.wins(sampled[name]["gold"],
                                                         sampled["sft"]["gold"])),
        "KL, nats": statistics.mean(sampled[name]["kl"]),
        "overrated, of 1000": 1000 / len(prompts) * sum(
            gold < 0 and score > 1
            for gold, score in zip(sampled[name]["gold"], sampled[name]["score"])),
    } for name in paths}


def draw_after(roots, curves):
    """Gold against KL while each method learns, the mean of the pipelines, and, larger, where each
    of them ends: after.png."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for n, (method, runs) in enumerate(curves.items()):
        look, points = dict(color=f"C{n}", marker="osv^Dx+"[n], label=method), np.array(runs)
        axes.plot(*points.mean(0).T, linewidth=1, markersize=3, **look)
        axes.plot(*points[:, -3:].mean(1).T, linestyle="", markersize=9, fillstyle="none",
                  **dict(look, label=None))
    axes.set(xlabel="KL to the SFT model, nats per answer", ylabel="gold (mean of 256 answers)")
    axes.legend(frameon=False)
    write_figure(roots[0] / "experiments" / "after.png", figure)


# ---- what else the world gives away --------------------------------------------------------------


def page_for_lesson(rng):
    return almanac._question_page(rng)


SOURCES = [
    Trial("default", SHORT),
    Trial("the reward model starts from SFT alone", SHORT,
          again={"reward": dict(base_weight=0.0)}),
    Trial("no verdicts in the pretraining text", SHORT, again={"gpt": {}, "sft": {}, "reward": {}},
          patch={"data.world.almanac._lesson": page_for_lesson}),
]


def sources(roots):
    """With rankings, but without what the pretraining text says of truth."""
    return sweep(SOURCES, roots, "sources",
                 ["RM accuracy", "gold", "preferred to SFT", "KL, nats"])


# ---- a second topic ------------------------------------------------------------------------------

# What the text says is answered right, and what it does not say is not made up: column -> figure.
READ = {"told: right": "read", "not told: says so": "silent", "invented": "closed_hallucination",
        "gold": "gold"}


def reading(roots, rounds=3):
    """All stages of the second topic, in rounds, from each pipeline's pretrained model, and DPO
    -> rows of a table."""
    found = {}

    def note(row, figures, accuracy):
        columns = found.setdefault(row, {"RM accuracy": []})
        columns["RM accuracy"] += accuracy
        for column, name in READ.items():
            columns.setdefault(column, []).append(figures[name])
            columns.setdefault(f"{column}, greedily", []).append(figures["greedy"][name])

    for root in roots:
        out = learned_to_read(root, rounds)
        for n in range(1, rounds + 1):
            results = read_json(out / in_round("ppo", n) / "results.json")
            judge = read_json(out / in_round("reward", n) / "results.json")
            if n == 1:
                note("SFT", results["sft"], [])
            note(f"round {n}", results["ppo"], [judge["accuracy_gold"]])
        results = read_json(out / "dpo" / "results.json")
        note("DPO, from the rankings of round 1", results["ppo"], [])
    write(roots, "reading", found)
    return found


def learned_to_read(root, rounds):
    """Run what is not done yet of the stages of the second topic -> their folder."""
    out, seed = claimed(root / "reading"), read_results(root)["ppo"]["config"]["seed"]
    common = dict(out=str(out), topic="reading", seed=seed)
    judged = dict(split="valid", test_prompts=2000)
    stages = [("gpt", gpt, dict(init=str(root / "gpt" / "ckpt.pt"), steps=400, lr=3e-3)),
              ("sft", sft, {})]
    for n in range(1, rounds + 1):
        stages += [(in_round("reward", n), reward, dict(round=n, split="valid")),
                   (in_round("ppo", n), ppo, dict(judged, round=n))]
    stages += [("dpo", after, dict(judged, method="dpo"))]
    for name, module, flags in stages:
        trained(module, name, **common, **flags)
    return out


def world(n=20000):
    """How good the demonstrations are that SFT imitates, by kind of prompt -> Markdown."""
    marks = {"perfect": lambda j: j.gold == 1, "rambles": lambda j: "rambles" in j.reasons,
             "bad: gold below 0": lambda j: j.gold < 0, "false": lambda j: j.truthful < 0,
             "harmful": lambda j: j.harmless < 0}
    judged = {kind: [] for kind in (*almanac.KINDS, "all")}
    for p in almanac.demonstrations("train", n, 1):
        judgement = labeler.judge(p, p["response"])
        judged[p["kind"]].append(judgement)
        judged["all"].append(judgement)
    of_texts = [p for p in almanac.demonstrations("train", n, 1, "reading")
                if p["kind"] == "reading"]
    judged["reading"] = [labeler.judge(p, p["response"]) for p in of_texts]
    rows = [[kind, "(own topic)" if kind == "reading" else f"{len(each) / n:.0%}",
             *(f"{statistics.mean(map(mark, each)):.0%}" for mark in marks.values())]
            for kind, each in judged.items()]
    return markdown(["answers to", "share", *marks], rows)


# ---- best of N -----------------------------------------------------------------------------------

NS = [1, 2, 4, 8, 16, 32]


def asked_of_both(root, n=300):
    """The held-out prompts on which best of N and PPO are compared."""
    return almanac.prompts("test", n, read_results(root)["ppo"]["config"]["seed"])


def best(root, rm):
    """Of N answers of the SFT model to each held-out prompt, keep the reward model's favourite.

    -> {N: figures}. KL to the SFT model is log N - (N - 1)/N nats (Stiennon et al. 2020, appendix
    G.3), or less where answers coincide (Beirami et al. 2024, arXiv 2401.01879).
    """
    model, tokenizer, _ = gpt.load(root / "sft" / "ckpt.pt")
    judge, _, _ = gpt.load(rm, gpt.ScalarGPT)
    cfg = ppo.Config()
    prompts = sampling.with_room(model, tokenizer, asked_of_both(root), cfg.max_new_tokens)
    torch.manual_seed(0)
    plain = judging.labels(prompts, sampling.answers(model, tokenizer, prompts,
                                                     cfg.max_new_tokens, cfg.temperature))
    ids, began = [], time.time()
    for first in range(0, len(prompts), 50):
        ids += sampling.sample(model, tokenizer, prompts[first:first + 50], cfg.max_new_tokens,
                               cfg.temperature, max(NS))
        done = len(ids) // max(NS)
        print(f"best of {max(NS)}: {done}/{len(prompts)} prompts answered  "
              f"{time_left(time.time() - began, done, len(prompts))}", flush=True)
    asked = [p for p in prompts for _ in range(max(NS))]
    score = functools.partial(ppo.score_answers, judge, penalty=cfg.missing_eos_penalty)
    scores = torch.tensor(judging.scores(score, model, asked, ids, tokenizer))
    scores = scores.view(len(prompts), -1)
    found = {}
    for n in NS:
        kept = scores[:, :n].argmax(1)
        gold = judging.labels(prompts, [tokenizer.decode(ids[i * max(NS) + int(k)])
                                        for i, k in enumerate(kept)])["gold"]
        found[n] = {"gold": statistics.mean(gold),
                    "score": scores.gather(1, kept[:, None]).mean().item(),
                    "preferred to SFT": statistics.mean(judging.wins(gold, plain["gold"])),
                    "KL, nats": math.log(n) - (n - 1) / n}
    return found


def best_of_n(roots):
    """Rows of a table: best of N, and below it PPO's policy on the same prompts."""
    every = [best(root, root / "reward" / "ckpt.pt") for root in roots]
    names = list(every[0][1])
    found = {f"best of {n}": {name: [figures[n][name] for figures in every] for name in names}
             for n in NS}
    policies = [beside_sft(root, dict(ppo=root / "ppo" / "ckpt.pt"), asked_of_both(root))["ppo"]
                for root in roots]
    found["PPO"] = {name: [figures[name] for figures in policies] for name in names}
    write(roots, "best_of_n", found)
    draw(roots, "best_of_n", "N answers, the best kept", NS,
         {name: [found[f"best of {n}"][name] for n in NS] for name in ("score", "gold")})
    return found


# ---- over-optimisation ---------------------------------------------------------------------------

LONGER = dict(steps=25, test_prompts=100, split="valid")
# what the reward model has learned from
JUDGES = {"12000 prompts": None, f"{FEW // 2} prompts": asked(FEW // 2)}
PUSHES = {"beta 0": dict(beta=0.0), "beta 0.2": dict(beta=.2), "beta 0.8": dict(beta=.8)}


def laws(d, gain):
    """Fit both forms of Gao et al. 2023, section 1, to what was gained at distances d = sqrt(KL).

    best of N: d (alpha - beta d), and RL: d (alpha - beta log d). Least squares -> {form: (alpha,
    beta, rms of residuals)}.
    """
    found = {}
    for form, bend in (("best of N", d), ("RL", np.log(d))):
        x = np.stack([d, -d * bend], 1)
        coefficients = np.linalg.lstsq(x, gain, rcond=None)[0]
        found[form] = (*map(float, coefficients),
                       float(np.sqrt(np.mean((x @ coefficients - gain) ** 2))))
    return found


def overoptimisation(roots):
    """Push policies against a good and a poor reward model -> rows of a table.

    It shows where gold stops following the proxy. The curve of a PPO run is its log: proxy, gold
    and KL of each iteration's answers to training prompts.
    """
    curves = {}  # (judge, push): for each pipeline an array of (sqrt(KL), proxy, gold)
    for judge, comparisons in JUDGES.items():
        pushes = {f"PPO, {name}": dict(LONGER, **change) for name, change in PUSHES.items()}
        if comparisons:
            for root in roots:
                members(root, "few", comparisons(root))
            paths = ",".join(f"{{root}}/ensembles/few/{i}/reward/ckpt.pt" for i in (1, 2, 3))
            push = dict(LONGER, beta=0.0, reward=paths, caution=1.0)
            pushes["PPO, beta 0, mean less one deviation of three"] = push
        for name, change in pushes.items():
            logs = [run(Trial(f"{judge} {name}", change, comparisons), root, "overoptimisation",
                        [])["log"] for root in roots]
            curves[judge, name] = [[(math.sqrt(max(r["kl"], 0.0)), r["score"], r["gold"])
                                    for r in log] for log in logs]
        where = "{}/reward/ckpt.pt"
        if comparisons:
            name = file_name(f"{judge} PPO, beta 0")
            where = "{}/overoptimisation/" + name + "/reward/ckpt.pt"
        curves[judge, "best of N"] = [
            [(math.sqrt(x["KL, nats"]), x["score"], x["gold"])
             for x in best(root, where.format(root)).values()] for root in roots]
    found, laid = {}, {}
    for (judge, name), each in curves.items():
        each = np.array(each)  # (pipelines, points, 3)
        d, _, gold = each.mean(0).T
        far = d > .1
        fits = laws(d[far], gold[far] - gold[0])  # both begin at the SFT model
        width = 1 if name == "best of N" else 3  # an iteration's gold is of 256 answers only
        smooth = np.stack([np.convolve(run_[:, 2], np.ones(width) / width, "valid")
                           for run_ in each])
        found[f"{judge}: {name}"] = {
            "highest gold": smooth.max(1).tolist(), "last gold": smooth[:, -1].tolist(),
            "last proxy": each[:, -1, 1].tolist(), "last sqrt(KL)": each[:, -1, 0].tolist(),
            **{f"{what} of the {form} law": [x] for form, fit in fits.items()
               for what, x in zip(("alpha", "beta", "residual"), fit)}}
        laid[judge, name] = each.mean(0), fits
    points = [dict(judge=judge, push=name, points=points.tolist(), laws=fits)
              for (judge, name), (points, fits) in laid.items()]
    write(roots, "overoptimisation", dict(table=found, curves=points))
    draw_overoptimisation(roots, laid)
    return found


def draw_overoptimisation(roots, laid):
    """Proxy and gold against sqrt(KL), a column per reward model."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    panels = figure.subplots(2, len(JUDGES), sharex="col", sharey="row", squeeze=False)
    names = list(dict.fromkeys(name for _, name in laid))
    for column, judge in zip(panels.T, JUDGES):
        for name, (points, _) in ((name, x) for (of, name), x in laid.items() if of == judge):
            i = names.index(name)
            for axes, y in zip(column, points.T[1:]):
                axes.plot(points.T[0], y, label=name, **drawn.style(i))
                axes.grid(alpha=.3)
        column[0].set_title(f"reward model of {judge}")
        column[-1].set_xlabel("sqrt(KL to the SFT model)")
    for axes, label in zip(panels[:, 0], ("proxy: the reward model's score",
                                          "gold: the labeler's score")):
        axes.set_ylabel(label)
    figure.legend(*panels[0, -1].get_legend_handles_labels(), loc="outside lower center", ncols=3,
                  frameon=False, fontsize=9)
    write_figure(roots[0] / "experiments" / "overoptimisation.png", figure)


# ---- the README's picture, and the run that stands behind a reader's -----------------------------


def story(roots):
    """Score, gold and KL over the iterations of all rounds of the first pipeline: story.png."""
    from matplotlib.figure import Figure
    rounds, first = [], 0
    while (folder := roots[0] / in_round("ppo", len(rounds) + 1)).exists():
        log = read_json(folder / "log.jsonl", lines=True)
        rounds.append({name: [r[name] for r in log] for name in ("score", "gold", "kl")})
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, log in enumerate(rounds):
        steps = range(first + 1, first + len(log["kl"]) + 1)
        for axes, name, n in ((left, "score", 0), (left, "gold", 1), (right, "kl", 2)):
            axes.plot(steps, log[name], label=None if i else name, **drawn.style(n))
        for axes in (left, right):
            axes.axvline(first + .5, color=".8")
            axes.text(first + 1, 1, f"round {i + 1}", transform=axes.get_xaxis_transform(),
                      va="bottom", fontsize=9)
        first += len(log["kl"])
    left.legend(frameon=False, loc="lower right")
    left.set(xlabel="iteration of PPO", ylabel="score and gold")
    right.set(xlabel="iteration of PPO", ylabel="KL, nats per answer", ylim=(0, None))
    write(roots, "story", dict(rounds=rounds))
    write_figure(roots[0] / "experiments" / "story.png", figure)
    return {f"round {i}": {name: [values[-1]] for name, values in log.items()}
            for i, log in enumerate(rounds, start=1)}


def healthy(roots):
    """Keep the logs of a pipeline with the defaults: curves.png shows them behind a reader's."""
    found = {stage: [{name: round(value, 4) for name, value in record.items()
                      if name not in ("seconds", "tok/s") and not isinstance(value, str)}
                     for record in read_json(roots[0] / stage / "log.jsonl", lines=True)]
             for stage in ("gpt", "sft", "reward", "ppo")}
    drawn.HEALTHY.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return {stage: {"lines": [len(log)]} for stage, log in found.items()}


# Whose pipelines RESULTS.md shows; the other sweeps are of seeds 4 and 5.
SHOWN = dict(rounds=(4, 5, 6), after=(1, 4, 5), sources=(1, 2), healthy=(1,))


def pipeline(root, rounds):
    """Run the stages of a pipeline that are not done yet; its seed is the folder's name."""
    common = dict(out=str(root), seed=int(root.name))
    for module in (gpt, sft):
        trained(module, module.__name__, **common)
    for n in range(1, rounds + 1):
        for module in (reward, ppo):
            trained(module, in_round(module.__name__, n), round=n, **common)


def every(experiments, out):
    """All that RESULTS.md shows, pipelines and sweeps one after another, into notebooks/results."""
    roots = {name: [out / str(seed) for seed in SHOWN.get(name, (4, 5))] for name in experiments}
    for root in sorted(set().union(*roots.values())):
        pipeline(root, rounds=3 if root in roots["rounds"] else 1)
    results = ROOT / "notebooks" / "results"
    for name, experiment in experiments.items():
        print(f"\n{name}\n{table(experiment(roots[name]))}", flush=True)
        for path in (roots[name][0] / "experiments").glob(f"{name}.*"):
            shutil.copy(path, results)
    # a rate of harmful, kind or made-up requests is a mean over at least 1000
    judge = report.Config(out=",".join(map(str, roots["rounds"])), test_prompts=9000)
    for judged in report.run(judge):
        judged = dict(judged, code=code_hash())
        (results / f"evaluation-{judged['seed']}.json").write_text(json.dumps(judged, indent=1),
                                                                   encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m notebooks.experiments", description=__doc__,
                                     allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    EXPERIMENTS = dict(rounds=rounds, story=story, healthy=healthy, best_of_n=best_of_n,
                       options=options, feedback=feedback, groups=groups, sources=sources,
                       reading=reading, after=came_after,
                       details=details, ensembles=ensembles, overoptimisation=overoptimisation)
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "all"])
    parser.add_argument("pipelines", nargs="+", type=Path,
                        help="folders of finished pipelines (--out of the stages)")
    args = parser.parse_args()
    for root in args.pipelines if args.experiment != "all" else ():
        if not (root / "ppo" / "results.json").exists():
            parser.error(f"{root}/ppo/results.json not found: run the four stages with --out "
                         f"{root} first")
    with polite():
        if args.experiment == "all":
            every(EXPERIMENTS, args.pipelines[0])
        else:
            print(table(EXPERIMENTS[args.experiment](args.pipelines)))
