"""`python gpt.py --export DIR --ckpt PATH`: a checkpoint in the format that transformers reads."""

from dataclasses import dataclass

import gpt
from data import start
from data.files import gpt2
from data.run.cli import Program, flag
from data.run.device import setup


@dataclass
class Config(Program):
    """The flags of the export."""

    export: str = flag("", "folder to write to", group="export")
    ckpt: str = flag("", "the checkpoint, of a policy or a reward model (default: the one in --out "
                         "that was written last, reward models aside)")


def run(cfg):
    """Write a checkpoint as transformers' Auto classes read it (data/files/gpt2.py)."""
    setup(cfg)
    path = cfg.ckpt or start.newest_policy(cfg.out, "--ckpt")
    model, tokenizer, _ = gpt.load(path, hint="name a checkpoint with --ckpt")
    scalar = isinstance(model, gpt.ScalarGPT)
    gpt2.export(model.state_dict(), model.config, tokenizer, scalar, cfg.export)
    name = "AutoModelForSequenceClassification" if scalar else "AutoModelForCausalLM"
    print(f"{path} is now in {cfg.export}, for transformers' {name} and AutoTokenizer")
