"""Curves of the figures that a stage logs, of one run or of several laid over each other."""

import functools
import json
from pathlib import Path

# Figures of one panel share its axis. A run shows the panels for which it has figures.
PANELS = [["loss", "valid_loss"], ["accuracy"], ["grad_norm"], ["score", "gold"], ["objective"],
          ["kl"], ["entropy"], ["length"], ["explained_variance"], ["policy_loss"], ["value_loss"],
          ["first_ratio"], ["approx_kl"], ["clip_fraction"],
          ["rollout_seconds", "update_seconds"], ["tok/s"]]
# Okabe and Ito's colours, which colour-blind readers tell apart; the styles survive a grey printer.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#E69F00")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)))
HEALTHY = Path(__file__).with_name("healthy.json")


@functools.cache
def healthy(stage):
    """What the default run logged: the records of a stage, none of a later round."""
    return json.loads(HEALTHY.read_text()).get(stage, []) if HEALTHY.exists() else []


def draw(runs, panels=PANELS, along="step", title="", behind=()):
    """Draw {name: records} along one of their numbers -> matplotlib Figure.

    panels: a list of names per panel; behind: records of a run for comparison, in grey.
    """
    from matplotlib.figure import Figure  # it needs no screen, unlike pyplot; slow to import

    recorded = {name for records in runs.values() for record in records for name in record}
    panels = [[name for name in names if name in recorded] for names in panels]
    panels = [names for names in panels if names]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.8 * columns, 2.7 * rows), layout="constrained")
    for i, names in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        for name in names:
            line(axes, behind, along, name, color=".82", linewidth=3, zorder=1)
        lines = [(run, name) for name in names for run in runs]
        for n, (run, name) in enumerate(lines):
            label = " ".join([name] * (len(names) > 1) + [run] * (len(runs) > 1))
            line(axes, runs[run], along, name, label=label, color=COLOURS[n % len(COLOURS)],
                 linestyle=STYLES[n % len(STYLES)])
        axes.set(title=", ".join(names), xlabel=along)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if names[0] in ("kl", "entropy", "length", "clip_fraction", "approx_kl"):
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.grid(alpha=.3)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title + (" (grey: a healthy run)" if behind else ""))
    return figure


def line(axes, records, along, name, **style):
    points = [(r[along], r[name]) for r in records if name in r]
    if along == "round" and name == "score":  # of another reward model in each round
        style["linestyle"] = "none"
    if points:
        axes.plot(*zip(*points), marker="." if len(points) < 30 else None, **style)
