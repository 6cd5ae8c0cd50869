"""Precision, compilation, micro-batches and processes change the speed, not what is computed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import gpt
from data.run import device
import ppo
import reward
import sft
from data import optim, sampling

ROOT = Path(__file__).parent.parent
STAGES = {
    "gpt": [gpt,
            dict(documents=60, vocab_size=300, block_size=96, n_layer=1, n_head=2, n_embd=16,
                 batch=6, steps=4)],
    "sft": [sft, dict(steps=4, batch=6, demonstrations=40)],
    "reward": [reward, dict(prompts=14, test_prompts=6, k=3, batch=5, max_new_tokens=8)],
    "ppo": [ppo,
            dict(steps=3, batch=9, minibatches=2, epochs=2, prompts=40, test_prompts=12,
                 max_new_tokens=8, ptx=1.0, lr=1e-3)],
}


def recipe(out, device="cpu", **changes):
    for module, flags in STAGES.values():
        module.train(module.Config(out=str(out), device=device, log_every=1, threads=1, **flags,
                                   **changes))
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return recipe(tmp_path_factory.mktemp("whole"))


def assert_same(one, other, tolerance=1e-5):
    """Every number of every log, and every parameter."""
    for stage in STAGES:
        a, b = [[json.loads(line) for line in open(out / stage / "log.jsonl")]
                for out in (one, other)]
        assert len(a) == len(b) >= 3
        for x, y in zip(a, b):
            timeless = [{name: v for name,
                         v in record.items() if "seconds" not in name
                         and name not in ("tok/s", "sample")} for record in (x, y)]
            assert timeless[0] == pytest.approx(timeless[1], abs=10 * tolerance,
                                                rel=10 * tolerance), stage
            assert x.get("loss", 0) == pytest.approx(y.get("loss", 0), abs=tolerance)
        a, b = [torch.load(out / stage / "ckpt.pt", weights_only=True)["state"]
                for out in (one, other)]
        for name in a:
            # adding the same to all keys changes nothing: their bias has no gradient but rounding
            if name.endswith("c_attn.bias"):
                a[name].view(3, -1)[1], b[name].view(3, -1)[1] = 0, 0
            torch.testing.assert_close(a[name], b[name], atol=tolerance, rtol=10 * tolerance,
                                       msg=lambda text: f"{stage} {name}: {text}")


def test_micro_batches_leave_every_stage_unchanged(whole, tmp_path):
    assert_same(whole, recipe(tmp_path, micro_batch=2))


@pytest.fixture
def processes(monkeypatch):
    """Call a function as each of several processes would -> their results."""
    def call(world, function):
        each = []
        for rank in range(world):
            monkeypatch.setattr(optim, "world", lambda: world)
            monkeypatch.setattr(optim, "rank", lambda rank=rank: rank)
            each.append(function())
        return each
    return call


@pytest.mark.parametrize("size", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("rows", [1, 2, 5, 9])
def test_processes_make_equally_many_passes_over_their_own_rows(rows, world, size, processes):
    each = processes(world,
                     lambda: optim.micro_batches(list(range(rows)), size,
                                                 weight=lambda part: sum(1 + i for i in part)))
    assert len({len(parts) for parts in each}) == 1
    counted = [i for parts in each for part, share in parts if share for i in part]
    assert sorted(counted) == list(range(rows))
    assert sum(share for parts in each for _, share in parts) == pytest.approx(1)
    assert all(0 < len(part) <= (size or rows) for parts in each for part, _ in parts)


def test_answers_of_very_uneven_lengths_are_shared_evenly(processes):
    """One answer of 90 tokens among short ones: the same number of passes for each process, each
    part cut to its longest row."""
    lengths = torch.tensor([95] + [7] * 6)
    idx = torch.arange(7 * 95).view(7, 95)
    batch = ppo.Rollout(idx, lengths, gpt.response_mask(torch.full((7,), 5), lengths, 95),
                        torch.ones(7).bool(), score=torch.arange(7.0))
    each = processes(2, lambda: list(optim.by_length(batch, torch.arange(7), 2)))
    assert [len(parts) for parts in each] == [2, 2]
    assert sum(share for parts in each for _, share in parts) == pytest.approx(1)
    for part, share in (x for parts in each for x in parts):
        longest = int(part.lengths.max())
        assert part.idx.shape[1] == longest and part.mask.shape[1] == longest - 1
        assert share == pytest.approx(
            part.mask.sum().item() / batch.mask.sum().item()) or share == 0
        assert torch.equal(part.idx, batch.idx[part.score.long(), :longest])


def command(stage, out, *more):
    return [f"{stage}.py", f"--out={out}", "--device=cpu", "--log_every=1", "--threads=1",
            *(f"--{name}={value}" for name, value in STAGES[stage][1].items()), *more]


def test_two_processes_give_the_losses_and_parameters_of_one(whole, nursery, tmp_path):
    for stage in STAGES:
        together = nursery.start_together(command(stage, tmp_path), tmp_path / f"{stage}.output")
        said = [nursery.wait(process)
                for process in together], (tmp_path / f"{stage}.output").read_text()
        # the first process alone speaks
        assert said[0] == [0, 0] and said[1].count("ckpt.pt, log.jsonl, curves.png") == 1, said
    assert_same(whole, tmp_path)


@pytest.mark.slow
def test_two_processes_killed_and_resumed_give_the_same(whole, nursery, tmp_path):
    for stage in STAGES:
        log = tmp_path / stage / "log.jsonl"
        together = nursery.start_together(command(stage, tmp_path, "--save_every=0"),
                                          tmp_path / "output")
        began = time.time()
        while not log.exists() and time.time() - began < 60:
            time.sleep(.01)
        for process in together:
            os.kill(process, signal.SIGKILL)
        assert [nursery.wait(process) for process in together] == [-signal.SIGKILL] * 2
        together = nursery.start_together(command(stage, tmp_path, "--resume"),
                                          tmp_path / f"{stage}.output")
        assert [nursery.wait(process) for process in together] == [0, 0], (
            tmp_path / f"{stage}.output").read_text()
    assert_same(whole, tmp_path)


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]


def said_by_us(output, stage):
    return [line for line in output.splitlines() if line.startswith(f"{stage}.py: ")]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_all_within_seconds_with_one_sentence(victim, tmp_path):
    process = subprocess.Popen([*TORCHRUN, *command("gpt", tmp_path, "--steps=100000")], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if "100000  loss" in line:
            break
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True,
                             text=True).stdout.split()
    os.kill(int(workers[victim]), signal.SIGKILL)
    killed = time.time()
    output, _ = process.communicate(timeout=60)
    assert time.time() - killed < 10 and len(said_by_us(output, "gpt")) == 1
    assert "another process of this run has ended" in said_by_us(output, "gpt")[0]
    done = subprocess.run([*TORCHRUN, *command("gpt", tmp_path, "--steps=8", "--resume")], cwd=ROOT,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_torchrun_stops_at_ctrl_c_and_saves_first(tmp_path):
    process = subprocess.Popen([*TORCHRUN, *command("gpt", tmp_path, "--steps=100000")], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               start_new_session=True)
    for line in process.stdout:
        if "100000  loss" in line:
            break
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: torchrun hands it on once more
    output, _ = process.communicate(timeout=60)
    said, = said_by_us(output, "gpt")
    step = gpt.load(tmp_path / "gpt" / "ckpt.pt")[2]["step"]
    assert f"stopped after step {step} of 100000" in said
    assert torch.load(tmp_path / "gpt" / "resume" / "state.pt", weights_only=True)["step"] == step


@pytest.mark.slow
def test_a_mistake_under_torchrun_is_one_sentence(tmp_path):
    for flags, said in ((["--lr=-1"], "--lr must be at least 0"),
                        (["--lr=1e6", "--steps=100"], "lower --lr"),
                        (["--data=none.txt"], "cannot be read")):
        done = subprocess.run([*TORCHRUN, *command("gpt", tmp_path, *flags)], cwd=ROOT,
                              capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and len(said_by_us(done.stderr, "gpt")) == 1
        assert said in said_by_us(done.stderr, "gpt")[0]


def test_bf16_is_of_the_blocks_alone(monkeypatch):
    """Losses, heads and their gradients have the bits that they have without --bf16."""
    model = gpt.ScalarGPT(gpt.GPTConfig(40, 24, 2, 2, 16))
    idx, seen = torch.randint(36, (4, 12)), {}
    for bf16 in (True, False):
        monkeypatch.setattr(device, "_bf16", bf16)
        hidden = model.trunk.hidden(idx).detach() if bf16 else seen["hidden"]
        monkeypatch.setattr(model.trunk, "hidden", lambda *args: hidden.requires_grad_(True))
        loss = model(idx).square().mean() - gpt.action_logits(model.trunk, hidden, .7).logsumexp(
            -1).mean()
        loss.backward()
        grads = [p.grad.clone() for p in (model.head.weight, model.trunk.wte.weight, hidden)]
        if bf16:
            seen = dict(hidden=hidden, grads=grads)
        for x in (model.head.weight, model.trunk.wte.weight, hidden):
            x.grad = None
    assert all(torch.equal(a, b) for a, b in zip(seen["grads"], grads))
    assert grads[0].dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def test_bf16_samples_from_matrices_that_are_rounded_once(monkeypatch):
    monkeypatch.setattr(device, "_bf16", True)
    model, idx = gpt.GPT(gpt.GPTConfig(40, 24, 2, 2, 16)), torch.randint(36, (4, 12))
    rounded = device.once_rounded(model)
    with torch.no_grad():
        assert torch.equal(rounded.hidden(idx), model.hidden(idx))
    assert rounded.blocks[0].mlp[0].weight.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("lengths, rows", [
    ([30] * 64, 64), ([10] * 32 + [60] * 32, 32), (list(range(10, 74)), 16), ([5], 1)])
def test_a_batch_is_cut_into_parts_where_that_saves_padding(lengths, rows):
    assert optim.rows_per_part(lengths) == rows


def test_prompts_of_similar_length_are_answered_together(monkeypatch):
    """In groups of two rows, cut to the longer prompt: the same answers as all at once."""
    model = gpt.GPT(gpt.GPTConfig(40, 24, 2, 2, 16)).double()
    idx, lengths = gpt.pad([[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12], [13] * 9], 39)
    cfg, widths = ppo.Config(max_new_tokens=8), []
    torch.manual_seed(0)
    whole = sampling.sample_batch(model, idx, lengths, cfg)
    monkeypatch.setattr(sampling, "rows_in_cache", lambda *args: 2)
    monkeypatch.setattr(sampling, "generate", lambda model, idx, *args, of=sampling.generate,
                        **kwargs: widths.append(idx.shape[1]) or of(model, idx, *args, **kwargs))
    torch.manual_seed(0)
    parts = sampling.sample_batch(model, idx, lengths, cfg)
    assert widths == [2, 6, 9] and all(torch.equal(a, b) for a, b in zip(whole, parts))


def test_bf16_is_close_and_keeps_the_first_ratio(whole, tmp_path):
    recipe(tmp_path, bf16=True)
    for stage in STAGES:
        a, b = [[json.loads(line) for line in open(out / stage / "log.jsonl")]
                for out in (whole, tmp_path)]
        if stage != "ppo":  # whose samples soon differ
            assert [x["loss"] for x in a] == pytest.approx([x["loss"] for x in b], rel=.05)
            assert a != b
        else:
            ratios = [x["first_ratio"] for x in b]
            assert sum(ratios) / len(ratios) == pytest.approx(1, abs=1e-4)
        state = torch.load(tmp_path / stage / "ckpt.pt", weights_only=True)["state"]
        assert all(x.dtype == torch.float32 and x.isfinite().all() for x in state.values())


def test_bf16_learns_as_fast(tmp_path):
    """Weights that were rounded once and not again after each step would hardly learn."""
    losses = []
    for bf16 in (False, True):
        gpt.train(gpt.Config(out=str(tmp_path), device="cpu", bf16=bf16, log_every=1, threads=1,
                             **{**STAGES["gpt"][1], "documents": 20, "steps": 40}))
        losses.append([json.loads(line)["loss"] for line in open(tmp_path / "gpt" / "log.jsonl")])
    assert losses[0] != losses[1] and losses[0][-1] < losses[0][0] - 1
    assert losses[1][-1] == pytest.approx(losses[0][-1], abs=.05)


def test_computing_activations_again_leaves_every_stage_unchanged(whole, tmp_path):
    assert_same(whole, recipe(tmp_path, gradient_checkpointing=True))


@pytest.mark.slow
def test_compiled_blocks_give_the_same(whole, tmp_path):
    assert_same(whole, recipe(tmp_path, compile=True), 1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("bf16", [False, True])
def test_the_recipe_on_cuda(bf16, tmp_path):
    recipe(tmp_path, device="cuda", bf16=bf16)
    log = [json.loads(line) for line in open(tmp_path / "ppo" / "log.jsonl")]
    assert all(x["first_ratio"] == pytest.approx(1, abs=1e-3) for x in log)
