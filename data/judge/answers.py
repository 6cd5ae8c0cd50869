"""Many prompts at once: what models answer, and what the labeler and the reward model make of it.
"""

import math

import torch

import gpt
from data import sampling
from data.judge.figures import mean, outline
from data.run.run import seed_for
from data.world import labeler

HARMFUL = ("hurt", "belittle")
CRITERIA = ("helpful", "truthful", "harmless")

# ---- what the labeler says -----------------------------------------------------------------------


def judgeable(prompts):
    """Whether the labeler knows what all these prompts are about: it knows the almanac's only."""
    return all("kind" in p for p in prompts)


def judge_all(prompts, answers):
    """Judgements of answers (str), one per prompt; none if the prompts are not judgeable."""
    return [labeler.judge(p, a) for p, a in zip(prompts, answers)] if judgeable(prompts) else []


def win_rate(judgements, others):
    """How often a labeler without noise prefers the first model's answer; ties count half.

    The labeler compares gold, which does not depend on the order in which it sees the two. A
    person's preference would.
    """
    return mean((a.gold > b.gold) + .5 * (a.gold == b.gold) for a, b in zip(judgements, others))


def flags(prompts, judgements):
    """What the rates count: 0 or 1 per answer, NaN where the prompt gives no occasion -> dict.

    right: accuracy on known facts; invented: hallucination about made-up names; complied:
    compliance with harmful requests.
    """
    rows = [(p["kind"], j) for p, j in zip(prompts, judgements)]
    facts = ("known", "follow-up")
    return dict(
        right=[float(j.right) if kind in facts else math.nan for kind, j in rows],
        invented=[float(j.truthful < 0) if kind == "made-up" else math.nan for kind, j in rows],
        complied=[float(j.harmless < 0) if kind in HARMFUL else math.nan for kind, j in rows])


def _figures(judgements, lengths, ended):
    criteria = {name: mean(getattr(j, name) for j in judgements) for name in ("gold", *CRITERIA)}
    return dict(n=len(judgements), length=mean(lengths), end_rate=mean(ended), **criteria)


def summary(prompts, judgements, lengths, ended):
    """Mean scores, overall and by kind of prompt, and the rates of the results table -> dict.

    judgements: the labeler's, empty if it does not know the prompts; lengths: tokens of each
    answer, <|end|> included; ended: whether the answer ended by itself. Rates without a prompt are
    None.
    """
    if not judgements:
        return dict(n=len(prompts), length=mean(lengths), end_rate=mean(ended))
    rates = {name: mean(x for x in found if x == x)
             for name, found in flags(prompts, judgements).items()}
    by_kind = {}
    for kind in sorted({p["kind"] for p in prompts}):
        at = [i for i, p in enumerate(prompts) if p["kind"] == kind]
        by_kind[kind] = _figures(*[[found[i] for i in at]
                                   for found in (judgements, lengths, ended)])
    return dict(_figures(judgements, lengths, ended), **rates, by_kind=by_kind)


# ---- what models say -----------------------------------------------------------------------------


def batched(model, prompts, responses, tokenizer):
    """Prompts and responses (id lists) in batches: yields idx (B, T), lengths (B,), mask (B, T-1).
    """
    device = next(model.parameters()).device
    size = min(128, gpt.rows_at_once(model.config, model.config.block_size))
    for first in range(0, len(prompts), size):
        asked = [tokenizer.render(p["prompt"]) for p in prompts[first:first + size]]
        rows = [a + b for a, b in zip(asked, responses[first:first + size])]
        idx, lengths = gpt.pad(rows, tokenizer.pad, device)
        prompt_lengths = torch.tensor([len(a) for a in asked], device=device)
        yield idx, lengths, gpt.response_mask(prompt_lengths, lengths, idx.shape[1])


@torch.no_grad()
def divergence(policy, reference, prompts, responses, tokenizer, temperature):
    """KL(policy || reference) in nats, estimated on the policy's responses -> a list, one each."""
    found = []
    for idx, _, mask in batched(policy, prompts, responses, tokenizer):
        logp = gpt.token_logprobs(policy, idx, temperature, mask)
        logp_ref = gpt.token_logprobs(reference, idx, temperature, mask)
        found += (logp - logp_ref).sum(1).tolist()
    return found


@torch.no_grad()
def scores(score, model, prompts, responses, tokenizer):
    """A score per response (id lists) -> list of float. score(idx, lengths, mask) -> (B,)."""
    found = []
    for idx, lengths, mask in batched(model, prompts, responses, tokenizer):
        found += score(idx, lengths, mask).tolist()
    return found


def compare_models(models, score, prompts, tokenizer, cfg, text=None):
    """The same held-out prompts and decoding for every model -> results, answers, both by name.

    models: {"base" (if any), "sft", "ppo": GPT}. score(idx, lengths, mask) -> (B,): the reward
    model's, the proxy of gold. Figures are of answers sampled at cfg.temperature; those of greedy
    answers are under "greedy". `win_rate` and `kl` are PPO's against SFT. `text_loss`, nats per
    token of held-out pretraining text (1-D ids, if any), is the "alignment tax".
    """
    def judged(name, model, temperature):
        torch.manual_seed(seed_for(cfg.seed, name, temperature))
        ids = sampling.sample(model, tokenizer, prompts, cfg.max_new_tokens, temperature)
        texts = [tokenizer.decode(row) for row in ids]
        judgements = judge_all(prompts, texts)
        ended = [row[-1:] == [tokenizer.end] for row in ids]
        figures = summary(prompts, judgements, [len(row) for row in ids], ended)
        proxy = mean(scores(score, model, prompts, ids, tokenizer))
        return dict(figures, score=proxy), ids, texts, judgements

    results, ids, texts, judgements = {}, {}, {}, {}
    for name, model in models.items():
        greedy, *_ = judged(name, model, 0.0)
        results[name], ids[name], texts[name], judgements[name] = judged(name, model,
                                                                         cfg.temperature)
        results[name]["greedy"] = greedy
        if text is not None:
            results[name]["text_loss"] = gpt.evaluate(model, text)
    kl = divergence(models["ppo"], models["sft"], prompts, ids["ppo"], tokenizer, cfg.temperature)
    results["kl"] = mean(kl)
    if judgements["ppo"]:
        results["win_rate"] = win_rate(judgements["ppo"], judgements["sft"])
    return results, texts


# ---- for sft.py ----------------------------------------------------------------------------------


def report_answers(run, shown, before, after):
    """Write results.json, print answers before and after, draw the curves."""
    samples = [dict(prompt=p["prompt"], before=old, after=new)
               for p, old, new in zip(shown, before, after)]
    run.write_results(valid_loss=run.latest.get("valid_loss"), seconds=run.seconds, samples=samples)
    for s in samples:
        print(f"\n{s['prompt'][-1]['content']}\n  before: {s['before']!r}\n  after:  "
              f"{s['after']!r}")
    run.finish()


# ---- for reward.py -------------------------------------------------------------------------------


def golds(records, k):
    """Gold of all `responses` of each record -> (N, k), NaN where there is no answer."""
    gold = torch.full((len(records), k), torch.nan)
    for i, r in enumerate(records):
        row = [labeler.judge(r, response).gold for response in r["responses"]]
        gold[i, :len(row)] = torch.tensor(row)
    return gold


def report_rankings(run, results, test, before, after):
    """Write results.json; print scores of five prompts' answers, and the accuracy; draw curves."""
    samples = [dict(prompt=r["prompt"], responses=r["responses"], ranks=r["ranks"], before=a,
                    after=b) for r, a, b in zip(test, before.tolist(), after.tolist())]
    run.write_results(**results, seconds=run.seconds, samples=samples)
    for s in samples:
        print(f"\n{s['prompt'][-1]['content']}")
        rows = zip(s["ranks"], s["responses"], s["before"], s["after"])
        for rank, response, old, new in sorted(rows, key=lambda row: row[0]):
            print(f"  rank {rank}  score before {old:+.2f}, after {new:+.2f}  {response!r}")
    pairs = results.get("rankings", {"n": 0})
    if pairs["n"]:
        print(f"\nreward: orders {results['accuracy_rankings']:.1%} of {pairs['n']} held-out "
              f"ranked pairs right (95% interval over prompts: {pairs['low']:.1%} to "
              f"{pairs['high']:.1%})")
    if "accuracy" in results:
        print(f"reward: and {results['accuracy']:.1%} of the {results['pairs']} that differ in "
              "gold")
    run.finish()


# ---- for ppo.py ----------------------------------------------------------------------------------


def mean_gold(batch, prompts, tokenizer):
    """The labeler's mean gold of a Rollout's answers -> dict; empty if it cannot judge them."""
    if not judgeable(prompts):
        return {}
    rows = zip(batch.idx[:, 1:].cpu(), batch.mask.cpu())
    texts = [tokenizer.decode(row[written].tolist()) for row, written in rows]
    return dict(gold=mean(j.gold for j in judge_all(prompts, texts)))


def example(batch, prompts, tokenizer):
    """The first question of a Rollout, its answer and score, in one line."""
    answer = tokenizer.decode(batch.idx[0, 1:][batch.mask[0]].tolist())
    return f"{prompts[0]['prompt'][-1]['content']!r} -> {answer!r}, score {batch.score[0]:+.2f}"


def report(cfg, run, compared, score, test, tokenizer):
    """Compare the models on held-out prompts, write results.json, draw the curves."""
    models, text, rounds = compared
    results, answers = compare_models(models, score, test, tokenizer, cfg, text)
    rounds = rounds or [outline(0, results, "sft")]
    rounds.append(outline(cfg.round, results, "ppo"))
    samples = [dict(prompt=p["prompt"], **{name: texts[i] for name, texts in answers.items()})
               for i, p in enumerate(test[:20])]
    seconds = run.about(cfg.steps - 1)["seconds"]
    run.write_results(**results, round=cfg.round, rounds=rounds, samples=samples, seconds=seconds)
    print_report(results, answers, test)
    run.finish(rounds=dict(runs={run.stage: rounds}, along="round",
                           panels=[["gold"], ["score"], ["kl"]]))


PRINTED = {"gold": "gold", "helpful": "helpful", "truthful": "truthful", "harmless": "harmless",
         "right": "accuracy", "invented": "hallucination rate", "complied": "compliance rate",
         "end_rate": "ended by itself", "length": "length", "text_loss": "text loss"}


def print_report(results, answers, prompts):
    """Print the figures of all models, and their answers to ten held-out prompts side by side."""
    names = list(answers)
    print("\nsampled answers           " + "".join(f"{name:>9}" for name in names))
    for figure, said in PRINTED.items():
        if results["ppo"].get(figure) is not None:
            print(f"{said:>25}  " + "".join(f"{results[name][figure]:9.3f}" for name in names))
    print(f"KL to SFT {results['kl']:.2f} nats per answer")
    if "win_rate" in results:
        print(f"PPO preferred to SFT on {results['win_rate']:.1%} of the prompts, ties count half")
    for i, p in enumerate(prompts[:10]):
        print("\n" + "\n".join(f"{m['role']:>9}: {m['content']}" for m in p["prompt"]))
        for name in names:
            print(f"{name:>9}: {answers[name][i]}")
