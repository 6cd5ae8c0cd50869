"""GPT-2's published files in, files that transformers opens out: plain tensors, no class of model.

    python sft.py --init DIR                    DIR: config.json, model.safetensors or
                                                pytorch_model.bin, also in shards, and
                                                tokenizer.json or vocab.json, or OpenAI's
                                                encoder.json
    python sft.py --init gpt2                   the same from the Hugging Face hub: gpt2,
                                                gpt2-medium, gpt2-large, gpt2-xl
    python gpt.py --export DIR --ckpt PATH      a policy or a reward model, for transformers

safetensors is read and written by hand: a length, a JSON header, and the raw numbers, which is
shorter than a dependency. GPT-2's Conv1D layers hold their matrices as (in, out), torch's Linear
as (out, in). `--init ckpt.pt` reads a checkpoint of nanoGPT, too.
"""

import json
import re
import struct
from pathlib import Path

import torch
from torch.hub import download_url_to_file, get_dir

from data.run.disk import (claim_no_more_than_they_hold, load, make_folder, read_json, reading,
                           regular, write)
from data.run.system import UserError
from data.tokenizer import SPECIALS, Tokenizer

NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
HUB = "https://huggingface.co/openai-community/{}/resolve/main/{}"
# Our name of each part, and GPT-2's; no other tensor of its files is a parameter.
PARTS = [("blocks.", "h."), ("mlp.0.", "mlp.c_fc."), ("mlp.2.", "mlp.c_proj.")]
PARAMETER = re.compile(r"(wte|wpe)\.weight|(ln_f|h\.\d+\.(ln_1|ln_2|attn\.c_attn|attn\.c_proj"
                       r"|mlp\.c_fc|mlp\.c_proj))\.(weight|bias)")
# As Tokenizer.render and data/files/foreign.py have it: what the system says after a user's message
# ends it, elsewhere it begins the next one. In the format of `tokenizers` a typed "<|end|>" would
# be the token: the template writes "<| end|>" in its place.
CHAT_TEMPLATE = """\
{%- macro plain(text) -%}
  {{- text PLAIN -}}
{%- endmacro -%}
{%- macro alone(system) -%}
  {%- if system -%}{{- '<|user|>' + plain(system[:-2]) -}}{%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(system='', before='') -%}
{%- for message in messages -%}
  {%- if message['role'] == 'system' and not message['content'] | trim -%}
  {%- elif message['role'] == 'system' and ns.before == 'user' -%}
    {{- '\\n\\n' + plain(message['content']) -}}
  {%- elif message['role'] == 'system' -%}
    {%- set ns.system = ns.system + message['content'] + '\\n\\n' -%}
  {%- elif message['role'] == 'user' -%}
    {{- '<|user|>' + plain(ns.system + message['content']) -}}
    {%- set ns.system = '' -%}
  {%- elif message['role'] == 'assistant' -%}
    {{- alone(ns.system) + '<|assistant|>' + plain(message['content']) + '<|end|>' -}}
    {%- set ns.system = '' -%}
  {%- else -%}
    {{- raise_exception('a message is of the system, the user or the assistant') -}}
  {%- endif -%}
  {%- if message['role'] != 'system' -%}{%- set ns.before = message['role'] -%}{%- endif -%}
{%- endfor -%}
{{- alone(ns.system) -}}
{%- if ns.before == 'user' or ns.system -%}{{- '<|assistant|>' -}}{%- endif -%}
""".replace("PLAIN", " ".join(f"| replace('{mark}', '{mark[:2]} {mark[2:]}')" for mark in SPECIALS))


def renamed(name, parts):
    for old, new in parts:
        name = name.replace(old, new)
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
KNOWN = dict(model_type=("gpt2",), activation_function=("gelu_new", "gelu_pytorch_tanh"),
             layer_norm_epsilon=(1e-5,), tie_word_embeddings=(True,), scale_attn_weights=(True,),
             scale_attn_by_inverse_layer_idx=(False,), add_cross_attention=(False,))


def is_gpt2(path):
    """True if a path is for `read`, and not a checkpoint of ours."""
    return str(path) in NAMES or Path(path).is_dir()


# ---- in ------------------------------------------------------------------------------------------


def download(name, files=("config.json", "vocab.json", "model.safetensors")):
    """A GPT-2 of the hub -> the folder in torch's cache that now holds these files of it."""
    folder = Path(get_dir()) / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        if not (folder / file).exists():
            try:
                download_url_to_file(HUB.format(name, file), str(folder / file))
            except OSError as error:  # no network, no such host, a refused connection
                raise UserError(f"{name} cannot be downloaded "
                                f"({getattr(error, 'reason', error)}): get "
                                f"{HUB.format(name, file)} and the files beside it by "
                                "other means, put them in a folder, and name that") from None
    return folder


VOCABULARIES = ("tokenizer.json", "vocab.json", "encoder.json")


def read_ranks(folder):
    """The vocabulary of a folder -> ({token bytes: id} without our special tokens, how many of ours
    it has). Tokens that were added to GPT-2's, such as [PAD], are tokens as others."""
    path = next((folder / file for file in VOCABULARIES if (folder / file).exists()), None)
    if path is None:
        raise UserError(f"{folder} holds no vocab.json or encoder.json: put GPT-2's there")
    vocab, added = read_json(path), {}
    if path.name == "tokenizer.json":
        added = {token["content"]: token["id"] for token in vocab.get("added_tokens", [])}
        vocab = vocab["model"]["vocab"]
    if (folder / "added_tokens.json").exists():
        added |= read_json(folder / "added_tokens.json")
    # GPT-2 writes bytes as letters: those that can be printed as themselves, the others as the
    # letters from 256 on.
    letters = {letter: byte for byte, letter in enumerate(byte_letters())}
    tokens = {i: bytes(letters.get(c, 0) for c in token) for token, i in vocab.items()}
    tokens |= {i: token.encode() for token, i in added.items()}
    ours = [name.encode() for name in SPECIALS]
    marks = [i for name in ours for i, token in tokens.items() if token == name]
    ranks = {token: i for i, token in sorted(tokens.items()) if token not in ours}
    if marks not in ([], [len(ranks) + i for i in range(len(ours))]):
        raise UserError(f"{path} has some of {', '.join(SPECIALS)}, or has them elsewhere than at "
                        "its end: choose a model with none of them")
    if list(ranks.values()) != list(range(len(ranks))):
        raise UserError(f"{path} does not number its {len(tokens)} tokens from 0 on: it is not "
                        "GPT-2's vocabulary")
    return ranks, len(marks)


def byte_letters():
    """The 256 letters in which GPT-2's vocabulary writes bytes (Radford et al. 2019, code)."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printed else next(others)) for byte in range(256)]


def read(where):
    """A folder of GPT-2's files, or the name of one on the hub -> dict as disk.read_model gives."""
    folder = Path(where) if Path(where).is_dir() else download(str(where))
    with reading(folder, "download it again"):
        about = read_json(folder / "config.json", remedy="put GPT-2's published files there")
        return assemble(read_weights(folder), about, *read_ranks(folder), folder)


def read_weights(folder):
    """The tensors of a folder, in one file or in shards that an index lists -> {name: tensor}."""
    for name, reader in (("model.safetensors", read_safetensors), ("pytorch_model.bin", load)):
        index = folder / f"{name}.index.json"
        if (folder / name).exists():
            return reader(folder / name)
        if index.exists():
            shards = sorted({Path(file).name for file in read_json(index)["weight_map"].values()})
            return {name: x for file in shards for name, x in reader(folder / file).items()}
    raise UserError(f"{folder} holds neither model.safetensors nor pytorch_model.bin: download one")


def from_nanogpt(fields, path):
    """What torch.load read from a file; a checkpoint of nanoGPT -> as disk.read_model gives it.

    nanoGPT's linear layers are torch's, its biases optional. Its vocabulary, GPT-2's, is not in the
    file: it is looked for beside it, then on the hub.
    """
    if "model_args" not in fields:
        return fields
    about, folder = fields["model_args"], Path(path).parent
    if not any((folder / file).exists() for file in VOCABULARIES):
        if about.get("vocab_size", 50257) < 50257:
            raise UserError(f"{path} is nanoGPT's, of {about['vocab_size']} characters: only those "
                            "of GPT-2's vocabulary are read")
        folder = download("gpt2", ["vocab.json"])
    state = {name.removeprefix("_orig_mod."): tensor for name, tensor in fields["model"].items()}
    return assemble(state, about, *read_ranks(folder), path, conv1d=False)


def assemble(state, about, ranks, marks, where, conv1d=True):
    """Tensors by GPT-2's names, what config.json says, ranks -> dict as disk.read_model gives.

    marks: how many of our special tokens the vocabulary has. If none, they are appended. Their
    embeddings are the mean of all others: small random numbers would give them logits near 0, where
    GPT-2's are about -33, and the untrained model would say nothing but special tokens (Hewitt
    2021). Embeddings beyond the vocabulary, which only fill it up to a round number, are dropped.
    """
    theirs = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    claim_no_more_than_they_hold(theirs)
    for name, known in KNOWN.items():
        if about.get(name, known[0]) not in (None, *known):
            raise UserError(f"{where}: {name} is {about[name]}, and this code has {known[0]}: "
                            "choose another model")
    lacking = [name for name in ("n_layer", "n_head", "n_embd") if name not in about]
    lacking += [f"{name}.weight" for name in ("wte", "wpe") if f"{name}.weight" not in theirs]
    if lacking:
        raise UserError(f"{where} does not say {', '.join(lacking)}: it is not a whole GPT-2")
    ours = {}
    for name, tensor in theirs.items():
        if PARAMETER.fullmatch(name):
            name = renamed(name, [(new, old) for old, new in PARTS])
            ours[name] = (tensor.t() if conv1d and is_conv1d(name) else tensor).contiguous().float()
    for name in [name for name in ours if not name.startswith("w") and about.get("bias") is False]:
        ours.setdefault(name.replace("weight", "bias"), torch.zeros(len(ours[name])))
    tokenizer, wte, known = Tokenizer(ranks), ours["wte.weight"], len(ranks) + marks
    if len(wte) < known:
        raise UserError(f"{where}: the vocabulary has {known} tokens, the model {len(wte)}: they "
                        "do not belong together")
    mean = wte[:known].mean(0, keepdim=True)
    ours["wte.weight"] = torch.cat([wte[:known], mean.expand(tokenizer.vocab_size - known, -1)])
    sizes = {name: int(about[name]) for name in ("n_layer", "n_head", "n_embd")}
    config = dict(sizes, vocab_size=tokenizer.vocab_size, block_size=len(ours["wpe.weight"]))
    kind = "GPT"
    if "score.weight" in theirs:
        kind, ours = "ScalarGPT", _unfold(ours, theirs["score.weight"].float(), about.get("bias"))
    return dict(kind=kind, config=config, tokenizer=tokenizer.to_list(), about={}, state=ours)


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
    """The bias of the last LayerNorm, with the head's b folded in along its weight w (1, C)."""
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
    tensors = {f"transformer.{renamed(name, PARTS)}": tensor.t() if is_conv1d(name) else tensor
               for name, tensor in state.items()}
    if scalar:
        w, b = head["head.weight"], head["head.bias"]
        about |= dict(num_labels=1, bias=dict(ln_f=state["ln_f.bias"].tolist(), score=b.item()))
        tensors |= {"transformer.ln_f.bias": folded(state["ln_f.bias"], w, b), "score.weight": w}
    write_safetensors(folder / "model.safetensors", tensors)
    write(folder / "config.json", json.dumps(about, indent=1))
    if not scalar:
        sampling = dict(bos_token_id=config.end, eos_token_id=config.end, pad_token_id=config.pad,
                        suppress_tokens=[config.pad])  # <|pad|> is never sampled
        write(folder / "generation_config.json", json.dumps(sampling, indent=1))
    # Whoever generates in a batch must pad on the left; a reward model reads the last token.
    write_tokenizer(folder, tokenizer, config.block_size, "right" if scalar else "left")


def write_tokenizer(folder, tokenizer, block_size, padding_side):
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
                 padding_side=padding_side, chat_template=CHAT_TEMPLATE)
    write(folder / "tokenizer.json", json.dumps(whole, ensure_ascii=False))
    write(folder / "tokenizer_config.json", json.dumps(about, indent=1))
