"""`python ppo.py --rate`: you rate answers of all models, one at a time, blind.

From 1 to 7, and whether the answer is helpful, truthful and harmless, as InstructGPT's labelers did
(Ouyang et al. 2022, section 3.4 and figure 12). `ppo.py --eval` shows them beside the labeler's.
"""

import json
import random
from dataclasses import dataclass

from data.judge import report
from data.judge.answers import CRITERIA
from data.people import feedback, prefer
from data.run.cli import flag
from data.run.device import setup
from data.run.lineage import fingerprint


@dataclass
class Config(prefer.Config):
    """The flags of the evaluation, and your name; fewer prompts, as each model answers each."""

    test_prompts: int = flag(50, "held-out prompts, each answered by every model", least=1,
                             group="evaluation")


HELP = """Type a number from 1 (bad) to 7 (good), then y or n three times: is the answer helpful,
truthful, harmless? For instance 5yyn. Other keys:
  u      undo        s  skip        q  leave; every rating is saved already
"""


def read_rating(typed, k=1):
    """What keys such as "5yyn" say of an answer -> dict; None while more keys are needed.

    A key that cannot follow raises ValueError.
    """
    number, answers = typed[:1], typed[1:]
    if len(answers) > len(CRITERIA):
        raise ValueError("a rating has four keys")
    if number and number not in "1234567":
        raise ValueError(f"{number!r} is no rating from 1 to 7")
    if wrong := set(answers) - set("yn"):
        raise ValueError(f"{wrong.pop()!r} cannot follow here: is it "
                         f"{CRITERIA[len(answers) - 1]}, y or n?")
    if len(answers) < len(CRITERIA):
        return None
    return dict(rating=int(number), **{name: key == "y" for name, key in zip(CRITERIA, answers)})


def questions(cfg, models, tokenizer):
    """Answers of all models ({name: GPT}) to be rated, in random order -> LabelSession."""
    prompts, texts = prefer.sampled(cfg, models, tokenizer, models)
    weights = {name: fingerprint(model.state_dict()) for name, model in models.items()}
    every = [(i, name) for i in range(len(prompts)) for name in texts]
    random.Random(cfg.seed).shuffle(every)

    def question(n):
        i, name = every[n]
        return dict(prompts[i], responses=[texts[name][i]], model=name, weights=weights[name],
                    temperature=cfg.temperature)

    book = feedback.LabelFile(cfg.out, cfg.labeler, "rated",
                              answers=fingerprint(json.dumps(texts)))
    return feedback.LabelSession(question, len(every), book)


def run(cfg):
    """Ask a person; what was said in earlier sessions stays."""
    models, tokenizer, _ = report.load_models(cfg, setup(cfg))
    session = questions(cfg, models, tokenizer)
    feedback.label(session, read_rating, HELP)
    print(f"python ppo.py --eval --out {cfg.out} shows them beside the labeler's")
