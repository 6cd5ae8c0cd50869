"""Without a GPU: tensors that claim to be on one show where devices are mixed and who waits.

They are tensors of the CPU whose `device` says cuda:0. A function that takes both kinds fails, as
with CUDA; each call that makes the host wait for the device is counted by our function that makes
it. What kernels do there is not seen.
"""

import collections
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

import gpt
import ppo
import reward
import sft
from data import optim, sampling
from data.judge import answers as judging
from data.tokenizer import Tokenizer, train
from data.world import almanac

GPU = torch.device("cuda:0")
WAITS = {"item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__",
         "__index__"}


class OnGpu(torch.Tensor):
    """A tensor of the CPU that says that it is on a GPU."""


def claim(x):
    new = isinstance(x, torch.Tensor) and not isinstance(x, OnGpu)
    return x.as_subclass(OnGpu) if new else x


class Emulation(TorchFunctionMode):
    """waits: {our function: how often it waited for the device}."""

    def __init__(self):
        super().__init__()
        self.waits = collections.Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        ours = any(isinstance(x, OnGpu) for x in tensors)
        if name == "__get__" and ours:
            field = function.__self__.__name__
            if field in ("device", "is_cuda", "is_cpu"):
                return {"device": GPU, "is_cuda": True, "is_cpu": False}[field]
        if name == "_has_compatible_shallow_copy_type":
            return False  # so that Module.to makes new parameters
        if name == "pin_memory":
            return args[0]
        place = kwargs.get("device")
        if name == "to" and isinstance(args[1:] and args[1], (str, torch.device)):
            place, args = args[1], (args[0], "cpu", *args[2:])
        elif place is not None:
            kwargs["device"] = "cpu"
        on_gpu = ours if place is None else torch.device(place).type == "cuda"
        self.look_at(name, tensors, ours, on_gpu)
        with torch._C.DisableTorchFunctionSubclass():
            out = function(*args, **kwargs)
        if name in ("cpu", "numpy") or not on_gpu:
            return pytree.tree_map_only(OnGpu, lambda x: x.as_subclass(torch.Tensor), out)
        return pytree.tree_map(claim, out)

    def look_at(self, name, tensors, ours, on_gpu):
        """Count what waits; RuntimeError for tensors of both devices, but for scalars."""
        mixed = [x for x in tensors if not isinstance(x, OnGpu) and x.dim()]
        if ours and mixed and name not in ("__set__", "backward"):
            raise RuntimeError(f"{name}: tensors on {GPU} and on the CPU")
        by_mask = name in ("__getitem__", "__setitem__") and any(
            x.dtype == torch.bool for x in tensors[1:])
        moved = name == "to" and not on_gpu and tensors[0].dim()  # torch groups scalars in C++
        if ours and (name in WAITS or by_mask or moved):
            ours = [frame.name for frame in traceback.extract_stack()
                    if Path(frame.filename).parent.name != "tests" and "site-packages" not in
                    frame.filename]
            self.waits[ours[-1] if ours else "test"] += 1


@pytest.fixture
def gpu(monkeypatch):
    memory = SimpleNamespace(total_memory=24 * 10 ** 9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    with Emulation() as emulation:
        yield emulation


TOKENIZER = Tokenizer(train(almanac.text(200, "cuda"), 300))
CONFIG = gpt.GPTConfig(TOKENIZER.vocab_size, 128, 2, 2, 16)


def test_the_emulation_sees_what_cuda_would_refuse(gpu):
    x, y = torch.ones(3, device="cuda:0"), torch.ones(3)
    assert x.device == GPU and (x + x).device == GPU and x.cpu().device.type == "cpu"
    with pytest.raises(RuntimeError, match="tensors on cuda:0 and on the CPU"):
        x + y
    (x > 0).nonzero(), x[x > 0], x.sum().item()
    assert gpu.waits.total() == 4


def test_pretraining_and_sft_wait_for_what_they_log(gpu):
    model = gpt.GPT(CONFIG).to(GPU)
    for opt in (optim.Muon(model, 1e-3), optim.adamw(model, 1e-3)):
        gpt.next_token_loss(model, torch.randint(250, (4, 32), device=GPU)).backward()
        optim.optimizer_step(model, opt, 1e-3)
    every = [sft.encode(TOKENIZER, r, 128) for r in almanac.demonstrations("train", 40, 1)]
    batch = list(filter(None, every))[:4]
    sft.sft_loss(model, batch, GPU).backward()
    optim.optimizer_step(model, opt, 1e-3)
    assert gpu.waits == {"token_logprobs": 3, "optimizer_step": 3}, gpu.waits


def test_scores_of_ranked_answers_wait_for_nothing(gpu):
    model = gpt.ScalarGPT(CONFIG).to(GPU)
    records = [dict(p, responses=["Yes.", "No, never."], ranks=[1, 2])
               for p in almanac.prompts("train", 4, 1)]
    examples = [reward.encode(TOKENIZER, r, 128) for r in records]
    scores, ranks = reward.score(model, examples, GPU)
    reward.ranking_loss(scores, ranks).backward()
    assert not gpu.waits
    reward.score_all(model, examples, GPU)


def test_an_iteration_of_ppo_mixes_no_devices_and_waits_seldom(gpu):
    policy, reference = gpt.GPT(CONFIG).to(GPU), gpt.GPT(CONFIG).to(GPU)
    rm = gpt.ScalarGPT(CONFIG).to(GPU)
    value = ppo.first_value_model(rm)
    cfg = ppo.Config(batch=8, minibatches=2, max_new_tokens=12, micro_batch=2)
    asked = almanac.prompts("train", 8, "cuda")
    idx, lengths = gpt.pad([TOKENIZER.render(p["prompt"]) for p in asked], TOKENIZER.pad, GPU)
    sampling.sample_batch(policy, idx, lengths, cfg)
    assert gpu.waits.total() <= 8, gpu.waits  # of 12 tokens: once in four, and what begins and ends
    gpu.waits.clear()
    batch = ppo.rollout(policy, reference, rm, value, idx, lengths, cfg)
    rewards = ppo.kl_rewards(batch.score, batch.logp_old, batch.logp_ref, batch.mask, .2)
    advantages, batch.returns = ppo.gae(rewards, batch.values_old, batch.mask, 1.0, .95)
    batch.advantages = ppo.whiten(advantages, batch.mask)
    gpu.waits.clear()
    opt = optim.adamw(torch.nn.ModuleList([policy, value]), 1e-3)
    ppo.update(policy, value, opt, batch, cfg, 1e-3)
    # of each part the marked tokens; of each minibatch its lengths, the norm and the figures
    assert gpu.waits == {"token_logprobs": 4, "_parts": 2, "optimizer_step": 2, "total": 2}
    ppo.describe(batch, asked, TOKENIZER, .2)
    judging.divergence(policy, reference, asked, [[5, TOKENIZER.end]] * 8, TOKENIZER, .7)
