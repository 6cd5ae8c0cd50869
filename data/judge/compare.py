"""Compare runs of the same stage: curves laid over each other, figures, ten answers side by side.

    python -m data.judge.compare out/ppo exp/beta-0/ppo

Writes compare.png and compare.md to the last folder, and prints the latter. A folder that holds
stages, as exp/beta-0 does, stands for its stage of the same name.
"""

from pathlib import Path

from data.judge.figures import cell, markdown, question
from data.run import curves, disk
from data.run.cli import arguments, polite
from data.run.system import UserError


def read(folder):
    """A stage's folder -> (results, log); UserError if it holds no finished run."""
    results = disk.read_json(folder / "results.json", remedy="name the folder of a stage that has "
                             "finished, such as out/ppo")
    return results, disk.read_json(folder / "log.jsonl", lines=True)


def answers_of(results):
    """The answers in a run's results -> {question: answer}."""
    answers = {}
    for sample in results.get("samples", []):
        answer = sample.get(results["stage"], sample.get("after"))
        if isinstance(answer, str):
            prompt = sample.get("prompt") or [dict(content=sample["start"])]
            answers[question(prompt)] = answer
    return answers


def report(names, every, logs):
    """What differs in flags, what was logged last, and the answers -> Markdown."""
    flags = {flag: [str(results["config"].get(flag)) for results in every]
             for flag in sorted(set().union(*(results["config"] for results in every)) - {"out"})}
    flags = [[f"--{flag}", *map(cell, values)] for flag, values in flags.items()
             if len(set(values)) > 1]
    figures = [[name, *(f"{log[-1][name]:.4g}" if name in log[-1] else "" for log in logs)]
               for name in logs[0][-1] if name not in ("step", "seconds", "sample")]
    golds = [results.get(results["stage"], {}).get("gold") for results in every]
    if None not in golds:
        figures.append(["gold, on held-out prompts", *(f"{gold:.3f}" for gold in golds)])
    answers = [answers_of(results) for results in every]
    common = [prompt for prompt in answers[0] if all(prompt in others for others in answers)]
    rows = [[prompt, *(cell(others[prompt]) for others in answers)] for prompt in common[:10]]
    parts = [f"# {' and '.join(names)}",
             "## Flags that differ\n\n" + markdown(["", *names], flags) if flags
             else "The flags are the same.",
             "## Figures, where the log ends\n\n" + markdown(["", *names], figures)]
    parts += ["## Answers\n\n" + markdown(["prompt", *names], rows)] if rows else []
    return "\n\n".join(parts) + "\n"


def compare(paths):
    """Read, draw and print; -> the path of the picture."""
    folders, stage = list(map(Path, paths)), Path(paths[0]).name
    folders = [path if (path / "log.jsonl").exists() else path / stage for path in folders]
    every, logs = zip(*map(read, folders))
    if len({results["stage"].split("-")[0] for results in every}) > 1:
        raise UserError(f"{' and '.join(map(str, folders))} are of different stages: compare runs "
                        "of one")
    names = [str(folder) for folder in folders]
    text = report(names, every, logs)
    picture = folders[-1] / "compare.png"
    disk.write_figure(picture, curves.draw(dict(zip(names, logs)), title=" and ".join(names)))
    disk.write(folders[-1] / "compare.md", text)
    print(f"{text}\n{picture} shows the curves")
    return picture


if __name__ == "__main__":
    with polite():
        compare(arguments(__doc__, least=2))
