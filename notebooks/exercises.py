"""The exercises in which you write code: `check(your_function)` says what is wrong with it.

Each check tries one thing that people get wrong, and names it. The solutions are in solutions/.
"""

import dataclasses

import torch
from torch import nn

import gpt
import ppo
from data import optim
from gpt import masked_mean  # noqa: F401  what the exercises may use
from gpt import response_mask as true_response_mask

PROMPT, LENGTH, COLUMNS = torch.tensor([2, 3]), torch.tensor([5, 4]), 6
# In columns 0 to 4 of each row, the actions that write the response: tokens 2 to 4, and token 3.
MASK = true_response_mask(PROMPT, LENGTH, COLUMNS)


def check(function):
    """Try a reader's function by its name, and print one sentence."""
    name = function.__name__
    try:
        CHECKS[name](function)
    except AssertionError as error:
        print(f"{name}: {error}")
    except NotWritten:
        print(f"{name}: not written yet, it returns nothing")
    except Exception as error:  # the reader's code may fail in any way
        print(f"{name}: it stops with {type(error).__name__}: {error}")
    else:
        print(f"{name}: right!")


class NotWritten(Exception):
    pass


def shaped(found, shape):
    """Stop unless something of this shape was returned."""
    if found is None:
        raise NotWritten
    assert torch.is_tensor(found), f"it must return a tensor, not {type(found).__name__}"
    assert found.shape == shape, f"the shape is {tuple(found.shape)}; it should be {tuple(shape)}"


def same(found, wanted, otherwise):
    """Compare tensors, or the tuples of them; `otherwise` says what is wrong."""
    if isinstance(wanted, tuple):
        if found is None:
            raise NotWritten
        assert isinstance(found, tuple) and len(found) == len(wanted), \
            f"it must return {len(wanted)} tensors"
        for one, other in zip(found, wanted):
            same(one, other, otherwise)
        return
    shaped(found, wanted.shape)
    assert torch.allclose(found.float(), wanted.float(), atol=1e-4), \
        f"{otherwise}\n  yours:  {found.tolist()}\n  wanted: {wanted.tolist()}"


def attention_weights(f):
    q = k = torch.eye(4)[None, :3] * 4  # (1, 3, 4): each token is like itself only
    found = f(q, k)
    shaped(found, (1, 3, 3))
    assert not found.triu(1).any(), "a token looks ahead: hide what is above the diagonal"
    assert torch.allclose(found.sum(-1), torch.ones(1, 3)), \
        "a row does not sum to 1: hide the future before the softmax, with minus infinity"
    e = torch.tensor(8.0).exp()  # 4 * 4 / sqrt(4)
    same(found[0, 1], torch.stack([1 / (1 + e), e / (1 + e), 0 * e]),
         "divide the products by the square root of the head's size, here 2")


def response_mask(f):
    found = f(PROMPT, LENGTH, COLUMNS)
    shaped(found, (2, 5))  # T - 1 actions in T tokens
    found = found.bool()
    assert found[0, 1], ("the action in column t writes token t + 1, so the first token of the "
                         "response, 2, is written in column 1")
    assert not found[0, 0], "token 1 is the prompt's, so column 0 must not be learned"
    assert found[0, 3], "the last token of the response, its end, must be learned too"
    assert not found[0, 4], "after the end comes padding, which is never learned"
    same(found, MASK, "the second row is wrong: lengths differ from row to row")


def ranking_loss(f):
    scores = torch.tensor([[2.0, 0.0]])
    same(f(scores, torch.tensor([[1, 2]])), torch.tensor(0.126928),
         "of two answers, it is -log sigmoid(score of the winner minus score of the loser)")
    same(f(scores, torch.tensor([[2, 1]])), torch.tensor(2.126928),
         "rank 1 is the best: the winner is the answer with the lower rank")
    scores = torch.tensor([[2.0, 0.0, 1.0]])
    same(f(scores, torch.tensor([[1, 2, 2]])), torch.tensor(0.220095),
         "two answers of equal rank are a tie, which says nothing: two pairs count here, not three")
    same(f(scores, torch.tensor([[1, 3, 2]])), torch.tensor(0.251150),
         "take the mean over the three pairs")
    two = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    same(f(two, torch.tensor([[1, 3, 2], [1, 2, 2]])), torch.tensor(0.627177),
         "take the mean over the pairs of each prompt first, then over the prompts")


def policy_loss(f):
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    same(f(zero, zero, 3 * one, one, .2), torch.tensor(-3.0),
         "at ratio 1, an advantage of 3 is a loss of -3: the optimiser minimises")
    same(f(.1 * one, zero, one, one, .2), torch.tensor(-1.105171),
         "the ratio is exp(logp - logp_old)")
    same(f(one, zero, one, one, .2), torch.tensor(-1.2),
         "a good action with a ratio of 2.7 gains no more than one of 1.2: clip it")
    same(f(-one, zero, -one, one, .2), torch.tensor(.8),
         "a bad action with a ratio of .37 gains no more than one of .8: clip below, too")
    same(f(-one, zero, one, one, .2), torch.tensor(-.367879),
         "a good action that became less probable must be pulled back: the worse of the clipped "
         "and the unclipped objective counts")
    advantages = torch.tensor([[1.0, 2.0, 9.0]])
    same(f(torch.zeros(1, 3), torch.zeros(1, 3), advantages, torch.tensor([[1., 1., 0.]]), .2),
         torch.tensor(-1.5), "average over the tokens that the mask marks, and no others")


def kl_rewards(f):
    score, logp_ref = torch.tensor([1.0, 2.0]), torch.full((2, 5), -1.0)
    found = f(score, logp_ref.clone(), logp_ref, MASK, .5)
    wanted = torch.zeros(2, 5)
    wanted[0, 3], wanted[1, 2] = 1.0, 2.0
    same(found, wanted, "without KL there is the score alone, in the last column that the mask "
                        "marks, which differs from row to row")
    logp = torch.full((2, 5), -.6)  # .4 above the reference
    wanted = -.2 * MASK.float()
    found = f(torch.zeros(2), logp, logp_ref, MASK, .5)
    if found is not None and found.shape == wanted.shape:
        assert found[0, 1] <= 0, "a token more probable than under the reference must cost: -beta"
        assert not found[0, 0], "the prompt's tokens are nobody's action: multiply by the mask"
    same(found, wanted, "the penalty of a token is beta (logp - logp_ref)")
    wanted[0, 3] += 1.0
    wanted[1, 2] += 2.0
    same(f(score, logp, logp_ref, MASK, .5), wanted,
         "the last token gets the score and its penalty")


def gae(f):
    mask = torch.tensor([[0., 1., 1., 0.]])
    rewards, values = torch.tensor([[0., 0., 1., 0.]]), torch.tensor([[7., .5, .8, 7.]])
    same(f(rewards, values, mask, 1.0, 0.0), (torch.tensor([[0., .3, .2, 0.]]),
                                              torch.tensor([[0., .8, 1., 0.]])),
         "with lambda 0: delta = reward + gamma V of the next token - V; after the last token of "
         "the response V is 0; where the mask is 0 all is 0; the returns are advantages + values")
    same(f(rewards, values, mask, 1.0, 1.0), (torch.tensor([[0., .5, .2, 0.]]),
                                              torch.tensor([[0., 1., 1., 0.]])),
         "with lambda 1 the first advantage is the whole reward to come minus V")
    same(f(rewards, values, mask, .9, .5), (torch.tensor([[0., .31, .2, 0.]]),
                                            torch.tensor([[0., .81, 1., 0.]])),
         "A = delta + gamma lambda A of the next token: both factors count")


CFG = ppo.Config(minibatches=1, max_new_tokens=6, beta=.5, gamma=.9, lam=.8, vf_coef=.5)


def four_models():
    """Random ones, as small as can be -> policy, reference, reward model, value model."""
    torch.manual_seed(0)
    config = gpt.GPTConfig(vocab_size=20, block_size=16, n_layer=1, n_head=1, n_embd=8)
    return [make(config) for make in (gpt.GPT, gpt.GPT, gpt.ScalarGPT, gpt.ScalarGPT)]


def trained(step, cfg=CFG, **changes):
    """Models after one step, of `update` or of the whole iteration -> what it returned, the
    parameters of policy and value model, optimiser steps taken. changes: of the batch."""
    policy, reference, reward, value = four_models()
    opt = optim.adamw(nn.ModuleList([policy, value]), 1e-2)
    prompts, prompt_lengths = torch.tensor([[3, 4], [5, 6]]).repeat(3, 1), torch.full((6,), 2)
    torch.manual_seed(1)
    if step.__name__ == "iteration":
        result = step(policy, reference, reward, value, opt, prompts, prompt_lengths, cfg, 1e-2)
    else:
        batch = ppo.rollout(policy, reference, reward, value, prompts[:1], prompt_lengths[:1], cfg)
        noise = torch.randn(3, *batch.mask.shape) * batch.mask
        batch.logp_old += .3 * noise[0]  # as in a later pass
        batch.advantages, batch.returns = noise[1:]
        batch = optim.cut(batch, [0] * 6, batch.idx.shape[1])  # all equal: no order matters
        torch.manual_seed(1)
        result = step(policy, value, opt, dataclasses.replace(batch, **{
            name: getattr(batch, other) for name, other in changes.items()}), cfg, 1e-2)
    taken = max((int(state["step"]) for state in opt.state.values()), default=0)
    return result, *[nn.utils.parameters_to_vector(m.parameters()) for m in (policy, value)], taken


def update(f):
    def equal(one, other):
        return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one[1:3], other[1:3]))
    nothing = trained(lambda *args: None)
    mine, right = trained(f), trained(ppo.update)
    assert not torch.equal(mine[1], nothing[1]), \
        "the policy is as before: loss.backward(), then optim.optimizer_step(models, opt, lr)"
    assert not torch.equal(mine[2], nothing[2]), "the value model must learn in the same step"
    mistakes = {"the value loss counts with the weight cfg.vf_coef":
                trained(ppo.update, dataclasses.replace(CFG, vf_coef=1.0)),
                "the ratio is to the policy that sampled, batch.logp_old, not to the reference":
                trained(ppo.update, logp_old="logp_ref"),
                "the policy learns from advantages, the value model from returns":
                trained(ppo.update, advantages="returns")}
    for sentence, wrong in mistakes.items():
        assert not equal(mine, wrong), sentence
    assert equal(mine, right), "the models differ from those that ppo.update leaves"
    three = dataclasses.replace(CFG, minibatches=3)
    assert trained(f, three)[3] == 3, "take one optimiser step for each of cfg.minibatches parts"


def iteration(f):
    def solution(policy, reference, reward, value, opt, prompts, prompt_lengths, cfg, lr,
                 whiten=ppo.whiten, beta=CFG.beta, factors=(CFG.gamma, CFG.lam)):
        batch = ppo.rollout(policy, reference, reward, value, prompts, prompt_lengths, cfg)
        rewards = ppo.kl_rewards(batch.score, batch.logp_old, batch.logp_ref, batch.mask, beta)
        advantages, batch.returns = ppo.gae(rewards, batch.values_old, batch.mask, *factors)
        batch.advantages = whiten(advantages, batch.mask)
        ppo.update(policy, value, opt, batch, cfg, lr)
        return batch

    def variant(**change):
        def iteration(*args):
            return solution(*args, **change)
        return trained(iteration)
    mine, right = trained(f), variant()
    if mine[0] is None:
        raise NotWritten
    batch = mine[0]
    assert isinstance(batch, ppo.Rollout), "it must return the batch"
    assert torch.equal(batch.idx, right[0].idx), "sample first, with the policy: ppo.rollout"
    mistakes = {"whiten the advantages, over the tokens of the mask":
                variant(whiten=lambda advantages, mask: advantages),
                "without cfg.beta there is no penalty for leaving the reference": variant(beta=0.0),
                "gae takes gamma first, then lambda": variant(factors=(CFG.lam, CFG.gamma))}
    for sentence, wrong in mistakes.items():
        assert not torch.allclose(batch.advantages, wrong[0].advantages, atol=1e-4), sentence
    same(batch.advantages, right[0].advantages, "the advantages are wrong")
    nothing = trained(lambda *args: None)
    assert not torch.equal(mine[1], nothing[1]), "the policy is as before: ppo.update comes last"


def best_of_n(f):
    scores = torch.tensor([[0.0, 2.0, 1.0, 9.0], [3.0, 1.0, 2.0, 0.0]])
    gold = torch.tensor([[1.0, -1.0, .5, 1.0], [.25, 1.0, 1.0, 1.0]])
    found = f(scores, gold, 3)
    shaped(found, (2,))
    assert not torch.equal(found, torch.ones(2)), \
        "nobody knows gold when the answer is chosen: the score chooses, gold is only read"
    assert found[0] != 1, "of the first n answers only"
    same(found, torch.tensor([-1.0, .25]), "of each prompt's first n answers take the one with the "
                                           "highest score, and say its gold")


def kl_per_answer(f):
    logp, logp_ref = torch.full((2, 5), -1.0), torch.full((2, 5), -1.5)
    logp[1] = -2.0
    found = f(logp, logp_ref, MASK)
    shaped(found, ())
    assert found >= 0, "logp minus logp_ref: the policy's comes first"
    same(found, torch.tensor(.5), "sum over the tokens of the mask, then the mean over the answers")


def dpo_loss(f):
    zero, one = torch.zeros(2), torch.ones(2)
    same(f(zero, zero, zero, zero, .5), torch.tensor(.693147),
         "where the policy is its reference, no pair is told apart: the loss is log 2, a mean over "
         "the pairs")
    same(f(one, zero, zero, zero, .5), torch.tensor(.474077),
         "it is -log sigmoid(beta times the difference), winner minus loser")
    same(f(one, one, one, zero, .5), torch.tensor(.974077),
         "each log-probability counts minus that of the reference")
    pairs = torch.tensor([1.0, -1.0])
    same(f(pairs, zero, zero, zero, .5), torch.tensor(.724077),
         "take the logarithm of each pair first, then the mean")


def rloo_advantages(f):
    same(f(torch.tensor([[1.0, 2.0, 6.0]])), torch.tensor([[-3.0, -1.5, 4.5]]),
         "an answer is compared with the mean of the others, without itself")
    same(f(torch.tensor([[1.0, 3.0], [7.0, 7.0]])), torch.tensor([[-2.0, 2.0], [0.0, 0.0]]),
         "each row is a group of its own")


CHECKS = {f.__name__: f for f in (attention_weights, response_mask, ranking_loss, policy_loss,
                                  kl_rewards, gae, update, iteration, best_of_n, kl_per_answer,
                                  dpo_loss, rloo_advantages)}
