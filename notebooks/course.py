"""What the notebooks share: their sizes, the stages that they build on, and pictures of tokens.

    QUICK=1     every stage and every experiment in seconds, to see that the notebooks run
    OUT=DIR     where the stages are (default: out, where the README's commands put them)

    python notebooks/course.py 1_gpt 2_sft    run notebooks and keep their outputs
    python notebooks/course.py --zh           give those in zh/ the code of the English ones and,
                                              with a Chinese font, pictures with Chinese labels
"""

import collections
import contextlib
import hashlib
import importlib
import inspect
import io
import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the stages lie a folder higher

import data.run.system  # noqa: E402, F401  before torch: its threads spin only briefly

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from IPython.core.error import StdinNotImplementedError  # noqa: E402
from IPython.display import display  # noqa: E402

import gpt  # noqa: E402
import ppo  # noqa: E402
import reward  # noqa: E402
import sft  # noqa: E402
from data.run import curves  # noqa: E402
from notebooks.pictures import visible  # noqa: E402

QUICK = bool(os.environ.get("QUICK"))
OUT = os.environ.get("OUT", "out/quick" if QUICK else "out")
os.chdir(ROOT)
STAGES = {"gpt": gpt, "sft": sft, "reward": reward, "ppo": ppo}
SMALL = {
    "gpt": dict(steps=40, documents=400, n_layer=2, n_embd=32, vocab_size=600),
    "sft": dict(steps=20, demonstrations=400),
    "reward": dict(prompts=60, test_prompts=20),
    "ppo": dict(steps=2, batch=16, test_prompts=20),
}
BLUE, RED, GREEN, *_ = curves.COLOURS
plt.rcParams.update({"figure.figsize": (8, 3), "figure.constrained_layout.use": True,
                     "axes.grid": True, "grid.alpha": .3, "savefig.dpi": 80,
                     "axes.prop_cycle": plt.cycler(color=curves.COLOURS, linestyle=curves.STYLES)})
# Fonts with Chinese characters, as systems name them.
CHINESE_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "PingFang SC",
                 "Heiti SC", "STHeiti", "Microsoft YaHei", "SimHei", "WenQuanYi Micro Hei",
                 "WenQuanYi Zen Hei", "Arial Unicode MS")


def chinese_font():
    """The name of a font of this system that has Chinese characters; None if there is none."""
    from matplotlib import font_manager
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in CHINESE_FONTS if name in installed), None)


def label_in_chinese():
    """From now on draw the labels that zh/labels.json knows in Chinese -> whether a font is found.
    """
    from matplotlib import text
    if font := chinese_font():
        labels = json.loads((ROOT / "notebooks" / "zh" / "labels.json").read_text("utf-8"))
        plt.rcParams.update({"font.sans-serif": [font, *plt.rcParams["font.sans-serif"]],
                             "axes.unicode_minus": False})
        plain = text.Text.set_text
        text.Text.set_text = lambda self, s: plain(self, labels.get(s, s))
    return bool(font)


def config(stage, **changes):
    """A stage's Config for this course."""
    return STAGES[stage].Config(**{**dict(out=OUT), **(SMALL[stage] if QUICK else {}), **changes})


def ready(*stages):
    """Run the stages, and those before them, that have not run yet -> {stage: model}, tokenizer."""
    models = {}
    for stage in list(STAGES)[:1 + max(list(STAGES).index(stage) for stage in stages)]:
        path = Path(OUT) / stage / "ckpt.pt"
        if not path.exists():
            print(f"{stage}.py has not been run here: running it now")
            STAGES[stage].train(config(stage))
        models[stage], tokenizer, _ = gpt.load(path, gpt.nn.Module)
    return models, tokenizer


def scaled(few, many):
    """A size for QUICK runs, and the real one."""
    return few if QUICK else many


def progress(name):
    """A line of output that changes -> a function that writes it."""
    line = display({"text/plain": name}, raw=True, display_id=True)
    return lambda text: line.update({"text/plain": f"{name}: {text}"}, raw=True)


@contextlib.contextmanager
def quietly(name):
    """Show a stage's progress in one line that changes, instead of all it prints."""
    line = progress(name)

    class OneLine(io.TextIOBase):
        def write(self, text):
            if " left" in text:
                line(text.strip())
            return len(text)

    with contextlib.redirect_stdout(OneLine()):
        yield


def pieces(tokenizer, ids):
    """What each token stands for, special tokens by their names."""
    names = {tokenizer.user: "<user>", tokenizer.assistant: "<assistant>", tokenizer.end: "<end>",
             tokenizer.pad: "<pad>"}
    return [names.get(i) or tokenizer.decode([i]) for i in ids]


def draw_tokens(texts, values=None, form="{:+.1f}", title="", width=90):
    """Draw tokens as boxes in reading order.

    A space is a dot. The darker, the higher the value, which is written below; without values,
    boxes alternate.
    """
    shades = np.arange(len(texts)) % 2 * .25 if values is None else np.array(values, float)
    low, high = (0, 1) if values is None else (np.nanmin(shades),
                                               max(np.nanmax(shades), np.nanmin(shades) + 1e-6))
    at, row, places = 0, 0, []
    for text in texts:
        size = max(len(text), 1 if values is None else 4) + 1
        if at + size > width:
            at, row = 0, row + 1
        places.append((at, row, size))
        at += size
    figure, axes = plt.subplots(figsize=(10, .62 * (row + 1) + .3))
    for text, shade, (x, y, size) in zip(texts, shades, places):
        grey = 1 - .75 * (shade - low) / (high - low) if shade == shade else 1
        axes.add_patch(plt.Rectangle((x, -y), size - .15, .5, facecolor=str(grey), edgecolor=".6"))
        axes.text(x + size / 2, -y + .25, visible(text),
                  ha="center", va="center", fontsize=8, family="monospace",
                  color="white" if grey < .5 else "black")
        if values is not None and shade == shade:
            axes.text(x + size / 2, -y - .14, form.format(shade), ha="center", va="center",
                      fontsize=7)
    axes.set(xlim=(0, width), ylim=(-row - .3, .7), title=title)
    axes.axis("off")
    plt.show()


def opening(prompt, answer):
    """The kind of a prompt, and how its answer begins: by this, answers of one sort are counted."""
    return prompt["kind"], " ".join(answer.split()[:3])


def most_common(things):
    return collections.Counter(things).most_common(1)[0][0]


def claim(sentence, holds):
    """Say whether what the text claims is true of this run: runs differ by seed and by machine."""
    if not QUICK:
        print(f"{'true' if holds else 'NOT true'} of this run: {sentence}")


def ask(question, otherwise):
    """What the reader types, or `otherwise` where nobody can, as in the test of the notebooks."""
    try:
        return input(question)
    except (StdinNotImplementedError, EOFError, OSError):
        print(f"{question}{otherwise}   (nobody is at the keyboard)")
        return otherwise


@torch.no_grad()
def attention(model, idx, layer):
    """The weights of all heads of a layer on one row of ids -> (H, T, T).

    softmax(q k / sqrt(d)) with the future hidden.
    """
    x = model.wte(idx) + model.wpe(torch.arange(len(idx)))
    for block in model.blocks[:layer]:
        x = block(x[None])[0]
    block, T = model.blocks[layer], len(idx)
    # each (H, T, d)
    q, k, _ = block.attn.c_attn(block.ln_1(x)).view(T, 3, block.attn.n_head, -1).permute(1, 2, 0, 3)
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** .5
    return scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)


# ---- running the notebooks -----------------------------------------------------------------------


def shown(notebook):
    """A hash of each source that a notebook shows -> {"ppo.gae": hash}: outputs are as old as it.
    """
    names = re.findall(r"inspect\.getsource\(([\w.]+)\)",
                       "\n".join(cell.source for cell in notebook.cells))
    found = {}
    for name in sorted(set(names)):
        module, _, attribute = name.partition(".")
        shown_from = STAGES.get(module) or importlib.import_module(f"notebooks.{module}")
        source = inspect.getsource(getattr(shown_from, attribute))
        found[name] = hashlib.sha256(source.encode()).hexdigest()[:16]
    return found


def execute(path, keep=False):
    """Run a notebook from top to bottom; `keep` what comes out in the file."""
    import nbclient
    import nbformat
    notebook = nbformat.read(path, 4)
    nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3",
                            resources={"metadata": {"path": str(path.parent)}}).execute()
    if keep:
        notebook.metadata["shown"] = shown(notebook)
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # when it was run
        nbformat.write(notebook, path)


def in_chinese(path):
    """Give zh/<name> the code cells of a notebook that was run; its own text cells stay.

    With a Chinese font it is run again for its pictures, else the outputs are the English ones.
    """
    import nbformat
    english, chinese = nbformat.read(path, 4), nbformat.read(path.parent / "zh" / path.name, 4)
    cells = []
    for ours, theirs in zip(english.cells, chinese.cells, strict=True):
        assert ours.cell_type == theirs.cell_type, f"{path.name}: {ours.source[:40]}"
        cells.append(ours if ours.cell_type == "code" else theirs)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=english.metadata),
                   path.parent / "zh" / path.name)
    if chinese_font():
        execute(path.parent / "zh" / path.name, keep=True)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        if name == "--zh":
            for path in sorted((ROOT / "notebooks" / "zh").glob("*.ipynb")):
                in_chinese(ROOT / "notebooks" / path.name)
                print(f"zh/{path.stem}: done", flush=True)
            continue
        execute(ROOT / "notebooks" / f"{name.removesuffix('.ipynb')}.ipynb", keep=True)
        print(f"{name}: done", flush=True)
