"""What each model was made from: whose weights, which texts, which seed and code.

    python -m data.run.lineage out      the models of a folder, and what no longer fits together

A checkpoint carries a fingerprint of its weights and those of all its ancestors: models by the name
of their stage ("sft", "ppo-2"), files by their place ("gpt/text.txt"). If a stage finds two
different fingerprints under one name, something was made anew under what was built on it.
"""

import argparse
import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from data.run import checkpoint
from data.run.cli import UserError, program


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


STAGES = ("gpt", "sft", "reward", "ppo")


def order(name):
    """Where a model or text of this name stands among the stages: (round, stage), or None."""
    stage, _, round = name.split("/")[0].partition("-")
    known = stage in STAGES and (not round or round.isdecimal())
    return (int(round or 1) if stage in STAGES[2:] else 0, STAGES.index(stage)) if known else None


class Lineage:
    """What a run has read so far.

    parents     {role: what a checkpoint said of itself}
    ancestors   {name: fingerprint} of all models and texts that this run stands on
    """

    def __init__(self, mix_runs, say):
        self.mix_runs, self.say = mix_runs, say
        self.parents, self.ancestors, self.seconds = {}, {}, {}
        self._said_by = {}  # {name: (the path that says so, whether it is the thing itself)}

    def parent(self, role, path, about, state, by_hand=False):
        """Note a checkpoint that this run has read. UserError if it does not fit the others.

        by_hand: the user has named it in the place of that of its stage, whatever it was made from.
        """
        stage, weights = about.get("stage", role), fingerprint(state)
        self.parents[role] = dict(path=str(path), stage=stage, step=about.get("step"),
                                  weights=weights)
        self.seconds.update(_table(about, "seconds", (int, float)))
        self._note(role if by_hand else stage, weights, path, itself=True)
        # What a later stage has made does not count: a student may learn from PPO's policy.
        for name, seen in _table(about, "ancestors", str).items():
            earlier = order(name) and order(stage) and order(name) < order(stage)
            if not by_hand and (earlier or name.startswith(f"{stage}/")):
                self._note(name, seen, path)

    def read(self, name, content, path):
        """Note a text that this run has read. UserError if it does not fit the others."""
        self._note(name, fingerprint(content), path, itself=True)

    def made(self, name, content):
        """Note a text that this run makes or is given, in the place of what another run had."""
        self.ancestors[name] = fingerprint(content)

    def fits(self, name, state):
        """Whether a model is the one that the parents were made from, as far as they say."""
        return self.ancestors.get(name) in (None, fingerprint(state))

    def _note(self, name, found, path, itself=False):
        known = self.ancestors.setdefault(name, found)
        other, other_itself = self._said_by.setdefault(name, (path, itself))
        if known == found or itself and other_itself:
            return
        if itself or other_itself:
            made, source = (other, path) if itself else (path, other)
            sentence = f"{made} was made from another {name} than {source}"
        else:
            sentence = f"{path} and {other} were made from two different {name}"
        if not self.mix_runs:
            raise UserError(f"{sentence}: make the later one anew, or mix them all the same with "
                            "--mix_runs")
        self.say(f"{sentence}: mixed, as --mix_runs says")

    def about(self):
        """What a checkpoint keeps of all this -> dict."""
        return dict(parents=dict(self.parents), ancestors=dict(self.ancestors), **code())


def _table(about, name, kind):
    """A dict that a checkpoint holds; values of another type than `kind`, which ours never are, go.
    """
    found = about.get(name)
    items = found.items() if isinstance(found, dict) else ()
    return {str(key): value for key, value in items if isinstance(value, kind)}


def read(path):
    """What a checkpoint says of itself -> dict; its own weights' fingerprint is among it."""
    try:
        found = checkpoint.unpack(path, "cpu")
        return dict(found["about"], weights=fingerprint(found["state"]))
    except checkpoint.BROKEN as error:
        raise UserError(f"{path} is not a checkpoint that can be read "
                        f"({type(error).__name__})") from None


def tree(out):
    """The models of a folder, each with its parents -> lines of text."""
    found = {path: read(path) for path in sorted(Path(out).glob("*/ckpt.pt"),
                                                 key=lambda path: path.stat().st_mtime)}
    if not found:
        raise UserError(f"no checkpoint in {out}: run python gpt.py first")
    now = {path.parent.name: about["weights"] for path, about in found.items()}
    for path, about in found.items():
        yield (f"{path}  weights {about['weights']}, step {about.get('step', '?')}, seed "
               f"{about.get('seed', '?')}, commit {about.get('commit', '?')}")
        for role, parent in _table(about, "parents", dict).items():
            yield f"    {role:22} {parent.get('path')}  weights {parent.get('weights')}"
        for name, weights in _table(about, "ancestors", str).items():
            if name != path.parent.name and now.get(name, weights) != weights:
                yield f"    STALE: it was made from another {name} ({weights}) than is there now"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m data.run.lineage",
                                     description="What the models of a folder were made from.")
    parser.add_argument("out", nargs="?", default="out", help="the folder (default: out)")
    out = parser.parse_args().out
    program("data.run.lineage", lambda: print("\n".join(tree(out))))
