"""`python ppo.py --prefer`: you compare the newest policy's answers with the SFT model's, blind."""

import json
from dataclasses import dataclass

from data.judge import answers as judging
from data.judge import report
from data.judge.figures import interval
from data.judge.tables import number
from data.people import feedback
from data.run.cli import flag
from data.run.device import setup
from data.run.lineage import fingerprint


@dataclass
class Config(report.Config):
    """The flags of the evaluation, and your name."""

    labeler: str = flag("", "whose file in judged-.../ the preferences go to (default: your login "
                            "name)", group="preferences")


def sampled(cfg, models, tokenizer, names):
    """Held-out prompts, and what models answer -> (prompts, {name: list of str})."""
    prompts = report.held_out_prompts(cfg, models["sft"], tokenizer)
    return prompts, {name: judging.judge(name, models, None, prompts, tokenizer, cfg,
                                         cfg.temperature)[0] for name in names}


def run(cfg):
    """Ask a person; earlier sessions count -> how often the policy is preferred."""
    models, tokenizer, newest = report.load_models(cfg, setup(cfg))
    prompts, texts = sampled(cfg, models, tokenizer, (newest, "sft"))
    pairs = list(zip(texts[newest], texts["sft"]))
    # not beside the labels to learn from: these are held-out prompts
    book = feedback.LabelFile(cfg.out, cfg.labeler, f"judged-{newest}-sft",
                              answers=fingerprint(json.dumps(pairs)))

    def question(n):
        one, other = pairs[n]
        return dict(prompt=prompts[n]["prompt"], responses=[one, other],
                    models={newest: one, "sft": other}) if one != other else None

    feedback.label(feedback.LabelSession(question, len(prompts), book))
    wins, last = [], 0
    for record in book.records:
        rank = dict(zip(record["responses"], record["ranks"]))
        a, b = rank[record["models"][newest]], rank[record["models"]["sft"]]
        wins.append(.5 if a == b else float(a < b))
        last = max(last, record["n"] + 1)
    preferred = interval(wins + [.5] * sum(one == other for one, other in pairs[:last]))
    print(f"{newest} preferred to sft: {number(preferred, '{:.1%}')} of {preferred['n']} "
          "prompts, ties counted half")
    return preferred
