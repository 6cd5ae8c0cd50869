"""What goes wrong in PPO without breaking it: a line on the screen when a run's figures say so.

An alarm looks at the mean of the last three iterations beside the first one. It speaks once, and
never stops or changes a run. Its bounds were fixed on three seeds (LOG: an alarm).
"""

from collections.abc import Callable
from dataclasses import dataclass

from data.judge import answers as judging


@dataclass
class Alarm:
    rings: Callable    # (first iteration's figures, means of the last three) -> bool
    sentence: str      # what it says of both
    badness: Callable  # of an answer: that with the most is the example
    section: int       # of notebooks/7_failures.ipynb


def overrated(first, last):
    """In healthy runs gold gains .7 or more of what the score gains."""
    gain = last["score"] - first["score"]
    return "gold" in last and gain > max(.5, 3 * (last["gold"] - first["gold"]))


def stretched(first, last):
    """Of own data gold is not known; people are known to overrate length."""
    rises = last["score"] - first["score"] > .5
    return "gold" not in last and rises and not 1 / 3 < last["length"] / first["length"] < 2


ALARMS = [
    Alarm(overrated, "the score has risen from {first[score]:.2f} to {last[score]:.2f}, but gold "
          "went from {first[gold]:.2f} to {last[gold]:.2f}: the policy finds what the reward model "
          "overrates", lambda answer: answer["score"] - 10 * (answer["gold"] >= 0), 3),
    Alarm(stretched, "the score has risen from {first[score]:.2f} to {last[score]:.2f}, and the "
          "length of answers went from {first[length]:.0f} to {last[length]:.0f} tokens: perhaps "
          "the reward model overrates length", lambda answer: answer["score"], 3),
    Alarm(lambda first, last: last["kl_token"] > 1, "KL is {last[kl_token]:.1f} nats per token: "
          "the policy has left the SFT model; lower --lr, or raise --beta",
          lambda answer: answer["kl"], 2),
    Alarm(lambda first, last: last["end_rate"] < .5, "{last[end_rate]:.0%} of the answers end: the "
          "SFT model has not learned to end its answers, or --max_new_tokens is too small",
          lambda answer: answer["length"], 4)]


def ringing(history):
    """The alarms that ring at the end of a history, and not before -> [(alarm, its sentence)].

    history: records as in log.jsonl.
    """
    def rings(alarm, n):
        return n >= 3 and alarm.rings(history[0], last_three(history[:n]))

    new = [alarm for alarm in ALARMS if rings(alarm, len(history))
           and not any(rings(alarm, n) for n in range(len(history)))]
    return [(alarm, alarm.sentence.format(first=history[0], last=last_three(history)))
            for alarm in new]


def last_three(history):
    """The means of the last three records' numbers; what is not finite, a log does not have."""
    records = [history[0], *history[-3:]]
    names = set.intersection(*map(set, records)) - {"sample"}
    return {name: sum(record[name] for record in history[-3:]) / 3 for name in names}


def read(batch, prompts, tokenizer):
    """What there is to read in a Rollout -> a dict for each answer."""
    kl = (batch.logp_old - batch.logp_ref).sum(1).tolist()
    texts = judging.texts(batch, tokenizer)
    gold = judging.labels(prompts, texts).get("gold", [0.0] * len(texts))
    rows = zip(prompts, texts, batch.score.tolist(), kl, batch.mask.sum(1).tolist(), gold)
    names = ("text", "score", "kl", "length", "gold")
    return [dict(zip(names, figures), question=p["prompt"][-1]["content"]) for p, *figures in rows]


def watch(run, step, figures, batch, prompts, tokenizer):
    """Show an answer every five iterations, and ring the alarms that this one gives cause for.

    figures: those of `ppo.describe`; the log has those of the iterations before.
    """
    about_scores(run, step, figures)
    logged, shows = run.due(step, run.cfg.log_every), run.due(step, 5)
    rung = ringing([*run.history, figures]) if logged else []
    answers = read(batch, prompts, tokenizer) if rung or shows else []
    for alarm, sentence in rung:
        run.say(f"step {step + 1}: {sentence}. For example {shown(max(answers, key=alarm.badness))}"
                f" (notebooks/7_failures.ipynb, section {alarm.section})")
    if shows:
        run.show(shown(answers[0]))


def shown(answer):
    return "{question!r} -> {text!r}, score {score:+.2f}".format(**answer)


def about_scores(run, step, figures):
    """Say if the scores are of another scale than PPO's flags expect, or all equal."""
    mean, std = figures["score"], figures["score_std"]
    if figures["empty"] == 1:
        run.say(f"step {step + 1}: all answers are empty: the reward model judged none")
    elif std < 1e-6:  # equal scores differ from their mean by rounding
        run.say(f"step {step + 1}: all answers have the same score: PPO has nothing to learn from")
    elif step == 0 and (max(abs(mean), std) > 5 or std < .2):
        run.say(f"the scores have mean {mean:.3g} and standard deviation {std:.3g}, where --beta "
                "and --clip expect about 0 and 1: scale the head of the reward model, or these "
                "flags (notebooks/7_failures.ipynb, section 10)")
