"""Tiny random models, so that every law is checked in a fraction of a second and in float64 where
it is exact."""

import data.run.system  # noqa: F401  before torch: its threads spin only briefly

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: a thread for each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

import gpt
import ppo
import reward
import sft
from data import optim
from data.files import records
from data.tokenizer import Tokenizer, train
from nursery import Nursery


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def nursery():
    yield stages()
    stages().close()


@pytest.fixture
def config():
    return gpt.GPTConfig(vocab_size=40, block_size=24, n_layer=2, n_head=2, n_embd=16)


def lively(model):
    """Larger weights than at initialisation, so that a mistake shows; float64, so that an equality
    is exact."""
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * (.5 if p.dim() == 2 else .2)
                    + (1 if p.dim() == 1 and p.mean() > .5 else 0))
    return model


@pytest.fixture
def model(config):
    return lively(gpt.GPT(config))


@pytest.fixture
def scalar(config):
    return lively(gpt.ScalarGPT(config))


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which(
    "google-chrome")


@pytest.fixture
def browser():
    driver = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("no Chromium is installed")
    with driver.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def complaints(tab, home):
    """A list of what goes wrong in a tab from now on: messages, errors, requests not to `home`."""
    wrong = []
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda request: wrong.append(request.url)
           if not request.url.startswith(home) else None)
    return wrong


# ---- runs of the stages --------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent
# many of the prompts do not fit in so small a context
RANKED = dict(prompts=30, steps=3, test_prompts=12, k=3, batch=4, max_new_tokens=8)
SMALL = dict(documents=60, vocab_size=300, block_size=96, n_layer=1, n_head=2, n_embd=16, batch=4)


def python(*args, cwd=ROOT, **kwargs):
    return subprocess.run([sys.executable, *map(str, args)], cwd=cwd, capture_output=True,
                          text=True, timeout=120, **kwargs)


@functools.cache
def stages():
    """The nursery of stages, for tests and for other fixtures."""
    return Nursery()


def run_stage(*args):
    """A stage from the command line, with a torch that is loaded already -> as subprocess.run
    gives it."""
    with tempfile.TemporaryDirectory() as folder:
        log, errors = Path(folder) / "log", Path(folder) / "errors"
        status = stages().run(args, log, errors)
        return subprocess.CompletedProcess(args, status, log.read_text(), errors.read_text())


def one_sentence(result):
    """The user's mistake: exit status 2, one line on stderr, no traceback."""
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """All four stages with tiny models, as a notebook would run them."""
    out = str(tmp_path_factory.mktemp("out"))
    gpt.train(gpt.Config(out=out, steps=4, eval_every=2, log_every=1, **SMALL))
    sft.train(sft.Config(out=out, steps=4, eval_every=2, log_every=1, batch=4, demonstrations=40))
    reward.train(reward.Config(out=out, log_every=1, **RANKED))
    policy, history = ppo.train(ppo.Config(out=out, steps=3, batch=8, minibatches=2, epochs=2,
                                           prompts=40, test_prompts=24, max_new_tokens=8,
                                           log_every=1))
    return Path(out), policy, history


def decide(path):
    """Rank the answers in a file anew: a labeler without an opinion on what random models write
    says nothing."""
    every = records.read_comparisons(path)
    records.write_jsonl(path,
                        [dict(r, ranks=list(range(1, len(r["responses"]) + 1))) for r in every])
    return path


# ---- a world whose answers can all be enumerated -------------------------------------------------

LETTERS = "abcde"


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A reference that answers with one or two letters and a random reward model -> folder, all
    answers as lists of ids."""
    out = tmp_path_factory.mktemp("toy")
    torch.manual_seed(0)
    tokenizer = Tokenizer(train(["abcde"], 260))
    config = gpt.GPTConfig(tokenizer.vocab_size, 16, 1, 2, 16)
    prompt = [{"role": "user", "content": "?"}]
    shares = {"a": 5, "b": 4, "c": 2, "d": 1, "e": 2, "ab": 2, "cc": 1, "ed": 2, "da": 1}
    examples = [sft.encode(tokenizer, dict(prompt=prompt, response=r), 16) for r,
                n in shares.items() for _ in range(n)]
    reference = gpt.GPT(config)
    opt = optim.adamw(reference, 1e-2)
    for step in range(200):
        sft.sft_loss(reference, examples, "cpu").backward()
        optim.optimizer_step(reference, opt, optim.learning_rate(step, 200, 1e-2))
    asked = tokenizer.render(prompt)
    letters = [tokenizer.encode(c)[0] for c in LETTERS]
    begun = [[]] + [[a] for a in letters] + [[a, b] for a in letters for b in letters]
    answers = [y + [tokenizer.end] for y in begun] + [[a, b, c] for a in letters for b in letters
                                                      for c in letters]
    judge = gpt.ScalarGPT(config)
    scores = torch.cat([judge.score(*gpt.pad([asked + y[:-1]], tokenizer.pad)) for y in answers
                        if y[-1] == tokenizer.end])
    judge = reward.normalized(judge, scores.mean().item(), scores.std().item())
    for name, model in (("sft", reference), ("reward", judge)):
        (out / name).mkdir()
        gpt.save(out / name / "ckpt.pt", model, tokenizer)
    (out / "prompts.jsonl").write_text('{"prompt": "?"}\n' * 270)  # 256 of them to practise on
    return out, asked, answers


def probabilities(model, asked, answers):
    idx, lengths = gpt.pad([asked + y for y in answers], model.config.pad)
    mask = gpt.response_mask(torch.full_like(lengths, len(asked)), lengths, idx.shape[1])
    with torch.no_grad():
        return gpt.token_logprobs(model, idx, mask=mask).sum(1).exp()


def optimum(out, asked, answers, beta, kind=gpt.ScalarGPT):
    """What E[r] - beta KL is greatest for -> p_ref, p_ref exp(r / beta) / Z, r, all (answers,)."""
    reference, tokenizer, _ = gpt.load(out / "sft" / "ckpt.pt")
    judge, _, _ = gpt.load(out / "reward" / "ckpt.pt", kind)
    with torch.no_grad():
        score = torch.stack([judge.score(*gpt.pad([asked + y[:-1]], tokenizer.pad))[0] if y[-1]
                             == tokenizer.end != y[0] else torch.tensor(-2.0) for y in answers])
    ref = probabilities(reference, asked, answers)
    best = ref * torch.exp(score / beta)
    return ref, best / best.sum(), score
