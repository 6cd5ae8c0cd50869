"""Supervised fine-tuning learns the response, all of it, and nothing else."""

import torch

import gpt
import sft
from data.tokenizer import Tokenizer, train


def test_law_20_loss_is_of_the_response_and_its_end_token_only(model):
    """Against a mean over response positions, written as a loop."""
    batch = [([1, 2, 3, 4, 38], 3), ([5, 6, 38], 2), ([7, 8, 9, 10, 11, 12, 38], 4)]
    loss = sft.sft_loss(model, batch, "cpu")
    losses = []
    for ids, n in batch:
        logits = gpt.action_logits(model, model.hidden(torch.tensor([ids]))[0], 1.0).log_softmax(-1)
        losses += [-logits[t - 1, ids[t]] for t in range(n, len(ids))]
    assert sft.response_tokens(batch) == len(losses) == 6
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_logits_of_prompt_tokens_are_not_even_computed(model, monkeypatch):
    rows, plain = [], model.logits
    monkeypatch.setattr(model, "logits", lambda hidden,
                        *rest: rows.append(len(hidden)) or plain(hidden, *rest))
    sft.sft_loss(model, [([1, 2, 3, 4, 38], 3)], "cpu")
    assert rows == [2]  # token 4 and the end token


def test_a_demonstration_is_prompt_response_end():
    tokenizer = Tokenizer(train(["a b c"], 262))
    record = {"prompt": [{"role": "user", "content": "a"}], "response": "b c"}
    ids, n = sft.encode(tokenizer, record, block_size=32)
    assert ids[:n] == tokenizer.render(record["prompt"]) and tokenizer.decode(ids[n:]) == "b c"
    assert ids[-1] == tokenizer.end
    assert sft.encode(tokenizer, record, block_size=4) is None
