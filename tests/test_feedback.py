"""Labels given by hand: what a person types becomes rankings, and nothing of it is lost."""

import contextlib
import json
import os
import pty
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import gpt
import reward
import sft
from data.files import records as files
from data.judge import answers as judging
from data.judge import ratings, report
from data.people import chat, feedback, rate
from data.run.system import UserError
from data.tokenizer import Tokenizer, train
from data.world import almanac, labeler

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("typed, ranks", [
    ("1", None), ("", None), ("132", [1, 3, 2, 4]), ("1=3", None), ("1=32", [1, 2, 1, 3]),
    ("4\n", [2, 2, 2, 1]),
    ("\n", [1, 1, 1, 1]), ("1=2=3=4", [1, 1, 1, 1]), ("12=\n", [1, 2, 2, 2]),
    ("h1x1t2\n", [3, 2, 1, 1]), ("h1h1\n", [1, 1, 1, 1]),
    ("x4123", [1, 2, 3, 4]), ("h", None),
])
def test_keys_rank_four_answers(typed, ranks):
    assert feedback.read_keys(typed, 4)[0] == ranks


def test_one_key_ranks_two_answers():
    assert feedback.read_keys("2", 2)[0] == [2, 1] and feedback.read_keys("\n", 2)[0] == [1, 1]
    assert feedback.read_keys("t2\n", 2) == ([1, 2], {"truthful": [1]})


@pytest.mark.parametrize("typed", ["11", "5", "0", "=", "a", "1==", "h=", "1=h", "h\n"])
def test_keys_that_can_not_follow_are_refused(typed):
    with pytest.raises(ValueError):
        feedback.read_keys(typed, 4)


def test_undo_takes_back_a_key_then_a_label(tmp_path):
    keys = iter("1u2" + "u" + "1" + "s" + "q")
    assert feedback.vote(2, iter("1").__next__) == dict(ranks=[1, 2])
    # the third key after undo ranks the last two
    assert feedback.vote(3, iter("1u213").__next__) == dict(ranks=[2, 1, 3])
    book = feedback.LabelFile(tmp_path, "anna")
    book.add(dict(prompt="a", n=0))
    book.add(dict(prompt="b", n=1))
    assert book.undo() and [json.loads(line)["prompt"] for line in open(book.path)] == ["a"]
    assert not feedback.LabelFile(tmp_path, "anna").undo()  # another session's labels stay
    with open(book.path, "a") as file:
        file.write("{}\n")  # somebody else wrote
    assert not book.undo() and len(open(book.path).readlines()) == 2


def test_a_cut_line_is_set_aside_and_the_session_goes_on(tmp_path, capsys):
    book = feedback.LabelFile(tmp_path, "anna")
    book.add(dict(prompt="a", responses=["x", "y"], ranks=[1, 2], n=4))
    whole = book.path.read_bytes()
    book.path.write_bytes(whole + b'{"prompt": "b", "respo')
    again = feedback.LabelFile(tmp_path, "anna")
    assert again.labels == 1 and again.next == 5 and again.path.read_bytes() == whole
    assert book.path.with_suffix(".cut").read_bytes() == b'{"prompt": "b", "respo\n'
    assert "cut in the middle" in capsys.readouterr().out


def test_labels_of_another_model_do_not_count_as_asked(tmp_path):
    old = feedback.LabelFile(tmp_path, "anna", checkpoint="a.pt")
    old.add(dict(prompt="a", n=0))
    old.add(dict(prompt="b", n=1))
    assert old.next == 2 and feedback.LabelFile(tmp_path, "anna", checkpoint="a.pt").next == 2
    new = feedback.LabelFile(tmp_path, "anna", checkpoint="b.pt")
    assert new.next == 0 and new.labels == 2
    new.add(dict(prompt="a", n=0))
    assert new.next == 1 and json.loads(open(new.path).readlines()[-1])["checkpoint"] == "b.pt"


def test_kappa_is_cohens():
    """Of 100 pairs 85 agree where chance gives 1/2: kappa .7. Agreement by chance alone is 0."""
    pairs = np.array([[1, 1]] * 45 + [[-1, -1]] * 40 + [[1, -1]] * 15)
    assert feedback.agreement(pairs) == pytest.approx((.85, .7))
    rng = np.random.default_rng(0)
    agreed, kappa = feedback.agreement(rng.choice([-1, 1], size=(20000, 2)))
    assert abs(agreed - .5) < .02 and abs(kappa) < .03
    assert feedback.agreement(np.array([[0, 0], [0, 0]])) == (1.0, 1.0)


def test_agreement_of_two_files(tmp_path, capsys):
    for who, ranks in (("anna", [1, 2, 3]), ("ben", [1, 3, 2])):
        book = feedback.LabelFile(tmp_path, who)
        for n in range(10):
            # each saw the answers in another order
            order = [0, 1, 2] if who == "anna" else [2, 1, 0]
            book.add(dict(prompt=f"q{n}", responses=[f"a{i}" for i in order],
                          ranks=[ranks[i] for i in order], n=n))
    feedback.report(tmp_path / "feedback" / "anna.jsonl", tmp_path / "feedback" / "ben.jsonl")
    said = capsys.readouterr().out
    assert "10 questions in common, 30 pairs" in said
    assert "agreement 66.7% (66.7% to 66.7%), kappa 0.33" in said
    (tmp_path / "c.jsonl").write_text('{"prompt": "other", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(UserError, match="no question in common"):
        feedback.report(tmp_path / "feedback" / "anna.jsonl", tmp_path / "c.jsonl")


def test_files_and_folders_are_read_together_and_later_labels_count(tmp_path, capsys):
    anna, ben = feedback.LabelFile(tmp_path, "anna"), feedback.LabelFile(tmp_path, "ben")
    for book in (anna, ben):
        book.add(dict(prompt="q", responses=["a", "b"], ranks=[1, 2], n=0))
    anna.add(dict(prompt="q", responses=["b", "a"], ranks=[1, 2], n=0))
    (tmp_path / "c.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n' * 2)
    records = files.read_comparisons(f"{tmp_path}/feedback,{tmp_path}/c.jsonl")
    assert [r["responses"] for r in records] == [["b", "a"], ["a", "b"], ["a", "b"], ["a", "b"]]
    assert "1 rankings that their labeler gave again later: skipped" in capsys.readouterr().out


def test_good_bad_and_better_train_both_models(tmp_path, capsys):
    """What is said in a chat: good ranks above bad for the same prompt, a better answer above what
    was said."""
    replies = iter(["One.", "Two.", "Three.", "Four."])
    said, book = iter(["Hi", "/good", "/bad", "/better Five.", "Again", "/better", "/good",
                       "/good?"]), feedback.LabelFile(tmp_path, "anna")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.input",
                      lambda _: next(said, None) or (_ for _ in ()).throw(EOFError))
        chat.talk(lambda turns: [next(replies)], size=len, room=9, note=book.add, look=None)
    comparisons = files.read_comparisons(book.path)
    # One. is good and bad
    assert [(r["responses"], r["ranks"]) for r in comparisons] == [(["Five.", "Two."], [1, 2])]
    assert ([r["response"] for r in files.read_demonstrations(book.path)]
            == ["One.", "Five.", "Three."])
    assert (files.read_demonstrations(book.path)[2]["prompt"][1]
            == {"role": "assistant", "content": "Five."})
    assert "without a counterpart" in capsys.readouterr().out
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(dict(prompt="q", response=r, verdict=v))
                                              + "\n" for r,
                                              v in (("a", "bad"), ("b", "good"), ("c", "bad"))))
    found, = files.read_comparisons(tmp_path / "v.jsonl")
    assert dict(zip(found["responses"], found["ranks"])) == dict(a=2, b=1, c=2)


def test_good_and_bad_may_be_said_in_chinese(tmp_path, monkeypatch):
    """Of the last answer, with or without a full stop; before there is one they are a message."""
    replies = iter(["Hello.", "One.", "Two."])
    said = iter(["好的", "Hi", "不太好。", "好的！"])
    book = feedback.LabelFile(tmp_path, "anna")
    monkeypatch.setattr("builtins.input",
                        lambda _: next(said, None) or (_ for _ in ()).throw(EOFError))
    chat.talk(lambda turns: [next(replies)], size=len, room=9, note=book.add, look=None)
    records = [json.loads(line) for line in book.path.read_text().splitlines()]
    assert [(r["response"], r["verdict"]) for r in records] == [("One.", "bad"), ("Two.", "good")]
    assert records[0]["prompt"][0]["content"] == "好的"
    assert "好的" in chat.HELP and "不太好" in chat.HELP


GOOD = [json.dumps(dict(prompt=f"q{i}", responses=["a", "b"], ranks=[1, 2])).encode()
        for i in range(200)]


@pytest.mark.parametrize("line, said", [
    (b'{"prompt": "q", "responses": ["a", "b"], "ranks": [1, 0]}', '"ranks" must be'),
    (b'{"prompt": "q", "responses": ["a", "b"], "ranks": [1, "best"]}', '"ranks" must be'),
    (b'{"prompt": "q", "responses": ["a"], "ranks": [1]}', '"responses" must be'),
    (b'{"prompt": "q", "responses": ["a", null], "ranks": [1, 2]}', '"responses" must be'),
    (b'{"prompt": "q", "responses": ["a", "\\ud800"], "ranks": [1, 2]}', "surrogate"),
    (b'{"prompt": "q", "responses": ["a", "\xff"], "ranks": [1, 2]}', "not UTF-8"),
    (b'{"prompt": "' + b"q" * 10_000_000 + b'"}', "10.0 MB in one line"),
    (b'{"prompt": "q", "response": "a", "verdict": "fine"}', '"verdict" must be'),
    (b'{"prompt": "q", "resp', "not JSON"),
])
def test_a_bad_line_is_named_and_the_good_ones_are_kept(line, said, tmp_path, capsys):
    path = tmp_path / "labels.jsonl"
    path.write_bytes(b"\n".join([*GOOD[:6], line, *GOOD[6:]]) + b"\n")
    before = path.read_bytes()
    assert len(files.read_comparisons(path)) == 200
    named = capsys.readouterr().out
    assert f"{path}, line 7: " in named and said in named and named.count("\n") == 1
    path.write_bytes(b"\n".join([*GOOD[:6], line, *GOOD[6:50]]) + b"\n")  # one of 51 is too many
    with pytest.raises(UserError, match="line 7: "):
        files.read_comparisons(path)
    path.write_bytes(before[:-20])  # the last line is cut
    assert len(files.read_comparisons(path)) == 199
    assert "its last line is cut in the middle" in capsys.readouterr().out


# ---- the real program ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A tiny model that has learned nothing, but answers."""
    out = str(tmp_path_factory.mktemp("out"))
    small = dict(documents=60, vocab_size=300, block_size=96, n_layer=1, n_head=2, n_embd=16,
                 batch=4)
    gpt.train(gpt.Config(out=out, steps=1, **small))
    sft.train(sft.Config(out=out, steps=1, batch=4, demonstrations=40))
    return Path(out)


def command(out, *flags):
    return [sys.executable, "reward.py", "--label", "--labeler", "anna", "--out", str(out),
            "--max_new_tokens", "8", "--threads", "1", *map(str, flags)]


def labels(out):
    path = out / "feedback" / "anna.jsonl"
    return [json.loads(line) for line in open(path)] if path.exists() else []


@pytest.mark.slow
def test_keys_may_come_through_a_pipe(out, tmp_path):
    done = subprocess.run(command(out, "--k", 2), cwd=ROOT, input="1\n2x", capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    assert [sorted(r["ranks"]) for r in labels(out)] == [[1, 2], [1, 1], [1, 2]]
    assert ({"prompt", "responses", "ranks", "seconds", "checkpoint", "labeler", "time"}
            <= set(labels(out)[0]))
    reward.train(reward.Config(out=str(out), data=str(out / "feedback"), batch=2, log_every=1))
    (out / "feedback" / "anna.jsonl").unlink()


@pytest.mark.slow
def test_who_is_no_person_is_refused(out):
    done = subprocess.run(command(out), cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 2 and "run it in a terminal" in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run([*command(out), "--labeler", "../x"], cwd=ROOT, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "--labeler" in done.stderr


class Person:
    """Somebody at a pseudo-terminal who ranks answers until the program is killed."""

    def __init__(self, out, total):
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.chdir(ROOT)
            # a shell's background job, as these tests may be, ignores Ctrl-C
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execv(sys.executable, command(out, "--prompts", total, "--k", 2))
        self.seen = ""

    def read(self, until, seconds=30):
        """Wait until the program has shown something -> whether it has."""
        deadline = time.time() + seconds
        while until not in self.seen and time.time() < deadline:
            if select.select([self.fd], [], [], .05)[0]:
                try:
                    self.seen += os.read(self.fd, 65536).decode(errors="replace")
                except OSError:  # the program has left
                    return until in self.seen
        return until in self.seen

    def rank(self, key):
        """Wait for a question, answer it -> whether the program said that the label is saved."""
        if not self.read("---- "):
            return False
        self.seen = ""
        os.write(self.fd, key.encode())
        return self.read("  saved: ")

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.mark.slow
def test_two_hundred_labels_survive_twenty_kills(out):
    """Killed at random moments, also in the middle of a label: whatever the program called saved
    is on disk."""
    rng, saved, kills = random.Random(0), 0, 0
    while saved < 200:
        person = Person(out, 300)
        for _ in range(rng.randint(5, 14) if kills < 20 else 200):
            saved += person.rank(rng.choice("12\n"))
            if saved >= 200:
                break
        if kills < 20 and saved < 200:
            # one more key, and the program dies at a random moment
            os.write(person.fd, rng.choice("12\n").encode())
            time.sleep(rng.random() * .05)
        person.kill()
        kills += 1
        found = labels(out)
        assert saved <= len(found) <= saved + 1  # the label on its way may have arrived
        saved = len(found)
        assert [r["n"] for r in found] == sorted({r["n"] for r in found})
    assert kills > 20


@pytest.mark.slow
def test_the_terminal_is_given_back_and_a_second_run_goes_on(out):
    person = Person(out, 300)
    person.read("---- ")
    before = len(labels(out))
    assert person.rank("1") and person.rank("2") and person.read("---- ")
    os.write(person.fd, b"u")
    assert person.read("taken back")
    os.write(person.fd, b"s")
    os.write(person.fd, b"q")
    assert person.read("learns from them")
    assert os.waitpid(person.pid, 0)[1] == 0
    os.close(person.fd)
    assert len(labels(out)) == before + 1
    again = Person(out, 300)
    assert again.read(f"---- {labels(out)[-1]['n'] + 2} of 300")
    os.write(again.fd, b"\x03")  # Ctrl-C
    assert os.waitstatus_to_exitcode(os.waitpid(again.pid, 0)[1]) == 130
    os.close(again.fd)


# ---- ratings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed, said", [
    ("", None), ("5", None), ("5y", None), ("5yy", None),
    ("5yyn", dict(rating=5, helpful=True, truthful=True, harmless=False)),
    ("1nyy", dict(rating=1, helpful=False, truthful=True, harmless=True)),
])
def test_keys_rate_an_answer(typed, said):
    assert rate.read_rating(typed) == said


@pytest.mark.parametrize("typed", ["9", "0", "y", "\n", "55", "5x", "5y\n", "5yn7"])
def test_what_is_no_rating_is_asked_again(typed):
    with pytest.raises(ValueError):
        rate.read_rating(typed)


@pytest.fixture
def rated(tmp_path, monkeypatch):
    """A folder with two models whose answers are known, and a session to rate them."""
    tokenizer = Tokenizer(train([], 260))
    config = gpt.GPTConfig(tokenizer.vocab_size, 8, 1, 1, 4)
    models = {"sft": gpt.GPT(config), "ppo": gpt.GPT(config)}
    prompts = [p for p in almanac.prompts("test", 40, 1) if p["kind"] == "known"][:4]
    answers = {"sft": "I do not know.", "ppo": "Paris."}
    monkeypatch.setattr(report, "held_out_prompts", lambda *args: prompts)
    monkeypatch.setattr(judging, "judge", lambda name, *args: ([answers[name]] * 4, {}))
    cfg = rate.Config(out=str(tmp_path), labeler="anna")
    return lambda: rate.questions(cfg, models, tokenizer), models, tmp_path


def test_ratings_are_blind_kept_and_gone_on_with(rated, monkeypatch, capsys):
    session, models, out = rated
    keys = iter("9" "\n" "5yyn" "u" "2nyy" "s" "7yyy" "q" "6yyy" "q")
    monkeypatch.setattr(feedback, "keyboard", lambda: contextlib.nullcontext(lambda: next(keys)))
    feedback.label(session(), rate.read_rating, rate.HELP)
    said = capsys.readouterr().out
    assert "'9' is no rating from 1 to 7" in said and "'\\n' is no rating" in said
    assert "your last label is taken back" in said and "ppo" not in said and "sft" not in said
    lines = [json.loads(line) for line in open(out / "rated" / "anna.jsonl")]
    assert [(r["n"], r["rating"]) for r in lines] == [(0, 2), (2, 7)]
    feedback.label(session(), rate.read_rating, rate.HELP)  # the next day
    lines = [json.loads(line) for line in open(out / "rated" / "anna.jsonl")]
    assert [(r["n"], r["rating"]) for r in lines] == [(0, 2), (2, 7), (3, 6)]
    assert {r["model"] for r in lines} <= {"sft", "ppo"} and all(r["labeler"] == "anna"
                                                                 for r in lines)


def test_ratings_stand_beside_the_labelers(rated):
    session, models, out = rated
    s = session()
    while q := s.current():
        good = q["model"] == "ppo"
        s.save(q, dict(rating=6 if good else 2, helpful=good, truthful=True, harmless=True))
    found = ratings.read(out, models, .7)
    assert len(found) == 8
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in ratings.table(found).splitlines()[2:]]
    ppo = rows[0].index("ppo")
    assert rows[2][0] == "people: 1 to 7" and rows[2][ppo].startswith("6.00 (6.00 to 6.00)")
    assert rows[4][:1] == ["people: helpful"] and rows[4][ppo].startswith("100%")
    golds = [labeler.judge(r, r["responses"][0]).gold for r in found if r["model"] == "ppo"]
    assert rows[3][ppo].startswith(f"{np.mean(golds):.2f}")
    with open(out / "rated" / "anna.jsonl", "a") as file:
        file.write('{"model": "ppo", "rat')  # killed in the middle of a line
    assert len(ratings.read(out, models, .7)) == 8
    models["ppo"].ln_f.bias.data += 1  # trained on since: other answers
    assert {r["model"] for r in ratings.read(out, models, .7)} == {"sft"}


def test_of_an_answer_rated_twice_the_last_rating_counts(rated):
    session, models, out = rated
    s = session()
    s.save(s.current(), dict(rating=7, helpful=True, truthful=True, harmless=True))
    path = out / "rated" / "anna.jsonl"
    path.write_text(path.read_text() + path.read_text().replace('"rating": 7', '"rating": 2'))
    again, = ratings.read(out, models, .7)
    assert again["rating"] == 2 and ratings.read(out, models, 0.0) == []
