"""`python gpt.py --export PATH --ckpt CKPT`: a checkpoint for other programs, or as a web page.

PATH is a folder for transformers, or a file assistant.html that holds up to several models, with
which anybody can talk in a browser, without a network. The page is assistant.html, beside this.
"""

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import gpt
from data import start
from data.files import gpt2, rows
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
    ckpt: str = flag("", "the checkpoint, of a policy or a reward model; of a page, policies "
                         "separated by commas (default: the one in --out that was written last, "
                         "reward models aside)")


def run(cfg):
    """Write a checkpoint as transformers' Auto classes read it (data/files/gpt2.py), or a page."""
    setup(cfg)
    path = cfg.ckpt or start.newest_policy(cfg.out, "--ckpt")
    if cfg.export.endswith(".html"):
        return write_page(rows.several(str(path)), cfg.export)
    model, tokenizer, _ = gpt.load(path, hint="name a checkpoint with --ckpt")
    scalar = isinstance(model, gpt.ScalarGPT)
    gpt2.export(model.state_dict(), model.config, tokenizer, scalar, cfg.export)
    name = "AutoModelForSequenceClassification" if scalar else "AutoModelForCausalLM"
    print(f"{path} is now in {cfg.export}, for transformers' {name} and AutoTokenizer")


def write_page(paths, page):
    """Models in one HTML file. UserError if one weighs too much, or tokenizers differ."""
    models, first = [], None
    for path in paths:
        model, tokenizer, _ = gpt.load(path, gpt.GPT, hint="name a policy with --ckpt")
        first = first or tokenizer
        start.same_tokenizer(tokenizer, first, path, paths[0], "name models that belong together")
        state = model.state_dict()
        if (size := sum(x.numel() for x in state.values()) / 500_000) > HEAVIEST:
            raise UserError(f"{path} has {size:.0f} MB in 16 bits, and a page holds {HEAVIEST} MB "
                            "a model: leave out .html to export it as a folder")
        models.append(dict(name=Path(path).parent.name or str(path), config=asdict(model.config),
                           shapes=[(name, x.numel()) for name, x in state.items()],
                           weights=base64.b64encode(b"".join(
                               x.half().numpy().tobytes() for x in state.values())).decode()))
    asked = almanac.prompts("test", 60, 1)
    data = dict(models=models, tokens=first.to_list(), questions=[
        p["prompt"][0]["content"] for p in asked if len(p["prompt"]) == 1])
    text = Path(__file__).with_name("assistant.html").read_text(encoding="utf-8")
    disk.write(page, text.replace("DATA", json.dumps(data).replace("<", "\\u003c"), 1).encode())
    print(f"{page} holds {', '.join(paths)}: open it in a browser, also without a network")
