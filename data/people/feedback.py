"""Feedback by hand: a person ranks answers at the terminal.

    python reward.py --label                            rank answers of the newest policy
    python -m data.people.feedback anna.jsonl ben.jsonl    how often two people agree

Every label is on disk before the next question. A label is a line of out/feedback/<name>.jsonl: a
prompt, its `responses` and their `ranks`, as `reward.py --data` reads them, and who labelled whose
answers, when, and in how many seconds.
"""

import argparse
import getpass
import json
import os
import random
import re
import stat
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from data import sampling, start
from data.files import records
from data.run.cli import Program, flag
from data.run.device import setup
from data.run.disk import append, make_folder
from data.run.system import UserError, lock, program, require_stdin
from data.world import almanac


@dataclass
class Config(Program):
    """The flags of ranking by hand."""

    prompts: int = flag(100, "prompts whose answers you rank", least=1, group="labels")
    k: int = flag(4, "answers per prompt, 2 to 9")
    temperature: float = flag(0.7, "of sampling")
    max_new_tokens: int = flag(40, "longest answer", least=1)
    policy: str = flag("", "checkpoint that answers (default: the newest policy in --out)")
    data: str = flag("", "prompts, or answers to rank again, instead of the embedded world's")
    labeler: str = flag("", "whose file in feedback/ the labels go to (default: your login name)")

    def demands(self):
        return [(2 <= self.k <= 9, "--k must be between 2 and 9 answers"),
                (self.temperature > 0,
                 "--temperature must be above 0: identical answers cannot be ranked")]


CRITERIA = {"h": "helpful", "t": "truthful", "x": "harmless"}
HELP = """Type the numbers of the answers, best first; the last one follows by itself. Other keys:
  =      the next number is as good as the one before        Enter  all the others are equal
  h t x  and a number: that answer is not helpful, truthful, harmless; Enter ranks by what fails
  u      undo        s  skip        q  leave; every label is saved already
"""


# ---- files ---------------------------------------------------------------------------------------


class Book:
    """A person's file of labels.

    What is in it is never rewritten: labels are appended, `undo` takes back the last.
    """

    def __init__(self, out, who="", folder="feedback", **about):
        """Open the file of `who` (by default the login name) in out/feedback or another folder.

        about: what is asked about, such as checkpoint="out/ppo/ckpt.pt". It goes into every label.
        Only labels with the same are this book's `records`, which say what has been asked: another
        model's answers are new questions.
        """
        self.who, self.about = who or re.sub(r"[^\w.-]", "-", login()), about
        if not re.fullmatch(r"[\w.-]+", self.who):
            raise UserError(f"--labeler {self.who!r} must be a name of letters and digits, as it "
                            "becomes the name of a file")
        self.path = Path(out) / folder / f"{self.who}.jsonl"
        make_folder(self.path.parent)
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if content[whole:]:  # the session before was killed in the middle of a line
            aside = self.path.with_suffix(".cut")
            with open(aside, "ab") as file:
                file.write(content[whole:] + b"\n")
            os.truncate(self.path, whole)
            print(f"{self.path}: the last line was cut in the middle; it is set aside in {aside}")
        self.ends, self.labels, self.records = [whole], 0, []
        for line in content[:whole].splitlines():
            try:
                record = json.loads(line)
                if not isinstance(record.get("n", 0), int):
                    raise ValueError
                self.labels += 1
                if all(record.get(name) == value for name, value in about.items()):
                    self.records.append(record)
            except (ValueError, AttributeError, RecursionError):
                print(f"{self.path}: a line cannot be read; it stays as it is")

    def add(self, record):
        """Append a record with who gave it and when; it is on disk when this returns."""
        record = dict(record, **self.about, labeler=self.who,
                      time=datetime.now(timezone.utc).isoformat(timespec="seconds"))
        append(self.path, json.dumps(record, ensure_ascii=False))
        self.ends.append(self.path.stat().st_size)
        self.labels += 1
        self.records.append(record)

    @property
    def next(self):
        """The number of the first question that has not been asked."""
        return max((record.get("n", -1) for record in self.records), default=-1) + 1

    def undo(self):
        """Take back this session's last label, unless somebody has written since -> whether it was.
        """
        if len(self.ends) < 2 or self.path.stat().st_size != self.ends[-1]:
            return False
        os.truncate(self.path, self.ends[-2])
        self.ends.pop()
        self.labels -= 1
        self.records.pop()
        return True


def login():
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "me"


# ---- at the terminal -----------------------------------------------------------------------------


@contextmanager
def keyboard():
    """Gives a function that waits for a key and returns it, "" when there will be no more."""
    require_stdin()
    fd = sys.stdin.fileno()
    if stat.S_ISFIFO(os.fstat(fd).st_mode):  # a script's keys
        yield lambda: sys.stdin.read(1)
    elif os.isatty(fd):
        import termios  # not on Windows
        import tty
        before = termios.tcgetattr(fd)
        tty.setcbreak(fd)  # keys come without Enter and are not shown; Ctrl-C works
        try:
            yield lambda: os.read(fd, 1).decode("latin-1").replace("\x04", "")  # Ctrl-D
        finally:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
    else:
        raise UserError("keys are asked for here: run it in a terminal (or pipe the keys into it)")


def read_keys(typed, k):
    """What the keys say about k answers -> (ranks, {criterion: answers that fail it}).

    ranks: a list of k numbers, 1 is best, equal ranks are ties; None while more keys are needed.
    A key that cannot follow raises ValueError.
    """
    groups, fails, tie, criterion, done = [], {}, False, None, False
    for key in typed:
        ranked = sum(groups, [])
        if key in CRITERIA and not tie:
            criterion = CRITERIA[key]
        elif key.isascii() and key.isdigit() and 1 <= int(key) <= k:
            i = int(key) - 1
            if criterion:
                fails[criterion] = sorted(set(fails.get(criterion, [])) ^ {i})
            elif i in ranked:
                raise ValueError(f"{key} is ranked already")
            elif tie:
                groups[-1].append(i)
            else:
                groups.append([i])
            tie, criterion = False, None
        elif key == "=" and groups and not tie and not criterion:
            tie = True
        elif key in "\r\n" and not criterion:
            done = True
        else:
            raise ValueError(f"{key!r} cannot follow here")
    others = [i for i in range(k) if i not in sum(groups, [])]
    if done and not groups:  # an answer is the worse, the more criteria it fails
        failures = [sum(i in found for found in fails.values()) for i in range(k)]
        return [1 + sorted(set(failures)).index(n) for n in failures], fails
    if done and tie:
        groups[-1] += others
    elif others and (done or len(others) == 1 and groups and not tie and not criterion):
        groups.append(others)
    elif others:
        return None, fails
    return [1 + next(g for g, group in enumerate(groups) if i in group) for i in range(k)], fails


def vote(k, press):
    """Read keys until k answers are ranked -> (ranks, fails), or "u", "s", "q": undo, skip, leave.
    """
    typed = ""
    while True:
        key = press()
        if key in ("", "q", "s"):
            return key or "q"
        if key == "u" and not typed:
            return "u"
        try:
            ranks, fails = read_keys(typed[:-1] if key == "u" else typed + key, k)
        except ValueError as error:
            print(f"\n({error}; ? explains the keys)" if key != "?" else "\n" + HELP, flush=True)
            continue
        typed = typed[:-1] if key == "u" else typed + key
        print(f"\n{typed}" if key == "u" else key.strip(), end="", flush=True)
        if ranks:
            print(flush=True)
            return ranks, fails


class Asking:
    """The questions that are still open, one at a time, whoever shows them.

    question(n), n = 0 ... total-1, gives a prompt with `responses`, or None if there is nothing to
    choose. book: where the labels go; it is locked.
    """

    def __init__(self, question, total, book):
        lock(book.path, "choose another --labeler")
        self.question, self.total, self.book = question, total, book
        self.n, self.given, self.began = book.next, [], time.time()
        self.open, self.asked = None, 0.0  # (n, the question), and when it was asked

    def current(self):
        """The open question, its answers in random order; None when all are done."""
        while self.n < self.total and (not self.open or self.open[0] != self.n):
            if q := self.question(self.n):
                responses = q["responses"]
                order = random.Random(f"{self.book.who} {self.n}").sample(responses, len(responses))
                self.open, self.asked = (self.n, dict(q, responses=order)), time.time()
            else:
                self.n += 1
        return self.open[1] if self.n < self.total else None

    def save(self, q, ranks, fails):
        """Note a label; it is on disk when this returns, and the next question is open."""
        self.book.add(dict(q, ranks=ranks, **{"fails": fails} if any(fails.values()) else {},
                           seconds=round(time.time() - self.asked, 1), n=self.n))
        self.given.append(self.n)
        self.n += 1

    def skip(self):
        self.n += 1

    def undo(self):
        """Take back this session's last label, if there is one -> whether it was."""
        undone = self.book.undo()
        self.n = self.given.pop() if undone else self.n
        return undone


def label(asking):
    """Ask a person at the terminal."""
    book = asking.book
    print(HELP)
    with keyboard() as press:
        while q := asking.current():
            print(f"\n---- {asking.n + 1} of {asking.total} ----")
            for message in q["prompt"]:
                print(f"{message['role']:>9}: {message['content']}")
            for i, response in enumerate(q["responses"], start=1):
                print(f"{i:9}: {response}")
            print(flush=True)
            said = vote(len(q["responses"]), press)
            if said == "q":
                break
            if said == "u":
                print("(your last label is taken back)" if asking.undo()
                      else "(this session has no label to take back)")
            elif said == "s":
                asking.skip()
            else:
                asking.save(q, *said)
                print(f"  saved: {book.labels} labels, "
                      f"{len(asking.given) / (time.time() - asking.began) * 3600:.0f} an hour")
    done = ": all are done" if asking.n >= asking.total else ""
    print(f"\n{book.path} holds {book.labels} labels{done}")


def questions(cfg, path, model, tokenizer):
    """What a person is asked about a policy's answers -> Asking."""
    if cfg.data:
        given = records.read_questions(cfg.data)
    else:
        given = almanac.prompts("train", cfg.prompts, f"label {cfg.seed}")

    def question(n):
        """The n-th prompt and its different answers, the same for all who have this checkpoint.

        None if there are not two.
        """
        p = given[n]
        if "responses" not in p:
            if not sampling.with_room(model, tokenizer, [p], cfg.max_new_tokens):
                return None
            torch.manual_seed(100_000 * cfg.seed + n)
            p = dict(p, responses=sampling.answers(model, tokenizer, [p], cfg.max_new_tokens,
                                                   cfg.temperature, cfg.k))
        different = list(dict.fromkeys(p["responses"]))
        return dict(p, responses=different) if len(different) > 1 else None

    book = Book(cfg.out, cfg.labeler, checkpoint=str(path), seed=cfg.seed,
                asked=cfg.data or "the almanac")
    return Asking(question, len(given), book)


def run(cfg):
    """`python reward.py --label`: a person ranks answers; the file is one for --data."""
    path, model, tokenizer = start.policy(cfg.out, cfg.policy, "--policy", setup(cfg))
    asking = questions(cfg, path, model, tokenizer)
    print(f"Ranking answers of {path}.")
    label(asking)
    print(f"python reward.py --data {asking.book.path} learns from them")


# ---- agreement -----------------------------------------------------------------------------------


def verdicts(one, other):
    """The pairs' verdicts on each question that both ranked: list of arrays (pairs, 2) of -1, 0, 1.
    """
    def key(record):
        return json.dumps([record["prompt"], sorted(record["responses"])])

    theirs, found = {key(record): record for record in other}, []
    for record in {key(r): r for r in one}.values():
        if key(record) in theirs:
            a, b = [dict(zip(r["responses"], r["ranks"])) for r in (record, theirs[key(record)])]
            texts = sorted(a)
            found.append(np.array([[np.sign(ranks[y] - ranks[x]) for ranks in (a, b)]
                                   for i, x in enumerate(texts) for y in texts[i + 1:]]))
    return found


def agreement(pairs):
    """Verdicts (n, 2) of two people -> (share that agree, Cohen's kappa).

    kappa = (agreed - expected) / (1 - expected), expected: if each had drawn verdicts at random, as
    often of each sort as they gave (Cohen 1960). Which of two answers comes first means nothing, so
    each pair counts in both directions.
    """
    a, b = np.concatenate([pairs, -pairs]).T
    agreed = (a == b).mean()
    expected = sum((a == v).mean() * (b == v).mean() for v in (-1, 0, 1))
    return agreed, (agreed - expected) / (1 - expected) if expected < 1 else 1.0


def report(one, other, draws=2000):
    """Print how often two people agree, with 95% intervals from a bootstrap over the questions."""
    found = verdicts(records.read_comparisons(one), records.read_comparisons(other))
    if not found:
        raise UserError(f"{one} and {other} have no question in common: label the same answers, "
                        "with --label --data FILE")
    rng = np.random.default_rng(0)
    figures = [agreement(np.concatenate([found[i]
                                         for i in rng.integers(len(found), size=len(found))]))
               for _ in range(draws)]
    low, high = np.percentile(figures, [2.5, 97.5], axis=0)
    agreed, kappa = agreement(np.concatenate(found))
    decided = np.concatenate(found)
    decided = decided[(decided != 0).all(1)]
    print(f"{len(found)} questions in common, {sum(map(len, found))} pairs of answers")
    print(f"agreement {agreed:.1%} ({low[0]:.1%} to {high[0]:.1%}), kappa {kappa:.2f} "
          f"({low[1]:.2f} to {high[1]:.2f}); 95% intervals over questions")
    if len(decided):
        print(f"of the {len(decided)} pairs that neither called a tie, "
              f"{(decided[:, 0] == decided[:, 1]).mean():.1%} agree")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m data.people.feedback",
                                     description="How often two people's rankings agree.")
    parser.add_argument("files", nargs=2, metavar="FILE", help="labels of one person")
    program("data.people.feedback", report, *parser.parse_args().files)
