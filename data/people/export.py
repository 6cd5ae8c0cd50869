"""`python gpt.py --export PATH --ckpt CKPT`: a checkpoint for other programs, or as a web page.

PATH is a folder for transformers, or a page: one HTML file with models to which anybody can talk in
a browser, without a network. It is made of assistant.html, beside this file.
"""

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import gpt
from data import start
from data.files import gpt2
from data.people import inside
from data.run import disk
from data.run.cli import Program, flag
from data.run.device import setup
from data.run.system import UserError
from data.world import almanac

HEAVIEST = 20  # MB of a model in 16 bits, in a page


@dataclass
class Config(Program):
    """The flags of the export."""

    export: str = flag("", "folder to write to, or a page that ends in .html", group="export")
    ckpt: str = flag("", "the checkpoint, of a policy or a reward model; of a page, policies with "
                         "commas between (default: the newest policy in --out)")


def run(cfg):
    """Write a checkpoint as transformers' Auto classes read it (data/files/gpt2.py), or a page."""
    setup(cfg)
    path = cfg.ckpt or start.newest_policy(cfg.out, "--ckpt")
    if cfg.export.endswith(".html"):
        return write_page(cfg.out, str(path), cfg.export)
    model, tokenizer, _ = gpt.load(path, hint="name a checkpoint with --ckpt")
    scalar = isinstance(model, gpt.ScalarGPT)
    gpt2.export(model.state_dict(), model.config, tokenizer, scalar, cfg.export)
    name = "AutoModelForSequenceClassification" if scalar else "AutoModelForCausalLM"
    print(f"{path} is now in {cfg.export}, for transformers' {name} and AutoTokenizer")


def write_page(out, named, page):
    """Policies in one HTML file. UserError if one weighs too much, or tokenizers differ."""
    paths, policies, tokenizer = inside.load_policies(out, named)
    models = []
    for name, model in policies.items():
        state = model.state_dict()
        if (size := sum(x.numel() for x in state.values()) / 500_000) > HEAVIEST:
            raise UserError(f"{paths[name]} has {size:.0f} MB in 16 bits, and a page holds "
                            f"{HEAVIEST} MB a model: leave out .html to export it as a folder")
        models.append(dict(name=name, config=asdict(model.config),
                           shapes=[(part, x.numel()) for part, x in state.items()],
                           weights=base64.b64encode(b"".join(
                               x.half().numpy().tobytes() for x in state.values())).decode()))
    asked = almanac.prompts("test", 60, 1)
    data = dict(models=models, tokens=tokenizer.to_list(), questions=[
        p["prompt"][0]["content"] for p in asked if len(p["prompt"]) == 1])
    text = Path(__file__).with_name("assistant.html").read_text(encoding="utf-8")
    disk.write(page, text.replace("DATA", json.dumps(data).replace("<", "\\u003c"), 1).encode())
    print(f"{page} holds {', '.join(policies)}: open it in a browser, also without a network")
