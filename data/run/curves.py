"""Curves of the figures that a stage logs, of one run or of several laid over each other."""

import contextlib
import functools
import json
import os
import sys
from pathlib import Path

# Figures of one panel share its axis. A run shows the panels for which it has figures.
PANELS = [["loss", "valid_loss"], ["accuracy"], ["score", "gold"], ["objective"], ["kl"],
          ["entropy"], ["length"], ["explained_variance"], ["policy_loss"], ["value_loss"],
          ["first_ratio"], ["approx_kl"], ["clip_fraction"], ["grad_norm"],
          ["tok/s"]]
FROM_ZERO = ("kl", "entropy", "length", "accuracy", "clip_fraction", "approx_kl")
# Okabe and Ito's colours, which colour-blind readers tell apart; the styles survive a grey printer.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#E69F00")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)))
HEALTHY = Path(__file__).with_name("healthy.json")


@functools.cache
def healthy(stage):
    """What the default run logged: the records of a stage, none of a later round."""
    return json.loads(HEALTHY.read_text(encoding="utf-8")).get(stage, [])


def style(n):
    """The colour and the style of the n-th line."""
    return dict(color=COLOURS[n % len(COLOURS)], linestyle=STYLES[n % len(STYLES)])


def draw(runs, panels=PANELS, along="step", title="", behind=()):
    """Draw {name: records} along one of their numbers -> matplotlib Figure.

    panels: a list of names per panel; behind: records of a run for comparison, in grey.
    """
    Figure, Line2D = _matplotlib()
    recorded = {name for records in runs.values() for record in records for name in record}
    panels = [[name for name in names if name in recorded] for names in panels]
    panels = [names for names in panels if names]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.8 * columns, 2.7 * rows), layout="constrained")
    for i, names in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        for n, name in enumerate(names):
            add_line(axes, behind, along, name, color=".82", linewidth=3, zorder=1)
            for r, records in enumerate(runs.values()):
                # one run has a colour and a style per name; several have a colour per run
                look = style(n if len(names) > 1 else r)
                if len(runs) > 1:
                    look["color"] = style(r)["color"]
                add_line(axes, records, along, name, label=None if r else name, **look)
        axes.set(title=", ".join(names), xlabel=along)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if names[0] in FROM_ZERO and axes.dataLim.ymin >= 0:
            axes.set_ylim(bottom=0)
        axes.grid(alpha=.3)
        if len(names) > 1:
            axes.legend(frameon=False, fontsize=8)
    if len(runs) > 1:
        lines = [Line2D([], [], color=style(r)["color"]) for r in range(len(runs))]
        figure.legend(lines, runs, loc="outside lower center", frameon=False)
    figure.suptitle(title + (" (grey: a healthy run)" if behind else ""))
    return figure


def _matplotlib():
    """Two classes of matplotlib. It is slow to import; unlike pyplot, they need no screen."""
    # The environment may name a backend that this matplotlib does not know: its import would fail.
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    import matplotlib.figure
    import matplotlib.lines
    if backend:
        os.environ["MPLBACKEND"] = backend
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    return matplotlib.figure.Figure, matplotlib.lines.Line2D


def add_line(axes, records, along, name, **look):
    points = [(r[along], r[name]) for r in records if name in r]
    if along == "round" and name == "score":  # of another reward model in each round
        look["linestyle"] = "none"
    if points:
        axes.plot(*zip(*points), marker="." if len(points) < 30 else None, **look)
