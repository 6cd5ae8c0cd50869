"""Compare runs of the same stage: curves laid over each other, figures, ten answers side by side.

    python -m data.judge.compare out/ppo exp/beta-0/ppo

Writes compare.png and compare.md to the last folder, and prints the latter. A folder that holds
stages, as exp/beta-0 does, stands for its stage of the same name.
"""

import argparse
from pathlib import Path

from data.judge.figures import cell, markdown, question
from data.run import curves, disk
from data.run.system import UserError, program

ANSWERS = 10


def read(folder):
    """A stage's folder -> (results, log); UserError if it holds no finished run."""
    path = folder / "results.json"
    if not path.exists():
        raise UserError(f"{path} not found: name the folder of a stage that has finished, such as "
                        "out/ppo")
    return disk.read_json(path), disk.read_json(folder / "log.jsonl", lines=True)


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
            found[question(sample.get("prompt") or [dict(content=sample["start"])])] = answer
    return found


def report(names, runs):
    """What differs in flags, what was logged last, and the answers -> Markdown."""
    every, logs = zip(*runs)
    flags = sorted(set().union(*(results["config"] for results in every)) - {"out"})
    flags = [[f"--{flag}", *(cell(str(results["config"].get(flag))) for results in every)]
             for flag in flags if len({str(results["config"].get(flag)) for results in every}) > 1]
    figures = [[name, *(f"{log[-1][name]:.4g}" if name in log[-1] else "" for log in logs)]
               for name in logs[0][-1] if name not in ("step", "seconds", "sample")]
    golds = [results.get(results["stage"], {}).get("gold") for results in every]
    if None not in golds:
        figures.append(["gold, on held-out prompts", *(f"{gold:.3f}" for gold in golds)])
    answers = [said(results) for results in every]
    common = [asked for asked in answers[0] if all(asked in found for found in answers)]
    parts = [f"# {' and '.join(names)}",
             "## Flags that differ\n\n" + markdown(["", *names], flags) if flags
             else "The flags are the same.",
             "## Figures, where the log ends\n\n" + markdown(["", *names], figures)]
    if common:
        rows = [[asked, *(cell(found[asked]) for found in answers)] for asked in common[:ANSWERS]]
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
    program("data.judge.compare", compare, args.runs)
