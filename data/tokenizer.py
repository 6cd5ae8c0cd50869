"""Text to token ids and back: byte-level byte-pair encoding.

Sennrich et al. 2016; GPT-2, Radford et al. 2019. `train` learns the merges, and tiktoken encodes
and decodes with them. The four special tokens are the last ids of every vocabulary, so that a
model knows them by the vocabulary's size V:

    <|user|> V-4    <|assistant|> V-3    <|end|> V-2    <|pad|> V-1

A conversation is `<|user|>Hello!<|assistant|>Good day.<|end|><|user|>...`. What a user types is
always text: a typed "<|end|>" is seven characters, never the token.
"""

import heapq
import re
from collections import Counter, defaultdict

import regex
import tiktoken

SPECIALS = ("<|user|>", "<|assistant|>", "<|end|>", "<|pad|>")
# GPT-2's way of cutting text into words before merging; merges never cross a word.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# A run without spaces, or of nothing but spaces, is cut: it would cost minutes, or overflow
# tiktoken's stack.
LONGEST_WORD = 32     # characters, where merges are learned
MOST_WORDS = 100_000  # from which merges are learned, the most frequent ones
LONGEST_RUN = 2000    # characters, where text is encoded; GPT-2's longest tokens have 128
_ENDLESS = re.compile(rf"\S{{{LONGEST_RUN}}}(?=\S)|\s{{{LONGEST_RUN}}}(?=\s)")


def train(texts, vocab_size):
    """Learn byte-pair merges from an iterable of str.

    Returns {token bytes: rank} with at most vocab_size - 4 tokens, 256 of them the single bytes:
    merge the most frequent neighbouring pair, again and again; of equally frequent pairs, the
    smallest in byte order.
    """
    if (size := vocab_size - len(SPECIALS)) < 256:
        raise ValueError(f"vocab_size is {vocab_size}, at least {256 + len(SPECIALS)} are needed")
    words = (word for text in texts for word in regex.findall(PATTERN, text))
    counts = Counter(word[i:i + LONGEST_WORD] for word in words
                     for i in range(0, len(word), LONGEST_WORD))
    counted, often = zip(*counts.most_common(MOST_WORDS)) if counts else ((), ())
    words = [w.encode().decode("latin-1") for w in counted]  # a character per token, for str.split
    tokens = [bytes([b]) for b in range(256)]
    ranks = dict(zip(tokens, range(256)))
    pairs, places = defaultdict(int), defaultdict(set)  # how often, and in which words
    for i, word in enumerate(words):
        for left, right in zip(word, word[1:]):
            pairs[left + right] += often[i]
            places[left + right].add(i)

    def in_line(pair):  # the most frequent pair comes first
        return -pairs[pair], *(tokens[ord(part)] for part in pair), pair

    heapq.heapify(heap := [in_line(pair) for pair in pairs])  # its counts may be out of date
    while len(ranks) < size and heap:
        order, left, right, pair = heapq.heappop(heap)
        if order == 0 or -order != pairs[pair]:
            continue
        if left + right not in ranks:
            ranks[left + right] = len(tokens)
            tokens.append(left + right)
        changed = set()
        for i in places.pop(pair):
            words[i], gone, new = merge(words[i], pair, chr(ranks[left + right]))
            for other in gone:
                pairs[other] -= often[i]
            for other in new:
                pairs[other] += often[i]
                places[other].add(i)
            changed.update(gone, new)
        for other in changed:
            heapq.heappush(heap, in_line(other))
    return ranks


def merge(word, pair, token):
    """Write a token in the place of a pair -> (the word, the pairs that are gone, the new ones).

    Example: merge("xaby", "ab", "T") -> ("xTy", ["ab", "xa", "by"], ["xT", "Ty"])
    """
    (first, last), parts, gone, new = pair, word.split(pair), [], []
    before = after = parts[0][-1:]  # the token on the left, before and after the merge
    for part in parts[1:]:
        gone.append(pair)
        if before:
            gone.append(before + first)
            new.append(after + token)
        if part:
            gone.append(last + part[0])
            new.append(token + part[0])
        before, after = (part[-1], part[-1]) if part else (last, token)
    return token.join(parts), gone, new


class Tokenizer:
    """A tiktoken.Encoding and the chat format. `ranks`: {token bytes: rank}, as `train` returns."""

    def __init__(self, ranks):
        self.ranks = ranks
        specials = {name: len(ranks) + i for i, name in enumerate(SPECIALS)}
        self.user, self.assistant, self.end, self.pad = specials.values()
        self.vocab_size = len(ranks) + len(SPECIALS)
        self.encoding = tiktoken.Encoding("gpt", pat_str=PATTERN, mergeable_ranks=ranks,
                                          special_tokens=specials)

    def __eq__(self, other):
        return isinstance(other, Tokenizer) and self.ranks == other.ranks

    def encode(self, text):
        """Ids of a text; special tokens in it are plain characters."""
        ids, start = [], 0
        for end in [*(cut.end() for cut in _ENDLESS.finditer(text)), len(text)]:
            ids += self.encoding.encode_ordinary(text[start:end])
            start = end
        return ids

    def decode_bytes(self, ids):
        """The bytes of ids; special tokens stand for no text."""
        return self.encoding.decode_bytes([i for i in ids if i < len(self.ranks)])

    def decode(self, ids):
        """The text of ids; bytes that are not UTF-8 become the replacement character."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def render(self, messages):
        """Ids of a conversation: [{"role": "user" | "assistant", "content": str}, ...].

        After a user's message the ids end with <|assistant|>, so that the next token is the
        answer's first; an answer is closed by <|end|>.
        """
        ids = []
        for message in messages:
            if message["role"] == "user":
                ids += [self.user, *self.encode(message["content"])]
            else:
                ids += [self.assistant, *self.encode(message["content"]), self.end]
        return ids + [self.assistant] * (messages[-1]["role"] == "user")

    def to_list(self):
        """The ranks as JSON and checkpoints hold them: tokens in hexadecimal, by rank."""
        return [token.hex() for token in self.ranks]

    @classmethod
    def from_list(cls, tokens):
        ranks = {bytes.fromhex(token): rank for rank, token in enumerate(tokens)}
        if not all(bytes([byte]) in ranks for byte in range(256)) or b"" in ranks:
            raise ValueError("its tokenizer lacks single bytes")
        return cls(ranks)
