"""The estimate of memory against what torch really keeps."""

import pytest
import torch

import gpt
from notebooks import memory
from data.run import device
from data.run.device import prepare


@pytest.mark.parametrize("predicts", [True, False])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("L, H, C, V, T, B",
                         [(2, 4, 64, 300, 64, 4), (4, 4, 128, 1536, 128, 8),
                          (3, 12, 192, 5000, 256, 2),
                                           (4, 4, 128, 60000, 128, 8)])
def test_what_a_graph_keeps_is_as_computed(L, H, C, V, T, B, checkpointing, bf16, predicts,
                                           monkeypatch):
    config = gpt.GPTConfig(V, T, L, H, C)
    model = gpt.GPT(config) if predicts else gpt.ScalarGPT(config)
    prepare(model, gpt.Config(gradient_checkpointing=checkpointing))
    monkeypatch.setattr(device, "_bf16", bf16)
    kept = memory.measured(model, torch.randint(V - 4, (B, T)), predicts)
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "wpe" not in name
                and "wte" not in name]
    copies = 0 if checkpointing else 2 * bf16 * sum(p.numel() for p in matrices)
    # Without what backward adds: of 12 V a token, 4 V are kept, of chunks nothing; and with
    # checkpointing, a block at a time.
    logits = memory.logits(config, B * T) if B * T > gpt.rows_at_once(config, 1) else 8 * V * B * T
    added = predicts * logits + B * T * checkpointing * ((36 if bf16 else 64) * C + 4 * H)
    assert kept - copies == pytest.approx(
        memory.activations(config, B * T, predicts, bf16, checkpointing) - added, rel=.05)


@pytest.mark.parametrize("name, millions",
                         [("gpt2", 124.4), ("gpt2-medium", 354.8), ("gpt2-large", 774.0),
                          ("gpt2-xl", 1557.6)])
def test_parameters_are_as_published(name, millions):
    L, H, C = memory.SIZES[name]
    assert (memory.parameters(gpt.GPTConfig(50257, 1024, L, H, C)) / 1e6
            == pytest.approx(millions, abs=.05))
    config = gpt.GPTConfig(30, 20, 2, 2, 8)
    assert memory.parameters(config) == sum(p.numel() for p in gpt.GPT(config).parameters())
