"""Several reward models as one, and the answers on which they disagree (Christiano et al. 2017).

Tried at this scale it brought nothing (RESULTS.md, LOG.md), so it is no part of the stages.

    python -m notebooks.ensemble --reward a.pt,b.pt --caution 1   ppo.py against several; its flags
    bootstrap(records, seed)        rankings drawn with replacement, for members that differ
    most_disputed(...)              which answers to rank next
"""

import data.run.system  # before torch, as in the stages

import math
import random
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn as nn

import gpt
import ppo
import reward
from data import start
from data.files import rows
from data.run.cli import flag, main


@dataclass
class Config(ppo.Config):
    """The flags of ppo.py, and one more; --reward takes several models, separated by commas."""

    caution: float = flag(0.0, "standard deviations to subtract from the members' mean; inf: take "
                               "their minimum (Coste et al. 2023)", least=0, group="ensemble")


class Ensemble(nn.Module):
    """Several reward models as one (Christiano et al. 2017, section 2.2.3).

    Their mean minus `caution` standard deviations is a form of uncertainty-weighted optimisation;
    their minimum, for an infinite `caution`, is worst-case optimisation (Coste et al. 2023).
    """

    def __init__(self, members, caution=0.0):
        super().__init__()
        self.members, self.caution = nn.ModuleList(members), caution
        self.config = members[0].config

    def forward(self, idx, at=None, mask=None):
        """idx (B, T) -> (B, T). at, mask: see GPT.hidden."""
        scores = torch.stack([member(idx, at, mask) for member in self.members])  # (M, B, T)
        if self.caution == math.inf:
            return scores.min(0).values
        return scores.mean(0) - self.caution * scores.std(0, unbiased=False)

    score = gpt.ScalarGPT.score


def load(paths, tokenizer):
    """Reward models "a.pt,b.pt" -> (list of ScalarGPT, the metadata of each)."""
    members, metadata = [], []
    for path in rows.several(paths):
        member, other, about = gpt.load(path, gpt.ScalarGPT)
        start.same_tokenizer(other, tokenizer, path, "the policy", "choose another")
        members.append(member)
        metadata.append(about)
    return members, metadata


def bootstrap(records, seed):
    """As many records, drawn with replacement."""
    return random.Random(seed).choices(records, k=len(records))


@torch.no_grad()
def most_disputed(members, metadata, tokenizer, records, n, device):
    """The n records with the largest ensemble disagreement (Christiano et al. 2017, section 2.2.4).

    Disagreement is the variance between the members of the probability that one answer beats
    another, averaged over all pairs of `responses`. A member's scores times the scale in its
    metadata are log-odds.
    """
    context = members[0].config.block_size
    fitting = [dict(r, ids=ids) for r in records if (ids := reward.encode(tokenizer, r, context))]
    examples = [r.pop("ids") for r in fitting]
    scores = torch.stack([about.get("scale", 1.0) * reward.score_all(member, examples, device)[0]
                          for member, about in zip(members, metadata)])  # (M, N, K)
    wins = torch.sigmoid(scores[..., :, None] - scores[..., None, :])  # (M, N, K, K)
    disagreement = wins.var(0).mean((1, 2))  # (N,)
    return [fitting[i] for i in disagreement.argsort(descending=True)[:n]]


def train(cfg):
    """ppo.train against an ensemble of the models in --reward -> (policy, history)."""
    def reward_models(run, paths, *others, one=start.reward_model):
        members = [one(run, path, *others, role=f"reward model {n}")
                   for n, path in enumerate(rows.several(paths), start=1)]
        return Ensemble(members, cfg.caution)

    def first_value_model(ensemble, of=ppo.first_value_model):
        return of(ensemble.members[0])

    with mock.patch.object(start, "reward_model", reward_models), \
            mock.patch.object(ppo, "first_value_model", first_value_model):
        return ppo.train(cfg)


if __name__ == "__main__":
    main(Config, train, __doc__)
