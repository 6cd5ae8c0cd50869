"""See inside: `python gpt.py --page` shows the models of a run on a page in the browser.

One question goes to several models; each token of an answer shows what the models say of it;
answers are ranked by hand, as by `reward.py --label`, and rated, as by `ppo.py --rate`; a run is
watched. The page is page.html, beside this file. Nothing is loaded from elsewhere, and nobody but
this computer can reach it.
"""

import contextlib
import functools
import itertools
import json
import random
import re
import secrets
import sys
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

import reward
from data.files.messages import conversation
from data.judge import report
from data.people import chat, feedback, inside, rate
from data.run import curves
from data.run.cli import Asking, flag
from data.run.device import setup
from data.run.disk import regular
from data.run.system import UserError
from data.world import almanac


@dataclass
class Config(chat.Config, Asking):
    """The flags of the page."""

    ckpt: str = flag("", "checkpoints, separated by commas (default: all in --out)", group="page")
    port: int = flag(8765, "the port on this computer; 0: any free one", least=0)


LONGEST = 1_000_000  # bytes of a request
WATCHED = ("step", "score", "gold", "kl", "loss", "valid_loss", "accuracy", "sample")


class Page:
    """What the page asks for: the methods of Handler.PATHS take a dict, and return or yield one.

    Models compute one at a time, in a thread of their own: an answer takes its turn for each token,
    so that several are written side by side.
    """

    def __init__(self, cfg, device):
        self.cfg, self.scores = cfg, {}
        self.models = inside.gather(cfg.out, cfg.ckpt, device)
        self.room = self.models.context - cfg.max_new_tokens
        if self.room < 1:
            raise UserError(f"--max_new_tokens must be at most {self.models.context - 1}, the "
                            "context of the models less one")
        prompts = almanac.prompts("test", 1000, cfg.seed, cfg.topic)
        self.questions = [p["prompt"][0]["content"] for p in prompts if len(p["prompt"]) == 1]
        self.worker = ThreadPoolExecutor(1)

    def compute(self, work, *args):
        return self.worker.submit(work, *args).result()

    def policies(self, request):
        """The names of the policies, and a question that the labeler can judge."""
        return dict(policies=list(self.models.policies), question=random.choice(self.questions))

    def model(self, request):
        if request["model"] not in self.models.policies:
            raise ValueError(f"there is no model {request['model']!r}")
        return self.models.policies[request["model"]]

    def size(self, turns):
        return len(self.models.tokenizer.render(turns))

    def answer(self, request):
        """{model, turns} -> {id, text} for each token, at last {dropped}: forgotten turns."""
        model, turns, ids = self.model(request), conversation(request["turns"]), []
        if self.size(turns[-1:]) > self.room:
            raise ValueError(f"that is {self.size(turns[-1:])} tokens, and the models read "
                             f"{self.room}: please say it in fewer words")
        turns, dropped = chat.fit(turns, self.size, self.room)
        pieces = chat.reply(model, self.models.tokenizer, turns, self.cfg.max_new_tokens,
                            self.cfg.temperature, ids)
        while (piece := self.compute(next, pieces, None)) is not None:
            yield dict(id=ids[-1] if ids else None, n=len(ids), text=piece)
        yield dict(dropped=dropped, ids=ids)

    def explain(self, request):
        """{model, turns, ids}: the conversation before an answer, and its tokens -> what the models
        say of each token and of the whole."""
        ids, config = request["ids"], self.model(request).config
        if not 0 < len(ids) <= self.cfg.max_new_tokens or not all(
                type(i) is int and 0 <= i < config.vocab_size for i in ids):
            raise ValueError("ids must be those of an answer")

        def work():
            turns, _ = chat.fit(conversation(request["turns"]), self.size, self.room)
            answer = self.models, request["model"], turns, ids
            return dict(tokens=inside.tokens(*answer, self.cfg.temperature or 1.0),
                        verdict=inside.verdict(*answer))
        return self.compute(work)

    def rank(self, request):
        """{n, typed}: keys as reward.py --label takes them, about the n-th question -> the open
        question, and how often the reward model agrees."""
        def work():
            answer = press(self.labels, request, feedback.read_ranking)
            return answer if "wait" in answer else dict(
                answer, agreement=self.agreement(self.labels.book.records))
        return self.compute(work)

    def rate(self, request):
        """{n, typed}: keys as ppo.py --rate takes them, about the n-th answer -> the open one."""
        return self.compute(lambda: press(self.ratings, request, rate.read_rating))

    def same(self, config):
        """The flags of another command, as those of this page."""
        return config(out=self.cfg.out, seed=self.cfg.seed, topic=self.cfg.topic,
                      max_new_tokens=self.cfg.max_new_tokens)

    @functools.cached_property
    def labels(self):
        name, policy = list(self.models.policies.items())[-1]
        return feedback.questions(self.same(feedback.Config), self.models.paths[name], policy,
                                  self.models.tokenizer)

    @functools.cached_property
    def ratings(self):
        cfg = self.same(rate.Config)
        models, tokenizer, _ = report.load_models(cfg, self.models.device)
        return rate.questions(cfg, models, tokenizer)

    def agreement(self, labels):
        """On how many pairs the newest reward model agrees with a person, and those where not."""
        if not self.models.rewards or not labels:
            return None
        judge, pairs, others = list(self.models.rewards.values())[-1], 0, []
        for r in labels:
            key = json.dumps([r["prompt"], r["responses"]])
            example = reward.encode(self.models.tokenizer, r, judge.config.block_size)
            if key not in self.scores and example:
                scores, _ = reward.score_all(judge, [example], self.models.device)
                self.scores[key] = scores[0].tolist()
            answers = sorted(zip(r["ranks"], self.scores.get(key, ()), r["responses"]))
            for (rank, score, better), (below, other, worse) in itertools.combinations(answers, 2):
                pairs += rank < below
                if rank < below and score <= other:
                    others.append(dict(asked=r["prompt"][-1]["content"], better=better, worse=worse,
                                       scores=[score, other]))
        return dict(agreed=pairs - len(others), pairs=pairs, others=others[::-1][:20])

    def watch(self, request):
        """What each stage in --out has logged so far, and a healthy run's -> {stage: ...}."""
        logs = sorted(Path(self.cfg.out).glob("*/log.jsonl"), key=lambda p: p.stat().st_mtime)
        return {path.parent.name: dict(log=read_log(path),
                                       healthy=watched(curves.healthy(path.parent.name)))
                for path in logs}


def press(session, request, read):
    """Keys about the n-th question of a session -> the open question, or that more are needed.

    Who wrote an answer is not told. read(typed, k): as feedback.vote takes it.
    """
    typed, note, q = request.get("typed", ""), {}, session.current()
    if request.get("n") == session.n and typed == "u":
        note = dict(note=f"{session.undo()}.")
    elif request.get("n") == session.n and q and typed == "s":
        session.n += 1
    elif request.get("n") == session.n and q and typed:
        said = read(typed, len(q["responses"]))
        if said is None:
            return dict(wait=True)
        session.save(q, said)
        note = dict(note=f"saved: {session.book.labels} labels in {session.book.path}.")
    q = session.current()
    shown = q and {name: q[name] for name in ("prompt", "responses")}
    return dict(note, question=shown, n=session.n, total=session.total)


def watched(records):
    """Records of a log with nothing but what the page shows."""
    return [{name: r[name] for name in WATCHED if name in r} for r in records]


def refuse_constant(name):
    raise ValueError(f"{name} is no JSON, and browsers refuse it")


def read_log(path):
    """The figures of a log that is being written: its last line may be cut."""
    records = []
    with contextlib.suppress(OSError, ValueError):
        regular(path)
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                records += watched([json.loads(line, parse_constant=refuse_constant)])
    return records[::-(len(records) // 500 + 1)][::-1]


class Handler(BaseHTTPRequestHandler):
    """The page at GET /, and a method of Page at each POST; others' pages and names are refused."""

    page, html, nonce, timeout = None, "", "", 60
    PATHS = {"/models": "policies", "/answer": "answer", "/explain": "explain",
             "/rank": "rank", "/rate": "rate", "/watch": "watch"}

    def is_ours(self):
        """Whether the request comes from our page. Another page could have its name resolved to
        127.0.0.1, or post here: both show in the headers that the browser writes."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        # A tunnel may have another port; a page of another program has another origin than we.
        return re.fullmatch(r"(127\.0\.0\.1|localhost)(:\d+)?", host) and (
            origin in (None, f"http://{host}"))

    def do_GET(self):
        if not self.is_ours():
            self.refuse()
        elif self.path.partition("?")[0] != "/":  # /?lang=zh
            self.send_error(404)
        else:
            self.begin(200, "text/html; charset=utf-8")
            self.wfile.write(self.html.encode())

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        json_sent = self.headers.get("Content-Type", "").startswith("application/json")
        if not self.is_ours() or not json_sent:
            return self.refuse()
        if self.path not in self.PATHS or not (length.isascii() and length.isdigit()):
            return self.send_error(404)
        if len(length) > 9 or int(length) > LONGEST:
            return self.send_error(413, f"at most {LONGEST:,} bytes")
        self.begin(200, "application/jsonl; charset=utf-8")
        try:
            request = json.loads(self.rfile.read(int(length)))
            answer = getattr(self.page, self.PATHS[self.path])(request)
            for part in [answer] if isinstance(answer, dict) else answer:
                self.send_part(part)
        except (OSError, CancelledError):
            pass  # the tab was closed, or the page ends: the answer stops here
        except (UserError, ValueError, LookupError, TypeError, AttributeError,
                RuntimeError) as error:
            with contextlib.suppress(OSError):
                self.send_part(dict(error=str(error)))

    def refuse(self):
        self.send_error(403, "open this page on its own computer, as http://127.0.0.1:"
                             f"{self.server.server_port}/")

    def begin(self, status, kind):
        self.send_response(status)
        for name, value in {
                "Content-Type": kind, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
                "Content-Security-Policy": f"default-src 'none'; script-src 'nonce-{self.nonce}'; "
                f"style-src 'nonce-{self.nonce}'; connect-src 'self'; img-src data:; "
                "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_part(self, part):
        self.wfile.write(json.dumps(part).encode() + b"\n")
        self.wfile.flush()

    def log_message(self, *args):
        """Requests are not printed."""


class Server(ThreadingHTTPServer):
    request_queue_size = 256

    def handle_error(self, request, address):
        """A closed tab is no error; anything else is shown as Python shows it."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, address)


def server(cfg, device):
    """A server of the page, which does not yet run. UserError if its port is in use."""
    nonce = secrets.token_urlsafe(16)
    html = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    handler = type("Ours", (Handler,), dict(page=Page(cfg, device), nonce=nonce,
                                            html=html.replace("NONCE", nonce)))
    try:
        return Server(("127.0.0.1", cfg.port), handler)
    except (OSError, OverflowError) as error:
        raise UserError(f"port {cfg.port} cannot be used ({getattr(error, 'strerror', error)}): "
                        "choose another with --port") from None


def run(cfg):
    """`python gpt.py --page`."""
    device = setup(cfg)
    torch.manual_seed(cfg.seed)
    ours = server(cfg, device)
    print(f"The page is at http://127.0.0.1:{ours.server_port}/ until Ctrl-C.", flush=True)
    try:
        ours.serve_forever()
    except KeyboardInterrupt:
        ours.RequestHandlerClass.page.worker.shutdown(wait=False, cancel_futures=True)
        print("\nGoodbye.")
