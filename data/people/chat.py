"""The conversation at the terminal, `python gpt.py --chat`.

It remembers turns, and forgets the oldest when the context is full.
"""

import codecs
import contextlib
import functools
from dataclasses import dataclass

import torch

import gpt
from data import sampling, start
from data.people import feedback, inside
from data.run.cli import Program, flag
from data.run.device import setup
from data.run.system import UserError, require_stdin


@dataclass
class Config(Program):
    """The flags of the chat."""

    ckpt: str = flag("", "the checkpoint (default: the one in --out that was written last, reward "
                         "models aside)", group="chat")
    temperature: float = flag(0.7, "0 is greedy, 1 samples as the model was trained", least=0)
    max_new_tokens: int = flag(40, "the longest answer", least=1)


HELP = """/reset forgets what was said; Ctrl-D leaves.
/good, 好的   it is good   /bad, 不太好   it is not, try again   /better <text>   use this
/score  how the last answer is scored, and why   /tokens   what the models say of each token"""
CHINESE = {"好的": "/good", "不太好": "/bad"}  # how people say it, also with a full stop


def fit(turns, size, room):
    """Drop the oldest turns until size(turns) <= room -> (turns, how many were dropped).

    A turn is a question and its answer. The last message always stays.
    """
    dropped = 0
    while size(turns) > room and len(turns) > 1:
        turns, dropped = turns[2:], dropped + 1
    return turns, dropped


def verdict(line, turns):
    """What /good, /bad and /better say of the last answer -> a record for data/files/records.py.

    None if the line is none of them.
    """
    command, _, text = line.partition(" ")
    known = command in ("/good", "/bad", "/better")
    if not known or not turns or bool(text.strip()) != (command == "/better"):
        return None
    prompt, said = turns[:-1], turns[-1]["content"]
    if not said.strip() and command != "/better":
        return None  # nothing was said
    if command != "/better":
        return dict(prompt=prompt, response=said, verdict=command[1:])
    return dict(prompt=prompt, response=text.strip(), responses=[text.strip(), said], ranks=[1, 2])


def talk(reply, size, room, note, look):
    """Talk until Ctrl-D or Ctrl-C.

    reply(turns) yields the pieces of an answer; size(turns) is the tokens of a conversation, of
    which `room` fit beside an answer; note(record) keeps what is said of an answer; look(command,
    turns) explains the last one. turns: [{"role", "content"}, ...].
    """
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  from now on input() knows arrow keys and earlier lines
    turns = []
    try:
        while True:
            line = input("> ").strip()
            line = CHINESE.get(line.rstrip("。！!."), line) if turns else line
            if said := verdict(line, turns):
                note(said)
                print("(noted)")
                if line == "/bad":
                    turns = _reply_to(reply, turns[:-1])
                elif line != "/good":
                    turns[-1] = {"role": "assistant", "content": said["response"]}
            elif line in ("/score", "/tokens") and turns:
                try:
                    print(look(line, turns))
                except UserError as error:
                    print(f"({error})")
            elif line == "/reset":
                turns = []
                print("(I have forgotten what we said.)")
            elif line.startswith("/"):
                print(HELP)
            elif line:
                question = {"role": "user", "content": line}
                if size([question]) > room:
                    print(f"({size([question])} tokens, and I can read {room}: use fewer words)")
                    continue
                turns, dropped = fit(turns + [question], size, room)
                if dropped:
                    print(f"(the context is full: I forget our oldest "
                          f"{'turn' if dropped == 1 else f'{dropped} turns'})")
                turns = _reply_to(reply, turns)
    except (EOFError, KeyboardInterrupt):
        print("\nGoodbye.")


def _reply_to(reply, turns):
    """Print an answer as it comes -> the conversation with it."""
    answer = ""
    for piece in reply(turns):
        print(piece, end="", flush=True)
        answer += piece
    print()
    return turns + [{"role": "assistant", "content": answer}]


def reply(model, tokenizer, turns, max_new_tokens, temperature, ids=None):
    """Answer a conversation: yields pieces of text as they are sampled, one per token.

    A character of several tokens comes whole, with the last. ids: a list for the answer's tokens.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    idx, lengths = gpt.pad([tokenizer.render(turns)], tokenizer.pad,
                           next(model.parameters()).device)
    for _, token in sampling.stream(model, idx, lengths, max_new_tokens, temperature):
        if token == tokenizer.pad:  # the answer has ended
            break
        if ids is not None:
            ids += token.tolist()
        yield decoder.decode(tokenizer.decode_bytes(token.tolist()))
    yield decoder.decode(b"", final=True)


def explain(command, models, name, turns, ids, temperature):
    """What /score and /tokens say of the last answer, as text. ids: its tokens."""
    prompt, tokenizer = turns[:-1], models.tokenizer
    if tokenizer.decode(ids) != turns[-1]["content"]:  # /better has put another one in its place
        ids = [*tokenizer.encode(turns[-1]["content"]), tokenizer.end]
    if command == "/score":
        said = inside.verdict(models, name, prompt, ids)
        if said["score"] is not None:
            lines = [f"score {said['score']:+.2f} by {said['reward']}"]
        else:
            lines = ["there is no reward model" if not said["reward"] else "an empty answer has no "
                     "score"]
        if "gold" in said:
            lines.append("labeler: gold {gold:+.2f}, helpful {helpful:+.2f}, truthful "
                         "{truthful:+.2f}, harmless {harmless:+.2f}".format(**said))
            lines += said["reasons"]
        return "\n".join(lines)
    rows = [f"{'token':>16} {'p':>6} {'log p/p_ref':>12} {'value':>6} {'advantage':>10}  likeliest"]
    for token in inside.tokens(models, name, prompt, ids, temperature):
        numbers = ["-" if token[key] is None else f"{token[key]:{form}}" for key, form in
                   (("p", ".3f"), ("kl", "+.2f"), ("value", "+.2f"), ("advantage", "+.2f"))]
        top = ", ".join(f"{text!r} {p:.0%}" for text, p in token["top"][name])
        form = "{:>16} {:>6} {:>12} {:>6} {:>10}  {}"
        rows.append(form.format(repr(token["text"]), *numbers, top))
    return "\n".join(rows)


def run(cfg):
    """`python gpt.py --chat`: talk to a checkpoint, by default the newest policy in --out."""
    device = setup(cfg)
    require_stdin()
    path, model, tokenizer = start.policy(cfg.out, cfg.ckpt, "--ckpt", device)
    room = model.config.block_size - cfg.max_new_tokens
    if room < 1:
        raise UserError(f"--max_new_tokens must be at most {model.config.block_size - 1}, the "
                        f"context of {path} less one")
    torch.manual_seed(cfg.seed)
    book = feedback.LabelFile(cfg.out, checkpoint=str(path))
    print(f"Talking to {path}. A model of the embedded world knows capitals and continents, "
          "animals and their sounds, food and legs, small talk and kind advice.\n"
          f"{HELP}\nWhat you say of its answers goes to {book.path}.")
    ids = []

    def answer(turns):
        ids.clear()
        return reply(model, tokenizer, turns, cfg.max_new_tokens, cfg.temperature, ids)

    @functools.cache
    def models():
        return inside.gather(cfg.out, str(path), device)

    def look(command, turns):
        name, = models().policies
        return explain(command, models(), name, turns, ids, cfg.temperature or 1.0)

    talk(answer, lambda turns: len(tokenizer.render(turns)), room, book.add, look)
