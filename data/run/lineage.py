"""What each model was made from: whose weights, which texts, which seed and code.

    python -m data.run.lineage out      the models of a folder, and what no longer fits together

A checkpoint carries a fingerprint of its weights and those of all its ancestors: models by the name
of their stage ("sft", "ppo-2"), files by their place ("gpt/text.txt"). If a stage meets two
different fingerprints of one name, something was made anew under what was built on it.
"""

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from data.run import disk
from data.run.cli import arguments, polite
from data.run.system import UserError

STAGES = ("gpt", "sft", "reward", "ppo")


def fingerprint(content):
    """16 hexadecimal digits of SHA-256, of bytes, a str, or a dict of tensors."""
    digest = hashlib.sha256()
    if isinstance(content, dict):
        for name, tensor in sorted(content.items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy())
    else:
        digest.update(content if isinstance(content, bytes) else content.encode())
    return digest.hexdigest()[:16]


@functools.cache
def code():
    """The commit of this code, if it is known, and the versions that it runs with -> dict."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "tiktoken")}
    try:
        commit = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"],
                                cwd=Path(__file__).parent, capture_output=True, text=True,
                                timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = "unknown"
    return dict(commit=commit, versions=dict(python=platform.python_version(), **versions))


def before(name, stage):
    """True if a model or text of this name was there before a model of this stage."""
    def order(name):
        stage, _, round = name.split("/")[0].partition("-")
        if stage not in STAGES or round and not round.isdecimal():
            return None
        return (int(round or 1) if stage in STAGES[2:] else 0, STAGES.index(stage))

    earlier = order(name) and order(stage) and order(name) < order(stage)
    return earlier or name.startswith(f"{stage}/")


class Lineage:
    """What a run has read so far.

    parents     {role: the metadata of a checkpoint}
    ancestors   {name: fingerprint} of all models and texts that this run stands on
    """

    def __init__(self, mix_runs, say):
        self.mix_runs, self.say = mix_runs, say
        self.parents, self.ancestors, self.seconds = {}, {}, {}

    def model(self, role, path, about, state, chosen=False):
        """Note a checkpoint that this run has read. UserError if it does not fit the others.

        chosen: the user has named it instead of that of its stage, whatever it was made from.
        """
        stage, weights = about.get("stage", role), fingerprint(state)
        self.parents[role] = dict(path=str(path), stage=stage, step=about.get("step"),
                                  weights=weights)
        self.seconds.update(table(about, "seconds", (int, float)))
        self._compare(role if chosen else stage, weights, f"{path} is")
        # What a later stage has made does not count: a student may learn from PPO's policy.
        for name, mark in table(about, "ancestors", str).items():
            if not chosen and before(name, stage):
                self._compare(name, mark, f"{path} was made from")

    def text(self, name, content, path=""):
        """Note a text: one that this run makes, or, with a path, reads and compares."""
        if path:
            self._compare(name, fingerprint(content), f"{path} is")
        self.ancestors[name] = fingerprint(content)

    def fits(self, name, state):
        """True if a model is the one that the parents were made from, as far as they say."""
        return self.ancestors.get(name) in (None, fingerprint(state))

    def _compare(self, name, mark, whatever):
        if self.ancestors.setdefault(name, mark) != mark:
            sentence = f"{whatever} another {name} than the rest of this run was made from"
            if not self.mix_runs:
                raise UserError(f"{sentence}: make the later one anew, or mix them all the same "
                                "with --mix_runs")
            self.say(f"{sentence}: mixed, because of --mix_runs")

    def about(self):
        """What a checkpoint keeps of all this -> dict."""
        return dict(parents=dict(self.parents), ancestors=dict(self.ancestors), **code())


def table(about, name, kind):
    """A dict of a checkpoint's metadata, without values of another type than `kind`."""
    values = about.get(name)
    items = values.items() if isinstance(values, dict) else ()
    return {str(key): value for key, value in items if isinstance(value, kind)}


def read(path):
    """The metadata of a checkpoint, with the fingerprint of its weights -> dict."""
    with disk.readable(path):
        fields = disk.read_model(path, "cpu")
    return dict(fields["about"], weights=fingerprint(fields["state"]))


def tree(out):
    """The models of a folder, each with its parents -> lines of text."""
    paths = sorted(Path(out).glob("*/ckpt.pt"), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise UserError(f"no checkpoint in {out}: run python gpt.py first")
    models = {path: read(path) for path in paths}
    now = {path.parent.name: about["weights"] for path, about in models.items()}
    for path, about in models.items():
        yield (f"{path}  weights {about['weights']}, step {about.get('step', '?')}, seed "
               f"{about.get('seed', '?')}, commit {str(about.get('commit', '?')).split()[0]}")
        for role, parent in table(about, "parents", dict).items():
            yield f"    {role:22} {parent.get('path')}  weights {parent.get('weights')}"
        for name, weights in table(about, "ancestors", str).items():
            if name != path.parent.name and now.get(name, weights) != weights:
                yield f"    STALE: it was made from another {name} ({weights}) than is there now"


if __name__ == "__main__":
    with polite():
        print("\n".join(tree([*arguments(__doc__), "out"][0])))
