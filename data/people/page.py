"""See inside: `python gpt.py --page` shows the models of a run on a page in the browser.

One question goes to several models; each token of an answer shows what the models say of it;
answers are ranked by hand, as by `reward.py --label`; a run is watched. The page is page.html,
beside this file. Nothing is loaded from elsewhere, and nobody but this computer can reach it.
"""

import contextlib
import json
import random
import secrets
from dataclasses import dataclass
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

import reward
from data.files.foreign import conversation
from data.people import chat, feedback, inside
from data.run import curves
from data.run.cli import flag
from data.run.device import choose_device, setup
from data.run.system import UserError
from data.world import almanac


@dataclass
class Config(chat.Config):
    """The flags of the page."""

    ckpt: str = flag("", "checkpoints, separated by commas (default: all in --out)", group="page")
    port: int = flag(8765, "the port on this computer; 0: any free one", least=0)


LONGEST = 1_000_000  # bytes of a request
WATCHED = ("step", "score", "gold", "kl", "loss", "valid_loss", "accuracy", "sample")


class Page:
    """What the page asks for: the methods of Handler.PATHS take a dict and return one, or yield
    several.

    Models compute one at a time, in a thread of their own: an answer takes its turn for each token,
    so that several are written side by side.
    """

    def __init__(self, cfg):
        self.cfg, self.asking, self.scores = cfg, None, {}
        self.models = inside.gather(cfg.out, cfg.ckpt, choose_device(cfg.device))
        self.room = self.models.context - cfg.max_new_tokens
        if self.room < 1:
            raise UserError(f"--max_new_tokens must be at most {self.models.context - 1}, the "
                            "context of the models less one")
        self.questions = [p["prompt"][0]["content"] for p in almanac.prompts("test", 1000, cfg.seed)
                          if len(p["prompt"]) == 1]
        self.worker = ThreadPoolExecutor(1)

    def compute(self, work, *args):
        return self.worker.submit(work, *args).result()

    def policies(self, said):
        """The names of the policies, and a question that the labeler can judge."""
        return dict(policies=list(self.models.policies), question=random.choice(self.questions))

    def model(self, said):
        if said["model"] not in self.models.policies:
            raise ValueError(f"there is no model {said['model']!r}")
        return self.models.policies[said["model"]]

    def size(self, turns):
        return len(self.models.tokenizer.render(turns))

    def answer(self, said):
        """{model, turns} -> yields {id, text} for each token, at last {dropped}: forgotten turns.
        """
        model, turns, ids = self.model(said), conversation(said["turns"]), []
        if self.size(turns[-1:]) > self.room:
            raise ValueError(f"that is {self.size(turns[-1:])} tokens, and the models read "
                             f"{self.room}: please say it in fewer words")
        turns, dropped = chat.fit(turns, self.size, self.room)
        pieces = chat.reply(model, self.models.tokenizer, turns, self.cfg.max_new_tokens,
                            self.cfg.temperature, ids)
        while (piece := self.compute(next, pieces, None)) is not None:
            yield dict(id=ids[-1] if ids else None, n=len(ids), text=piece)
        yield dict(dropped=dropped, ids=ids)

    def explain(self, said):
        """{model, turns, ids}: the conversation before an answer, and its tokens -> what the models
        say of each token and of the whole."""
        ids, config = said["ids"], self.model(said).config
        if not 0 < len(ids) <= self.cfg.max_new_tokens or not all(
                type(i) is int and 0 <= i < config.vocab_size for i in ids):
            raise ValueError("ids must be those of an answer")

        def work():
            turns, _ = chat.fit(conversation(said["turns"]), self.size, self.room)
            about = self.models, said["model"], turns, ids
            return dict(tokens=inside.tokens(*about, self.cfg.temperature or 1.0),
                        verdict=inside.verdict(*about))
        return self.compute(work)

    def rank(self, said):
        """{n, typed}: keys as reward.py --label takes them, about the n-th question -> the open
        question, and after a label how often the reward model agrees."""
        def work():
            asking, typed = self.open_questions(), said.get("typed", "")
            q, found = asking.current(), {}
            if said.get("n") == asking.n and typed:
                if typed == "u":
                    found["note"] = ("your last label is taken back." if asking.undo()
                                     else "this session has no label to take back.")
                elif q and typed == "s":
                    asking.skip()
                elif q:
                    ranks, fails = feedback.read_keys(typed, len(q["responses"]))
                    if ranks is None:
                        return dict(wait=True)
                    asking.save(q, ranks, fails)
                    found["note"] = f"saved: {asking.book.labels} labels in {asking.book.path}."
            return dict(found, n=asking.n, total=asking.total, question=asking.current(),
                        agreement=self.agreement(asking.book.records))
        return self.compute(work)

    def open_questions(self):
        if not self.asking:
            name, policy = list(self.models.policies.items())[-1]
            path = self.models.paths[name]
            cfg = feedback.Config(out=self.cfg.out, seed=self.cfg.seed,
                                  max_new_tokens=self.cfg.max_new_tokens)
            self.asking = feedback.questions(cfg, path, policy, self.models.tokenizer)
        return self.asking

    def agreement(self, labels):
        """On how many pairs the newest reward model agrees with a person, and those where not."""
        if not self.models.rewards or not labels:
            return None
        judge = list(self.models.rewards.values())[-1]
        agreed, pairs, others = 0, 0, []
        for r in labels:
            example = reward.encode(self.models.tokenizer, r, judge.config.block_size)
            key = json.dumps([r["prompt"], r["responses"]])
            if key not in self.scores and example:
                scores, _ = reward.score_all(judge, [example], self.models.device)
                self.scores[key] = scores[0].tolist()
            found = sorted(zip(r["ranks"], self.scores.get(key, ()), r["responses"]))
            for i, (rank, score, better) in enumerate(found):
                for other_rank, other_score, worse in found[i + 1:]:
                    if rank < other_rank:
                        pairs += 1
                        agreed += score > other_score
                        if score <= other_score:
                            others.append(dict(asked=r["prompt"][-1]["content"], better=better,
                                               worse=worse, scores=[score, other_score]))
        return dict(agreed=agreed, pairs=pairs, others=others[::-1][:20])

    def watch(self, said):
        """What each stage in --out has logged so far, and a healthy run's -> {stage: ...}."""
        logs = sorted(Path(self.cfg.out).glob("*/log.jsonl"), key=lambda p: p.stat().st_mtime)
        return {path.parent.name: dict(log=read_log(path),
                                       healthy=watched(curves.healthy(path.parent.name)))
                for path in logs}


def watched(records):
    """Records of a log with nothing but what the page shows."""
    return [{name: r[name] for name in WATCHED if name in r} for r in records]


def read_log(path):
    """The figures of a log that is being written: its last line may be cut."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError):
            found += watched([json.loads(line)])
    return found[::-(len(found) // 500 + 1)][::-1]


class Handler(BaseHTTPRequestHandler):
    """The page at GET /, and a method of Page at each POST; others' pages and names are refused."""

    page, html, nonce, timeout = None, "", "", 60
    PATHS = {"/models": "policies", "/answer": "answer", "/explain": "explain",
             "/rank": "rank", "/watch": "watch"}

    def is_ours(self):
        """Whether the request comes from our page. Another page could have its name resolved to
        127.0.0.1, or post here: both show in the headers that the browser writes."""
        port = self.server.server_port
        names = [f"{name}:{port}" for name in ("127.0.0.1", "localhost")]
        if port == 80:  # which browsers leave out
            names += ["127.0.0.1", "localhost"]
        origin = self.headers.get("Origin")
        return self.headers.get("Host") in names and (
            origin is None or origin.removeprefix("http://") in names)

    def do_GET(self):
        if not self.is_ours():
            self.refuse()
        elif self.path != "/":
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
        if int(length) > LONGEST:
            return self.send_error(413, f"at most {LONGEST:,} bytes")
        self.begin(200, "application/jsonl; charset=utf-8")
        try:
            said = json.loads(self.rfile.read(int(length)))
            found = getattr(self.page, self.PATHS[self.path])(said)
            for part in [found] if isinstance(found, dict) else found:
                self.say(part)
        except OSError:
            pass  # the tab was closed: its answer stops here
        except (UserError, ValueError, LookupError, TypeError, AttributeError,
                RuntimeError) as error:
            with contextlib.suppress(OSError):
                self.say(dict(error=str(error)))

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

    def say(self, part):
        self.wfile.write(json.dumps(part).encode() + b"\n")
        self.wfile.flush()

    def log_message(self, *args):
        """Requests are not printed."""


def server(cfg):
    """A server of the page, which does not yet run. UserError if its port is in use."""
    nonce = secrets.token_urlsafe(16)
    html = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    handler = type("Ours", (Handler,), dict(page=Page(cfg), nonce=nonce,
                                            html=html.replace("NONCE", nonce)))
    try:
        return ThreadingHTTPServer(("127.0.0.1", cfg.port), handler)
    except (OSError, OverflowError) as error:
        raise UserError(f"port {cfg.port} cannot be used ({getattr(error, 'strerror', error)}): "
                        "choose another with --port") from None


def run(cfg):
    """`python gpt.py --page`."""
    setup(cfg)
    torch.manual_seed(cfg.seed)
    ours = server(cfg)
    print(f"The page is at http://127.0.0.1:{ours.server_port}/ until Ctrl-C.", flush=True)
    try:
        ours.serve_forever()
    except KeyboardInterrupt:
        ours.RequestHandlerClass.page.worker.shutdown(wait=False, cancel_futures=True)
        print("\nGoodbye.")
