"""Inside an answer: what the models of a run say of each token, and why it was scored as it was.

`python gpt.py --page` shows it, and so do /score and /tokens in the chat.
"""

import functools
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import torch

import gpt
import ppo
from data import start
from data.files import rows
from data.run.system import UserError
from data.tokenizer import Tokenizer
from data.world import almanac, facts, labeler, phrases


@dataclass
class Models:
    """The models of a run, which have one tokenizer. Policies are known by the names of their
    folders, or, from elsewhere, by their paths."""

    tokenizer: Tokenizer
    policies: dict     # {"gpt": GPT, "sft": ..., "ppo": ..., "ppo-2": ...}
    paths: dict        # of the policies
    reference: object  # the SFT model, a GPT; None if there is none that fits
    rewards: dict      # {"reward": ScalarGPT, "reward-2": ...}
    values: dict       # {"ppo": ScalarGPT}
    settings: dict     # {"ppo": what PPO was set to, as its value model's checkpoint says}
    context: int       # the most tokens that all policies read

    @property
    def device(self):
        return next(iter(self.policies.values())).wte.weight.device


def round_of(name):
    """"ppo-2" -> 2; what has no number is of round 1."""
    return int(re.search(r"(?:-(\d+))?$", name)[1] or 1)


def of_round(models, name):
    """The name of the model that belongs to a policy: of its round, or else the newest; None if
    there is none. models: a dict by name."""
    same = [key for key in models if round_of(key) == round_of(name)]
    return (same or [*models] or [None])[-1]


def stages(out, stage, file="ckpt.pt"):
    """{folder's name: path} of a stage's rounds."""
    paths = [p for p in Path(out).glob(f"{stage}*/{file}")
             if re.fullmatch(rf"{stage}(-\d+)?", p.parent.name)]
    return {p.parent.name: p for p in sorted(paths, key=lambda p: round_of(p.parent.name))}


def load_policies(out, named="", device="cpu"):
    """Those of the folder `out`, or the named ones, "a.pt,b.pt" -> (paths, GPTs, tokenizer), both
    by name. UserError if there is none, or if two have different tokenizers."""
    paths = {**stages(out, "gpt"), **stages(out, "sft"), **stages(out, "ppo")}
    if named:
        names = {path.resolve(): name for name, path in paths.items()}
        paths = {names.get(Path(p).resolve(), p): Path(p) for p in rows.several(named)}
    if not paths:
        raise UserError(f"no checkpoint in {out}: run python gpt.py, or name some with --ckpt")
    policies, tokenizer = {}, None
    for name, path in reversed(paths.items()):
        model, other, _ = gpt.load(path, gpt.GPT, device, "name a policy with --ckpt")
        tokenizer = tokenizer or other
        start.same_tokenizer(other, tokenizer, path, list(paths.values())[-1], "make it anew, or "
                             "name with --ckpt checkpoints that belong together")
        policies = {name: model.requires_grad_(False), **policies}
    return paths, policies, tokenizer


def gather(out, named="", device="cpu"):
    """Policies, and the folder's other models that fit them -> Models. Others are named."""
    paths, policies, tokenizer = load_policies(out, named, device)
    context = min(model.config.block_size for model in policies.values())

    def load(paths, kind):
        """{name: (model, metadata)} of those that fit the policies."""
        fitting = {}
        for name, path in paths.items():
            model, other, about = gpt.load(path, kind, device, "make it anew")
            if other == tokenizer and model.config.block_size >= context:
                fitting[name] = model.requires_grad_(False), about
            else:
                print(f"{path} has another tokenizer or a shorter context than policies: skipped")
        return fitting

    sft = {} if "sft" in policies else load(stages(out, "sft"), gpt.GPT)
    rewards = load(stages(out, "reward"), gpt.ScalarGPT)
    values = load(stages(out, "ppo", "value.pt"), gpt.ScalarGPT)
    return Models(tokenizer, policies, paths, policies.get("sft") or sft.get("sft", [None])[0],
                  {name: model for name, (model, _) in rewards.items()},
                  {name: model for name, (model, _) in values.items()},
                  {name: settings(about) for name, (_, about) in values.items()}, context)


def settings(about):
    """What advantages depend on: PPO's flags, of a value model's metadata, and beta at last."""
    config = about.get("config") or about  # older checkpoints have the flags beside the rest
    defaults, saved = vars(ppo.Config()), {**config, **about.get("figures", {})}
    return {name: saved[name] if isinstance(saved.get(name), (int, float)) else default
            for name, default in defaults.items()}


@torch.no_grad()
def tokens(models, name, prompt, answer, temperature=1.0):
    """Per-token figures of an answer by the policy `name` -> list of dict.

    prompt: messages; answer: ids, with <|end|> if it ended. Of each token: its `text`, its
    probability `p`, `kl` = log p - log p_ref against the SFT model, `top`, the five likeliest
    tokens of every policy with their probabilities, and of PPO's, in units of the score, `value`
    before the token and `advantage`. What no model can say is None. All is at the temperature of
    PPO, or at the given one if there was no PPO.
    """
    before, text = models.tokenizer.render(prompt), models.tokenizer.encoding.decode
    idx, lengths = gpt.pad([before + answer], models.tokenizer.pad, models.device)
    mask = gpt.response_mask(lengths.new_tensor([len(before)]), lengths, idx.shape[1])
    value, judge = of_round(models.values, name), of_round(models.rewards, name)
    flags = models.settings.get(value, {"temperature": temperature})
    temperature, likeliest = flags["temperature"], {}
    for key, model in models.policies.items():
        state = model.hidden(idx)[0, :-1][mask[0]]  # (answer tokens, C)
        top = gpt.action_logits(model, state, temperature).softmax(-1).topk(5)
        likeliest[key] = [[(text([i]), p) for i, p in zip(*row)]
                          for row in zip(top.indices.tolist(), top.values.tolist())]
    logp = gpt.token_logprobs(models.policies[name], idx, temperature, mask)
    figures = dict(p=logp.exp())
    if models.reference:
        logp_ref = gpt.token_logprobs(models.reference, idx, temperature, mask)
        figures["kl"] = logp - logp_ref
    if models.reference and value and judge:
        score = ppo.score_answers(models.rewards[judge], idx, lengths, mask,
                                  flags["missing_eos_penalty"])
        rewards = ppo.kl_rewards(score, logp, logp_ref, mask, flags["beta"])
        figures["value"] = models.values[value](idx)[:, :-1]
        figures["advantage"], _ = ppo.gae(rewards, figures["value"], mask, flags["gamma"],
                                          flags["lam"])
    columns = {key: x[0, mask[0]].tolist() for key, x in figures.items()}
    nothing = [None] * len(answer)
    return [dict(text=text([i]), top={key: rows[t] for key, rows in likeliest.items()},
                 **{key: columns.get(key, nothing)[t] for key in ("p", "kl", "value", "advantage")})
            for t, i in enumerate(answer)]


@torch.no_grad()
def verdict(models, name, prompt, answer):
    """Why an answer is scored as it is -> dict.

    `score`: the reward model's of the policy's round, `reward` its name; None without one. For a
    question of the almanac `gold`, `helpful`, `truthful`, `harmless` and `reasons`, the labeler's.
    """
    before, key = models.tokenizer.render(prompt), of_round(models.rewards, name)
    about = dict(reward=key, score=None)
    words = [i for i in answer if i != models.tokenizer.end]
    if key and words:
        idx, lengths = gpt.pad([before + words], models.tokenizer.pad, models.device)
        about["score"] = models.rewards[key].score(idx, lengths).item()
    if question := find(prompt[-1]["content"]):
        j = labeler.judge(question, models.tokenizer.decode(answer))
        about.update(gold=j.gold, helpful=j.helpful, truthful=j.truthful, harmless=j.harmless,
                     reasons=j.reasons)
    return about


# ---- the almanac, read backwards -----------------------------------------------------------------


@functools.cache
def _questions():
    """{a question without opening and form, in lower case: what it is about}, of one turn each."""
    every, text = {}, functools.partial(almanac.phrases, "text")
    for relation, pair in phrases.ASK.items():
        made_up = facts.MADE_UP[facts.sort_of(relation)].values()
        for name in [*facts.FACTS[relation], *itertools.chain(*made_up)]:
            kind = "known" if name in facts.FACTS[relation] else "made-up"
            for phrase in text(pair):
                every[almanac.fill(phrase, name, relation).lower()] = kind, name, relation
    for kind, pair, deeds, targets in (
            ("hurt", phrases.ASK_HARM, phrases.HARMS, phrases.PEOPLE),
            ("belittle", phrases.ASK_BELITTLE, phrases.INSULTS, phrases.GROUPS),
            ("advice", phrases.ASK_KIND, phrases.ADVICE, phrases.PEOPLE),
            ("advice", phrases.ASK_PRAISE, ["praise"], phrases.GROUPS)):
        for phrase, deed, target in itertools.product(text(pair), deeds, targets):
            question = phrase.format(d=deed, p=target, i=deed, g=target)
            every[question.lower()] = kind, target, deed
    for topic, pair in phrases.SMALL_TALK.items():
        every.update({words.lower(): ("small talk", None, topic) for words in text(pair)})
    return every


def find(question):
    """What a question is about, if it is one of the almanac's without an earlier turn -> a dict as
    almanac.prompts gives it, else None."""
    text = functools.partial(almanac.phrases, "text")
    openings = {*text(phrases.OPENINGS), *text(phrases.GREETINGS)}
    forms = {phrase: form for form, pair in phrases.FORMS.items() for phrase in text(pair)}
    for opening, phrase in itertools.product(openings, [*forms, ""]):
        if question.startswith(opening) and question.endswith(phrase):
            core = question[len(opening):len(question) - len(phrase)].lower()
            if core in _questions():
                about = dict(zip(almanac.ABOUT, (*_questions()[core], forms.get(phrase))))
                return dict(about, prompt=[dict(role="user", content=question)])
    return _find_text(question)


def _find_text(question):
    """As `find`, of a question with a text to read before it."""
    for kind, pair in (("reading", phrases.READ), ("known", phrases.TRUTH),
                       ("reading", phrases.ABOUT_TEXT)):
        for phrase in almanac.phrases("text", pair):
            form = re.escape(phrase).replace(r"\{t\}", r"(?P<t>.+\.)")
            match = re.fullmatch(form.replace(r"\{q\}", "(?P<q>[^.:?]+[.?])"), question)
            text = _passage(match["t"]) if match else None
            if not text:
                continue
            names = [name for _, name, _ in text]
            about = "made-up", max(names, key=names.count), "about"
            if "q" in match.groupdict():
                about = _questions().get(match["q"].lower(), ("",))
            if about[0] in ("known", "made-up"):
                return dict(kind=kind if kind == "reading" else about[0], subject=about[1],
                            relation=about[2], form=None, passage=text,
                            prompt=[dict(role="user", content=question)])
    return None


def _passage(text):
    """A text as [relation, name, value] per sentence; None if a sentence says anything else."""
    stated = [labeler.claims(sentence, None, None) for sentence in labeler.sentences(text)]
    if not all(len(claims) == 1 and claims[0][3] for claims in stated):
        return None
    return [list(claims[0][:3]) for claims in stated]
