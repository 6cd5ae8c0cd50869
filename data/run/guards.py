"""Numbers that no training survives: which they are, what causes them, and what to do."""

import math

# In the order in which a step computes them: the first that is not finite is nearest to the cause.
REMEDIES = {
    "score": "the reward model is broken: train it again with python reward.py",
    "kl": "the policy or the SFT model is broken: make it again, or lower --lr",
    "policy_loss": "lower --lr",
    "value_loss": "lower --lr",
    "ptx_loss": "lower --lr or --ptx",
    "loss": "lower --lr",
    "grad_norm": "lower --lr",
    "valid_loss": "lower --lr",
}


def not_finite(numbers):
    """The first number that is not finite -> (its name, its value, the remedy), or None."""
    for name, remedy in REMEDIES.items():
        if not math.isfinite(value := numbers.get(name, 0.0)):
            return name, value, remedy
    return None


def doubts(numbers):
    """Sentences about numbers from which nothing can be learned."""
    if numbers.get("score_std", 1.0) < 1e-6:  # equal scores differ from their mean by rounding
        yield "all answers have the same score: PPO has nothing to learn from"
    if numbers.get("empty") == 1:
        yield "all answers are empty: the reward model judged none of them"
