"""Proof that the tests bite: mistakes that people really make, one at a time, and the law that
catches each.

    python -m pytest -m slow tests/test_mutations.py -s      the mistakes and the laws they break

Each mistake is one replacement in a copy of the code. It is caught if its law fails there; a law
that does not notice it fails here. Most are from "bugs in the references" and the questions that
users of other codebases ask.
"""

import itertools
import queue
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nursery import Nursery

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow

# what goes wrong: (file, the law that catches it, the right code, the wrong code)
MUTATIONS = {
    # log-probabilities and sampling
    "PAD has a share of the distribution": (
        "gpt.py", "test_gpt.py::test_logprobs_are_a_log_softmax_without_pad_shifted_by_one",
        "    bias[model.config.pad] = -torch.inf\n",
        ""),
    "the temperature is not in the log-probabilities": (
        "gpt.py", "test_gpt.py::test_logprobs_are_a_log_softmax_without_pad_shifted_by_one",
        "logits = action_logits(model, state, temperature)",
        "logits = action_logits(model, state, 1.0)"),
    "the temperature is not in the samples": (
        "gpt.py", "test_gpt.py::test_law_05_cached_sampling_equals_full_forward_passes",
        "below = action_logits(model, hidden, temperature).softmax",
        "below = action_logits(model, hidden, 1.0).softmax"),
    "samples are of the ten most probable tokens": (
        "gpt.py", "test_gpt.py::test_law_05_cached_sampling_equals_full_forward_passes",
        "    below = action_logits(model, hidden, temperature).softmax(-1).cumsum(-1)  # (B, V)\n",
        "    below = action_logits(model, hidden, temperature).softmax(-1)\n"
        "    below = (below * (below >= below.topk(10).values[:, -1:])).cumsum(-1)\n"),
    "targets are not shifted": (
        "gpt.py", "test_gpt.py::test_logprobs_are_a_log_softmax_without_pad_shifted_by_one",
        "    action = idx[:, 1:]\n",
        "    action = idx[:, :-1]\n"),
    "positions are shifted beside the cache": (
        "data/sampling.py",
        "test_gpt.py::test_law_05_the_cache_writes_the_same_tokens_as_plain_generation",
        "after = self.lengths[:, None] + self.filled - self.width",
        "after = self.lengths[:, None] + self.filled - self.width + 1"),
    "the cache shows a row its padding": (
        "data/sampling.py",
        "test_gpt.py::test_law_05_the_cache_writes_the_same_tokens_as_plain_generation",
        "self.bias.masked_fill_(padding, -torch.inf)",
        "pass"),
    "answers go on after their end": (
        "data/sampling.py",
        "test_gpt.py::test_law_05_the_cache_writes_the_same_tokens_as_plain_generation",
        "alive = alive & (token != config.end) & ",
        "alive = alive & "),
    "attention sees the future": (
        "gpt.py", "test_gpt.py::test_attention_equals_a_loop_over_rows_heads_and_positions",
        "is_causal=mask is None",
        "is_causal=False"),
    "dropout is left on": (
        "gpt.py", "test_gpt.py::test_attention_equals_a_loop_over_rows_heads_and_positions",
        "return self.c_proj(y.transpose(1, 2).reshape(B, T, C))",
        "return F.dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)), .1)"),
    "plain generation goes on after the end": (
        "gpt.py", "test_gpt.py::test_law_05_the_cache_writes_the_same_tokens_as_plain_generation",
        "alive = alive & (token != config.end) & (lengths",
        "alive = alive & (lengths"),
    # masks and means
    "the end token is masked out": (
        "gpt.py", "test_gpt.py::test_response_mask_marks_the_actions_that_write_the_response",
        "(token < lengths[:, None])",
        "(token < lengths[:, None] - 1)"),
    "the mask starts one token late": (
        "gpt.py", "test_gpt.py::test_response_mask_marks_the_actions_that_write_the_response",
        "(token >= prompt_lengths[:, None])",
        "(token > prompt_lengths[:, None])"),
    "the mask starts one token early": (
        "gpt.py", "test_gpt.py::test_response_mask_marks_the_actions_that_write_the_response",
        "(token >= prompt_lengths[:, None])",
        "(token >= prompt_lengths[:, None] - 1)"),
    "a mean of the rows' means": (
        "gpt.py", "test_gpt.py::test_masked_mean_divides_by_the_whole_count",
        "return (x * mask).sum() / mask.sum()",
        "return ((x * mask).sum(-1) / mask.sum(-1)).mean()"),
    "a mean over padding too": (
        "gpt.py", "test_gpt.py::test_masked_mean_divides_by_the_whole_count",
        "return (x * mask).sum() / mask.sum()",
        "return (x * mask).mean()"),
    "a mean of the micro-batches' means": (
        "data/optim.py", "test_ppo.py::test_law_01_the_first_minibatch_changes_nothing_yet",
        "return [(part, weight(part) / total) if len(part)",
        "return [(part, 1 / len(parts)) if len(part)"),
    "micro-batches forget the last one": (
        "data/optim.py", "test_ppo.py::test_law_01_the_first_ratio_is_1_up_to_rounding",
        "for i in range(0, most, size)]",
        "for i in range(0, max(1, most - size), size)]"),
    "parts are cut too short": (
        "data/optim.py", "test_ppo.py::test_law_01_the_first_ratio_is_1_up_to_rounding",
        "cut(batch, own, part[-1][1])",
        "cut(batch, own, part[0][1])"),
    # optimiser
    "biases and LayerNorms decay": (
        "data/optim.py", "test_gpt.py::test_only_matrices_decay",
        '{"params": others, "weight_decay": 0.0}',
        '{"params": others, "weight_decay": weight_decay}'),
    "the momentum's singular values stay as they are": (
        "data/optim.py",
        "test_parity.py::test_muon_moves_matrices_as_torchs_does_and_the_rest_as_adamw",
        "orthogonal(torch.stack(ahead))",
        "torch.stack(ahead)"),
    "matrices of a shape are scaled as one": (
        "data/optim.py",
        "test_parity.py::test_muon_moves_matrices_as_torchs_does_and_the_rest_as_adamw",
        "x.norm(dim=(-2, -1), keepdim=True)",
        "x.norm()"),
    "AdamW moves the matrices that Muon has moved": (
        "data/optim.py",
        "test_parity.py::test_muon_moves_matrices_as_torchs_does_and_the_rest_as_adamw",
        "            p.grad = None  # already updated: AdamW must skip it\n",
        ""),
    "gradients are not clipped": (
        "data/optim.py",
        "test_gpt.py::test_a_step_is_taken_along_the_clipped_gradient_of_this_loss_alone",
        "nn.utils.clip_grad_norm_(model.parameters(), clip)",
        "nn.utils.clip_grad_norm_(model.parameters(), math.inf)"),
    "gradients add up over the steps": (
        "data/optim.py", "test_ppo.py::test_law_16_the_gradient_with_ptx_is_the_sum_of_both",
        "    opt.zero_grad(set_to_none=True)\n",
        ""),
    "the learning rate of pretraining never falls": (
        "data/optim.py", "test_gpt.py::test_learning_rate_warms_up_and_falls_along_a_cosine",
        "progress = (step - warmup) / max(1, steps - warmup)",
        "progress = 0"),
    # SFT
    "the prompt is learned too": (
        "sft.py", "test_sft.py::test_law_20_loss_is_of_the_response_and_its_end_token_only",
        "mask = gpt.response_mask(prompt_lengths, lengths",
        "mask = gpt.response_mask(0 * prompt_lengths + 1, lengths"),
    "demonstrations have no end token": (
        "sft.py", "test_sft.py::test_a_demonstration_is_prompt_response_end",
        '+ tokenizer.encode(record["response"]) + [tokenizer.end]',
        '+ tokenizer.encode(record["response"])'),
    # reward model
    "ranks are reversed": (
        "reward.py", "test_reward.py::test_law_12_two_answers_give_the_pairwise_loss",
        "wins = (ranks[:, :, None] < ranks[:, None, :]) & (ranks[:, :, None] > 0)",
        "wins = (ranks[:, :, None] > ranks[:, None, :]) & (ranks[:, None, :] > 0)"),
    "ties are losses": (
        "reward.py", "test_reward.py::test_law_12_two_answers_give_the_pairwise_loss",
        "wins = (ranks[:, :, None] < ranks[:, None, :])",
        "wins = (ranks[:, :, None] <= ranks[:, None, :])"),
    "a prompt counts by its pairs": (
        "reward.py",
        "test_reward.py::test_k_answers_give_the_mean_over_prompts_of_the_mean_over_pairs",
        "return (loss.sum((1, 2)) / pairs.clamp(min=1)).sum() / (pairs > 0).sum().clamp(min=1)",
        "return loss.sum() / pairs.sum().clamp(min=1)"),
    "missing answers lose": (
        "reward.py", "test_reward.py::test_missing_answers_do_not_count",
        " & (ranks[:, :, None] > 0)  #",
        "  #"),
    "the score is read one token early": (
        "gpt.py", "test_gpt.py::test_law_04_padding_changes_no_logprob_value_or_score",
        "self(idx).gather(1, lengths[:, None] - 1)",
        "self(idx).gather(1, lengths[:, None] - 2)"),
    "the score is read at the last column": (
        "gpt.py", "test_gpt.py::test_law_04_padding_changes_no_logprob_value_or_score",
        "return self(idx).gather(1, lengths[:, None] - 1).squeeze(1)",
        "return self(idx)[:, -1]"),
    "an answer sees the answers before it": (
        "reward.py", "test_reward.py::test_law_13_a_batch_scores_each_answer_where_it_stands",
        "seen = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])",
        "seen = (owner >= -1)[:, None, :]"),
    "an answer stands after the answers before it": (
        "reward.py", "test_reward.py::test_law_13_a_batch_scores_each_answer_where_it_stands",
        "at = (seen.sum(2) - 1) * (owner >= 0)",
        "at = (owner >= 0).cumsum(1) - 1"),
    "scores are shifted but not scaled": (
        "reward.py",
        "test_reward.py::"
        "test_law_13_normalised_scores_have_mean_0_and_deviation_1_and_the_same_order",
        "    model.head.weight /= std\n"
        "    model.head.bias.copy_((model.head.bias - mean) / std)\n",
        "    model.head.bias -= mean\n"),
    # rewards, advantages
    "the score is added to every token": (
        "ppo.py", "test_ppo.py::test_law_08_the_score_is_given_once_at_the_last_response_token",
        "rewards[torch.arange(len(rewards), device=mask.device), last] += score",
        "rewards += score[:, None] * mask"),
    "the score is added after the end": (
        "ppo.py", "test_ppo.py::test_law_08_the_score_is_given_once_at_the_last_response_token",
        "last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)",
        "last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1) + 1"),
    "KL is taken against the old policy": (
        "ppo.py", "test_ppo.py::test_law_19_ppo_finds_the_optimum_that_theory_gives",
        "kl_rewards(batch.score, batch.logp_old, batch.logp_ref,",
        "kl_rewards(batch.score, batch.logp_old, batch.logp_old,"),
    "KL has the wrong sign": (
        "ppo.py", "test_ppo.py::test_the_kl_penalty_is_per_token_against_the_reference",
        "kl = logp - logp_ref\n",
        "kl = logp_ref - logp\n"),
    "KL is paid for padding": (
        "ppo.py", "test_ppo.py::test_the_kl_penalty_is_per_token_against_the_reference",
        "rewards = -beta * kl * mask",
        "rewards = -beta * kl"),
    "an answer without end keeps its score": (
        "ppo.py", "test_ppo.py::test_law_09_an_answer_without_end_or_word_gets_the_missing_score",
        "torch.where(ended & has_words, score, penalty)",
        "torch.where(has_words, score, penalty)"),
    "an answer without a word has a score": (
        "ppo.py", "test_ppo.py::test_law_09_an_answer_without_end_or_word_gets_the_missing_score",
        "torch.where(ended & has_words, score,",
        "torch.where(ended, score,"),
    "values of PAD are in GAE": (
        "ppo.py", "test_ppo.py::test_law_07_gae_is_the_discounted_sum_of_td_errors",
        "    values = values * mask\n",
        "    mask = mask + 0\n"),
    "GAE forgets lambda": (
        "ppo.py", "test_ppo.py::test_law_07_gae_is_the_discounted_sum_of_td_errors",
        "delta + gamma * lam * next_advantage",
        "delta + gamma * next_advantage"),
    "returns are of whitened advantages": (
        "ppo.py", "test_ppo.py::test_law_07_gae_is_the_discounted_sum_of_td_errors",
        "    advantages = advantages * mask\n"
        "    return advantages, advantages + values",
        "    advantages = advantages * mask\n"
        "    return advantages, whiten(advantages, mask) + values"),
    "advantages are whitened row by row": (
        "ppo.py", "test_ppo.py::test_law_10_whitening_by_published_figures",
        "    mean = gpt.masked_mean(x, mask)\n"
        "    var = gpt.masked_mean((x - mean) ** 2, mask)\n",
        "    n = mask.sum(-1, keepdim=True)\n"
        "    mean = (x * mask).sum(-1, keepdim=True) / n\n"
        "    var = (((x - mean) ** 2) * mask).sum(-1, keepdim=True) / n\n"),
    "padding is in the whitening": (
        "ppo.py", "test_ppo.py::test_law_10_whitening_by_published_figures",
        "    mean = gpt.masked_mean(x, mask)\n"
        "    var",
        "    mean = x.mean()\n"
        "    var"),
    "beta falls when KL is too high": (
        "ppo.py", "test_ppo.py::test_law_15_adaptive_beta_by_published_figures",
        "min(max(kl / self.target - 1, -.2), .2)",
        "min(max(1 - kl / self.target, -.2), .2)"),
    "beta's change is not bounded": (
        "ppo.py", "test_ppo.py::test_law_15_adaptive_beta_by_published_figures",
        "min(max(kl / self.target - 1, -.2), .2)",
        "kl / self.target - 1"),
    "adaptive beta never reaches the rewards": (
        "ppo.py", "test_ppo.py::test_every_option_reaches_the_loop",
        "batch.logp_ref, batch.mask, beta.value)",
        "batch.logp_ref, batch.mask, cfg.beta)"),
    "GAE goes forwards": (
        "ppo.py", "test_ppo.py::test_law_07_gae_is_the_discounted_sum_of_td_errors",
        "for t in reversed(range(values.shape[1])):",
        "for t in range(values.shape[1]):"),
    "advantages of the prompt are not zero": (
        "ppo.py", "test_ppo.py::test_law_07_gae_is_the_discounted_sum_of_td_errors",
        "    advantages = advantages * mask\n",
        ""),
    # losses
    "the ratio is upside down": (
        "ppo.py", "test_ppo.py::test_policy_loss_by_hand",
        "ratio = torch.exp(logp - logp_old)\n"
        "    clipped",
        "ratio = torch.exp(logp_old - logp)\n"
        "    clipped"),
    "clipping takes the better of the two": (
        "ppo.py", "test_ppo.py::test_policy_loss_by_hand",
        "torch.max(-advantages * ratio, -advantages * clipped)",
        "torch.min(-advantages * ratio, -advantages * clipped)"),
    "the ratio is always clipped": (
        "ppo.py", "test_ppo.py::test_policy_loss_by_hand",
        "torch.max(-advantages * ratio, -advantages * clipped)",
        "-advantages * clipped"),
    "the value loss takes the smaller error": (
        "ppo.py", "test_ppo.py::test_law_11_value_loss_by_hand_and_never_below_the_unclipped",
        "0.5 * gpt.masked_mean(torch.max((values",
        "0.5 * gpt.masked_mean(torch.min((values"),
    "old log-probabilities are of another forward pass": (
        "ppo.py", "test_ppo.py::test_law_01_the_first_ratio_is_1_up_to_rounding",
        "part.logp_old = gpt.token_logprobs(policy, part.idx,",
        "part.logp_old = 1e-3 + gpt.token_logprobs(policy, part.idx,"),
    "the pretraining loss is at the policy's temperature": (
        "ppo.py", "test_ppo.py::test_law_16_the_gradient_with_ptx_is_the_sum_of_both",
        "gpt.next_token_loss(policy, idx)",
        "(-gpt.token_logprobs(policy, idx, cfg.temperature).mean())"),
    "the pretraining loss has no weight": (
        "ppo.py", "test_ppo.py::test_law_16_the_gradient_with_ptx_is_the_sum_of_both",
        "(cfg.ptx * ptx_loss).backward()",
        "ptx_loss.backward()"),
    # the loop
    "the reference is the policy": (
        "data/start.py", "test_ppo.py::test_law_02_the_loop_starts_with_kl_0",
        "    reward = reward_model(run, cfg.reward or",
        "    reference = policy\n"
        "    reward = reward_model(run, cfg.reward or"),
    "the value model is the reward model": (
        "ppo.py", "test_ppo.py::test_law_03_the_loop_never_changes_reference_and_reward_model",
        "    value = first_value_model(reward)\n",
        "    value = reward\n"),
    "PPO's learning rate never falls": (
        "ppo.py", "test_ppo.py::test_law_17_steps_of_the_optimizer_and_their_rates",
        "asked, lr = next(supply), cfg.lr * (1 - step / cfg.steps)",
        "asked, lr = next(supply), cfg.lr"),
    # a run that was stopped
    "a resumed run has the random numbers of its beginning": (
        "data/run/run.py", "test_nothing_lost.py::test_a_killed_run_goes_on_bit_for_bit",
        "torch.manual_seed(seed_for(self.cfg.seed, self.stage, step))",
        "torch.manual_seed(seed_for(self.cfg.seed, self.stage, step - self.first))"),
    "a resumed run sees the first data again": (
        "gpt.py", "test_gpt.py::test_batches_go_through_all_examples_once_an_epoch",
        "epoch, begin = divmod(first, per_epoch)",
        "epoch, begin = first // per_epoch, 0"),
    "a resumed run has an optimizer without memory": (
        "sft.py", "test_nothing_lost.py::test_a_killed_run_goes_on_bit_for_bit",
        "model=model, opt=opt)",
        "model=model)"),
    "a resumed run keeps what was logged after the save": (
        "data/run/run.py", "test_nothing_lost.py::test_a_killed_run_goes_on_bit_for_bit",
        '"".join(json.dumps(record) + "\\n" for record in self.history))',
        'self.path("log.jsonl").read_text())'),
    "what follows a collection depends on how much of it was read": (
        "data/run/run.py",
        "test_nothing_lost.py::"
        "test_a_run_killed_between_its_answers_and_its_first_save_goes_on_bit_for_bit",
        "        torch.manual_seed(self.cfg.seed)  # what follows is drawn as if all had been "
        "read\n",
        ""),
    "a resumed run begins its collection again": (
        "data/run/run.py", "test_nothing_lost.py::test_a_killed_run_goes_on_bit_for_bit",
        "lines = lines or [head]  # the last one may be cut",
        "lines = [head]"),
    "a gradient that is not finite is stepped along": (
        "data/optim.py", "test_nothing_lost.py::test_one_bad_batch_is_left_out_and_counted",
        "    if math.isfinite(norm):\n"
        "        opt.step()\n",
        "    opt.step()\n"),
    "what was made anew is mixed with what stands on it": (
        "data/run/lineage.py",
        "test_nothing_lost.py::test_what_was_made_anew_is_not_mixed_with_what_stands_on_it",
        "if not self.mix_runs:",
        "if False:"),
    "one step an epoch": (
        "ppo.py", "test_ppo.py::test_law_17_steps_of_the_optimizer_and_their_rates",
        "torch.randperm(len(batch.idx)).tensor_split(cfg.minibatches):",
        "torch.randperm(len(batch.idx)).tensor_split(1):"),
}
CODE = ("gpt.py", "sft.py", "reward.py", "ppo.py")


# Of them, mistakes that must also keep RLHF as a whole from learning.
FATAL = ("ranks are reversed", "the score is read one token early", "the ratio is upside down",
         "KL has the wrong sign", "the end token is masked out",
         "the mask starts one token late", "the reference is the policy")
LEARNING = "test_learning.py::test_rlhf_learns_what_rankings_prefer"


def is_caught(nurseries, mistake, law, folder):
    """Make one mistake in a copy of the project, and run a law there -> whether it fails."""
    file, _, right, wrong = MUTATIONS[mistake]
    unused = shutil.ignore_patterns("__pycache__", "*.ipynb", "results")
    for part in (*CODE, "data", "notebooks", "tests", ".pytest.ini"):
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=unused)
        else:
            shutil.copy(ROOT / part, folder / part)
    code = (folder / file).read_text()
    assert code.count(right) == 1, f"{file} has no place, or several, for this mistake: {right!r}"
    (folder / file).write_text(code.replace(right, wrong))
    # a mistake that is no Python would prove nothing
    compile(code.replace(right, wrong), file, "exec")
    nursery = nurseries.get()
    status = nursery.run(["pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{law}"],
                         folder / "output", cwd=folder)
    nurseries.put(nursery)
    # a law that is not there, or could not even start, catches nothing
    assert status in (0, 1), (folder / "output").read_text()[-1000:]
    return status == 1


@pytest.mark.parametrize("laws", [
    {mistake: law for mistake, (_, law, *_) in MUTATIONS.items()}, dict.fromkeys(FATAL, LEARNING)],
    ids=["by its law", "by the learning test"])
def test_every_mistake_is_caught(laws, tmp_path, capsys):
    folders, missed = [tmp_path / str(i) for i in range(len(laws))], []
    for folder in folders:
        folder.mkdir()
    nurseries = queue.Queue()
    for _ in range(2):
        nurseries.put(Nursery("tests"))
    with ThreadPoolExecutor(2) as pool:
        caught = pool.map(is_caught, itertools.repeat(nurseries), laws, laws.values(), folders)
        for (mistake, law), fails in zip(laws.items(), caught):
            with capsys.disabled():
                print(f"\n{mistake:55} {law if fails else 'NOBODY NOTICES'}", end="", flush=True)
            missed += [] if fails else [mistake]
    assert not missed
