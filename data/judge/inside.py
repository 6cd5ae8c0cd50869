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
from data.judge.answers import score_responses
from data.run.cli import UserError
from data.tokenizer import Tokenizer
from data.world import almanac, labeler


@dataclass
class Models:
    """The models of a run, which have one tokenizer, by the names of their folders."""

    tokenizer: Tokenizer
    policies: dict   # {"gpt": GPT, "sft": ..., "ppo": ..., "ppo-2": ...}
    rewards: dict    # {"reward": ScalarGPT, "reward-2": ...}
    values: dict     # {"ppo": ScalarGPT}
    settings: dict   # {"ppo": what PPO was set to, as its value model's checkpoint says}

    @property
    def context(self):
        """The most tokens that all of them read."""
        every = [*self.policies.values(), *self.rewards.values(), *self.values.values()]
        return min(model.config.block_size for model in every)


def round_of(name):
    """"ppo-2" -> 2; what has no number is of round 1."""
    return int(re.search(r"(?:-(\d+))?$", name)[1] or 1)


def of_round(models, name):
    """The name of the model that belongs to a policy: of its round, or else the newest; None if
    there is none. models: a dict by name."""
    same = [key for key in models if round_of(key) == round_of(name)]
    return (same or [*models] or [None])[-1]


def gather(out, named="", device="cpu"):
    """The models of the folder `out`, of policies only the named ones, "a.pt,b.pt" -> Models.

    UserError if there is no policy, or if two models have different tokenizers.
    """
    def stages(stage, file="ckpt.pt"):
        found = [p for p in Path(out).glob(f"{stage}*/{file}")
                 if re.fullmatch(rf"{stage}(-\d+)?", p.parent.name)]
        return {p.parent.name: p for p in sorted(found, key=lambda p: round_of(p.parent.name))}

    policies = {**stages("gpt"), **stages("sft"), **stages("ppo")}
    if named:
        by_path = {str(path): name for name, path in policies.items()}
        policies = {by_path.get(path, path): path for path in rows.several(named)}
    if not policies:
        raise UserError(f"no checkpoint in {out}: run python gpt.py first, or name some with "
                        "--ckpt")
    newest = list(policies.values())[-1]
    _, tokenizer, _ = gpt.load(newest, gpt.GPT, device, "name a policy with --ckpt")
    abouts = {}

    def read(paths, kind):
        models = {}
        for name, path in paths.items():
            model, other, abouts[name] = gpt.load(path, kind, device, "name others with --ckpt")
            start.same_tokenizer(other, tokenizer, path, newest, "make it anew, or name with "
                                 "--ckpt checkpoints that belong together")
            models[name] = model.requires_grad_(False)
        return models

    policies, rewards = read(policies, gpt.GPT), read(stages("reward"), gpt.ScalarGPT)
    values = read(stages("ppo", "value.pt"), gpt.ScalarGPT)
    return Models(tokenizer, policies, rewards, values, {name: abouts[name] for name in values})


@torch.no_grad()
def tokens(models, name, prompt, answer, temperature=1.0):
    """What is said of each token of an answer that policy `name` gave -> list of dict.

    prompt: messages; answer: ids, with <|end|> if it ended. Of each token: its `text`, its
    probability `p`, `kl` = log p - log p_ref against the SFT model, `top`, the five likeliest
    tokens of every policy with their probabilities, and of PPO's, in units of the score, `value`
    before the token and `advantage`. What no model can say is None.
    """
    tokenizer, asked = models.tokenizer, models.tokenizer.render(prompt)
    idx, lengths = gpt.pad([asked + answer], tokenizer.pad, device_of(models))
    mask = gpt.response_mask(lengths.new_tensor([len(asked)]), lengths, idx.shape[1])
    logp, likeliest = {}, {}
    for key, model in models.policies.items():
        logp[key] = gpt.token_logprobs(model, idx, temperature, mask)  # (1, T-1)
        state = model.hidden(idx)[0, :-1][mask[0]]  # (answer tokens, C)
        top = gpt.action_logits(model, state, temperature).softmax(-1).topk(5)
        likeliest[key] = [[(shown(tokenizer, i), p) for i, p in zip(*row)]
                          for row in zip(top.indices.tolist(), top.values.tolist())]
    found = dict(p=logp[name].exp())
    if "sft" in models.policies:
        found["kl"] = logp[name] - logp["sft"]
    if (key := of_round(models.values, name)) and models.rewards and "kl" in found:
        said = models.settings[key]
        score = score_responses(models.rewards[of_round(models.rewards, name)], idx, lengths, mask,
                                said["missing_eos_penalty"])
        rewards = ppo.kl_rewards(score, logp[name], logp["sft"], mask, said["beta"])
        found["value"] = models.values[key](idx)[:, :-1]
        found["advantage"], _ = ppo.gae(rewards, found["value"], mask, said["gamma"], said["lam"])
    columns = {key: x[0, mask[0]].tolist() for key, x in found.items()}
    return [dict(text=shown(tokenizer, i), top={key: rows[t] for key, rows in likeliest.items()},
                 **{key: columns[key][t] if key in columns else None
                    for key in ("p", "kl", "value", "advantage")})
            for t, i in enumerate(answer)]


def device_of(models):
    return next(next(iter(models.policies.values())).parameters()).device


def shown(tokenizer, token):
    """A token as text; the special ones by their names."""
    if token < len(tokenizer.ranks):
        return tokenizer.decode([token])
    return tokenizer.encoding.decode([token])


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
        idx, lengths = gpt.pad([asked + words], models.tokenizer.pad, device_of(models))
        found["score"] = models.rewards[key].score(idx, lengths).item() if words else None
    if about := almanac.find(prompt[-1]["content"]):
        judged = labeler.judge(about, models.tokenizer.decode(answer))
        found.update(gold=judged.gold, helpful=judged.helpful, truthful=judged.truthful,
                     harmless=judged.harmless, reasons=judged.reasons)
    return found
