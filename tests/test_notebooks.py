"""The notebooks run, in seconds with QUICK=1 and in full, and what is committed in them is no
older than the code they show."""

import json
import math
import os
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch

import gpt
import ppo
import reward
from data import optim
from notebooks import after, experiments

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS, SOLUTIONS = sorted(FOLDER.glob("*.ipynb")), sorted(FOLDER.glob("solutions/*.ipynb"))
CHINESE = sorted(FOLDER.glob("zh/*.ipynb"))
names = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
all_names = pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS + CHINESE,
                                    ids=lambda path: f"{path.parent.name}/{path.stem}")


@pytest.fixture(scope="module")
def course():
    from notebooks import course
    return course


def test_there_are_eight_each_with_its_solutions_and_in_chinese():
    assert [path.stem[0] for path in NOTEBOOKS] == list("12345678")
    assert [path.name for path in NOTEBOOKS] == [path.name for path in SOLUTIONS]
    assert [path.name for path in NOTEBOOKS] == [path.name for path in CHINESE]


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


@all_names
def test_cells_that_read_committed_results_still_print_what_they_show(path, course, monkeypatch,
                                                                      capsys):
    monkeypatch.chdir(FOLDER.parent)
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code" and re.search(r"notebooks/results/\w+\.json", cell.source):
            exec(cell.source, dict(course=course, experiments=experiments, json=json, math=math,
                                   np=np, Path=Path, plt=plt))
            shown = [out.text for out in cell.outputs if out.output_type == "stream"]
            assert capsys.readouterr().out == "".join(shown)
            plt.close("all")


# ---- in Chinese ----------------------------------------------------------------------------------

# Words that have a counterpart in the glossary's last column, wherever a text speaks of them.
TERMS = {"token": "词元", "reward model": "奖励模型", "value model": "价值模型",
         "policy": "策略", "reference": "参考模型", "advantage": "优势",
         "ratio": "概率比", "entropy": "熵", "learning rate": "学习率",
         "labeler": "标注员", "gold": "真实评分", "clipping": "裁剪",
         "explained variance": "解释方差", "reward hacking": "奖励作弊"}


def prose(text):
    """Text without code, formulas, addresses, quotations in English and the papers' titles."""
    text = re.sub(r"\$\$.*?\$\$|`[^`]*`|\$[^$]*\$|\]\([^)]*\)|\"[^\"]*\"|\*[A-Z][^*]*\*", "", text,
                  flags=re.S)
    return "\n".join(line for line in text.splitlines() if not line.startswith(">"))


@pytest.mark.parametrize("path", CHINESE, ids=lambda path: path.stem)
def test_the_chinese_notebook_is_the_english_one_in_chinese(path):
    english, chinese = (nbformat.read(p, 4).cells for p in (FOLDER / path.name, path))
    assert len(english) == len(chinese)
    for ours, theirs in zip(english, chinese):
        assert ours.cell_type == theirs.cell_type
        if ours.cell_type == "code":
            assert ours.source == theirs.source, f"python notebooks/course.py --zh: {ours.source}"
            pictures = [sum("image/png" in out.get("data", ()) for out in cell.outputs)
                        for cell in (ours, theirs)]
            assert pictures[0] == pictures[1]
            continue
        heads = [re.findall(r"^#+ (?:\d+\.)?", cell.source, re.M) for cell in (ours, theirs)]
        items = [len(re.findall(r"^(?:\d\.|\|) ", cell.source, re.M)) for cell in (ours, theirs)]
        formulas = [re.findall(r"\$\$.*?\$\$", cell.source, re.S) for cell in (ours, theirs)]
        assert heads[0] == heads[1] and items[0] == items[1] and formulas[0] == formulas[1]
    text = prose("\n".join(cell.source for cell in chinese if cell.cell_type == "markdown"))
    letters = re.findall(r"[A-Za-z\u4e00-\u9fff]", text)
    assert sum(letter > "z" for letter in letters) >= .6 * len(letters)


def test_chinese_terms_are_those_of_the_glossary():
    glossary = (FOLDER / "GLOSSARY.md").read_text()
    english, chinese = ("\n".join(cell.source for path in paths for cell in
                                  nbformat.read(path, 4).cells if cell.cell_type == "markdown")
                        for paths in (NOTEBOOKS, CHINESE))
    for word, term in TERMS.items():
        assert term in glossary, term
        share = chinese.count(term) / len(re.findall(rf"\b{word}", english, re.I))
        assert share > .4, (word, term, share)


def test_labels_are_drawn_in_chinese_where_a_font_is_found(course, monkeypatch):
    from matplotlib import font_manager, text
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    before = text.Text.set_text
    assert not course.label_in_chinese() and text.Text.set_text is before
    monkeypatch.setattr(text.Text, "set_text", before)
    monkeypatch.setattr(font_manager.fontManager, "ttflist",
                        [font_manager.FontEntry(name=course.CHINESE_FONTS[-1])])
    with course.plt.rc_context():
        assert course.label_in_chinese()
        axes = course.plt.figure().add_subplot(xlabel="iteration", ylabel="ppo")
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("迭代", "ppo")
    course.plt.close("all")


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


def updated(policy, value, opt, batch, cfg, lr, weighed=True, old="logp_old", both=True, steps=True,
            learned="advantages", parts=True):
    models = torch.nn.ModuleList([policy, value])
    for rows in torch.arange(len(batch.idx)).tensor_split(cfg.minibatches if parts else 1):
        part = optim.cut(batch, rows, batch.idx.shape[1])
        logp = gpt.token_logprobs(policy, part.idx, cfg.temperature, part.mask)
        loss = ppo.policy_loss(logp, getattr(part, old), getattr(part, learned), part.mask,
                               cfg.clip)
        if both:
            loss = loss + (cfg.vf_coef if weighed else 1) * ppo.value_loss(
                value(part.idx)[:, :-1], part.values_old, part.returns, part.mask, cfg.clip)
        loss.backward()
        if steps:
            optim.optimizer_step(models, opt, lr)


def iterated(policy, reference, reward, value, opt, prompts, prompt_lengths, cfg, lr, beta=True,
             white=True, swapped=False, learns=True, says=True, batch=None):
    batch = batch or ppo.rollout(policy, reference, reward, value, prompts, prompt_lengths, cfg)
    rewards = ppo.kl_rewards(batch.score, batch.logp_old, batch.logp_ref, batch.mask,
                             cfg.beta * beta)
    factors = (cfg.lam, cfg.gamma) if swapped else (cfg.gamma, cfg.lam)
    advantages, batch.returns = ppo.gae(rewards, batch.values_old, batch.mask, *factors)
    batch.advantages = ppo.whiten(advantages, batch.mask) if white else advantages
    if learns:
        ppo.update(policy, value, opt, batch, cfg, lr)
    return batch if says else 7


def chosen(scores, gold, n, by_gold=False, every=False):
    judged = (gold if by_gold else scores)[:, :scores.shape[1] if every else n]
    return gold.gather(1, judged.argmax(1, keepdim=True))[:, 0]


def divergence(logp, logp_ref, mask, sign=1, per_token=False, masked=True):
    kl = sign * (logp - logp_ref) * (mask if masked else 1)
    return gpt.masked_mean(kl, mask) if per_token else kl.sum(1).mean()


WRONG = [  # the exercise, a mistake, and what the check says of it
    ("update", dict(weighed=False), "cfg.vf_coef"), ("update", dict(old="logp_ref"), "sampled"),
    ("update", dict(both=False), "value model must learn"), ("update", dict(steps=False), "before"),
    ("update", dict(learned="returns"), "learns from advantages"),
    ("update", dict(parts=False), "for each of"),
    ("iteration", dict(beta=False), "no penalty"), ("iteration", dict(white=False), "whiten"),
    ("iteration", dict(swapped=True), "gamma first"), ("iteration", dict(learns=False), "last"),
    ("iteration", dict(says=False), "return the batch"),
    ("best_of_n", dict(by_gold=True), "only read"),
    ("best_of_n", dict(every=True), "first n"),
    ("kl_per_answer", dict(sign=-1), "comes first"),
    ("kl_per_answer", dict(per_token=True), "sum over the tokens"),
    ("kl_per_answer", dict(masked=False), "of the mask"),
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
            rloo_advantages=left_out, update=updated, iteration=iterated, best_of_n=chosen,
            kl_per_answer=divergence)


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
                  after.dpo_loss, after.rloo_advantages, ppo.update):
        exercises.check(right)
    for name in ("update", "iteration", "best_of_n", "kl_per_answer"):
        MINE[name].__name__ = name
        exercises.check(MINE[name])
    unwritten, fails, *rest = capsys.readouterr().out.splitlines()
    assert "not written yet" in unwritten and "IndexError" in fails
    assert all(line.endswith("right!") for line in rest)


@pytest.fixture(scope="module")
def quick_out(tmp_path_factory):
    return tmp_path_factory.mktemp("quick")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS + CHINESE[3:4],  # their code is the same
                         ids=lambda path: f"{path.parent.name}/{path.stem}")
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
