"""Compare runs of the same stage: curves laid over each other, figures, ten answers side by side.

    python -m data.judge.compare out/ppo exp/beta-0/ppo

Writes compare.png and compare.md to the last folder, and prints the latter. A folder that holds
stages, as exp/beta-0 does, stands for its stage of the same name.
"""

import argparse
import json
import sys
from pathlib import Path

from data.judge.figures import cell, markdown
from data.run import checkpoint as disk
from data.run import curves
from data.run.cli import UserError, shown

ANSWERS = 10


def read(folder):
    """A stage's folder -> (results, log); UserError if it holds no finished run."""
    try:
        results = json.loads((folder / "results.json").read_text())
        log = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} not found: name the folder of a stage that has "
                        "finished, such as out/ppo") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be read: {error}") from None
    return results, log


def stage_folders(paths):
    """Paths of stages; of a folder of stages, its stage of the first path's name."""
    first = Path(paths[0])
    return [path if (path / "log.jsonl").exists() else path / first.name
            for path in map(Path, paths)]


def said(results):
    """The answers that a run has kept -> {question: answer}."""
    found = {}
    for sample in results.get("samples", []):
        answer = sample.get(results["stage"], sample.get("after"))
        if isinstance(answer, str):
            turns = sample.get("prompt", [dict(content=sample.get("start", ""))])
            found["<br>".join(cell(turn["content"]) for turn in turns)] = answer
    return found


def report(names, runs):
    """What differs in flags, what was logged last, and the answers -> Markdown."""
    every, logs = zip(*runs)
    flags = sorted(set().union(*(results["config"] for results in every)) - {"out"})
    flags = [[f"--{flag}", *(cell(str(results["config"].get(flag))) for results in every)]
             for flag in flags if len({str(results["config"].get(flag)) for results in every}) > 1]
    figures = [[name, *(f"{log[-1][name]:.4g}" if name in log[-1] else "" for log in logs)]
               for name in logs[0][-1] if name not in ("step", "seconds")]
    models = [[f"gold of the {results['stage']} model", results[results["stage"]]["gold"]]
              for results in every if "gold" in results.get(results["stage"], {})]
    if len(models) == len(runs):
        figures.append(["gold, on held-out prompts", *(f"{gold:.3f}" for _, gold in models)])
    answers = [said(results) for results in every]
    common = [question for question in answers[0] if all(question in found for found in answers)]
    parts = [f"# {' and '.join(names)}",
             "## Flags that differ\n\n" + markdown(["", *names], flags) if flags
             else "The flags are the same.",
             "## Figures, where the log ends\n\n" + markdown(["", *names], figures)]
    if common:
        rows = [[question, *(cell(found[question]) for found in answers)]
                for question in common[:ANSWERS]]
        parts.append("## Answers\n\n" + markdown(["prompt", *names], rows))
    return "\n\n".join(parts) + "\n"


def compare(paths):
    """Read, draw and print; -> the path of the picture."""
    folders = stage_folders(paths)
    runs = [read(folder) for folder in folders]
    stages = {results["stage"].split("-")[0] for results, _ in runs}
    if len(stages) > 1:
        raise UserError(f"{' and '.join(map(str, folders))} are of different stages: compare runs "
                        "of one")
    names = [str(folder) for folder in folders]
    text = report(names, runs)
    logs = {name: log for name, (_, log) in zip(names, runs)}
    disk.write_figure(folders[-1] / "compare.png", curves.draw(logs, title=" and ".join(names)))
    disk.write(folders[-1] / "compare.md", text)
    print(text + f"\n{folders[-1] / 'compare.png'} shows the curves")
    return folders[-1] / "compare.png"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m data.judge.compare", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders of two or more runs of one stage")
    args = parser.parse_args()
    if len(args.runs) < 2:
        parser.error("name two runs")
    sys.stdout = shown(sys.stdout)
    try:
        compare(args.runs)
    except UserError as error:
        sys.exit(f"data.judge.compare: {error}")
