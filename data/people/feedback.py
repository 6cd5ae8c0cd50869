"""Feedback by hand: a person ranks answers at the terminal.

    python reward.py --label                            rank answers of the newest policy
    python -m data.people.feedback anna.jsonl ben.jsonl    how often two people agree

Every label is on disk before the next question. A label is a line of out/feedback/<name>.jsonl: a
prompt, its `responses` and their `ranks`, as `reward.py --data` reads them, and who labelled whose
answers, when, and in how many seconds.
"""

import getpass
import itertools
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
from data.judge.figures import kappa
from data.run.cli import Asking, arguments, flag, polite
from data.run.device import setup
from data.run.disk import append, make_folder
from data.run.system import UserError, lock, require_stdin
from data.world import almanac


@dataclass
class Config(Asking):
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


class LabelFile:
    """A person's file of labels.

    What is in it is never rewritten: labels are appended, `undo` takes back the last.
    """

    def __init__(self, out, who="", folder="feedback", **about):
        """Open the file of `who` (by default the login name) in out/feedback or another folder.

        about: what is asked about, such as checkpoint="out/ppo/ckpt.pt". It goes into every label.
        Only labels with the same are this file's `records`, which say what has been asked: another
        model's answers are new questions.
        """
        self.who, self.about = who or re.sub(r"[^\w.-]", "-", login()), about
        if not re.fullmatch(r"[\w.-]+", self.who):
            raise UserError(f"--labeler {self.who!r} must be a name of letters and digits, as it "
                            "becomes the name of a file")
        self.path = make_folder(Path(out) / folder) / f"{self.who}.jsonl"
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if content[whole:]:  # the session before was killed in the middle of a line
            aside = self.path.with_suffix(".cut")
            append(aside, content[whole:].decode(errors="replace"))
            os.truncate(self.path, whole)
            print(f"{self.path}: the last line was cut in the middle; it is set aside in {aside}")
        self.ends, self.labels, self.records = [whole], 0, []
        for line in content[:whole].splitlines():
            try:
                record = json.loads(line)
                if type(record.get("n", 0)) is not int or record.get("n", 0) < 0:
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
        """Take back this session's last label -> False if it has none, or somebody wrote since."""
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


# ---- keys ----------------------------------------------------------------------------------------


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


# A criterion and the answer that fails it; or, after = for a tie, an answer or Enter.
KEY = re.compile(r"([htx])([1-9])|(=?)(?:([1-9])|[\r\n])")


def read_keys(typed, k):
    """What the keys say about k answers -> (ranks, {criterion: answers that fail it}).

    ranks: a list of k numbers, 1 is best, equal ranks are ties; None while more keys are needed.
    A key that cannot follow raises ValueError. Example, k = 4: "1=3" and Enter -> [1, 2, 1, 2].
    """
    groups, fails, at, complete = [], {}, 0, False
    while key := KEY.match(typed, at):
        criterion, failing, tie, answer = key.groups()
        i, at = int(failing or answer or 1) - 1, key.end()
        others = [j for j in range(k) if j not in sum(groups, [])]
        if i >= k or answer and i not in others or tie and not groups:
            raise ValueError(f"{key[0]!r} cannot follow here")
        if criterion:
            fails[CRITERIA[criterion]] = sorted({i} ^ set(fails.get(CRITERIA[criterion], [])))
            continue
        complete = not answer
        if complete and not groups:  # an answer is the worse, the more criteria it fails
            failures = [sum(j in failing for failing in fails.values()) for j in range(k)]
            groups = [[j for j in others if failures[j] == n] for n in sorted(set(failures))]
        elif tie:
            groups[-1] += others if complete else [i]
        else:
            groups.append(others if complete else [i])
    if (rest := typed[at:]) and not re.fullmatch("[htx]" + "|=" * bool(groups), rest):
        raise ValueError(f"{rest!r} cannot follow here")
    others = [j for j in range(k) if j not in sum(groups, [])]
    if len(others) == 1 and groups and not rest:  # the last one follows by itself
        groups, others = [*groups, others], []
    if others or rest:
        return None, fails
    return [1 + next(g for g, group in enumerate(groups) if j in group) for j in range(k)], fails


def read_ranking(typed, k):
    """What the keys say, as fields of a label -> dict; None while more keys are needed."""
    ranks, fails = read_keys(typed, k)
    return dict(ranks=ranks, **{"fails": fails} if any(fails.values()) else {}) if ranks else None


def vote(k, press, read=read_ranking, help=HELP):
    """Read keys until k answers are judged -> dict, or "u", "s", "q": undo, skip, leave.

    read(typed, k) -> a dict, or None while more keys are needed; ValueError if one cannot follow.
    """
    typed = ""
    while True:
        key = press()
        if key in ("", "q", "s"):
            return key or "q"
        if key == "u" and not typed:
            return "u"
        longer = typed[:-1] if key == "u" else typed + key
        try:
            said = read(longer, k)
        except ValueError as error:
            print(f"\n({error}; ? explains the keys)" if key != "?" else "\n" + help, flush=True)
            continue
        typed = longer
        print(f"\n{typed}" if key == "u" else key.strip(), end="", flush=True)
        if said:
            print(flush=True)
            return said


# ---- questions -----------------------------------------------------------------------------------


class LabelSession:
    """The unanswered questions, one at a time, for the terminal or the page.

    question(n), n = 0 ... total-1, gives a prompt with `responses`, or None if there is nothing to
    choose. book: where the labels go; it is locked.
    """

    def __init__(self, question, total, book):
        lock(book.path, "choose another --labeler")
        self.question, self.total, self.book = question, total, book
        self.n, self.answered, self.began = book.next, [], time.time()
        self.open, self.opened_at = None, 0.0  # (n, the question)

    def current(self):
        """The open question, its answers in random order; None when all are done."""
        while self.n < self.total and (not self.open or self.open[0] != self.n):
            if q := self.question(self.n):
                responses = q["responses"]
                order = random.Random(f"{self.book.who} {self.n}").sample(responses, len(responses))
                self.open, self.opened_at = (self.n, dict(q, responses=order)), time.time()
            else:
                self.n += 1
        return self.open[1] if self.n < self.total else None

    def save(self, q, said):
        """Note a label; it is on disk when this returns, and the next question is open."""
        self.book.add(dict(q, **said, seconds=round(time.time() - self.opened_at, 1), n=self.n))
        self.answered.append(self.n)
        self.n += 1

    def undo(self):
        """Take back this session's last label, if there is one -> a sentence for the person."""
        if not self.book.undo():
            return "this session has no label to take back"
        self.n = self.answered.pop()
        return "your last label is taken back"


def label(session, read=read_ranking, help=HELP):
    """Ask a person at the terminal."""
    book = session.book
    print(help)
    with keyboard() as press:
        while q := session.current():
            print(f"\n---- {session.n + 1} of {session.total} ----")
            for message in q["prompt"]:
                print(f"{message['role']:>9}: {message['content']}")
            for i, response in enumerate(q["responses"], start=1):
                print(f"{i:9}: " + response.replace("\n", "\n           "))  # it forges no other
            print(flush=True)
            said = vote(len(q["responses"]), press, read, help)
            if said == "q":
                break
            if said == "u":
                print(f"({session.undo()})")
            elif said == "s":
                session.n += 1
            else:
                session.save(q, said)
                an_hour = len(session.answered) / (time.time() - session.began) * 3600
                print(f"  saved: {book.labels} labels, {an_hour:.0f} an hour")
    done = ": all are done" if session.n >= session.total else ""
    print(f"\n{book.path} holds {book.labels} labels{done}")


def questions(cfg, path, model, tokenizer):
    """What a person is asked about a policy's answers -> LabelSession."""
    prompts = records.read_questions(cfg.data) if cfg.data else (
        almanac.prompts("train", cfg.prompts, f"label {cfg.seed}", cfg.topic))

    def question(n):
        """The n-th prompt and its different answers, the same for all who have this checkpoint.

        None if there are not two.
        """
        p = prompts[n]
        if "responses" not in p:
            if not sampling.with_room(model, tokenizer, [p], cfg.max_new_tokens):
                return None
            torch.manual_seed(100_000 * cfg.seed + n)
            p = dict(p, responses=sampling.answers(model, tokenizer, [p], cfg.max_new_tokens,
                                                   cfg.temperature, cfg.k))
        different = list(dict.fromkeys(p["responses"]))
        return dict(p, responses=different) if len(different) > 1 else None

    book = LabelFile(cfg.out, cfg.labeler, checkpoint=str(path), seed=cfg.seed,
                     asked=cfg.data or "the almanac")
    return LabelSession(question, len(prompts), book)


def run(cfg):
    """`python reward.py --label`: a person ranks answers; the file is one for --data."""
    path, model, tokenizer = start.policy(cfg.out, cfg.policy, "--policy", setup(cfg))
    session = questions(cfg, path, model, tokenizer)
    print(f"Ranking answers of {path}.")
    label(session)
    print(f"python reward.py --data {session.book.path} learns from them")


# ---- agreement -----------------------------------------------------------------------------------


def verdicts(one, other):
    """Verdicts on each question that both ranked: list of arrays (pairs, 2) of -1, 0, 1."""
    def by_question(records):
        return {json.dumps([r["prompt"], sorted(r["responses"])]):
                dict(zip(r["responses"], r["ranks"])) for r in records}

    ours, theirs, every = by_question(one), by_question(other), []
    for question in ours:
        if question in theirs and len(ours[question]) > 1:  # two equal answers make no pair
            pairs = itertools.combinations(sorted(ours[question]), 2)
            every.append(np.array([[np.sign(ranks[y] - ranks[x])
                                    for ranks in (ours[question], theirs[question])]
                                   for x, y in pairs]))
    return every


def agreement(pairs):
    """Verdicts (n, 2) of two people -> (share that agree, Cohen's kappa).

    Which of two answers comes first means nothing, so each pair counts in both directions.
    """
    return kappa(*np.concatenate([pairs, -pairs]).T)


def report(one, other, draws=2000):
    """Print how often two people agree, with 95% intervals from a bootstrap over the questions."""
    common = verdicts(records.read_comparisons(one), records.read_comparisons(other))
    if not common:
        raise UserError(f"{one} and {other} have no question in common: label the same answers, "
                        "with --label --data FILE")
    drawn = np.random.default_rng(0).integers(len(common), size=(draws, len(common)))
    figures = [agreement(np.concatenate([common[i] for i in row])) for row in drawn]
    low, high = np.percentile(figures, [2.5, 97.5], axis=0)
    pairs = np.concatenate(common)
    agreed, kappa = agreement(pairs)
    print(f"{len(common)} questions in common, {len(pairs)} pairs of answers")
    print(f"agreement {agreed:.1%} ({low[0]:.1%} to {high[0]:.1%}), kappa {kappa:.2f} "
          f"({low[1]:.2f} to {high[1]:.2f}); 95% intervals over questions")
    decided = pairs[(pairs != 0).all(1)]
    if len(decided):
        print(f"of the {len(decided)} pairs that neither called a tie, "
              f"{(decided[:, 0] == decided[:, 1]).mean():.1%} agree")


if __name__ == "__main__":
    with polite():
        report(*arguments(__doc__, least=2)[:2])
