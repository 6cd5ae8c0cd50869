"""GPT-2's published files in, files that transformers opens out: plain tensors, no class of model.

    python sft.py --init DIR                    DIR: config.json, model.safetensors or
                                                pytorch_model.bin, and vocab.json, or OpenAI's
                                                encoder.json
    python sft.py --init gpt2                   the same from the Hugging Face hub: gpt2,
                                                gpt2-medium, gpt2-large, gpt2-xl
    python gpt.py --export DIR --ckpt PATH      a policy or a reward model, for transformers' Auto
                                                classes

safetensors is read and written by hand: a length, a JSON header, and the raw numbers, which is
shorter than a dependency. GPT-2's Conv1D layers hold their matrices as (in, out), torch's Linear
as (out, in).
"""

import json
import struct
from pathlib import Path

import torch
from torch.hub import download_url_to_file, get_dir

from data.run.checkpoint import (BROKEN, honest, load, make_folder, parse_json, reason, regular,
                                 write)
from data.run.cli import UserError
from data.tokenizer import SPECIALS, Tokenizer

NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
HUB = "https://huggingface.co/openai-community/{}/resolve/main/{}"
# Our name of each part, and GPT-2's.
PARTS = [("blocks.", "h."), ("mlp.0.", "mlp.c_fc."), ("mlp.2.", "mlp.c_proj.")]
CHAT_TEMPLATE = ("{% for message in messages %}"
                 "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
                 "{% else %}<|assistant|>{{ message['content'] }}<|end|>{% endif %}{% endfor %}"
                 "{% if messages[-1]['role'] == 'user' %}<|assistant|>{% endif %}")


def their_name(name):
    for ours, theirs in PARTS:
        name = name.replace(ours, theirs)
    return name


def is_conv1d(name):
    return name.startswith("blocks.") and name.endswith("weight") and ".ln_" not in name


# ---- safetensors ---------------------------------------------------------------------------------

LONGEST_HEADER = 10_000_000  # bytes
TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_safetensors(path):
    """{name: tensor}; ValueError if the file is cut or no safetensors."""
    regular(path)
    content = bytearray(Path(path).read_bytes())
    if len(content) < 8 or (start := 8 + struct.unpack("<Q", content[:8])[0]) > len(content):
        raise ValueError("its header is cut")
    if start > LONGEST_HEADER:
        raise ValueError("its header is larger than any model's")
    tensors = {}
    for name, about in json.loads(content[8:start]).items():
        if name == "__metadata__" or about["dtype"] not in TYPES:
            continue  # masks of old GPT-2 files are U8
        dtype, (low, high) = TYPES[about["dtype"]], about["data_offsets"]
        if start + high > len(content):
            raise ValueError(f"{name} is cut")
        tensors[name] = torch.frombuffer(content, dtype=dtype, count=(high - low) // dtype.itemsize,
                                         offset=start + low).view(about["shape"])
    return tensors


def write_safetensors(path, tensors):
    """Write {name: float32 tensor}."""
    header, parts, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name, tensor in tensors.items():
        parts.append(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        header[name] = dict(dtype="F32", shape=list(tensor.shape),
                            data_offsets=[at, at := at + len(parts[-1])])
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # the numbers begin at a multiple of 8
    write(path, struct.pack("<Q", len(head)) + head + b"".join(parts))


# What GPT-2's configuration may say, as this code has nothing else.
KNOWN = dict(activation_function=("gelu_new", "gelu_pytorch_tanh"), layer_norm_epsilon=(1e-5,),
             tie_word_embeddings=(True,), scale_attn_weights=(True,),
             scale_attn_by_inverse_layer_idx=(False,), add_cross_attention=(False,))


def holds(path):
    """Whether a path is for `read`, and not a checkpoint of ours."""
    return str(path) in NAMES or Path(path).is_dir()


# ---- in ------------------------------------------------------------------------------------------


def download(name):
    """A GPT-2 of the hub -> the folder in torch's cache that now holds it."""
    folder = Path(get_dir()) / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "vocab.json", "model.safetensors"):
        if not (folder / file).exists():
            try:
                download_url_to_file(HUB.format(name, file), str(folder / file))
            except OSError as error:  # no network, no such host, a refused connection
                raise UserError(f"{name} cannot be downloaded "
                                f"({getattr(error, 'reason', error)}): get "
                                f"{HUB.format(name, file)} and the files beside it by "
                                "other means, put them in a folder, and name that") from None
    return folder


def read_ranks(folder):
    """The vocabulary of a folder -> {token bytes: id}, without our special tokens."""
    found = [folder / file for file in ("tokenizer.json", "vocab.json", "encoder.json")
             if (folder / file).exists()]
    if not found:
        raise UserError(f"{folder} holds no vocab.json or encoder.json: put GPT-2's there")
    vocab = parse_json(found[0])
    vocab = vocab["model"]["vocab"] if found[0].name == "tokenizer.json" else vocab
    # GPT-2 writes bytes as letters: those that can be printed as themselves, the others as the
    # letters from 256 on.
    letters = {letter: byte for byte, letter in enumerate(byte_letters())}
    ranks = {bytes(letters.get(c, 0) for c in token): i
             for token, i in sorted(vocab.items(), key=lambda x: x[1]) if token not in SPECIALS}
    if list(ranks.values()) != list(range(len(ranks))):
        raise UserError(f"{found[0]} does not number its {len(vocab)} tokens from 0 on: it is not "
                        "GPT-2's vocabulary")
    return ranks


def byte_letters():
    """The 256 letters in which GPT-2's vocabulary writes bytes (Radford et al. 2019, their code).
    """
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printed else next(others)) for byte in range(256)]


def read(where):
    """A folder of GPT-2's files, or the name of one on the hub -> dict as checkpoint.unpack gives.

    Special tokens that the vocabulary lacks are appended. Their embeddings are the mean of all
    others: small random numbers would give them logits near 0, where GPT-2's are about -33, and
    the untrained model would say nothing but special tokens (Hewitt 2021).
    """
    folder = Path(where) if Path(where).is_dir() else download(str(where))
    about, ranks, state, weights = _read_folder(folder)
    tokenizer = Tokenizer(ranks)
    if about["vocab_size"] not in (len(ranks), tokenizer.vocab_size):
        raise UserError(f"{folder}: the vocabulary has {len(ranks)} tokens, the model "
                        f"{about['vocab_size']}: they do not belong together")
    missing = tokenizer.vocab_size - about["vocab_size"]
    config = dict(vocab_size=tokenizer.vocab_size, block_size=about.get("n_positions", 1024),
                  n_layer=about["n_layer"], n_head=about["n_head"], n_embd=about["n_embd"])
    ours = {}
    for name, shape in shapes(config).items():
        tensor = state.get(their_name(name))
        if tensor is not None and is_conv1d(name):
            tensor = tensor.t()
        if tensor is not None and name == "wte.weight" and missing:
            tensor = torch.cat([tensor, tensor.mean(0, keepdim=True).expand(missing, -1)])
        if tensor is None or tensor.shape != shape:
            found = "missing" if tensor is None else tuple(tensor.shape)
            raise UserError(f"{weights}: {their_name(name)} is {found}, config.json wants {shape}: "
                            "they do not belong together")
        ours[name] = tensor.contiguous().float()
    kind = "GPT"
    if "score.weight" in state:
        kind, ours = "ScalarGPT", _unfold(ours, state["score.weight"].float(), about.get("bias"))
    return dict(kind=kind, config=config, tokenizer=tokenizer.to_list(), about={}, state=ours)


def _read_folder(folder):
    """config.json, vocabulary and weights of a folder -> (dict, ranks, {name: tensor}, path)."""
    if not (folder / "config.json").exists():
        raise UserError(f"{folder / 'config.json'} not found: {folder} must hold the files that "
                        "GPT-2 is published in")
    files = [folder / file for file in ("model.safetensors", "pytorch_model.bin")]
    weights = next((file for file in files if file.exists()), None)
    if weights is None:
        raise UserError(f"{folder} holds neither model.safetensors nor pytorch_model.bin: download "
                        "one of them")
    try:
        about = parse_json(folder / "config.json")
        ranks = read_ranks(folder)
        if weights.suffix == ".safetensors":
            state = read_safetensors(weights)
        else:
            state = load(weights, "cpu")
        for name in ("vocab_size", "n_layer", "n_head", "n_embd"):
            about[name] = int(about[name])
        if about["n_layer"] > len(state):
            raise ValueError(f"it claims {about['n_layer']} blocks")
        honest(state)
    except BROKEN as error:
        raise UserError(f"{folder} cannot be read ({reason(error)}): download it again") from None
    if about.get("model_type", "gpt2") != "gpt2":
        raise UserError(f"{folder} holds a model of type {about['model_type']}: this code reads "
                        "GPT-2")
    for name, ours in KNOWN.items():
        if about.get(name) not in (None, *ours):
            raise UserError(f"{folder / 'config.json'}: {name} is {about[name]}, and this code has "
                            f"{ours[0]}: choose another model")
    state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    return about, ranks, state, weights


def shapes(config):
    """{our name: shape} of all parameters of a GPT of this config (a dict)."""
    C = config["n_embd"]
    found = {"wte.weight": (config["vocab_size"], C), "wpe.weight": (config["block_size"], C)}
    for layer in range(config["n_layer"]):
        for name, rows, columns in (("attn.c_attn", 3 * C, C), ("attn.c_proj", C, C),
                                    ("mlp.0", 4 * C, C), ("mlp.2", C, 4 * C)):
            found[f"blocks.{layer}.{name}.weight"] = (rows, columns)
            found[f"blocks.{layer}.{name}.bias"] = (rows,)
        for name in ("ln_1", "ln_2"):
            found[f"blocks.{layer}.{name}.weight"] = found[f"blocks.{layer}.{name}.bias"] = (C,)
    return {**found, "ln_f.weight": (C,), "ln_f.bias": (C,)}


def _unfold(trunk, w, before):
    """A reward model's state from its exported trunk and head; `before`: the biases of `export`."""
    bias = torch.zeros(1)
    if before:
        ln_f, score = torch.tensor(before["ln_f"]), torch.tensor([before["score"]])
        if torch.equal(folded(ln_f, w, score), trunk["ln_f.bias"]):  # not trained further since
            trunk["ln_f.bias"], bias = ln_f, score
    head = {"head.weight": w, "head.bias": bias}
    return {f"trunk.{name}": tensor for name, tensor in trunk.items()} | head


# ---- out -----------------------------------------------------------------------------------------


def folded(ln_f, w, b):
    """The bias of the last LayerNorm, with the head's bias b folded in along its weight w (1, C).
    """
    return ln_f + b * w[0] / w.square().sum()


def export(state, config, tokenizer, scalar, folder):
    """Write config.json, model.safetensors and the tokenizer, as transformers' GPT-2 reads them.

    state: {our name: tensor}; config: a GPTConfig; scalar: whether it is a reward model. Its reward
    models have no bias at the head. Ours goes into the bias of the last LayerNorm, along the head's
    weight w: w (x + b w / |w|^2) = w x + b. The original biases are kept in config.json, so that
    `read` gives back the same bits.
    """
    folder = make_folder(folder)
    state = {name.removeprefix("trunk."): tensor for name, tensor in state.items()}
    head = {name: state.pop(name) for name in ("head.weight", "head.bias") if name in state}
    architecture = "GPT2ForSequenceClassification" if scalar else "GPT2LMHeadModel"
    about = dict(model_type="gpt2", architectures=[architecture], vocab_size=config.vocab_size,
                 n_positions=config.block_size, n_layer=config.n_layer, n_head=config.n_head,
                 n_embd=config.n_embd, activation_function="gelu_new", layer_norm_epsilon=1e-5,
                 attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=config.end,
                 eos_token_id=config.end, pad_token_id=config.pad, tie_word_embeddings=True)
    tensors = {f"transformer.{their_name(name)}": tensor.t() if is_conv1d(name) else tensor
               for name, tensor in state.items()}
    if scalar:
        w, b = head["head.weight"], head["head.bias"]
        about |= dict(num_labels=1, bias=dict(ln_f=state["ln_f.bias"].tolist(), score=b.item()))
        tensors |= {"transformer.ln_f.bias": folded(state["ln_f.bias"], w, b), "score.weight": w}
    write_safetensors(folder / "model.safetensors", tensors)
    write(folder / "config.json", json.dumps(about, indent=1))
    write_tokenizer(folder, tokenizer, config.block_size)


def write_tokenizer(folder, tokenizer, block_size):
    """tokenizer.json and tokenizer_config.json, with a chat template equal to Tokenizer.render.

    tiktoken joins any two neighbours that make a token, the one of the lowest rank first;
    `tokenizers` wants the pairs listed.
    """
    letters, ranks = byte_letters(), tokenizer.ranks
    written = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = []
    for token in ranks:
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += [[written[a], written[b]] for a, b in pairs if a in ranks and b in ranks]
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=False, use_regex=True)
    added = [dict(id=len(ranks) + i, content=name, single_word=False, lstrip=False, rstrip=False,
                  normalized=False, special=True) for i, name in enumerate(SPECIALS)]
    model = dict(type="BPE", vocab={written[token]: i for token, i in ranks.items()}, merges=merges)
    whole = dict(version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=None,
                 pre_tokenizer=level, post_processor=None, decoder=level, model=model)
    about = dict(tokenizer_class="PreTrainedTokenizerFast", model_max_length=block_size,
                 clean_up_tokenization_spaces=False, eos_token="<|end|>", pad_token="<|pad|>",
                 chat_template=CHAT_TEMPLATE)
    write(folder / "tokenizer.json", json.dumps(whole, ensure_ascii=False))
    write(folder / "tokenizer_config.json", json.dumps(about, indent=1))
