"""Inside an answer: what the models of a run say of each token, and why it was scored as it was.

`python gpt.py --page` shows it, and so do /score and /tokens in the chat.
"""

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
from data.world import almanac, labeler


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

    @property
    def context(self):
        """The most tokens that all policies read."""
        return min(model.config.block_size for model in self.policies.values())

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
    found = [p for p in Path(out).glob(f"{stage}*/{file}")
             if re.fullmatch(rf"{stage}(-\d+)?", p.parent.name)]
    return {p.parent.name: p for p in sorted(found, key=lambda p: round_of(p.parent.name))}


def gather(out, named="", device="cpu"):
    """The models of the folder `out`, of policies only the named ones, "a.pt,b.pt" -> Models.

    Other models that do not fit these policies are left out, and named. UserError if there is no
    policy, or if two policies have different tokenizers.
    """
    paths = {**stages(out, "gpt"), **stages(out, "sft"), **stages(out, "ppo")}
    if named:
        names = {path.resolve(): name for name, path in paths.items()}
        paths = {names.get(Path(p).resolve(), p): Path(p) for p in rows.several(named)}
    if not paths:
        raise UserError(f"no checkpoint in {out}: run python gpt.py first, or name some with "
                        "--ckpt")
    models, tokenizer = Models(None, {}, paths, None, {}, {}, {}), None
    for name, path in reversed(paths.items()):
        policy, other, _ = gpt.load(path, gpt.GPT, device, "name a policy with --ckpt")
        tokenizer = tokenizer or other
        start.same_tokenizer(other, tokenizer, path, list(paths.values())[-1], "make it anew, or "
                             "name with --ckpt checkpoints that belong together")
        models.policies = {name: policy.requires_grad_(False), **models.policies}
    models.tokenizer = tokenizer

    def read(paths, kind):
        for name, path in paths.items():
            model, other, about = gpt.load(path, kind, device, "make it anew")
            if other == tokenizer and model.config.block_size >= models.context:
                yield name, model.requires_grad_(False), about
            else:
                print(f"{path} has another tokenizer, or a shorter context, than the policies: "
                      "skipped")

    models.reference = models.policies.get("sft") or next(
        (model for _, model, _ in read(stages(out, "sft"), gpt.GPT)), None)
    for name, model, _ in read(stages(out, "reward"), gpt.ScalarGPT):
        models.rewards[name] = model
    for name, model, about in read(stages(out, "ppo", "value.pt"), gpt.ScalarGPT):
        models.values[name], models.settings[name] = model, settings(about)
    return models


def settings(about):
    """What advantages depend on, of a value model's metadata: PPO's flags, and beta at last."""
    flags = {**about, **about.get("config", {})}
    return {**flags, "beta": about.get("figures", {}).get("beta", flags.get("beta"))}


@torch.no_grad()
def tokens(models, name, prompt, answer, temperature=1.0):
    """What is said of each token of an answer that policy `name` gave -> list of dict.

    prompt: messages; answer: ids, with <|end|> if it ended. Of each token: its `text`, its
    probability `p`, `kl` = log p - log p_ref against the SFT model, `top`, the five likeliest
    tokens of every policy with their probabilities, and of PPO's, in units of the score, `value`
    before the token and `advantage`. What no model can say is None. All is at the temperature of
    PPO, or at the given one if there was no PPO.
    """
    asked, text = models.tokenizer.render(prompt), models.tokenizer.encoding.decode
    idx, lengths = gpt.pad([asked + answer], models.tokenizer.pad, models.device)
    mask = gpt.response_mask(lengths.new_tensor([len(asked)]), lengths, idx.shape[1])
    value, judge = of_round(models.values, name), of_round(models.rewards, name)
    settings = models.settings.get(value, {"temperature": temperature})
    temperature, likeliest = settings["temperature"], {}
    for key, model in models.policies.items():
        state = model.hidden(idx)[0, :-1][mask[0]]  # (answer tokens, C)
        top = gpt.action_logits(model, state, temperature).softmax(-1).topk(5)
        likeliest[key] = [[(text([i]), p) for i, p in zip(*row)]
                          for row in zip(top.indices.tolist(), top.values.tolist())]
    logp, found = gpt.token_logprobs(models.policies[name], idx, temperature, mask), {}
    found["p"] = logp.exp()
    if models.reference:
        logp_ref = gpt.token_logprobs(models.reference, idx, temperature, mask)
        found["kl"] = logp - logp_ref
    if models.reference and value and judge:
        score = ppo.score_answers(models.rewards[judge], idx, lengths, mask,
                                  settings["missing_eos_penalty"])
        rewards = ppo.kl_rewards(score, logp, logp_ref, mask, settings["beta"])
        found["value"] = models.values[value](idx)[:, :-1]
        found["advantage"], _ = ppo.gae(rewards, found["value"], mask, settings["gamma"],
                                        settings["lam"])
    columns = {key: x[0, mask[0]].tolist() for key, x in found.items()}
    return [dict(text=text([i]), top={key: rows[t] for key, rows in likeliest.items()},
                 **{key: columns[key][t] if key in columns else None
                    for key in ("p", "kl", "value", "advantage")})
            for t, i in enumerate(answer)]


@torch.no_grad()
def verdict(models, name, prompt, answer):
    """Why an answer is scored as it is -> dict.

    `score`: the reward model's of the policy's round, `reward` its name; None without one. For a
    question of the almanac `gold`, `helpful`, `truthful`, `harmless` and `reasons`, the labeler's.
    """
    asked, key = models.tokenizer.render(prompt), of_round(models.rewards, name)
    found = dict(reward=key, score=None)
    if key:
        words = [i for i in answer if i != models.tokenizer.end]
        idx, lengths = gpt.pad([asked + words], models.tokenizer.pad, models.device)
        found["score"] = models.rewards[key].score(idx, lengths).item() if words else None
    if about := almanac.find(prompt[-1]["content"]):
        judged = labeler.judge(about, models.tokenizer.decode(answer))
        found.update(gold=judged.gold, helpful=judged.helpful, truthful=judged.truthful,
                     harmless=judged.harmless, reasons=judged.reasons)
    return found
