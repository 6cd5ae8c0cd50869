"""The tokenizer: any text goes in and comes out, and what a user types is never a special token."""

import random
import sys

import pytest
import tiktoken

from data.tokenizer import PATTERN, SPECIALS, Tokenizer, train


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(train(["the cat sat on the mat. the cat ran."] * 3, 280))


def test_any_utf8_round_trips(tokenizer):
    rng = random.Random(0)
    points = [c for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
    texts = ["", " ", "\n\n \t", "naïve 東京 🙂👩‍👩‍👧", "\x00\x7f",
             "a" * 1000] + ["".join(map(chr, rng.sample(points, 20))) for _ in range(200)]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_typed_by_a_user_stay_text(tokenizer):
    for special in SPECIALS:
        ids = tokenizer.encode(f"ha {special} ha")
        assert max(ids) < tokenizer.user and tokenizer.decode(ids) == f"ha {special} ha"


def test_conversations_are_rendered_with_one_end_token_an_answer(tokenizer):
    turns = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "cat"},
             {"role": "user", "content": "sat"}]
    t = tokenizer
    assert t.render(turns) == [t.user, *t.encode("the"), t.assistant, *t.encode("cat"), t.end,
                               t.user, *t.encode("sat"), t.assistant]
    assert t.render(turns[:2])[-1] == t.end
    assert [t.user, t.assistant, t.end, t.pad] == list(range(t.vocab_size - 4, t.vocab_size))


def test_merges_are_the_most_frequent_pairs_first():
    ranks = list(train(["abababab xyxy"], 263))[256:]
    assert ranks[:2] == [b"ab", b"abab"] and b"xy" in ranks


def test_merges_equal_those_of_a_plain_recount():
    """The trainer updates its counts; counting everything again before each merge gives the same
    merges."""
    import regex
    from collections import Counter
    text = "the theme of the thesis is then this: these themes thin the thick thing" * 2
    words = [[bytes([b]) for b in w.encode()] for w in regex.findall(PATTERN, text)]
    expected = []
    for _ in range(16):
        pairs = Counter(p for w in words for p in zip(w, w[1:]))
        best = min(pairs, key=lambda p: (-pairs[p], p))
        expected.append(best[0] + best[1])
        for w in words:
            i = 0
            while i < len(w) - 1:
                if (w[i], w[i + 1]) == best:
                    w[i:i + 2] = [w[i] + w[i + 1]]
                i += 1
    assert list(train([text], 256 + 16 + 4))[256:] == expected


def test_encoding_is_tiktokens_own(tokenizer):
    same = tiktoken.Encoding("same", pat_str=PATTERN, mergeable_ranks=tokenizer.ranks,
                             special_tokens={})
    assert tokenizer.encode("the cat sat") == same.encode("the cat sat")
    assert len(tokenizer.encode("the cat")) < 7


def test_a_tokenizer_survives_a_checkpoint(tokenizer):
    assert Tokenizer.from_list(tokenizer.to_list()) == tokenizer
    assert Tokenizer(train(["other words entirely"], 270)) != tokenizer


def test_a_vocabulary_too_small_for_all_bytes_is_refused():
    with pytest.raises(ValueError, match="at least 260"):
        train(["x"], 259)
