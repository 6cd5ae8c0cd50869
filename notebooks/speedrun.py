"""From nothing to gold .9, against the clock.

    python -m notebooks.speedrun [--seed 1] [--out exp/speedrun] [flags of a stage: gpt:--steps 900]

The four stages run, and further rounds as needed, until the policy's gold on the `valid` prompts is
.9, sampled at .7; `test` is judged once, at the end. The row that it prints has the seconds that
the commands took, and what they would be on a machine that takes 60 ms for a fixed reference step,
measured before and after. Rows of different worlds are not compared. A speedrun that was stopped
goes on when it is called again, one whose flags have changed from the first stage that they change.
"""

import data.run.system  # before torch, as in the stages

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from data.judge.figures import markdown
from data.judge.report import processor
from data.run.cli import polite
from data.run.disk import make_folder, read_json, write
from data.run.lineage import code
from data.run.run import in_round
from data.run.system import UserError
from data.world.facts import VERSION

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "speedrun.json"
GOAL, ROUNDS, YARDSTICK = .9, 5, 60.0  # gold; rounds at most; milliseconds
STAGES = ("gpt", "sft", "reward", "ppo")


# ---- the reference step --------------------------------------------------------------------------


class Block(nn.Module):
    """A block of GPT-2 in plain torch, 128 wide; ours may change, this one never does."""

    def __init__(self, width=128):
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = [part.view(B, T, 4, C // 4).transpose(1, 2)
                   for part in self.qkv(self.before(x)).split(C, 2)]
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.between(x))))


def reference_step(steps=25):
    """Milliseconds of one step of AdamW on 8 x 128 tokens; a third of the steps were faster."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        embedding, norm = nn.Embedding(1536, 128), nn.LayerNorm(128)
        trunk = nn.Sequential(embedding, *[Block() for _ in range(4)], norm)
        parameters, took = list(trunk.parameters()), []
        opt = torch.optim.AdamW(parameters, 1e-3)
        for _ in range(steps):
            began = time.perf_counter()
            idx = torch.randint(0, 1536, (8, 129))
            logits = trunk(idx[:, :-1]) @ embedding.weight.T
            F.cross_entropy(logits.view(-1, 1536), idx[:, 1:].reshape(-1)).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            opt.step()
            opt.zero_grad()
            took.append(1000 * (time.perf_counter() - began))
    return sorted(took)[steps // 3]


# ---- the run -------------------------------------------------------------------------------------


def timed(command):
    """Run a stage's command -> its seconds, start and end of the program included."""
    began = time.time()
    if subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
        raise UserError(f"{' '.join(command)} did not finish")
    return time.time() - began


def speedrun(out, seed, flags):
    """flags: {stage: list of str} -> a row of the table, as a dict.

    out/speedrun.json keeps what is done: its stages are not run again with the same flags.
    """
    path = out / "speedrun.json"
    if out.exists() and not path.exists():
        raise UserError(f"{out} exists: a speedrun begins with nothing; choose another --out")
    before = read_json(path) if path.exists() else dict(paces=[], stages=[])
    paces, stages, done = [*before["paces"], reference_step()], before["stages"], 0
    common = ["--out", str(out), "--seed", str(seed)]
    for number in range(1, ROUNDS + 1):
        for name in STAGES if number == 1 else STAGES[2:]:
            further = ["--round", str(number)] * (number > 1)
            further += ["--split", "valid"] * (name in STAGES[2:])
            command = [f"{name}.py", *common, *flags.get(name, ()), *further]
            if not stages[done:] or stages[done]["command"] != command:
                for other in stages[done:]:
                    shutil.rmtree(out / other["folder"], ignore_errors=True)
                folder, seconds = in_round(name, number), timed(command)
                stages[done:] = [dict(folder=folder, command=command, seconds=seconds)]
                write(make_folder(out) / path.name, json.dumps(dict(paces=paces, stages=stages)))
            done += 1
        if read_json(out / in_round("ppo", number) / "results.json")["ppo"]["gold"] >= GOAL:
            break
    else:
        raise UserError(f"gold {GOAL} was not reached in {ROUNDS} rounds")
    paces.append(reference_step())
    timed(["ppo.py", *common, "--eval"])
    judged = read_json(out / "eval" / "results.json")
    figures = judged["models"][in_round("ppo", number)]  # a stopped round may have left another
    pace, seconds = sum(paces) / len(paces), [stage["seconds"] for stage in stages[:done]]
    four = sum(seconds[:len(STAGES)])
    return dict(seed=seed, rounds=number, seconds=sum(seconds), four_stages=four, pace=pace,
                at_60=sum(seconds) * YARDSTICK / pace, four_at_60=four * YARDSTICK / pace,
                **{name: figures[name]["mean"] for name in ("gold", "preferred", "kl")},
                world=VERSION, commit=code()["commit"], machine=processor(),
                flags=" ".join(f"{name}:{' '.join(each)}" for name, each in flags.items()))


def table(rows):
    """Markdown: a row per run, the fastest of each world first."""
    head = ["world", "seed", "rounds", "seconds", "at 60 ms", "four stages", "at 60 ms",
            "gold on test", "preferred", "KL", "commit", "machine", "flags"]
    lines = [[str(r["world"]), str(r["seed"]), str(r["rounds"]), f"{r['seconds']:.0f}",
              f"{r['at_60']:.0f}", f"{r['four_stages']:.0f}", f"{r['four_at_60']:.0f}",
              f"{r['gold']:.3f}", f"{r['preferred']:.1%}", f"{r['kl']:.2f}", r["commit"],
              r["machine"], r["flags"]]
             for r in sorted(rows, key=lambda r: (-r["world"], r["at_60"]))]
    return markdown(head, lines)


def main():
    parser = argparse.ArgumentParser(prog="python -m notebooks.speedrun", description=__doc__,
                                     allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("exp/speedrun"))
    parser.add_argument("--save", action="store_true",
                        help="keep the row in notebooks/results/speedrun.json")
    args, others = parser.parse_known_args()
    flags, name = {}, None
    for word in others:  # gpt:--steps 900 sft:--steps 700
        before, colon, rest = word.partition(":")
        name, word = (before, rest) if colon and before in STAGES else (name, word)
        if not name:
            parser.error(f"{word}: write the stage before a flag of it, as in gpt:--steps 900")
        flags.setdefault(name, []).append(word)
    row = speedrun(args.out.resolve(), args.seed, flags)
    if args.save:
        rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
        RESULTS.write_text(json.dumps([*rows, row], indent=1) + "\n")
    print(table([row]))


if __name__ == "__main__":
    with polite():
        main()
