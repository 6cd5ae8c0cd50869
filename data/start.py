"""What a stage starts from: models and tokenizers that belong together, and records that fit.

The stages' sentences to the user about files that are missing or do not fit are here. What a stage
makes of these models and records stands in the stage.
"""

import random
from pathlib import Path

import gpt
from data import sampling
from data.files import records
from data.run.device import prepare
from data.run.disk import read_json
from data.run.system import UserError
from data.world import almanac

# ---- models --------------------------------------------------------------------------------------


def hint(stage, round=1):
    """The command that makes a checkpoint that is missing."""
    return f"run python {stage}.py{f' --round {round}' if round > 1 else ''} first"


def newest_policy(out, flag):
    """The checkpoint in `out` that was written last, reward models aside; flag: names another."""
    paths = [p for p in Path(out).glob("*/ckpt.pt") if not p.parent.name.startswith("reward")]
    if not paths:
        raise UserError(f"no checkpoint in {out}: run python gpt.py first, or name one with {flag}")
    return max(paths, key=lambda p: p.stat().st_mtime)


def policy(out, path, flag, device):
    """The policy for a program -> (path, model, tokenizer); by default the newest in `out`."""
    path = path or newest_policy(out, flag)
    remedy = f"name a policy's checkpoint with {flag}"
    model, tokenizer, _ = gpt.load(path, gpt.GPT, device, remedy)
    return path, model, tokenizer


def load(run, role, path, kind=gpt.GPT, hint="", chosen=False, show=False):
    """gpt.load, and the lineage notes what was read -> (model, tokenizer, metadata).

    chosen: the user has named it instead of that of its stage. show: a line says what was read.
    """
    model, tokenizer, about = gpt.load(run.reads(path), kind, run.device, hint)
    run.lineage.model(role, path, about, model.state_dict(), chosen)
    if show:
        run.say(f"{role} from {path}")
    return prepare(model.float(), run.cfg), tokenizer, about


def same_tokenizer(one, other, path, other_path, remedy):
    if one != other:
        raise UserError(f"{path} has another tokenizer than {other_path}: {remedy}")


def for_reward(cfg, run, begin_chat):
    """What reward.py starts from -> (SFT model, the other, tokenizer).

    The other is in later rounds the reward model of the round before, else the pretrained model,
    its chat's marks begun, for --base_weight; None without one.
    """
    path = cfg.init or run.earlier("sft")
    sft_model, tokenizer, _ = load(run, "SFT model", path, hint=hint("sft"), show=True)
    if cfg.round > 1 and not cfg.init:
        before = run.earlier("reward", cfg.round - 1)
        model, *_ = load(run, "reward model", before, gpt.ScalarGPT,
                         hint("reward", cfg.round - 1), show=True)
        return sft_model, model, tokenizer
    if not cfg.base_weight:
        return sft_model, None, tokenizer
    base, other, about = load(run, "pretrained model", run.earlier("gpt"), show=True,
                              hint="run python gpt.py first, or choose --base_weight 0")
    if (other, base.config) != (tokenizer, sft_model.config):
        raise UserError(f"{path} does not come from {run.earlier('gpt')}: choose --base_weight 0, "
                        "so that it alone is the start")
    begin_chat(base, tokenizer, about)
    return sft_model, base, tokenizer


def answering_policy(cfg, run, tokenizer):
    """The policy whose answers reward.py ranks; None: those of the SFT model alone."""
    if not cfg.policy and cfg.round == 1:
        return None
    path = cfg.policy or run.earlier("ppo", cfg.round - 1)
    remedy = "check --policy" if cfg.policy else hint("ppo", cfg.round - 1)
    model, other, _ = load(run, "policy", path, hint=remedy, chosen=bool(cfg.policy), show=True)
    same_tokenizer(other, tokenizer, path, cfg.init or run.earlier("sft"),
                   "give --init the SFT model it comes from")
    return model


def for_ppo(cfg, run):
    """The models that PPO starts from -> (policy, reference, reward model, tokenizer)."""
    sft_path, before = cfg.init or run.earlier("sft"), hint("sft")
    policy_path = sft_path
    if cfg.round > 1:
        policy_path, before = run.earlier("ppo", cfg.round - 1), hint("ppo", cfg.round - 1)
    reference, tokenizer, _ = load(run, "reference", sft_path, hint=hint("sft"), show=True)
    policy, other, _ = load(run, "policy", policy_path, hint=before, show=True)
    same_tokenizer(other, tokenizer, policy_path, sft_path, before)
    reward = reward_model(run, cfg.reward or run.earlier("reward", cfg.round), tokenizer,
                          policy.config.block_size, hint("reward", cfg.round), bool(cfg.reward))
    return policy, reference.requires_grad_(False), reward.requires_grad_(False), tokenizer


def reward_model(run, path, tokenizer, block_size, remedy, chosen, role="reward model"):
    """A reward model with this tokenizer, and at least this context."""
    model, other, _ = load(run, role, path, gpt.ScalarGPT, remedy, chosen, show=True)
    same_tokenizer(other, tokenizer, path, "the policy", remedy)
    if model.config.block_size < block_size:
        raise UserError(f"{path} reads {model.config.block_size} tokens and the policy writes "
                        f"{block_size}: {remedy}")
    return model


def compared_models(cfg, run, policy, reference, tokenizer):
    """What ppo.py compares at its end -> ({name: GPT}, held-out text as ids or None, the figures of
    all rounds before this one or None).

    The pretrained model is among them in the first round, if it is there and fits the others.
    """
    models, text, path = {"sft": reference, "ppo": policy}, None, run.earlier("gpt")
    if path.exists():
        base, other, about = gpt.load(path, gpt.GPT, run.device)
        fits = not (cfg.init or cfg.reward) or run.lineage.fits("gpt", base.state_dict())
        if fits and other == tokenizer and base.config.block_size >= policy.config.block_size:
            run.lineage.model("pretrained model", path, about, base.state_dict())
            run.say(f"pretrained model, for comparison, from {path}")
            if cfg.round == 1:  # later rounds need not judge it again
                models = {"base": base, **models}
            held_out = path.with_name("held_out.txt")
            if held_out.exists() and held_out.stat().st_size:
                text = gpt.one_stream(records.read_text(held_out), tokenizer, run.device)
                text = text if len(text) > base.config.block_size else None
    path, rounds = run.earlier("ppo", cfg.round - 1).with_name("results.json"), None
    if cfg.round > 1 and path.exists():
        results = read_json(path)
        rounds = results.get("rounds") if isinstance(results, dict) else None
        if not isinstance(rounds, list) or not all(isinstance(r, dict) for r in rounds):
            raise UserError(f"{path} has no figures of the rounds: run its stage again")
    return models, text, rounds


# ---- records -------------------------------------------------------------------------------------


def encoded(cfg, run, encode, tokenizer, block_size, *parts):
    """Lists of records, training ones first, then held-out ones -> each with its `ids`, without
    those that do not fit the context. UserError if no training record fits."""
    fitting = [[dict(r, ids=ids) for r in part if (ids := encode(tokenizer, r, block_size))]
               for part in parts]
    count, left = sum(map(len, parts[:2])), sum(map(len, fitting[:2]))
    if not fitting[0]:
        raise UserError(f"{cfg.data or 'the almanac'}: none of the {count} records fits in the "
                        f"context of {block_size} tokens")
    skipped = f"; {count - left} more do not fit in {block_size} tokens: skipped"
    run.say(f"{len(fitting[0]):,} records to learn from" + (skipped if left < count else ""))
    if not fitting[1]:
        run.say(nothing_is_held_out(parts[1]))
    return fitting


def nothing_is_held_out(candidates):
    """Why: `candidates` are the records that were held out, of which none fits."""
    return "nothing is held out: " + (
        "what would be does not fit in the context" if candidates else
        f"there are fewer than {records.ONE_IN} different prompts")


def demonstrations(cfg, run, encode, tokenizer, block_size):
    """What sft.py learns from -> (demonstrations, held-out ones), each with its `ids`."""
    if cfg.data:
        train, held_out = records.split(records.read_demonstrations(cfg.data))
    else:
        train = almanac.demonstrations("train", cfg.demonstrations, cfg.seed, cfg.topic)
        held_out = almanac.demonstrations("valid", 500, cfg.seed, cfg.topic)
    run.keep("demonstrations.jsonl", records.to_jsonl(train), own=not cfg.data)
    run.lineage.text("sft/held_out", records.to_jsonl(held_out))
    return encoded(cfg, run, encode, tokenizer, block_size, train, held_out)


def earlier_rankings(cfg, run, wanted):
    """So many rankings of the rounds before this one, drawn from all."""
    rankings = []
    for n in range(1, cfg.round):
        path = run.earlier("reward", n).with_name("comparisons.jsonl")
        if not path.exists():
            raise UserError(f"{path} not found: its round learned from --data; name the rankings "
                            "of all rounds with --data")
        rankings += records.read_comparisons(path)
        run.lineage.text(f"{path.parent.name}/{path.name}", path.read_bytes(), path)
    return random.Random(cfg.seed).sample(rankings, min(wanted, len(rankings)))


def with_preference(cfg, run, comparisons):
    """The comparisons that prefer a text to another: others teach nothing.

    UserError if a file holds none. The labeler has no opinion on what an untrained model writes:
    there all comparisons remain, as if they said something.
    """
    useful = [r for r in comparisons if len(set(r["ranks"])) > 1 and len(set(r["responses"])) > 1]
    if not useful and cfg.data:
        raise UserError(f"{cfg.data}: none of the {len(comparisons)} comparisons prefers an answer "
                        "to another: there is nothing to learn")
    if len(useful) < len(comparisons):
        run.say(f"{len(comparisons) - len(useful):,} of {len(comparisons):,} comparisons prefer no "
                "text to another" + (": skipped" if useful else ": there is nothing to learn"))
    return useful or comparisons


def pretraining_text(cfg, run, tokenizer, block_size):
    """For --ptx: the pretraining text as a 1-D tensor of ids; None without --ptx."""
    if not cfg.ptx:
        return None
    path = Path(cfg.ptx_text or run.earlier("gpt").with_name("text.txt"))
    if not path.exists():
        raise UserError(f"{path} not found: name the pretraining text with --ptx_text")
    documents = records.read_text(path)
    name = f"{run.stage}/ptx_text" if cfg.ptx_text else "gpt/text.txt"
    run.lineage.text(name, records.join_text(documents), "" if cfg.ptx_text else path)
    text = gpt.one_stream(documents, tokenizer, run.device)
    if len(text) <= block_size:
        raise UserError(f"{path} has {len(text)} tokens, the context {block_size}: --ptx needs "
                        "more text")
    return text


def prompts(cfg, run, policy, tokenizer):
    """Prompts to practise on, and held-out ones, each with its `ids`, that leave room to answer."""
    if cfg.data:
        train, test = records.split(records.read_prompts(cfg.data))
        run.say(f"{len(train):,} prompts, and {len(test):,} held out, of which the final figures "
                f"are of {min(len(test), cfg.test_prompts):,}")
        test = test[:cfg.test_prompts]
    else:
        seed = f"ppo {cfg.seed}" + (f" {cfg.round}" if cfg.round > 1 else "")
        train = almanac.prompts("train", cfg.prompts, seed, cfg.topic)
        test = almanac.prompts(cfg.split, cfg.test_prompts, cfg.seed, cfg.topic)
    run.lineage.text(f"{run.stage}/prompts", records.to_jsonl(train))
    run.lineage.text(f"{run.stage}/held_out", records.to_jsonl(test))
    count, context, held_out = len(train) + len(test), policy.config.block_size, test
    train, test = [[dict(p, ids=tokenizer.render(p["prompt"])) for p in
                    sampling.with_room(policy, tokenizer, part, cfg.max_new_tokens)]
                   for part in (train, test)]
    if skipped := count - len(train) - len(test):
        run.say(f"{skipped} of {count} prompts leave no room for {cfg.max_new_tokens} tokens in "
                f"the context of {context}: skipped")
    if train and not test:
        run.say(f"{nothing_is_held_out(held_out)}; the models are compared on prompts they have "
                "practised on")
        test = train[:cfg.test_prompts]
    if not train:
        raise UserError(f"{cfg.data or 'the almanac'}: no prompt leaves room for "
                        f"{cfg.max_new_tokens} tokens in the context of {context}: lower "
                        "--max_new_tokens")
    if len(train) < cfg.batch:
        run.say(f"{len(train)} prompts are fewer than --batch {cfg.batch}: an iteration has "
                f"{len(train)} answers")
    last = len(train) % cfg.batch
    if 0 < last < cfg.minibatches:  # drop a last batch smaller than the number of minibatches
        train = train[:-last] or train
    if cfg.minibatches > len(train):
        raise UserError(f"{cfg.data or 'the almanac'} holds {len(train)} prompts to practise on: "
                        f"too few for --minibatches {cfg.minibatches}")
    return train, test
