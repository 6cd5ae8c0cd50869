"""A run that was killed, whenever it was, ends with --resume as one that was never stopped."""

import json
import os
import random
import shutil
import signal
import time

import pytest
import torch

MODEL = dict(documents=60, vocab_size=300, block_size=96, n_layer=1, n_head=2, n_embd=16)
COMMON = dict(threads=1, log_every=3)
RL = dict(batch=8, minibatches=2, prompts=40, test_prompts=12, max_new_tokens=8, kl_target=.1,
          kl_horizon=40, epochs=2)
RUNS = {
    "gpt": ("gpt", dict(MODEL, steps=14, batch=4, eval_every=9)),
    "sft": ("sft", dict(steps=14, batch=4, demonstrations=60, eval_every=9)),
    "reward": ("reward",
               dict(steps=8, prompts=300, test_prompts=6, k=3, batch=4, max_new_tokens=8)),
    "ppo": ("ppo", dict(RL, steps=7, ptx=1.0)),
    "reward-2": ("reward",
                 dict(steps=8, prompts=200, test_prompts=6, k=3, batch=4, max_new_tokens=8, round=2,
                      bf16=True)),
    "ppo-2": ("ppo", dict(RL, steps=5, round=2, micro_batch=3)),
}
TIMES = ("seconds", "tok/s", "memory_gb")


def command(name, out, *more, **changes):
    stage, flags = RUNS[name]
    return [f"{stage}.py", "--out", str(out),
            *[f"--{flag}" if value is True else f"--{flag}={value}" for flag,
              value in {**COMMON, **flags, **changes}.items()], *more]


def timeless(value):
    """What a run computed, without what it measured of itself."""
    if isinstance(value, dict):
        return {name: timeless(v) for name,
                v in value.items() if name not in (*TIMES, "out", "save_every", "path")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def outcome(folder):
    """Everything that a stage leaves: the weights and what the checkpoint says, the log, the
    results, the texts."""
    found = torch.load(folder / "ckpt.pt", weights_only=True)
    weights = {name: tensor.numpy().tobytes() for name, tensor in found["state"].items()}
    log = [json.loads(line) for line in open(folder / "log.jsonl")]
    texts = {path.name: path.read_text() for path in folder.iterdir() if path.suffix == ".txt"
             or path.name == "comparisons.jsonl"}
    return weights, timeless(found["about"]), timeless(log), timeless(
        json.loads((folder / "results.json").read_text())), texts


@pytest.fixture(scope="module")
def whole(nursery, tmp_path_factory):
    """All runs, never stopped -> (folder, seconds of each)."""
    out, seconds = tmp_path_factory.mktemp("whole"), {}
    for name in RUNS:
        began = time.time()
        assert nursery.run(command(name, out),
                           out / f"{name}.output") == 0, (out / f"{name}.output").read_text()
        seconds[name] = time.time() - began
    return out, seconds


def before(whole, name, out):
    """A folder with the stages before this one."""
    for other in list(RUNS)[:list(RUNS).index(name)]:
        shutil.copytree(whole / other, out / other)
    return out


def finish(nursery, name, out, **changes):
    """Resume until the end; a run that was killed before it began begins."""
    more = ["--resume"] if (out / name / "resume" / "began.json").exists() else []
    status = nursery.run(command(name, out, *more, **changes), out / "output")
    assert status == 0, (out / "output").read_text()[-3000:]


def same(name, out, whole):
    for found, expected in zip(outcome(out / name), outcome(whole / name), strict=True):
        assert found == expected
    assert not (out / name / "resume").exists() and not list((out / name).glob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_at_random_moments(name, nursery, whole, tmp_path):
    rng = random.Random(name)
    for n in range(6):
        out = before(whole[0], name, tmp_path / str(n))
        flags = dict(save_every=rng.choice([0, .05, 60]))
        for resumed in range(1 + n % 2):  # every second one is killed again while it goes on
            more = ["--resume"] if (out / name / "resume" / "began.json").exists() else []
            process = nursery.start(command(name, out, *more, **flags), tmp_path / f"{n}.output")
            time.sleep(rng.uniform(0, whole[1][name]))
            os.kill(process, signal.SIGKILL)
            status = nursery.wait(process)
            if status == 0:
                break
            assert status == -signal.SIGKILL, (tmp_path / f"{n}.output").read_text()[-3000:]
        if status:
            finish(nursery, name, out)
        same(name, out, whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_while_saving(name, nursery, whole, tmp_path):
    """In the middle of a write, before the new file takes its place, and right after."""
    for die in (2, 5, 8, 11, 14, 17, 22, 27):
        out = before(whole[0], name, tmp_path / str(die))
        status = nursery.run(command(name, out, save_every=0), tmp_path / f"{die}.output", die=die)
        assert status == -signal.SIGKILL, (tmp_path / f"{die}.output").read_text()[-3000:]
        finish(nursery, name, out)
        same(name, out, whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_full_disk_breaks_nothing(name, nursery, whole, tmp_path):
    """A limit on the size of files stands for the full disk: one sentence, and with room again the
    run goes on."""
    for largest in (0x400, 0x2000, 0x6000, 0xa000, 0x14000, 0x20000, 0x100000):
        out, errors = before(whole[0], name,
                             tmp_path / str(largest)), tmp_path / f"{largest}.errors"
        status = nursery.run(command(name, out, save_every=0), "/dev/null", errors, largest=largest)
        assert status == (2 if "cannot be written" in errors.read_text()
                          else 0) and errors.read_text().count("\n") == (
                              status == 2), errors.read_text()
        if status:
            finish(nursery, name, out)
        same(name, out, whole[0])
    assert not status
