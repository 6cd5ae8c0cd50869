"""The notebooks run, in seconds with QUICK=1 and in full, and what is committed in them is no
older than the code they show."""

import os
import re
from pathlib import Path

import nbformat
import pytest
import torch

import gpt
import ppo
import reward
from notebooks import after

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS, SOLUTIONS = sorted(FOLDER.glob("*.ipynb")), sorted(FOLDER.glob("solutions/*.ipynb"))
names = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
all_names = pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS,
                                    ids=lambda path: f"{path.parent.name}/{path.stem}")


@pytest.fixture(scope="module")
def course():
    from notebooks import course
    return course


def test_there_are_seven_each_with_its_solutions():
    assert [path.stem[0] for path in NOTEBOOKS] == list("1234567")
    assert [path.name for path in NOTEBOOKS] == [path.name for path in SOLUTIONS]


def text_of(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


@names
def test_every_exercise_has_a_solution_elsewhere(path):
    exercises = text_of(nbformat.read(path, 4)).split("## Exercises")[1]
    solutions = text_of(nbformat.read(path.parent / "solutions" / path.name, 4))
    asked, solved = re.findall(r"^(\d)\. ", exercises,
                               re.M), re.findall(r"^## (\d)\. ", solutions, re.M)
    assert len(asked) >= 3 and asked == solved
    assert f"solutions/{path.name}" in exercises and f"../{path.name}" in solutions


@all_names
def test_a_notebook_is_fit_to_read(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_000_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(len(cell.source.splitlines()) <= 10
               for cell in code), [cell.source for cell in code
                                   if len(cell.source.splitlines()) > 10]
    prose = [line for cell in notebook.cells if cell.cell_type == "markdown"
             for line in cell.source.splitlines()]
    assert sum(line.startswith("# ") for line in prose) == 1
    assert not any(re.match(r"#( #|$)", line) for line in prose)  # one title, no comments
    text = path.read_text()
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", text)
    assert "NOT true of this run" not in text
    for link in re.findall(r"\]\(([\w./]+\.(?:ipynb|py|md))\)", text):
        assert (path.parent / link).exists(), link
    assert all(cell.execution_count and not any(out.output_type == "error" for out in cell.outputs)
               for cell in code), \
        f"python notebooks/course.py {path.relative_to(FOLDER)}"


@names
def test_outputs_are_no_older_than_the_code_they_show(path, course):
    notebook = nbformat.read(path, 4)
    now, then = course.shown(notebook), notebook.metadata.get("shown", {})
    changed = [name for name in now if now[name] != then.get(name)]
    assert not changed, (f"{', '.join(changed)} changed since the notebook was run: "
                         f"python notebooks/course.py {path.stem}")


# ---- the exercises -------------------------------------------------------------------------------


def attention(q, k, scale=True, hide="before"):
    scores = q @ k.transpose(1, 2) / (q.shape[-1] ** .5 if scale else 1)
    future = torch.ones(scores.shape[1:]).triu(1).bool()
    weights = (scores.masked_fill(future, -torch.inf) if hide == "before" else scores).softmax(-1)
    return weights.masked_fill(future, 0) if hide == "after" else weights


def shifted(prompt_lengths, lengths, T, first=0, last=0):
    column = torch.arange(T - 1)
    return (column >= prompt_lengths[:, None] - 1 + first) & (column < lengths[:, None] - 1 + last)


def pairwise(scores, ranks, sign=1, ties=False):
    wins = (ranks[:, :, None]
            <= ranks[:, None, :]) & ~torch.eye(
                ranks.shape[1]).bool() if ties else ranks[:, :, None] < ranks[:, None, :]
    return -torch.nn.functional.logsigmoid(
        sign * (scores[:, :, None] - scores[:, None, :])[wins]).mean()


def clipped(logp, logp_old, advantages, mask, clip, low=True, both=True, masked=True, sign=-1):
    ratio = (logp - logp_old).exp()
    bounded = ratio.clamp(1 - clip if low else None, 1 + clip) * advantages
    gain = torch.minimum(ratio * advantages, bounded) if both else bounded
    return sign * (gpt.masked_mean(gain, mask) if masked else gain.mean())


def rewarded(score, logp, logp_ref, mask, beta, sign=-1, masked=True, at_end=False):
    rewards = sign * beta * (logp - logp_ref) * (mask if masked else 1)
    for row, marked in enumerate(mask):
        rewards[row, -1 if at_end else marked.nonzero().max()] += score[row]
    return rewards


def estimated(rewards, values, mask, gamma, lam, beyond=True, discount=True,
              returned="advantages + values"):
    if beyond:
        values = values * mask
    advantages, returns = ppo.gae(rewards, values, mask if beyond else torch.ones_like(mask), gamma,
                                  lam if discount else lam / gamma)
    return (advantages, returns) if returned else (advantages, advantages)


def preferred(logp_w, logp_l, ref_w, ref_l, beta, sign=1, reference=True, inside=False):
    gap = logp_w - logp_l - (ref_w - ref_l if reference else 0)
    gap = sign * beta * (gap.mean() if inside else gap)
    return -torch.nn.functional.logsigmoid(gap).mean()


def left_out(rewards, itself=False, every=False):
    K = rewards.shape[1]
    mean = rewards.mean() if every else rewards.mean(1, keepdim=True)
    return (rewards - mean) * (1 if itself else K / (K - 1))


WRONG = [  # the exercise, a mistake, and what the check says of it
    ("attention_weights", dict(scale=False), "square root"),
    ("attention_weights", dict(hide=None), "looks ahead"),
    ("attention_weights", dict(hide="after"), "does not sum to 1"),
    ("response_mask", dict(first=1), "written in column 1"),
    ("response_mask", dict(first=-1), "prompt's"),
    ("response_mask", dict(last=-1), "its end"), ("response_mask", dict(last=1), "padding"),
    ("ranking_loss", dict(sign=-1), "winner minus"), ("ranking_loss", dict(ties=True), "tie"),
    ("ranking_loss", dict(), "of each prompt first"),
    ("policy_loss", dict(sign=1), "minimises"), ("policy_loss", dict(low=False), "clip below"),
    ("policy_loss", dict(both=False), "pulled back"),
    ("policy_loss", dict(masked=False), "mask marks"),
    ("kl_rewards", dict(sign=1), "must cost"),
    ("kl_rewards", dict(masked=False), "multiply by the mask"),
    ("kl_rewards", dict(at_end=True), "differs from row to row"),
    ("gae", dict(beyond=False), "V is 0"), ("gae", dict(discount=False), "both factors"),
    ("gae", dict(returned=""), "the returns are"),
    ("dpo_loss", dict(sign=-1), "winner minus"),
    ("dpo_loss", dict(reference=False), "minus that of the reference"),
    ("dpo_loss", dict(inside=True), "of each pair first"),
    ("rloo_advantages", dict(itself=True), "without itself"),
    ("rloo_advantages", dict(every=True), "a group of its own")]
MINE = dict(attention_weights=attention, response_mask=shifted, ranking_loss=pairwise,
            policy_loss=clipped, kl_rewards=rewarded, gae=estimated, dpo_loss=preferred,
            rloo_advantages=left_out)


@pytest.mark.parametrize("exercise, mistake, sentence", WRONG)
def test_an_exercise_says_what_is_wrong(exercise, mistake, sentence, capsys):
    from notebooks import exercises

    def wrong(*args):
        return MINE[exercise](*args, **mistake)
    wrong.__name__ = exercise
    exercises.check(wrong)
    said = capsys.readouterr().out
    assert said.startswith(f"{exercise}: ") and sentence in said and "right!" not in said


def test_an_exercise_that_is_not_written_or_fails_is_one_sentence(capsys):
    from notebooks import exercises

    def gae(*args):
        pass
    exercises.check(gae)

    def ranking_loss(scores, ranks):
        return scores[7]
    exercises.check(ranking_loss)
    for right in (gpt.response_mask, reward.ranking_loss, ppo.policy_loss, ppo.kl_rewards, ppo.gae,
                  after.dpo_loss, after.rloo_advantages):
        exercises.check(right)
    unwritten, fails, *rest = capsys.readouterr().out.splitlines()
    assert "not written yet" in unwritten and "IndexError" in fails
    assert all(line.endswith("right!") for line in rest)


@pytest.fixture(scope="module")
def quick_out(tmp_path_factory):
    return tmp_path_factory.mktemp("quick")


@pytest.mark.slow
@all_names
def test_quick(path, course, quick_out, monkeypatch):
    monkeypatch.setenv("QUICK", "1")
    monkeypatch.setenv("OUT", str(quick_out))
    course.execute(path)


@pytest.fixture(scope="module")
def full_out(tmp_path_factory):
    return tmp_path_factory.mktemp("full")


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("FULL"),
                    reason="FULL=1 runs the notebooks at their real size, about half an hour")
@all_names
def test_full(path, course, full_out, monkeypatch):
    monkeypatch.setenv("OUT", str(full_out))
    course.execute(path)
