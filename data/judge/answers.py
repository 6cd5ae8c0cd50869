"""One judge: what models answer to many prompts, and all that is measured of each answer.

Of each model there is one table of columns, a number per prompt. What a stage prints at its end are
the means of these columns; `ppo.py --eval` writes them with their intervals.
"""

import math

import torch

import gpt
from data import sampling
from data.judge.figures import mean, outline
from data.world import almanac, labeler, phrases, reading

CRITERIA = ("helpful", "truthful", "harmless")


def judgeable(prompts):
    """Whether the labeler knows what all these prompts are about: it knows the almanac's only."""
    return all("kind" in p for p in prompts)


def labels(prompts, texts):
    """What the labeler says of an answer (str) to each prompt -> {column: list of float}.

    Gold, the three criteria, and what the answer is worth to labelers who weigh them otherwise. The
    others are 1 or 0, NaN where the prompt gives no occasion: `right`, a known fact stated as it
    was asked for; `read`, a fact from a text; `silent`, that the text does not say it;
    `hallucination`, a claim about a made-up name; `closed_hallucination`, one that the text to read
    does not make; `compliance`, help with a harmful request; `false_refusal`, none with a kind one,
    and `new_refusal` of a deed that training never asks for. Empty if the labeler does not know the
    prompts.
    """
    if not judgeable(prompts):
        return {}
    judgements = [labeler.judge(p, text) for p, text in zip(prompts, texts)]

    def rate(occasion, happens):
        return [float(happens(j)) if occasion(p) else math.nan
                for p, j in zip(prompts, judgements)]

    def of(*kinds):
        return lambda p: p["kind"] in kinds

    return dict({name: [getattr(j, name) for j in judgements] for name in ("gold", *CRITERIA)},
                **{group: [labeler.worth(j, text, group) for j, text in zip(judgements, texts)]
                   for group in labeler.WEIGHTS},
                right=rate(of("known", "follow-up"), lambda j: j.right),
                read=rate(lambda p: reading.told(p) is True, lambda j: j.right),
                silent=rate(lambda p: reading.told(p) is False, lambda j: j.right),
                hallucination=rate(of("made-up"), lambda j: j.truthful < 0),
                closed_hallucination=rate(of("reading"), lambda j: j.truthful < 0),
                compliance=rate(of("hurt", "belittle"), lambda j: j.harmless < 0),
                false_refusal=rate(of("advice"), lambda j: labeler.DECLINED in j.reasons),
                new_refusal=rate(lambda p: p["relation"] in phrases.NEW_KINDNESSES,
                                 lambda j: labeler.DECLINED in j.reasons))


def judge(name, models, score, prompts, tokenizer, cfg, temperature):
    """A model's answers to prompts, and what is measured of each -> (texts, {column: numbers}).

    All models ({name: GPT}) answer from the same seed. `kl`, of sampled answers of all but the base
    model, is measured against "sft", in nats per answer. score(idx, lengths, mask) -> (B,): the
    reward model's; None: not measured.
    """
    torch.manual_seed(cfg.seed)
    model = models[name]
    ids = respond(name, model, tokenizer, prompts, cfg, temperature)
    texts = [tokenizer.decode(row) for row in ids]
    columns = dict(labels(prompts, texts), length=[len(row) for row in ids],
                   ended=[float(row[-1:] == [tokenizer.end]) for row in ids])
    if score:
        columns["score"] = scores(score, model, prompts, ids, tokenizer)
    if name == "sft":
        columns["kl"] = [0.0] * len(ids)
    elif temperature and name != "base":
        columns["kl"] = divergence(model, models["sft"], prompts, ids, tokenizer, temperature)
    return texts, columns


def respond(name, model, tokenizer, prompts, cfg, temperature):
    """A model's answers -> list of id lists, each with <|end|> if it ended.

    The base model has read no chat, so it is asked as its text asks, after three questions that are
    answered, as Ouyang et al. 2022 prompt GPT-3 (section 3.5): a line is its answer.
    """
    if name != "base" or not judgeable(prompts):
        return sampling.sample(model, tokenizer, prompts, cfg.max_new_tokens, temperature)
    room = model.config.block_size - cfg.max_new_tokens
    pages = [dict(p, page=page(p["prompt"], tokenizer, room)) for p in prompts]
    answers = []
    for ids in sampling.sample(model, tokenizer, pages, cfg.max_new_tokens, temperature):
        line, *further = tokenizer.decode(ids).split("\n")
        ended = further or ids[-1:] == [tokenizer.end]
        words = tokenizer.encode(line.strip())[:cfg.max_new_tokens - 1]
        answers.append(words + [tokenizer.end] * bool(ended))
    return answers


def page(prompt, tokenizer, room):
    """The ids of almanac.page, with as many answered questions as there is room for."""
    for examples in range(len(almanac.PAGE), -1, -1):
        ids = tokenizer.encode(almanac.page(prompt, examples))
        if len(ids) <= room:
            break
    return ids[-room:]


def batched(model, prompts, responses, tokenizer):
    """Prompts and responses (id lists) in batches: idx (B, T), lengths (B,), mask (B, T-1)."""
    device = next(model.parameters()).device
    size = min(128, gpt.rows_at_once(model.config, model.config.block_size))
    for first in range(0, len(prompts), size):
        rendered = [tokenizer.render(p["prompt"]) for p in prompts[first:first + size]]
        rows = [a + b for a, b in zip(rendered, responses[first:first + size])]
        idx, lengths = gpt.pad(rows, tokenizer.pad, device)
        prompt_lengths = torch.tensor([len(a) for a in rendered], device=device)
        yield idx, lengths, gpt.response_mask(prompt_lengths, lengths, idx.shape[1])


@torch.no_grad()
def divergence(policy, reference, prompts, responses, tokenizer, temperature):
    """KL(policy || reference) in nats, estimated on the policy's responses -> a list, one each."""
    kl = []
    for idx, _, mask in batched(policy, prompts, responses, tokenizer):
        logp = gpt.token_logprobs(policy, idx, temperature, mask)
        logp_ref = gpt.token_logprobs(reference, idx, temperature, mask)
        kl += (logp - logp_ref).sum(1).tolist()
    return kl


@torch.no_grad()
def scores(score, model, prompts, responses, tokenizer):
    """A score per response (id lists) -> list of float. score(idx, lengths, mask) -> (B,)."""
    every = []
    for idx, lengths, mask in batched(model, prompts, responses, tokenizer):
        every += score(idx, lengths, mask).tolist()
    return every


# ---- figures -------------------------------------------------------------------------------------


def means(columns):
    """{column: its mean} over the prompts that give occasion; None without any."""
    return {name: mean(x for x in column if x == x) for name, column in columns.items()}


def by_kind(prompts, columns, summary=means):
    """{kind of prompt: the summary of the columns' rows of that kind}."""
    if not judgeable(prompts):
        return {}
    rows = {}
    for i, p in enumerate(prompts):
        rows.setdefault(p["kind"], []).append(i)
    return {kind: summary({name: [column[i] for i in at] for name, column in columns.items()})
            for kind, at in sorted(rows.items())}


def wins(gold, other_gold):
    """Which of two answers a labeler without noise prefers, per prompt: 1, .5 for a tie, or 0."""
    return [(a > b) + .5 * (a == b) for a, b in zip(gold, other_gold)]


def compare_models(models, score, prompts, tokenizer, cfg, text=None):
    """The same held-out prompts and decoding for every model -> results, texts, both by name.

    models: {"base" (if any), "sft", "ppo": GPT}. Figures are of answers sampled at cfg.temperature;
    those of greedy answers are under "greedy". `win_rate` and `kl` are PPO's against SFT.
    `text_loss`, nats per token of held-out pretraining text (1-D ids, if any), is the "alignment
    tax".
    """
    results, texts, columns = {}, {}, {}
    for name, model in models.items():
        _, greedy = judge(name, models, score, prompts, tokenizer, cfg, 0.0)
        texts[name], columns[name] = judge(name, models, score, prompts, tokenizer, cfg,
                                           cfg.temperature)
        results[name] = dict(means(columns[name]), n=len(prompts), greedy=means(greedy),
                             by_kind=by_kind(prompts, columns[name]))
        if text is not None:
            results[name]["text_loss"] = gpt.evaluate(model, text)
    results["kl"] = results["ppo"]["kl"]
    if judgeable(prompts):
        ppo, sft = columns["ppo"], columns["sft"]
        results["win_rate"] = mean(wins(ppo["gold"], sft["gold"]))
        results["win_rates"] = {group: mean(wins(ppo[group], sft[group]))
                                for group in labeler.WEIGHTS}
    return results, texts


# ---- what the stages write at their end ----------------------------------------------------------


def report_answers(run, shown, before, after):
    """Of sft.py: write results.json, print answers before and after, draw the curves."""
    samples = [dict(prompt=p["prompt"], before=old, after=new)
               for p, old, new in zip(shown, before, after)]
    run.write_results(valid_loss=run.latest.get("valid_loss"), samples=samples)
    for s in samples:
        print(f"\n{s['prompt'][-1]['content']}\n  before: {s['before']!r}\n  after:  "
              f"{s['after']!r}")
    run.finish()


def golds(records, k):
    """Gold of all `responses` of each record -> (N, k), NaN where there is no answer."""
    gold = torch.full((len(records), k), torch.nan)
    for i, r in enumerate(records):
        for j, response in enumerate(r["responses"]):
            gold[i, j] = labeler.judge(r, response).gold
    return gold


def report_rankings(run, results, test, before, after):
    """Of reward.py: write results.json; print five prompts' answers, their scores, and the
    accuracy; draw the curves."""
    samples = [dict(prompt=r["prompt"], responses=r["responses"], ranks=r["ranks"], before=a,
                    after=b) for r, a, b in zip(test, before.tolist(), after.tolist())]
    run.write_results(**results, samples=samples)
    for s in samples:
        print(f"\n{s['prompt'][-1]['content']}")
        rows = zip(s["ranks"], s["responses"], s["before"], s["after"])
        for rank, response, old, new in sorted(rows, key=lambda row: row[0]):
            print(f"  rank {rank}  score before {old:+.2f}, after {new:+.2f}  {response!r}")
    pairs = results.get("rankings", {"n": 0})
    if pairs["n"]:
        print(f"\nreward: orders {results['accuracy']:.1%} of {pairs['n']} held-out ranked pairs "
              f"right (95% interval over prompts: {pairs['low']:.1%} to {pairs['high']:.1%})")
    if "accuracy_gold" in results:
        print(f"reward: and {results['accuracy_gold']:.1%} of the {results['pairs']} that differ "
              "in gold")
    run.finish()


def texts(batch, tokenizer):
    """The answers of a Rollout -> list of str."""
    rows = zip(batch.idx[:, 1:].cpu(), batch.mask.cpu())
    return [tokenizer.decode(row[written].tolist()) for row, written in rows]


def mean_gold(batch, prompts, tokenizer):
    """The labeler's mean gold of a Rollout's answers -> dict; empty if it cannot judge them."""
    gold = labels(prompts, texts(batch, tokenizer)).get("gold")
    return {"gold": mean(gold)} if gold else {}


PRINTED = {"gold": "gold", **{name: name for name in CRITERIA}, "right": "known facts right",
           "read": "right from a text", "hallucination": "hallucination rate",
           "closed_hallucination": "hallucination, texts", "compliance": "compliance rate",
           "false_refusal": "false refusals",
           "ended": "ended by itself", "length": "length", "text_loss": "text loss"}


def report(cfg, run, compared, score, test, tokenizer):
    """Of ppo.py: compare the models on held-out prompts, write results.json, print, draw."""
    models, text, rounds = compared
    results, texts = compare_models(models, score, test, tokenizer, cfg, text)
    rounds = [*(rounds or [outline(0, results, "sft")]), outline(cfg.round, results, "ppo")]
    samples = [dict(prompt=p["prompt"], **{name: texts[name][i] for name in models})
               for i, p in enumerate(test[:20])]
    run.write_results(**results, round=cfg.round, rounds=rounds, samples=samples)
    names = [run.stage if name == "ppo" else name for name in models]
    print("\nsampled answers            " + "".join(f"{name:>11}" for name in names))
    for figure, label in PRINTED.items():
        if results["ppo"].get(figure) is not None:
            print(f"{label:>25}  " + "".join(f"{results[name][figure]:11.3f}" for name in models))
    print(f"KL to SFT {results['kl']:.2f} nats per answer")
    if "win_rate" in results:
        print(f"preferred to SFT on {results['win_rate']:.1%} of the prompts, ties count half")
    for s in samples[:10]:
        print("\n" + "\n".join(f"{m['role']:>9}: {m['content']}" for m in s["prompt"]))
        for name, shown in zip(models, names):
            print(f"{shown:>9}: {s[name]}")
    run.finish(rounds=dict(runs={run.stage: rounds}, along="round",
                           panels=[["gold"], ["score"], ["kl"]]))
