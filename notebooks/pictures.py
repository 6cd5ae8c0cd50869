"""Pictures that notebook 5 draws: who reads what, one row of ids, one answer token by token."""

import matplotlib.pyplot as plt
import numpy as np

BOXES = {  # name: (x, y, colour); the four models, what they say, and what is made of it
    "prompts": (0, 2, "white"), "answers": (1.6, 2, "white"),
    "policy": (3.4, 3.6, "#CFE8F7"), "reference": (3.4, 2.9, "#E6E6E6"),
    "reward model": (3.4, 2, "#E6E6E6"), "value model": (3.4, .8, "#CFE8F7"),
    "logp_old": (5.2, 3.6, "white"), "logp_ref": (5.2, 2.9, "white"), "score": (5.2, 2, "white"),
    "values_old": (5.2, 1.3, "white"), "values": (6.9, .8, "white"), "logp": (6.9, 4.1, "white"),
    "rewards": (6.9, 2.45, "white"), "advantages": (8.5, 2, "white"), "ratio": (8.5, 3.6, "white"),
    "returns": (8.5, 1.3, "white"), "policy loss": (10.2, 2.9, "white"),
    "value loss": (10.2, .8, "white")}
ARROWS = [("prompts", "answers"), ("policy", "answers"), ("answers", "reference"),
          ("answers", "reward model"), ("answers", "value model"), ("answers", "policy"),
          ("policy", "logp_old"), ("policy", "logp"), ("reference", "logp_ref"),
          ("reward model", "score"), ("value model", "values_old"), ("value model", "values"),
          ("logp_old", "rewards"), ("logp_ref", "rewards"), ("score", "rewards"),
          ("rewards", "advantages"), ("values_old", "advantages"), ("advantages", "returns"),
          ("values_old", "returns"),
          ("logp", "ratio"), ("logp_old", "ratio"), ("ratio", "policy loss"),
          ("advantages", "policy loss"), ("returns", "value loss"), ("values", "value loss")]
LEARNS = [("policy loss", "policy", .42), ("value loss", "value model", -.22)]  # how far they bend


def draw_flow():
    """One iteration of PPO: who reads what, and from which loss policy and value model learn."""
    figure = plt.figure(figsize=(11, 5), layout="none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-.7, 11), ylim=(-.4, 5.4))
    axes.axis("off")
    boxes = {}
    for name, (x, y, colour) in BOXES.items():
        edge = dict(edgecolor="black", linewidth=2.5 if colour == "#CFE8F7" else 1)
        text = axes.text(x, y, name, ha="center", va="center", fontsize=10,
                         bbox=dict(boxstyle="round,pad=.4", facecolor=colour, **edge))
        boxes[name] = text.get_bbox_patch()
    figure.canvas.draw()  # only now are the sizes of the boxes known
    for begin, end, *bend in [*ARROWS, *LEARNS]:
        look = dict(linestyle="--", color="black", connectionstyle=f"arc3,rad={bend[0]}") \
            if bend else dict(color=".45")
        axes.annotate("", BOXES[end][:2], BOXES[begin][:2], arrowprops=dict(
            arrowstyle="-|>", patchA=boxes[begin], patchB=boxes[end], **look))
    key = "blue, thick: learns\ngrey: never changes\nwhite: numbers\ndashed: the gradient"
    axes.text(.35, .4, key, ha="center", va="center", fontsize=9)
    plt.show()


def draw_row(names, prompt_length, length):
    """A row of ids (T,) above its actions (T-1,): prompt, response, end, padding and the mask.

    names: what each of the T tokens stands for; length: prompt and response.
    """
    T = len(names)
    figure, axes = plt.subplots(figsize=(min(12, .85 * T + 1.5), 3))
    for t, name in enumerate(names):
        colour = "#E6E6E6" if t < prompt_length else "#CFE8F7" if t < length else "white"
        cell(axes, t, 2, name, colour)
        axes.text(t, 2.62, str(t), ha="center", fontsize=8, color=".4")
    for t in range(T - 1):
        acts = prompt_length - 1 <= t < length - 1
        cell(axes, t, .8, names[t + 1], "#CFE8F7" if acts else "white", "black" if acts else ".7")
        axes.text(t, .2, int(acts), ha="center", va="center", fontsize=9)
        axes.annotate("", (t, 1.12), (t + 1, 1.68),
                      arrowprops=dict(arrowstyle="-|>", color=".3" if acts else ".85"))
    for y, name in ((2.62, "column"), (2, "ids (B, T)"), (.8, "actions (B, T-1)"), (.2, "mask")):
        axes.text(-.75, y, name, ha="right", va="center", fontsize=9)
    axes.set(xlim=(-2.6, T - .4), ylim=(0, 2.9))
    axes.axis("off")
    plt.show()


def visible(text):
    """A token's text as pictures can show it: a space is a dot, and nothing is a formula."""
    return text.replace(" ", "\N{MIDDLE DOT}").replace("\n", "\\n").replace("$", r"\$")


def cell(axes, x, y, text, colour, ink="black"):
    axes.add_patch(plt.Rectangle((x - .46, y - .3), .92, .6, facecolor=colour, edgecolor=".6"))
    text = visible(text)
    axes.text(x, y, text, ha="center", va="center", color=ink, family="monospace",
              fontsize=min(7.5, 68 / len(text)))


def draw_answer(names, rows, title, darkest=2.0):
    """One answer: its tokens above {quantity: a number per token}; red and hatched below 0, blue
    above. The scale is fixed, so that pictures can be compared.
    """
    table = np.array(list(rows.values()))
    figure, axes = plt.subplots(figsize=(max(5, .8 * len(names) + 1.6), .42 * len(rows) + .9))
    axes.imshow(table / darkest, cmap="RdBu", vmin=-1.3, vmax=1.3, aspect="auto")
    for (i, j), x in np.ndenumerate(table):
        dark = abs(x) / darkest > .8
        if round(x, 2) < 0:
            axes.add_patch(plt.Rectangle((j - .5, i - .5), 1, 1, hatch="////", fill=False,
                                         edgecolor=(0, 0, 0, .13), linewidth=0))
        axes.text(j, i, f"{round(x, 2) + 0.0:+.2f}", ha="center", va="center", fontsize=8,
                  color="white" if dark else "black")
    axes.set(yticks=range(len(rows)), yticklabels=rows, title=title)
    axes.set_xticks(range(len(names)), map(visible, names), family="monospace", fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(False)
    plt.show()
