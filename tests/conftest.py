"""Tiny random models, so that every law is checked in a fraction of a second and in float64 where it is exact."""

import pytest
import torch

import gpt


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def config():
    return gpt.GPTConfig(vocab_size=40, block_size=24, n_layer=2, n_head=2, n_embd=16)


def lively(model):
    """Larger weights than at initialisation, so that a mistake shows; float64, so that an equality is exact."""
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * (.5 if p.dim() == 2 else .2) + (1 if p.dim() == 1 and p.mean() > .5 else 0))
    return model


@pytest.fixture
def model(config):
    return lively(gpt.GPT(config))


@pytest.fixture
def scalar(config):
    return lively(gpt.ScalarGPT(config))
