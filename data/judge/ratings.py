"""What people say of answers, beside what the labeler says (`python ppo.py --rate`)."""

import contextlib
import json
from pathlib import Path

import numpy as np

from data.judge.answers import CRITERIA
from data.judge.figures import interval, kappa, markdown
from data.run.lineage import fingerprint
from data.world import labeler


def read(out, models, temperature):
    """The ratings in out/rated/ of these models ({name: GPT}) as they are now -> list of records.

    Each with `judged`, the labeler's Judgement. What was rated of other weights, or at another
    temperature, stays in the files; of one person's ratings of an answer the last counts.
    """
    paths, records = sorted(Path(out).glob("rated/*.jsonl")), {}
    weights = {name: fingerprint(m.state_dict()) for name, m in models.items() if paths}
    for path in paths:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError):  # cut
                r = json.loads(line)
                said = {name: float(r[name]) for name in ("rating", *CRITERIA)}
                key = str(r["labeler"]), r["model"], str(r["prompt"]), r["responses"][0]
                if weights.get(r["model"]) == r["weights"] and r["temperature"] == temperature:
                    records[key] = dict(r, **said, judged=labeler.judge(r, r["responses"][0]))
    order = list(models)
    return sorted(records.values(), key=lambda r: order.index(r["model"]))


def table(records):
    """Markdown: of each model the means by people and by the labeler, and how well both agree."""
    topics = np.array([str(r["prompt"]) for r in records])
    names = list(dict.fromkeys(r["model"] for r in records))

    def mean(values, name, form):
        at = [i for i, r in enumerate(records) if r["model"] == name]
        x = interval([values[i] for i in at], topics[at])
        return f"{form.format(x['mean'])} ({form.format(x['low'])} to {form.format(x['high'])})"

    ratings, golds = [r["rating"] for r in records], [r["judged"].gold for r in records]
    rows = [["people: 1 to 7", *(mean(ratings, name, "{:.2f}") for name in names), ""],
            ["labeler: gold", *(mean(golds, name, "{:.2f}") for name in names), ""]]
    for criterion in CRITERIA:
        said = [r[criterion] for r in records]
        judged = [float(getattr(r["judged"], criterion) >= 0) for r in records]
        agreed, beyond_chance = kappa(np.array(said), np.array(judged))
        rows += [[f"people: {criterion}", *(mean(said, name, "{:.0%}") for name in names), ""],
                 [f"labeler: {criterion}", *(mean(judged, name, "{:.0%}") for name in names),
                  f"{agreed:.0%}, kappa {beyond_chance:.2f}"]]
    if len(set(ratings)) > 1 < len(set(golds)):
        rows[1][-1] = f"correlation {np.corrcoef(ratings, golds)[0, 1]:.2f}"
    people = ", ".join(sorted({r["labeler"] for r in records}))
    return (f"{len(records)} ratings by {people}.\n\n"
            + markdown(["", *names, "people and labeler agree"], rows))
