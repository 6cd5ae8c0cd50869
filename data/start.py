"""What a stage starts from: models and tokenizers that belong together, and prompts that fit.

The stages' sentences to the user about models and prompts that are missing or do not fit are here.
For each model that a stage trains or trains against, a line says which file it came from.
"""

import random
from pathlib import Path

import torch

import gpt
from data import sampling
from data.files import gpt2, records, rows
from data.run.checkpoint import read_json, write
from data.run.cli import UserError
from data.run.run import choose_device, setup
from data.world import almanac


def hint(stage, round=1):
    """The command that makes a checkpoint that is missing."""
    return f"run python {stage}.py{f' --round {round}' if round > 1 else ''} first"


def newest_policy(out, flag):
    """The checkpoint in `out` that was written last, reward models aside; flag: names another."""
    found = [p for p in Path(out).glob("*/ckpt.pt") if not p.parent.name.startswith("reward")]
    if not found:
        raise UserError(f"no checkpoint in {out}: run python gpt.py first, or name one with {flag}")
    return max(found, key=lambda p: p.stat().st_mtime)


def note(run, role, path, kind=gpt.GPT, hint="", by_hand=False):
    """gpt.load, and the lineage notes what was read -> (model, tokenizer, about)."""
    if Path(path).resolve() == run.path("ckpt.pt").resolve():
        raise UserError(f"{path} is what this run will write: copy it, and name the copy")
    model, tokenizer, about = gpt.load(path, kind, run.device, hint)
    run.lineage.parent(role, path, about, model.state_dict(), by_hand)
    return model, tokenizer, about


def read(run, role, path, kind=gpt.GPT, hint="", by_hand=False):
    """As `note`, with a line that says what was read."""
    found = note(run, role, path, kind, hint, by_hand)
    run.say(f"{role} from {path}")
    return found


def same_tokenizer(one, other, path, other_path, remedy):
    if one != other:
        raise UserError(f"{path} has another tokenizer than {other_path}: {remedy}")


def reward_models(paths, tokenizer, device="cpu", block_size=0, hint="", run=None, by_hand=True):
    """Read reward models, "a.pt,b.pt" -> (list of ScalarGPT, what each checkpoint says of itself).

    All must have this tokenizer, and at least this context. run: the run that stands on them;
    by_hand: whether the user has named them.
    """
    models, abouts = [], []
    for path in rows.several(paths):
        model, other, about = gpt.load(path, gpt.ScalarGPT, device, hint)
        same_tokenizer(other, tokenizer, path, "the policy", hint or "choose another")
        if model.config.block_size < block_size:
            raise UserError(f"{path} reads {model.config.block_size} tokens and the policy writes "
                            f"{block_size}: {hint or 'choose another'}")
        if run:
            run.lineage.parent("reward model" + (f" {len(models) + 1}" if models else ""), path,
                               about, model.state_dict(), by_hand)
            run.say(f"reward model from {path}")
        models.append(model)
        abouts.append(about)
    return models, abouts


# ---- SFT -----------------------------------------------------------------------------------------


def for_sft(cfg, run):
    """What sft.py starts from -> (model, tokenizer, demonstrations, held-out ones)."""
    path = cfg.init or run.earlier("gpt")
    model, tokenizer, about = read(run, "pretrained model", path, hint=hint("gpt"))
    if cfg.data:
        demonstrations, held_out = records.split(records.read_demonstrations(cfg.data))
    else:
        demonstrations = almanac.demonstrations("train", cfg.demonstrations, cfg.seed)
        held_out = almanac.demonstrations("valid", 500, cfg.seed)
    text = records.to_jsonl(demonstrations)
    if not cfg.data:
        write(run.path("demonstrations.jsonl"), text)
    run.lineage.made("sft/demonstrations.jsonl", text)
    run.lineage.made("sft/held_out", records.to_jsonl(held_out))
    return model, tokenizer, about, demonstrations, held_out


def fitting(cfg, run, name, records, held_out, encode, tokenizer, block_size):
    """Encode what fits in the context -> (records, encoded; held-out records, encoded).

    UserError if no record fits; a line if nothing is held out.
    """
    found = [[(r, e) for r in part if (e := encode(tokenizer, r, block_size))]
             for part in (records, held_out)]
    given, left = len(records) + len(held_out), sum(map(len, found))
    if not found[0]:
        raise UserError(f"{cfg.data or 'the almanac'}: none of the {name} fits in the context of "
                        f"{block_size} tokens")
    if left < given:
        run.say(f"{given - left} of {given:,} {name} do not fit in {block_size} tokens: left out")
    if not found[1]:
        run.say(nothing_is_held_out(held_out))
    return [list(column) for part in found for column in (zip(*part) if part else ([], []))]


def nothing_is_held_out(given):
    """Why: `given` are the records that were held out, of which none fits."""
    return "nothing is held out: " + (
        "what would be does not fit in the context" if given else
        f"there are fewer than {records.ONE_IN} different prompts")


# ---- reward model --------------------------------------------------------------------------------


BASE_HINT = "run python gpt.py first, or choose --base_weight 0"


def learns_on(cfg):
    """Whether the reward model starts from that of the round before, and not from the SFT model."""
    return cfg.round > 1 and not cfg.init  # LOG: later rounds learn on


def for_reward(cfg, run):
    """The SFT model, from which reward.py starts -> (model, tokenizer).

    The file that `reward_model` will read must be there, and fit, before thousands of answers are
    sampled.
    """
    model, tokenizer, _ = read(run, "SFT model", cfg.init or run.earlier("sft"), hint=hint("sft"))
    if learns_on(cfg):
        note(run, "reward model", run.earlier("reward", cfg.round - 1), gpt.ScalarGPT,
             hint("reward", cfg.round - 1))
    elif cfg.base_weight:
        note(run, "pretrained model", run.earlier("gpt"), hint=BASE_HINT)
    return model, tokenizer


def responders(cfg, run, sft_model, tokenizer):
    """The models whose answers are ranked, the one that PPO trains first -> list."""
    if not cfg.policy and cfg.round == 1:
        return [sft_model]
    path = cfg.policy or run.earlier("ppo", cfg.round - 1)
    remedy = "check --policy" if cfg.policy else hint("ppo", cfg.round - 1)
    policy, other, _ = read(run, "policy", path, hint=remedy, by_hand=bool(cfg.policy))
    same_tokenizer(other, tokenizer, path, cfg.init or run.earlier("sft"),
                   "give --init the SFT model it comes from")
    # After PPO a policy is almost deterministic: its four answers are often identical, and ranking
    # identical answers teaches nothing (LOG: half of the answers are the SFT model's).
    return [policy] if cfg.round == 1 else [policy, sft_model]


def earlier_rankings(cfg, run, wanted):
    """So many rankings of the rounds before this one, drawn from all."""
    found = []
    for n in range(1, cfg.round):
        path = run.earlier("reward", n).with_name("comparisons.jsonl")
        if not path.exists():
            raise UserError(f"{path} not found: its round learned from --data; name the rankings "
                            "of all rounds with --data")
        found += records.read_comparisons(path)
        run.lineage.read(f"{path.parent.name}/{path.name}", path.read_bytes(), path)
    return random.Random(cfg.seed).sample(found, min(wanted, len(found)))


def preferring(cfg, run, comparisons):
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
                "text to another" + (": left out" if useful else ": there is nothing to learn"))
    return useful or comparisons


# ---- PPO -----------------------------------------------------------------------------------------


def ppo_models(cfg, run):
    """The four models of PPO -> (policy, reference, reward, value, tokenizer).

    The policy starts as the SFT model, in later rounds as the policy of the round before; the
    reference is the SFT model; the value model starts as the reward model's trunk with a new head.
    """
    sft_path = cfg.init or run.earlier("sft")
    reward_path = cfg.reward or run.earlier("reward", cfg.round)
    policy_path, before = sft_path, hint("sft")
    if cfg.round > 1:
        policy_path, before = run.earlier("ppo", cfg.round - 1), hint("ppo", cfg.round - 1)
    reference, tokenizer, _ = read(run, "reference", sft_path, hint=hint("sft"))
    policy, other, _ = read(run, "policy", policy_path, hint=before)
    same_tokenizer(other, tokenizer, policy_path, sft_path, before)
    models, _ = reward_models(reward_path, tokenizer, run.device, policy.config.block_size,
                              hint("reward", cfg.round), run, by_hand=bool(cfg.reward))
    reward, = models
    reference.requires_grad_(False)
    reward.requires_grad_(False)
    return policy, reference, reward, tokenizer


def pretraining_text(cfg, run, tokenizer, block_size):
    """For --ptx: the pretraining text as a 1-D tensor of ids; None without --ptx."""
    if not cfg.ptx:
        return None
    path = Path(cfg.ptx_text or run.earlier("gpt").with_name("text.txt"))
    if not path.exists():
        raise UserError(f"{path} not found: name the pretraining text with --ptx_text")
    documents = records.read_text(path)
    if cfg.ptx_text:
        run.lineage.made(f"{run.stage}/ptx_text", "\n\n".join(documents))
    else:
        run.lineage.read("gpt/text.txt", "\n\n".join(documents), path)
    text = gpt.one_stream(documents, tokenizer, run.device)
    if len(text) <= block_size:
        raise UserError(f"{path} has {len(text)} tokens, the context {block_size}: --ptx needs "
                        "more text")
    return text


def ppo_prompts(cfg, run, policy, tokenizer):
    """Prompts to practise on, and held-out ones, that leave room for an answer."""
    if cfg.data:
        prompts, test = records.split(records.read_prompts(cfg.data))
        run.say(f"{len(prompts):,} prompts, and {len(test):,} held out, of which the final figures "
                f"are of {min(len(test), cfg.test_prompts):,}")
        test = test[:cfg.test_prompts]
    else:
        seed = f"ppo {cfg.seed}" + (f" {cfg.round}" if cfg.round > 1 else "")
        prompts = almanac.prompts("train", cfg.prompts, seed)
        test = almanac.prompts("test", cfg.test_prompts, cfg.seed)
    run.lineage.made(f"{run.stage}/prompts", records.to_jsonl(prompts))
    run.lineage.made(f"{run.stage}/held_out", records.to_jsonl(test))
    given, context, held_out = len(prompts) + len(test), policy.config.block_size, test
    prompts = sampling.with_room(policy, tokenizer, prompts, cfg.max_new_tokens)
    test = sampling.with_room(policy, tokenizer, test, cfg.max_new_tokens)
    if left_out := given - len(prompts) - len(test):
        run.say(f"{left_out} of {given} prompts leave no room for {cfg.max_new_tokens} tokens in "
                f"the context of {context}: left out")
    if prompts and not test:
        run.say(f"{nothing_is_held_out(held_out)}; the models are compared on prompts they have "
                "practised on")
        test = prompts[:cfg.test_prompts]
    if not prompts:
        raise UserError(f"{cfg.data or 'the almanac'}: no prompt leaves room for "
                        f"{cfg.max_new_tokens} tokens in the context of {context}: lower "
                        "--max_new_tokens")
    if cfg.minibatches > len(prompts) % cfg.batch > 0:  # the last batch is too small to be divided
        prompts = prompts[:-(len(prompts) % cfg.batch)] or prompts
    if cfg.minibatches > len(prompts):
        raise UserError(f"{cfg.data or 'the almanac'} holds {len(prompts)} prompts to practise on: "
                        f"too few for --minibatches {cfg.minibatches}")
    return prompts, test


def compared_models(cfg, run, policy, reference, tokenizer):
    """The models that ppo.py compares at its end -> ({name: GPT}, held-out text as ids or None).

    The pretrained model is among them in the first round, if it is there and fits the others.
    """
    models, text, path = {"sft": reference, "ppo": policy}, None, run.earlier("gpt")
    if path.exists():
        base, other, about = gpt.load(path, gpt.GPT, run.device)
        fits = not (cfg.init or cfg.reward) or run.lineage.fits("gpt", base.state_dict())
        if fits and other == tokenizer and base.config.block_size >= policy.config.block_size:
            run.lineage.parent("pretrained model", path, about, base.state_dict())
            run.say(f"pretrained model, for comparison, from {path}")
            if cfg.round == 1:  # later rounds need not judge it again
                models = {"base": base, **models}
            held_out = path.with_name("held_out.txt")
            if held_out.exists() and held_out.stat().st_size:
                text = gpt.one_stream(records.read_text(held_out), tokenizer, run.device)
    return models, text


def rounds_before(cfg, run):
    """The figures of all rounds before this one, or None if none were kept."""
    path = run.earlier("ppo", cfg.round - 1).with_name("results.json")
    if cfg.round == 1 or not path.exists():
        return None
    if not isinstance(rounds := read_json(path).get("rounds"), list):
        raise UserError(f"{path} has no figures of the rounds: run its stage again")
    return rounds


# ---- commands ------------------------------------------------------------------------------------


def export(model, tokenizer, folder):
    """Write a model and its tokenizer as transformers reads them (data/files/gpt2.py)."""
    scalar = isinstance(model, gpt.ScalarGPT)
    gpt2.export(model.state_dict(), model.config, tokenizer, scalar, folder)


def export_checkpoint(cfg):
    """`python gpt.py --export DIR --ckpt PATH`. cfg: gpt.Config."""
    setup(cfg)
    path = cfg.ckpt or newest_policy(cfg.out, "--ckpt")
    model, tokenizer, _ = gpt.load(path, gpt.nn.Module, hint="name a checkpoint with --ckpt")
    export(model, tokenizer, cfg.export)
    scalar = isinstance(model, gpt.ScalarGPT)
    name = "AutoModelForSequenceClassification" if scalar else "AutoModelForCausalLM"
    print(f"{path} is now in {cfg.export}, for transformers' {name} and AutoTokenizer")


def policy(cfg, flag, path):
    """The policy for a command -> (path, model, tokenizer); by default the newest in --out."""
    path = path or newest_policy(cfg.out, flag)
    remedy = f"name a policy's checkpoint with {flag}"
    model, tokenizer, _ = gpt.load(path, gpt.GPT, choose_device(cfg.device), remedy)
    return path, model, tokenizer
