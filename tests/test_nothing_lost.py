"""Nothing is lost: runs that are killed go on, bad numbers stop in time, models of different runs
are not mixed."""

import importlib.metadata
import json
import math
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch

import gpt
from data import optim
import ppo
import reward
import sft
from conftest import RANKED, ROOT, SMALL, one_sentence, run_stage
from data import sampling
from data.people.feedback import LabelFile, LabelSession
from data.run import lineage
from data.run.system import UserError
from notebooks import ensemble

# ---- what was made from what ---------------------------------------------------------------------


def make_anew(path):
    """Another model in the place of this one, as if its stage had been run again."""
    found = torch.load(path, weights_only=True)
    next(iter(found["state"].values())).add_(1)
    torch.save(found, path)


MIXTURES = [
    ("sft/ckpt.pt", "ppo", {}, "reward/ckpt.pt was made from another sft than "),
    ("gpt/ckpt.pt", "reward", {}, "gpt/ckpt.pt is another gpt than "),
    ("gpt/ckpt.pt", "ppo", {}, "gpt/ckpt.pt is another gpt than "),
    ("gpt/text.txt", "ppo", dict(ptx=1.0), "gpt/text.txt is another gpt/text.txt than "),
    ("reward/comparisons.jsonl", "reward", dict(round=2),
     "comparisons.jsonl is another reward/comparisons.jsonl than "),
    ("reward/ckpt.pt", "reward", dict(round=2), "ppo/ckpt.pt was made from another reward than "),
    ("sft/ckpt.pt", "reward", dict(round=2), "reward/ckpt.pt was made from another sft than "),
]


@pytest.mark.parametrize("file, stage, flags, said", MIXTURES,
                         ids=[f"{file} under {stage}{flags.get('round', '')}" for file, stage,
                              flags, _ in MIXTURES])
def test_what_was_made_anew_is_not_mixed_with_what_stands_on_it(
    file, stage, flags, said, pipeline, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(pipeline[0], out)
    if file.endswith("ckpt.pt"):
        make_anew(out / file)
    else:
        text = (out / file).read_text()
        (out / file).write_text(text + text.splitlines()[0] + "\n")
    module, small = {"ppo": (ppo,
                             dict(steps=1, batch=8, minibatches=2, prompts=40, test_prompts=12,
                                  max_new_tokens=8)),
                     "reward": (reward,
                                dict(prompts=6, test_prompts=6, k=2, max_new_tokens=8))}[stage]
    with pytest.raises(UserError, match=said) as error:
        module.train(module.Config(out=str(out), **small, **flags))
    assert "--mix_runs" in str(error.value) and "\n" not in str(error.value)
    module.train(module.Config(out=str(out), mix_runs=True, **small, **flags))


@pytest.mark.slow
def test_models_that_are_named_by_hand_may_stand_side_by_side(pipeline, tmp_path):
    """Reward models of other rankings, a policy that ranks its own answers, a student of PPO's,
    SFT twice."""
    out, small = tmp_path / "out", dict(prompts=6, test_prompts=6, k=2, max_new_tokens=8)
    shutil.copytree(pipeline[0], out)
    flags = RESUMED["ppo"][1]
    reward.train(reward.Config(out=str(tmp_path / "b"), init=str(out / "sft" / "ckpt.pt"), seed=2,
                               **small))
    both = f"{tmp_path / 'b' / 'reward' / 'ckpt.pt'},{out / 'reward' / 'ckpt.pt'}"
    ensemble.train(ensemble.Config(out=str(out), reward=both, **flags))
    reward.train(reward.Config(out=str(out), round=2, **small))
    ensemble.train(ensemble.Config(out=str(out), round=2, reward=both, **flags))
    sft.train(sft.Config(out=str(tmp_path / "c"), init=str(out / "ppo" / "ckpt.pt"), steps=2,
                         batch=4, demonstrations=40))
    reward.train(reward.Config(out=str(tmp_path / "c"), base_weight=0.0,
                               policy=str(out / "ppo-2" / "ckpt.pt"), **small))
    ppo.train(ppo.Config(out=str(tmp_path / "c"), **flags))
    reward.train(reward.Config(out=str(tmp_path / "c"), round=2, **small))
    sft.train(sft.Config(out=str(tmp_path / "d"), init=str(out / "sft" / "ckpt.pt"), steps=2,
                         batch=4, demonstrations=40, seed=3))
    with pytest.raises(UserError, match="is what this run will write: copy it"):
        sft.train(sft.Config(out=str(out), init=str(out / "sft" / "ckpt.pt")))


def test_the_tree_says_what_was_made_from_what_and_what_is_stale(pipeline, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(pipeline[0], out)
    whole = "\n".join(lineage.tree(out))
    assert "STALE" not in whole
    assert re.search(
        r"ppo/ckpt.pt  weights \w{16}, step 3, seed 1, commit .*\n +SFT model|reference ", whole)
    made_from = json.loads((out / "ppo" / "results.json").read_text())["made_from"]
    assert {"gpt", "sft", "reward", "gpt/text.txt", "sft/demonstrations.jsonl",
            "reward/comparisons.jsonl"} <= set(made_from["ancestors"])
    assert made_from["versions"]["torch"] == importlib.metadata.version("torch")
    assert made_from["parents"]["reward model"]["stage"] == "reward"
    make_anew(out / "sft" / "ckpt.pt")
    assert "\n".join(lineage.tree(out)).count("STALE: it was made from another sft ") == 2


# ---- resume --------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for a SIGKILL: nothing is saved after it."""


def kill_after(monkeypatch, module, steps):
    """Let a stage die in the step after so many."""
    optimizer_step, done = optim.optimizer_step, []

    def step(*args):
        if len(done) == steps:
            raise Killed
        done.append(1)
        return optimizer_step(*args)
    monkeypatch.setattr(optim, "optimizer_step", step)


def computed(folder):
    """The weights, and the log without what the clock says."""
    log = [json.loads(line) for line in open(folder / "log.jsonl")]
    weights = torch.load(folder / "ckpt.pt", weights_only=True)["state"]
    return ({name: tensor.numpy().tobytes() for name, tensor in weights.items()},
            [{name: v for name, v in record.items() if "seconds" not in name and name != "tok/s"}
             for record in log])


RESUMED = dict(gpt=(gpt, dict(steps=4, eval_every=2, **SMALL)),
               sft=(sft, dict(steps=4, eval_every=2, batch=4, demonstrations=40)),
               reward=(reward, RANKED),
               ppo=(ppo,
                    dict(steps=3, batch=8, minibatches=2, epochs=2, prompts=40, test_prompts=24,
                         max_new_tokens=8)))


@pytest.mark.parametrize("stage", RESUMED)
def test_a_killed_run_goes_on_bit_for_bit(stage, pipeline, tmp_path, monkeypatch):
    """The campaign of SIGKILLs is in test_resume.py."""
    module, flags = RESUMED[stage]
    for other in list(RESUMED)[:list(RESUMED).index(stage)]:
        shutil.copytree(pipeline[0] / other, tmp_path / other)
    with monkeypatch.context() as patch:
        kill_after(patch, module, 9 if stage == "ppo" else 2)
        with pytest.raises(Killed):
            # saved after every step, or never: then what is in the log is done again
            module.train(module.Config(out=str(tmp_path), log_every=1,
                                       save_every=60 if stage == "gpt" else 0, **flags))
    with pytest.raises(UserError, match=r"these differ: --seed 5 \(it began with 1\)$"):
        module.train(module.Config(out=str(tmp_path), resume=True, log_every=1, seed=5, **flags))
    if stage == "reward":
        monkeypatch.setattr(reward, "compare", None)  # nothing is sampled or ranked again
        monkeypatch.setattr(sampling, "answers", None)
    module.train(module.Config(out=str(tmp_path), resume=True, log_every=1, **flags))
    assert computed(tmp_path / stage) == computed(pipeline[0] / stage)
    with pytest.raises(UserError, match="nothing to resume in .*: that run is finished"):
        module.train(module.Config(out=str(tmp_path), resume=True, log_every=1, **flags))


def test_a_run_killed_between_its_answers_and_its_first_save_goes_on_bit_for_bit(
    pipeline, tmp_path, monkeypatch):
    """What is drawn after the answers, the reward model's head, does not depend on how many of
    them were read from disk."""
    for other in ("gpt", "sft"):
        shutil.copytree(pipeline[0] / other, tmp_path / other)
    with monkeypatch.context() as patch:
        kill_after(patch, reward, 0)
        with pytest.raises(Killed):
            reward.train(reward.Config(out=str(tmp_path), log_every=1, **RESUMED["reward"][1]))
    reward.train(reward.Config(out=str(tmp_path), resume=True, log_every=1, **RESUMED["reward"][1]))
    assert computed(tmp_path / "reward") == computed(pipeline[0] / "reward")


def test_resume_in_a_script_that_is_started_again_and_again(tmp_path):
    """The first time it begins, and what is finished is no error, unless other flags are asked
    for."""
    flags = [f"--{name}={value}" for name, value in {**SMALL, "steps": 2}.items()]
    for sentence in ("nothing to resume in {}: a new run begins", "{}: that run is finished"):
        done = run_stage("gpt.py", "--out", tmp_path, "--resume", *flags)
        assert done.returncode == 0 and sentence.format(
            tmp_path / "gpt") in done.stdout, done.stderr
    again = run_stage("gpt.py", "--out", tmp_path, "--resume", *flags, "--seed=5")
    assert "these differ: --seed 5 (it began with 1)" in one_sentence(again)


def test_more_steps_may_be_done_and_fewer_not(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, gpt, 3)
        with pytest.raises(Killed):
            gpt.train(gpt.Config(out=str(tmp_path), steps=4, save_every=0, **SMALL))
    with pytest.raises(UserError,
                       match="3 steps are done: --resume needs --steps above that, or 4$"):
        gpt.train(gpt.Config(out=str(tmp_path), steps=2, resume=True, **SMALL))
    gpt.train(gpt.Config(out=str(tmp_path), steps=6, resume=True, **SMALL))
    assert gpt.load(tmp_path / "gpt" / "ckpt.pt")[2]["step"] == 6


def test_a_new_run_keeps_what_an_unfinished_one_had(tmp_path, monkeypatch, capsys):
    for seed in (1, 2):
        with monkeypatch.context() as patch:
            kill_after(patch, gpt, 2)
            with pytest.raises(Killed):
                gpt.train(gpt.Config(out=str(tmp_path), steps=4, save_every=0,
                                     **{**SMALL, "seed": seed}))
    assert "rename resume.prev to resume" in capsys.readouterr().out
    # nothing was done: what the two had stays
    with pytest.raises(UserError, match="none.txt cannot be read"):
        gpt.train(gpt.Config(out=str(tmp_path), data="none.txt"))
    assert json.loads((tmp_path / "gpt" / "resume.prev" / "began.json").read_text())["seed"] == 2


def test_ctrl_c_while_torch_loads_is_silent():
    for script in ("gpt", "sft", "reward", "ppo"):
        process = subprocess.Popen([sys.executable, "-X", "importtime", f"{script}.py", "--help"],
                                   cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                   text=True)
        for line in process.stderr:
            if line.endswith("| data.run.system\n"):
                break
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.stderr.read() and process.wait() == -signal.SIGINT


def test_a_resumed_run_stands_on_what_it_began_with(pipeline, tmp_path, monkeypatch):
    shutil.copytree(pipeline[0] / "gpt", tmp_path / "gpt")
    with monkeypatch.context() as patch:
        kill_after(patch, sft, 2)
        with pytest.raises(Killed):
            sft.train(sft.Config(out=str(tmp_path), save_every=0, **RESUMED["sft"][1]))
    make_anew(tmp_path / "gpt" / "ckpt.pt")
    with pytest.raises(UserError, match="gpt is not what it was when this run began"):
        sft.train(sft.Config(out=str(tmp_path), resume=True, **RESUMED["sft"][1]))


# ---- bad numbers ---------------------------------------------------------------------------------


def test_numbers_that_are_not_finite_stop_before_a_good_checkpoint_is_lost(tmp_path):
    gpt.train(gpt.Config(out=str(tmp_path), steps=1, **SMALL))
    before = (tmp_path / "gpt" / "ckpt.pt").read_bytes()
    with pytest.raises(
        UserError, match=r"^step \d+: (loss|grad_norm) is (nan|inf): lower --lr .it is 1e\+06.; "
                         r"this run has saved no checkpoint yet$"):
        gpt.train(gpt.Config(out=str(tmp_path), steps=60, lr=1e6, **SMALL))
    assert (tmp_path / "gpt" / "ckpt.pt").read_bytes() == before
    with pytest.raises(UserError, match=r"the last good checkpoint is .*ckpt.pt \(step \d+\)$"):
        gpt.train(gpt.Config(out=str(tmp_path), steps=60, lr=1e6, save_every=0, **SMALL))
    gpt.load(tmp_path / "gpt" / "ckpt.pt")


def test_one_bad_batch_is_left_out_and_counted(tmp_path, monkeypatch):
    norms, clip = [], torch.nn.utils.clip_grad_norm_

    def overflow(parameters, most):
        parameters = list(parameters)
        if len(norms) == 1:
            parameters[0].grad.fill_(torch.inf)
        norms.append(clip(parameters, most))
        return norms[-1]
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", overflow)
    model, _ = gpt.train(gpt.Config(out=str(tmp_path), steps=4, **SMALL))
    assert len(norms) == 4
    assert json.loads((tmp_path / "gpt" / "results.json").read_text())["skipped"] == 1
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_reward_model_that_says_nothing_is_named(pipeline, tmp_path, capsys, monkeypatch):
    out, flags = tmp_path / "out", RESUMED["ppo"][1]
    shutil.copytree(pipeline[0], out)
    found = torch.load(out / "reward" / "ckpt.pt", weights_only=True)
    found["state"]["head.weight"].zero_()
    torch.save(found, out / "reward" / "ckpt.pt")
    ppo.train(ppo.Config(out=str(out), missing_eos_penalty=found["state"]["head.bias"].item(),
                         **flags))
    assert "all answers have the same score" in capsys.readouterr().out
    found["state"]["head.weight"].fill_(torch.nan)
    torch.save(found, out / "reward" / "ckpt.pt")
    with pytest.raises(
        UserError, match="reward/ckpt.pt is not a checkpoint that can be read .it holds numbers "
                         "that are not finite"):
        ppo.train(ppo.Config(out=str(out), **flags))
    found["state"]["head.weight"].fill_(1.0)
    torch.save(found, out / "reward" / "ckpt.pt")
    monkeypatch.setattr(ppo, "score_answers", lambda reward, idx, lengths,
                        *others: torch.full(lengths.shape, torch.nan))
    with pytest.raises(UserError, match="step 1: score is nan: the reward model is broken"):
        ppo.train(ppo.Config(out=str(out), **flags))


def test_weights_that_the_last_update_broke_are_not_saved(tmp_path, monkeypatch):
    step = optim.optimizer_step

    def breaks(model, *others):
        norm = step(model, *others)
        next(model.parameters()).data.view(-1)[0] = math.inf
        return norm
    monkeypatch.setattr(optim, "optimizer_step", breaks)
    with pytest.raises(UserError, match="step 1: a weight is not finite: lower --lr"):
        gpt.train(gpt.Config(out=str(tmp_path), steps=3, save_every=0, **SMALL))
    assert not (tmp_path / "gpt" / "ckpt.pt").exists()


# ---- one writer ----------------------------------------------------------------------------------


def test_a_second_run_in_a_folder_is_told_who_writes_there(tmp_path):
    flags = [f"--{name}={value}" for name, value in {**SMALL, "steps": 100000}.items()]
    first = subprocess.Popen([sys.executable, "gpt.py", "--out", str(tmp_path), *flags], cwd=ROOT,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in first.stdout:
        if b"gpt   20" in line:
            break
    said = one_sentence(run_stage("gpt.py", "--out", tmp_path, *flags))
    assert f"another process writes to {tmp_path / 'gpt'} (process {first.pid} on " in said
    first.kill()
    first.communicate()
    gpt.train(gpt.Config(out=str(tmp_path), steps=1, **SMALL))  # a killed run leaves no lock behind


def test_two_sessions_of_one_labeler_are_refused(tmp_path):
    code = ("import sys, time; from data.people.feedback import LabelFile, lock; "
            "lock(LabelFile(sys.argv[1], 'anna').path); print('open', flush=True); time.sleep(60)")
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT,
                             stdout=subprocess.PIPE)
    other.stdout.readline()
    with pytest.raises(UserError, match="another process writes to .*anna.jsonl"):
        LabelSession(lambda n: None, 1, LabelFile(tmp_path, "anna"))
    # as a chat does: what it notes is appended, whole
    LabelFile(tmp_path, "anna").add(dict(prompt="a"))
    other.kill()
    other.wait()


# ---- the terminal --------------------------------------------------------------------------------


def test_what_is_printed_cannot_steer_the_terminal(tmp_path):
    steering = "\x1b[2Jred\rgone \u202eleft\x9b0m\x07"
    (tmp_path / "text").write_text(steering, encoding="utf-8")
    code = ("import sys, json; from data.run.system import escaping; "
            "sys.stdout = escaping(sys.stdout); print(open(sys.argv[1]).read(), sys.argv[2])")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "text"), steering], cwd=ROOT,
                          capture_output=True)
    # Python's own reading of a text file makes a newline of the carriage return
    assert done.returncode == 0
    assert done.stdout.decode() == (
        r"\x1b[2Jred" + "\n" + r"gone \u202eleft\x9b0m\x07 "
        r"\x1b[2Jred\rgone \u202eleft\x9b0m\x07" + "\n")
