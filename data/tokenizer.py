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
# Text without a space, or of nothing else, is cut before it costs minutes or tiktoken's stack.
LONGEST_WORD = 32    # characters, where merges are learned
LONGEST_RUN = 2000   # characters, where text is encoded; GPT-2's longest tokens have 128
_ENDLESS = re.compile(rf"\S{{{LONGEST_RUN}}}(?=\S)|\s{{{LONGEST_RUN}}}(?=\s)")


def train(texts, vocab_size):
    """Learn byte-pair merges from an iterable of str.

    Returns {token bytes: rank} with at most vocab_size - 4 tokens, 256 of them the single bytes:
    merge the most frequent neighbouring pair, again and again; of equally frequent pairs, the
    smallest in byte order.
    """
    if vocab_size < 256 + len(SPECIALS):
        raise ValueError(f"vocab_size is {vocab_size}, at least {256 + len(SPECIALS)} are needed: "
                         "all bytes and the special tokens")
    counts = Counter(word[i:i + LONGEST_WORD]
                     for text in texts for word in regex.findall(PATTERN, text)
                     for i in range(0, len(word), LONGEST_WORD))
    words = [([bytes([b]) for b in word.encode()], n) for word, n in counts.items()]
    pairs, places = Counter(), defaultdict(set)  # how often a pair occurs, and in which words
    for i, (parts, n) in enumerate(words):
        for pair in zip(parts, parts[1:]):
            pairs[pair] += n
            places[pair].add(i)
    ranks = {bytes([b]): b for b in range(256)}
    heap = [(-n, pair) for pair, n in pairs.items()]  # the best first; counts may be out of date
    heapq.heapify(heap)
    while len(ranks) < vocab_size - len(SPECIALS) and heap:
        n, best = heapq.heappop(heap)
        if n == 0 or -n != pairs[best]:
            continue
        merged, change = best[0] + best[1], defaultdict(int)
        ranks.setdefault(merged, len(ranks))
        for i in places.pop(best):
            parts, n = words[i]
            for pair in zip(parts, parts[1:]):
                change[pair] -= n
            j = 0
            while j < len(parts) - 1:
                if (parts[j], parts[j + 1]) == best:
                    parts[j:j + 2] = [merged]
                j += 1
            for pair in zip(parts, parts[1:]):
                change[pair] += n
                if merged in pair:
                    places[pair].add(i)
        for pair, n in change.items():
            if n:
                pairs[pair] += n
                heapq.heappush(heap, (-pairs[pair], pair))
    return ranks


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
        """The ranks as JSON and checkpoints can hold them: tokens in hexadecimal, in order of rank.
        """
        return [token.hex() for token in self.ranks]

    @classmethod
    def from_list(cls, tokens):
        ranks = {bytes.fromhex(token): rank for rank, token in enumerate(tokens)}
        if not all(bytes([byte]) in ranks for byte in range(256)) or b"" in ranks:
            raise ValueError("its tokenizer lacks single bytes")
        return cls(ranks)
