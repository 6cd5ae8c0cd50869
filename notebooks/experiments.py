"""The long sweeps behind the README's tables, one command each. Finished runs are kept, so a second call goes on.

    python -m notebooks.experiments options out/1 out/2 out/3      PPO's options, a run each on every pipeline: an hour
"""

import argparse
import json
import statistics
from pathlib import Path

import ppo

# What a row of the table is called, and how it differs from the default.
OPTIONS = {
    "default": {},
    "adaptive beta: KL steered to 2 nats": dict(kl_target=2.0, kl_horizon=1000),
    "KL estimator k3 in the reward": dict(kl_estimator="k3"),
    "rewards whitened": dict(whiten_rewards=True),
    "pretraining gradients (ptx), weight 1": dict(ptx=1.0),
    "no penalty for a missing end": dict(missing_eos_score=0.0),
    "value model starts as the SFT model": dict(value_init="sft"),
    "four passes over each batch": dict(epochs=4),
    "four passes, stopped at approx_kl .01": dict(epochs=4, target_kl=.01),
}
FIGURES = {
    "gold": lambda r: r["ppo"]["gold"],
    "preferred to SFT": lambda r: r["win_rate"],
    "KL, nats": lambda r: r["kl"],
    "loss on pretraining text": lambda r: r["ppo"]["text_loss"],
    "seconds": lambda r: r["seconds"]["ppo"],
}


def options(pipelines):
    """Train PPO with each option on each finished pipeline -> {row: {figure: [a number a pipeline]}}."""
    found = {}
    for row, changed in OPTIONS.items():
        results = []
        for root in map(Path, pipelines):
            seed = json.loads((root / "ppo" / "results.json").read_text())["config"]["seed"]
            out = root / "options" / "".join(c if c.isalnum() else "-" for c in row)
            if not (out / "ppo" / "results.json").exists():
                (out / "gpt").mkdir(parents=True, exist_ok=True)
                for name in ("ckpt.pt", "text.txt", "held_out.txt"):  # the base model and its text, for the alignment tax
                    (out / "gpt" / name).unlink(missing_ok=True)
                    (out / "gpt" / name).symlink_to((root / "gpt" / name).resolve())
                ppo.train(ppo.Config(out=str(out), seed=seed, init=str(root / "sft" / "ckpt.pt"), reward=str(root / "reward" / "ckpt.pt"), **changed))
            results.append(json.loads((out / "ppo" / "results.json").read_text()))
        found[row] = {name: [get(r) for r in results] for name, get in FIGURES.items()}
    return found


def table(found):
    """Markdown: the mean over the pipelines, and the smallest and largest."""
    lines = ["| | " + " | ".join(FIGURES) + " |", "|---" * (len(FIGURES) + 1) + "|"]
    for row, figures in found.items():
        lines.append(f"| {row} | " + " | ".join(f"{statistics.mean(x):.2f} ({min(x):.2f} to {max(x):.2f})" for x in figures.values()) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m notebooks.experiments", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=["options"])
    parser.add_argument("pipelines", nargs="+", help="folders of finished pipelines (--out of the stages)")
    args = parser.parse_args()
    for root in args.pipelines:
        if not (Path(root) / "ppo" / "results.json").exists():
            parser.error(f"{root}/ppo/results.json not found: run the four stages with --out {root} first")
    print(table(options(args.pipelines)))
