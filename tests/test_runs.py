"""Files, flags and good manners: whatever a user does wrong is one sentence, and nothing written
is lost."""

import functools
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import gpt
import ppo
import reward
import sft
from data.people import chat
from data.files import records
from data.judge import report
from data import sampling, start
from data.run import disk
from data.run.system import UserError
from data.world import almanac
from notebooks import ensemble
from conftest import RANKED, ROOT, SMALL, decide, one_sentence, python, run_stage


def test_every_stage_leaves_its_files(pipeline):
    out, _, _ = pipeline
    for stage in ("gpt", "sft", "reward", "ppo"):
        assert ({"log.jsonl", "curves.png", "ckpt.pt", "results.json"}
                <= set(os.listdir(out / stage)))
        assert (out / stage / "curves.png").read_bytes().startswith(b"\x89PNG")
        assert ([json.loads(line)["step"] for line in open(out / stage / "log.jsonl")]
                == list(range(1, {"gpt": 5, "sft": 5, "reward": 4, "ppo": 4}[stage])))
        assert json.loads((out / stage / "results.json").read_text())["samples"]
        assert not list((out / stage).glob("*.tmp"))


def test_results_have_the_names_that_others_build_on(pipeline):
    results = json.loads((pipeline[0] / "ppo" / "results.json").read_text())
    for name in ("base", "sft", "ppo"):
        assert ({"gold", "helpful", "truthful", "harmless", "length", "ended", "by_kind", "greedy"}
                <= set(results[name]))
    assert {"win_rate", "kl", "round"} <= set(results)


def test_a_run_is_reproducible(pipeline, tmp_path):
    out = pipeline[0]
    model, history = sft.train(sft.Config(out=str(tmp_path), init=str(out / "gpt" / "ckpt.pt"),
                                          steps=4, eval_every=2, log_every=1, batch=4,
                                          demonstrations=40))
    again = [json.loads(line)["loss"] for line in open(out / "sft" / "log.jsonl")]
    assert [r["loss"] for r in history] == again


def test_own_files_are_trained_on(pipeline, tmp_path):
    """What a stage writes down it can read again, and files of others' formats too."""
    out, common = pipeline[0], dict(out=str(tmp_path), log_every=1)
    init = dict(init=str(out / "sft" / "ckpt.pt"))
    (tmp_path / "d.jsonl").write_text(
        '{"prompt": "Hi", "response": "Hello."}\n{"prompt": [{"role": "user", "content": "Who?"}], '
        '"completion": "Me."}\n')
    (tmp_path / "c.jsonl").write_text(
        '{"prompt": "Hi", "chosen": "Hello.", "rejected": "Go."}\n{"prompt": "Who?", "responses": '
        '["Me.", "You.", "No."], "ranks": [1, 2, 2]}\n')
    (tmp_path / "p.jsonl").write_text('{"prompt": "Hi"}\n{"prompt": "Who?"}\n')
    sft.train(sft.Config(data=str(tmp_path / "d.jsonl"), steps=1, batch=2, **common, **init))
    sft.train(sft.Config(data=str(out / "sft" / "demonstrations.jsonl"), steps=1, batch=2, **common,
                         **init))
    reward.train(reward.Config(data=str(tmp_path / "c.jsonl"), batch=2, **common, **init))
    ppo.train(ppo.Config(data=str(tmp_path / "p.jsonl"), steps=1, batch=2, minibatches=1,
                         max_new_tokens=4, reward=str(tmp_path / "reward" / "ckpt.pt"), **common,
                         **init))
    assert "gold" not in json.loads((tmp_path / "ppo" / "results.json").read_text())["ppo"]
    (tmp_path / "reward" / "comparisons.jsonl").unlink(missing_ok=True)
    with pytest.raises(UserError, match="name the rankings of all rounds with --data"):
        reward.train(reward.Config(round=2, policy=str(out / "ppo" / "ckpt.pt"), **common, **init))


def test_a_second_run_keeps_the_first_checkpoint(tmp_path):
    cfg = gpt.Config(out=str(tmp_path), steps=1, **SMALL)
    gpt.train(cfg)
    first = (tmp_path / "gpt" / "ckpt.pt").read_bytes()
    gpt.train(gpt.Config(out=str(tmp_path), steps=1, seed=2, **SMALL))
    assert (tmp_path / "gpt" / "ckpt.prev.pt").read_bytes() == first != (
        tmp_path / "gpt" / "ckpt.pt").read_bytes()


@pytest.mark.parametrize("stage", ["gpt", "sft", "reward", "ppo"])
def test_help_explains_every_flag(stage):
    programs = {"gpt": dict(chat="people.chat", page="people.page", export="people.export"),
                "reward": dict(label="people.feedback"),
                "ppo": dict(eval="judge.report", prefer="people.prefer")}
    for program, module in {"": stage,
                            **{name: f"data.{path}" for name,
                               path in programs.get(stage, {}).items()}}.items():
        result = run_stage(f"{stage}.py", *[f"--{program}"] * bool(program), "--help")
        config = importlib.import_module(module).Config
        assert result.returncode == 0
        assert all(f"--{flag}" in result.stdout for flag in config.__dataclass_fields__)
        assert (" ".join(result.stdout.split()).count("(default: ")
                == len(config.__dataclass_fields__))


def test_importing_does_nothing():
    code = (
        "import random, torch; before = random.getstate(), torch.get_rng_state(); import gpt, sft, "
        "reward, ppo; "
            "print(before[0] == random.getstate(), torch.equal(before[1], torch.get_rng_state()))")
    result = python("-c", code)
    assert result.returncode == 0 and result.stdout == "True True\n" and result.stderr == ""


@pytest.mark.parametrize("command, said", [
    (["sft.py", "--out", "{tmp}"], "gpt/ckpt.pt not found: run python gpt.py first"),
    (["reward.py", "--out", "{tmp}"], "sft/ckpt.pt not found: run python sft.py first"),
    (["ppo.py", "--out", "{tmp}"], "sft/ckpt.pt not found: run python sft.py first"),
    (["gpt.py", "--chat", "--out", "{tmp}"], "no checkpoint in"),
    (["gpt.py", "--stepps", "3"], "there is no flag --stepps; did you mean --steps?"),
    (["gpt.py", "--step", "3"], "there is no flag --step"),
    (["gpt.py", "--steps", "many"], "invalid int value"),
    (["reward.py", "--k", "10"], "--k must be between 2 and 9"),
    (["sft.py", "--lr", "-1"], "--lr must be at least 0"),
    (["ppo.py", "--lr", "nan"], "--lr must be a number"),
    (["ppo.py", "--gamma", "-1"], "--gamma must be at least 0"),
    (["ppo.py", "--target_kl", "0.01"],
     "--target_kl stops further passes over a batch: it needs --epochs above 1"),
    (["reward.py", "--label", "--out", "{tmp}"], "or name one with --policy"),
    (["gpt.py", "--n_embd", "1000000", "--vocab_size", "260", "--documents", "2000", "--out",
      "{tmp}"], "out of memory"),
    (["gpt.py", "--chat", "--temperature", "-1"], "--temperature must be at least 0"),
    (["gpt.py", "--device", "cuda:7"], "--device cuda:7 cannot be used here"),
    (["gpt.py", "--out", "{tmp}", "--data", "{tmp}/none.txt"], "none.txt cannot be read"),
    (["gpt.py", "--out", "/dev/null/x"], "cannot make the folder"),
])
def test_mistakes_are_one_sentence(command, said, tmp_path):
    assert said in one_sentence(run_stage(*[part.format(tmp=tmp_path) for part in command]))


@pytest.mark.parametrize("content, said", [
    (b"", "is empty"),
    (b'{"prompt": "a", "response": "b"}\n{"prompt": \n', "line 2: not JSON"),
    (b'{"prompt": "a", "response": "b"}\n\n[1]\n', "line 3: not a JSON object"),
    (b'{"response": "b"}', "line 1: its fields are response: this is none of the formats"),
    (b'{"prompt": 3, "response": "b"}', 'line 1: "prompt" must be'),
    (b'{"prompt": "a"}', 'line 1: "response" must be'),
    (b'{"prompt": "a", "response": 3}', 'line 1: "response" must be'),
    (b'{"prompt": [{"role": "assistant", "content": "a"}], "response": "b"}', "the last message"),
    (b'{"prompt": "a", "response": "b"}\n{"prompt": "\xff"}', "line 2: not UTF-8"),
])
def test_bad_demonstrations_are_named_with_file_and_line(content, said, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="bad.jsonl") as error:
        records.read_demonstrations(path)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("fields",
                         ['"responses": ["a"], "ranks": [1]',
                          '"responses": ["a", "b"], "ranks": [1]',
                          '"responses": ["a", "b"], "ranks": [0, 1]',
                                    '"responses": ["a", "b"], "ranks": [1, "2"]', '"chosen": "a"',
                                    '"responses": "ab", "ranks": [1, 2]'])
def test_bad_comparisons_are_named_with_file_and_line(fields, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(
        '{"prompt": "q", "chosen": "a", "rejected": "b"}\n{"prompt": "q", %s}\n' % fields)
    with pytest.raises(UserError, match="bad.jsonl, line 2"):
        records.read_comparisons(path)


def test_checkpoints_that_do_not_belong_together_are_refused(pipeline, tmp_path):
    out = pipeline[0]
    gpt.train(gpt.Config(out=str(tmp_path), steps=1, **{**SMALL, "documents": 50, "seed": 9}))
    sft.train(sft.Config(out=str(tmp_path), steps=1, batch=2, demonstrations=4))
    with pytest.raises(UserError, match="another tokenizer"):
        ppo.train(ppo.Config(out=str(tmp_path), reward=str(out / "reward" / "ckpt.pt"), steps=1))
    with pytest.raises(UserError, match="holds a ScalarGPT, but a GPT is needed"):
        sft.train(sft.Config(out=str(tmp_path), init=str(out / "reward" / "ckpt.pt")))


def test_pretraining_text_that_is_not_there_or_too_short_is_one_sentence(pipeline, tmp_path):
    cfg = ppo.Config(out=str(pipeline[0]), ptx=1.0, ptx_text=str(tmp_path / "text.txt"))
    with pytest.raises(UserError,
                       match="text.txt not found: name the pretraining text with --ptx_text"):
        ppo.train(cfg)
    (tmp_path / "text.txt").write_text("Short.")
    with pytest.raises(UserError, match="--ptx needs more text"):
        ppo.train(cfg)


@pytest.mark.slow
def test_experiments_go_on_where_they_stopped(pipeline, tmp_path, monkeypatch):
    from notebooks import experiments
    root = tmp_path / "pipeline"
    shutil.copytree(pipeline[0], root)
    small = dict(steps=1, batch=4, minibatches=1, test_prompts=12)
    monkeypatch.setattr(experiments, "OPTIONS",
                        [experiments.Trial("default", small),
                         experiments.Trial("with ptx", dict(small, ptx=1.0))])
    table = experiments.table(experiments.options([root]))
    assert table.count("\n") == 3 and "| with ptx | " in table
    monkeypatch.setattr(ppo, "train", None)  # a second call trains nothing
    assert experiments.table(experiments.options([root])) == table


def test_all_sweeps_are_of_the_seeds_that_the_pages_name(tmp_path, monkeypatch):
    """One command trains the pipelines, with as many rounds as are needed, and copies figures."""
    from notebooks import experiments
    stages, roots, results = [], {}, tmp_path / "notebooks" / "results"
    results.mkdir(parents=True)
    monkeypatch.setattr(experiments, "ROOT", tmp_path)
    monkeypatch.setattr(experiments, "code_hash", lambda: "abc")
    monkeypatch.setattr(experiments, "trained", lambda module, name, **flags: stages.append(
        (name, flags["seed"], flags.get("round"))))
    monkeypatch.setattr(experiments.report, "run", lambda cfg: [
        dict(seed=int(Path(out).name), prompts=cfg.test_prompts) for out in cfg.out.split(",")])

    def sweep(name):
        def run(pipelines):
            roots[name] = [root.name for root in pipelines]
            (pipelines[0] / "experiments").mkdir(parents=True, exist_ok=True)
            (pipelines[0] / "experiments" / f"{name}.json").write_text(name)
            return {"row": {"gold": [.5]}}
        return run
    experiments.every({name: sweep(name) for name in ("rounds", "options", "after")}, tmp_path)
    assert roots == dict(rounds=["4", "5", "6"], options=["4", "5"], after=["1", "4", "5"])
    assert [name for name, seed, _ in stages if seed == 1] == ["gpt", "sft", "reward", "ppo"]
    assert stages[-2:] == [("reward-3", 6, 3), ("ppo-3", 6, 3)] and len(stages) == 4 + 3 * 8
    assert {path.name for path in results.iterdir()} == {
        "rounds.json", "options.json", "after.json", *(f"evaluation-{n}.json" for n in (4, 5, 6))}
    judged = json.loads((results / "evaluation-5.json").read_text())
    assert judged == dict(seed=5, prompts=9000, code="abc")


@pytest.mark.slow
def test_overoptimisation_fits_both_laws_and_draws(pipeline, tmp_path, monkeypatch):
    from notebooks import experiments
    d = np.linspace(.1, 3, 20)
    for form, bend in (("best of N", d), ("RL", np.log(d))):
        alpha, beta, rest = experiments.laws(d, d * (.9 - .2 * bend))[form]
        assert (alpha, beta, rest) == pytest.approx((.9, .2, 0), abs=1e-9)
    root = tmp_path / "pipeline"
    shutil.copytree(pipeline[0], root)
    decide(root / "reward" / "comparisons.jsonl")
    monkeypatch.setattr(experiments, "LONGER",
                        dict(steps=3, lr=1e-2, batch=8, minibatches=1, test_prompts=12,
                             max_new_tokens=8))
    monkeypatch.setattr(experiments, "PUSHES", {"beta 0": dict(beta=0.0)})
    monkeypatch.setattr(experiments, "NS", [1, 2, 4])
    monkeypatch.setattr(experiments, "JUDGES",
                        {
                            "all": None, "few": lambda root: records.read_comparisons(
                                root / "reward" / "comparisons.jsonl")[:8]})
    monkeypatch.setattr(experiments, "asked_of_both",
                        functools.partial(experiments.asked_of_both, n=12))
    rows = experiments.best_of_n([root])
    assert list(rows) == ["best of 1", "best of 2", "best of 4", "PPO"]
    scores = [row["score"][0] for row in rows.values()][:3]
    assert scores == sorted(scores)
    table = experiments.table(experiments.overoptimisation([root]))
    assert table.count("\n") == 6
    assert "| few: PPO, beta 0, mean less one deviation of three | " in table and "nan" not in table
    assert (root / "experiments" / "overoptimisation.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_methods_are_compared_and_their_costs_counted(pipeline, tmp_path, monkeypatch):
    from notebooks import after, experiments
    root = tmp_path / "pipeline"
    shutil.copytree(pipeline[0], root)
    small = dict(steps=2, batch=4, minibatches=1, max_new_tokens=8)
    monkeypatch.setattr(experiments, "IN_MEMORY", {"ppo": 4, "rloo": 3})
    monkeypatch.setattr(experiments, "SHORT", dict(small, test_prompts=12))
    monkeypatch.setattr(after, "LOSSES", {"rloo": after.LOSSES["rloo"]})
    for module in (ppo, after):
        monkeypatch.setattr(module, "Config", functools.partial(module.Config, **small))
    monkeypatch.setattr(almanac, "prompts", functools.partial(prompts_of, almanac.prompts))
    found = experiments.came_after([root])
    assert set(found) == {"ppo", "rloo"} and found["ppo"]["models in memory"] == [4]
    tokens = {name: row["tokens through a model, million"][0] for name, row in found.items()}
    assert 0 < tokens["rloo"] and all(row["seconds"][0] > 0 for row in found.values())


def test_tokens_are_counted_once_for_each_layer_and_three_times_if_learned(model):
    from notebooks import experiments
    idx = torch.randint(30, (3, 5))
    with experiments.counted_tokens() as tokens:
        model(idx)
        with torch.no_grad():
            model(idx)
            sampling.generate(model, idx[:, :2], torch.tensor([2, 2, 1]), 2)
    layers = model.config.n_layer
    assert tokens["learned"] == 3 * layers * idx.numel()
    assert tokens["read"] == layers * (idx.numel() + 3 * 2 + 3)  # of two new tokens the first


def prompts_of(prompts, split, n, *rest):
    return prompts(split, min(n, 40), *rest)


@pytest.mark.slow
def test_evaluation_of_several_pipelines_makes_the_readme_table(pipeline, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(pipeline[0], tmp_path / name)
    both = f"{tmp_path / 'a'},{tmp_path / 'b'}"
    report.run(report.Config(out=both, test_prompts=20, max_new_tokens=8,
                             policies="again={out}/ppo/ckpt.pt"))
    table = (tmp_path / "a" / "eval" / "seeds.md").read_text()
    assert "|  | base | sft | ppo | again |" in table
    assert table.count(" ± 0.00 ") >= 20  # the same pipeline twice
    with pytest.raises(UserError, match="none holds no finished pipeline"):
        report.run(report.Config(out=f"{tmp_path / 'a'},{tmp_path / 'none'}"))


def test_evaluation_judges_every_model_whatever_its_name_and_place(pipeline, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(pipeline[0], out)
    found = []
    for policies in ("x={}/sft/ckpt.pt,y={}/ppo/ckpt.pt", "y={}/sft/ckpt.pt,x={}/ppo/ckpt.pt"):
        results = report.run(report.Config(out=str(out), test_prompts=40, max_new_tokens=8,
                                           policies=policies.format(out, out)))
        found.append({name: json.dumps(results["models"][name])
                      for name in ("sft", "ppo", "x", "y")})
    for figures, (as_sft, as_ppo) in zip(found, ("xy", "yx")):
        assert figures[as_sft] == figures["sft"]
        assert figures[as_ppo] == figures["ppo"] != figures["sft"]
    assert found[0]["sft"] == found[1]["sft"]
    text = (out / "report.md").read_text()
    assert "## Worst answers of ppo" in text and "| ppo against sft |" in text
    assert not re.search(r"\bnan\b", text)
    preferences = json.loads((out / "eval" / "results.json").read_text())["preferences"]
    assert preferences["ppo against ppo"]["preferred"]["mean"] == .5
    assert (out / "eval" / "reward.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="write name=checkpoint"):
        report.run(report.Config(out=str(out), policies="sft=x.pt"))
    with pytest.raises(UserError, match="none.pt not found"):
        report.run(report.Config(out=str(out), policies="z=none.pt"))
    with pytest.raises(UserError, match="lower --max_new_tokens"):
        report.run(report.Config(out=str(out), max_new_tokens=126))


def test_a_person_judges_two_models_blind(pipeline, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(pipeline[0], out)
    command = ["ppo.py", "--prefer", "--labeler", "anna", "--out", out, "--test_prompts", 5,
               "--max_new_tokens", 8]
    done = python(*command, input="12\n")
    assert done.returncode == 0 and done.stderr == "" and "ppo preferred to sft" in done.stdout
    labels = [json.loads(line) for line in open(out / "judged-ppo-sft" / "anna.jsonl")]
    assert 1 <= len(labels) <= 3
    assert all(set(r["responses"]) == set(r["models"].values()) for r in labels)
    assert "harmless" not in done.stdout[done.stdout.index("\n---- "):]  # the help above may say it


@pytest.mark.slow
def test_peak_memory_is_the_own_process_not_that_of_its_parent():
    child = ("from data.run.device import peak_memory; grown = b'1' * 300_000_000; "
             "print(peak_memory())")
    parent = ("import subprocess, sys; grown = b'1' * 2_000_000_000; "
              f"print(subprocess.check_output([sys.executable, '-c', {child!r}], text=True))")
    assert .3 < float(python("-c", parent).stdout) < 1.5


def test_a_full_disk_loses_nothing(tmp_path):
    """A limit on the size of files stands for the full disk: the next save fails, the last
    checkpoint stays."""
    gpt.train(gpt.Config(out=str(tmp_path), steps=1, **SMALL))
    before = (tmp_path / "gpt" / "ckpt.pt").read_bytes()
    flags = [f"--{name}={value}" for name, value in {**SMALL, "n_embd": 256, "steps": 1}.items()]
    result = python("gpt.py", "--out", tmp_path, *flags,
                    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE,
                                                          (200_000, 200_000)))
    assert "ckpt.pt cannot be written (File too large): make room" in one_sentence(result)
    assert (tmp_path / "gpt" / "ckpt.pt").read_bytes() == before
    assert not list((tmp_path / "gpt").glob("*.tmp"))


def test_ctrl_c_keeps_the_last_checkpoint(tmp_path):
    flags = [f"--{name}={value}" for name,
             value in {**SMALL, "steps": 100000, "save_every": .1, "log_every": 1}.items()]
    process = subprocess.Popen([sys.executable, "gpt.py", "--out", str(tmp_path), *flags], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = time.time()
    while not (tmp_path / "gpt" / "ckpt.pt").exists() and time.time() - started < 60:
        time.sleep(.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    model, _, about = gpt.load(tmp_path / "gpt" / "ckpt.pt")
    assert process.returncode == 130 and "Traceback" not in errors
    assert f"stopped after step {about['step']} of 100000" in errors
    assert errors.endswith(" --resume\n")


def test_chat_answers_and_leaves_politely(pipeline):
    result = python("gpt.py", "--chat", "--out", pipeline[0], "--max_new_tokens", 8,
                    input="Hello <|end|>\n/reset\n/what\n" + "word " * 200 + "\nbye\n")
    assert result.returncode == 0 and result.stderr == ""
    assert "ppo/ckpt.pt" in result.stdout and "forgotten" in result.stdout
    assert "fewer words" in result.stdout and result.stdout.endswith("Goodbye.\n")


def test_chat_cuts_the_oldest_whole_turns():
    turns = [{"role": role, "content": c * 10} for role,
             c in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"),
                   ("user", "e"))]
    size = lambda turns: sum(len(t["content"]) for t in turns)
    assert chat.fit(turns, size, 50) == (turns, 0)
    assert chat.fit(turns, size, 49) == (turns[2:], 1)
    assert chat.fit(turns, size, 10) == (turns[4:], 2)
    assert chat.fit(turns, size, 5) == (turns[4:], 2)


def test_answers_stream_whole_characters(pipeline, monkeypatch):
    _, tokenizer, _ = gpt.load(pipeline[0] / "sft" / "ckpt.pt")
    ids = tokenizer.encode("é🙂")
    assert len(ids) > 2
    monkeypatch.setattr(sampling, "stream",
                        lambda *args: iter([(None, torch.tensor([i]))
                                            for i in [*ids, tokenizer.end]]))
    pieces = list(chat.reply(pipeline[1], tokenizer, [{"role": "user", "content": "x"}], 8, 1.0))
    assert "".join(pieces) == "é🙂" and "\ufffd" not in "".join(pieces)


def test_a_write_is_whole_or_not_at_all(tmp_path):
    disk.write(tmp_path / "a", "old")
    with pytest.raises(UserError,
                       match="a cannot be written .No such file or directory.: make room"):
        disk.write(tmp_path / "missing" / "a", "new")
    assert (tmp_path / "a").read_text() == "old"


def test_rounds_lie_side_by_side_and_build_on_each_other(pipeline, tmp_path, monkeypatch):
    """The second reward model starts from the first and learns all rankings, of answers of the
    first policy and the SFT model;
    the second policy starts from the first; the reference stays."""
    out = tmp_path / "out"
    shutil.copytree(pipeline[0], out)
    common = dict(out=str(out), max_new_tokens=8, log_every=1, round=2)
    first, sft_model = [gpt.load(out / stage / "ckpt.pt")[0] for stage in ("ppo", "sft")]
    asked, respond = [], reward.respond
    monkeypatch.setattr(reward, "respond", lambda models,
                        *others: asked.append(models) or respond(models, *others))
    second, _ = reward.train(reward.Config(prompts=30, test_prompts=12, k=3, batch=4, lr=0.0,
                                           **common))
    assert len(asked) == 2
    assert all(torch.equal(a, b) for models in asked for found,
               model in zip(models, (first, sft_model), strict=True)
                                   for a, b in zip(found.parameters(), model.parameters()))
    trunk = gpt.load(out / "reward" / "ckpt.pt", gpt.ScalarGPT)[0].trunk
    # steps of length 0
    assert all(torch.equal(a, b) for a, b in zip(trunk.parameters(), second.trunk.parameters()))
    rows = [len(records.read_comparisons(out / stage / "comparisons.jsonl"))
            for stage in ("reward", "reward-2")]
    steps = [json.loads(line)["step"] for line in open(out / "reward-2" / "log.jsonl")]
    assert 0 < rows[1] <= 30
    # more than the round's own: prompts that do not fit are left out
    assert len(steps) > -(-rows[1] // 4)
    policy, history = ppo.train(ppo.Config(steps=1, lr=0.0, batch=8, minibatches=2, prompts=40,
                                           test_prompts=24, **common))
    # a step of length 0
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), policy.parameters()))
    results = json.loads((out / "ppo-2" / "results.json").read_text())
    before = json.loads((out / "ppo" / "results.json").read_text())
    assert [r["round"] for r in results["rounds"]] == [0, 1, 2]
    assert results["rounds"][:2] == before["rounds"]
    assert results["round"] == 2
    assert results["sft"]["greedy"]["gold"] == before["sft"]["greedy"]["gold"]
    assert results["kl"] != 0
    assert (out / "ppo-2" / "rounds.png").read_bytes().startswith(b"\x89PNG")
    assert start.newest_policy(out, "--ckpt") == out / "ppo-2" / "ckpt.pt"
    with pytest.raises(UserError,
                       match="reward-3/ckpt.pt not found: run python reward.py --round 3 first"):
        ppo.train(ppo.Config(**{**common, "round": 3}))
    with pytest.raises(UserError,
                       match="reward-3/ckpt.pt not found: run python reward.py --round 3 first"):
        reward.train(reward.Config(**{**common, "round": 4}))
    (out / "reward-3").mkdir()
    shutil.copy(out / "reward-2" / "ckpt.pt", out / "reward-3")
    with pytest.raises(UserError,
                       match="ppo-3/ckpt.pt not found: run python ppo.py --round 3 first"):
        reward.train(reward.Config(**{**common, "round": 4}))


def test_the_chats_marks_begin_as_newlines(pipeline):
    """Only in a model that comes from gpt.py, whose text has none of them."""
    base, tokenizer, about = gpt.load(pipeline[0] / "gpt" / "ckpt.pt")
    before = base.wte.weight.clone()
    sft.begin_chat(base, tokenizer, dict(stage="sft"))
    assert torch.equal(base.wte.weight, before)
    sft.begin_chat(base, tokenizer, about)
    marks, newline = [tokenizer.user, tokenizer.assistant], tokenizer.encode("\n")[0]
    assert torch.equal(base.wte.weight[marks], before[[newline, newline]])
    before[marks] = base.wte.weight[marks]
    assert torch.equal(base.wte.weight, before)


def test_several_reward_models_work_together(pipeline, tmp_path):
    """Bootstrap samples of the same comparisons; PPO takes all of them; the next questions are
    those they differ on."""
    out, paths = pipeline[0], []
    comparisons = decide(shutil.copy(out / "reward" / "comparisons.jsonl", tmp_path))
    for seed in (1, 2):
        where = tmp_path / str(seed)
        where.mkdir()
        records.write_jsonl(where / "sample.jsonl",
                            ensemble.bootstrap(records.read_comparisons(comparisons), seed))
        reward.train(reward.Config(out=str(where), data=str(where / "sample.jsonl"),
                                   init=str(out / "sft" / "ckpt.pt"), seed=seed, batch=4))
        paths.append(str(where / "reward" / "ckpt.pt"))
    one, other = [gpt.load(path, gpt.ScalarGPT)[0] for path in paths]
    assert not torch.equal(one.head.weight, other.head.weight)
    init = dict(init=str(out / "sft" / "ckpt.pt"), max_new_tokens=8)
    members, metadata = ensemble.load(",".join(paths), gpt.load(paths[0])[1])
    pool = records.read_comparisons(comparisons)
    disputed = ensemble.most_disputed(members, metadata, gpt.load(paths[0])[1], pool, 5, "cpu")
    assert len(disputed) == 5 and all(r in pool for r in disputed)
    _, history = ensemble.train(ensemble.Config(out=str(tmp_path), reward=",".join(paths),
                                                caution=1.0, steps=1, batch=8, minibatches=2,
                                                prompts=40, test_prompts=12, **init))
    assert history[0]["first_ratio"] == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="none.pt not found"):
        ensemble.train(ensemble.Config(out=str(tmp_path), reward=paths[0] + ",none.pt", **init))


# ---- flags that go wrong, and learning on --------------------------------------------------------


@pytest.mark.parametrize("flags, sentence", [
    (["--kl_target=2", "--beta=0"], "--kl_target steers --beta, which must be above 0"),
    (["--beta=-1"], "--beta must be at least 0"), (["--gamma=1.5"], "must be at most 1"),
    (["--missing_eos_penalty=1"], "--missing_eos_penalty is a score, and must be at most 0"),
    (["--lr=1e300"], "--lr must be less than 1e30"),
])
def test_flags_that_let_ppo_go_wrong_are_refused(flags, sentence):
    assert sentence in one_sentence(run_stage("ppo.py", *flags))


def test_a_pretrained_model_learns_on(pipeline, tmp_path, capsys):
    """Its tokenizer and shape are its own; the text that it learns may be another."""
    first = pipeline[0] / "gpt" / "ckpt.pt"
    model, _ = gpt.train(gpt.Config(out=str(tmp_path), init=str(first), steps=1, lr=0.0,
                                    documents=60))
    before, tokenizer, _ = gpt.load(first)
    _, own, about = gpt.load(tmp_path / "gpt" / "ckpt.pt")
    assert model.config == before.config and tokenizer == own
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters()))
    assert about["parents"]["first model"]["stage"] == "gpt"
    with pytest.raises(UserError, match="is what this run will write: copy it"):
        gpt.train(gpt.Config(out=str(tmp_path), init=str(tmp_path / "gpt" / "ckpt.pt"), steps=1))
    assert "leave out the flags of shape" in one_sentence(
        run_stage("gpt.py", "--init", first, "--n_layer", 1, "--out", tmp_path))


def test_a_reward_model_of_another_scale_and_too_few_prompts_are_named(pipeline, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(pipeline[0], out)
    model, tokenizer, _ = gpt.load(out / "reward" / "ckpt.pt", gpt.ScalarGPT)
    gpt.save(tmp_path / "r.pt", reward.normalized(model, -6.0, .1), tokenizer)
    ppo.train(ppo.Config(out=str(out), reward=str(tmp_path / "r.pt"), steps=1, prompts=60, batch=64,
                         minibatches=2, test_prompts=6, max_new_tokens=20))
    said = capsys.readouterr().out
    assert "where --beta and --clip expect about 0 and 1" in said
    assert "prompts are fewer than --batch 64: an iteration has" in said


def test_scores_are_normalised_on_answers_like_those_that_ppo_will_write(pipeline, tmp_path):
    """Also where rankings come from a file, whose answers are of another length."""
    out, rng = pipeline[0], random.Random(0)
    prompts = [f"How many legs has a {name}?" for name in ("bee", "cow", "dog", "hen")]
    rows = [dict(prompt=f"{rng.choice(prompts)} {n}", chosen="I do not know. " * rng.randint(1, 3),
                 rejected="No. " * rng.randint(1, 3)) for n in range(80)]
    records.write_jsonl(tmp_path / "d.jsonl", rows)
    model, _ = reward.train(reward.Config(
        out=str(tmp_path), init=str(out / "sft" / "ckpt.pt"), data=str(tmp_path / "d.jsonl"),
        batch=4, max_new_tokens=8, temperature=1.0))
    sft_model, tokenizer, _ = gpt.load(out / "sft" / "ckpt.pt")
    cfg = reward.Config(max_new_tokens=8, temperature=1.0)
    asked = [dict(prompt=[dict(role="user", content=r["prompt"])]) for r in rows]
    answered = reward.respond([sft_model], tokenizer, asked, cfg)
    examples = [reward.encode(tokenizer, r, sft_model.config.block_size) for r in answered]
    scores, _ = reward.score_all(model, examples, "cpu")
    assert abs(scores.mean()) < .3 and .7 < scores.std() < 1.4


def test_a_topic_is_that_of_all_four_stages(tmp_path, monkeypatch):
    topics = {}
    for name in ("text", "prompts", "demonstrations"):
        def written(*args, name=name, write=getattr(almanac, name)):
            topics.setdefault(name, []).append(args[-1])
            return write(*args)
        monkeypatch.setattr(almanac, name, written)
    common = dict(out=str(tmp_path), topic="reading")
    gpt.train(gpt.Config(steps=1, **common, **{**SMALL, "block_size": 192}))
    sft.train(sft.Config(steps=1, batch=4, demonstrations=40, **common))
    reward.train(reward.Config(**common, **RANKED))
    ppo.train(ppo.Config(steps=1, batch=8, minibatches=2, prompts=40, test_prompts=12,
                         max_new_tokens=8, **common))
    found = report.run(report.Config(test_prompts=12, max_new_tokens=8, **common))
    assert {name: set(said) for name, said in topics.items()} == {
        "text": {"reading"}, "prompts": {"reading"}, "demonstrations": {"reading"}}
    assert {len(said) for said in topics.values()} == {2, 5}
    assert set(found["models"]["ppo"]["by_kind"]) <= {"reading", "known"}
