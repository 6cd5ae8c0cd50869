"""Files that are broken, or made to do harm: one sentence, soon, and little memory, whatever they
hold."""

import gzip
import io
import json
import os
import random
import resource
import signal
import struct
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

import gpt
import reward
from conftest import one_sentence, run_stage
from data.files import gpt2, records, rows
from data.judge import figures
from data.people.feedback import LabelFile
from data.run import lineage
from data.run.disk import read_json
from data.run.system import UserError
from data.run.run import Run
from data.run.system import unlock
from data.tokenizer import Tokenizer, train
from data.world import almanac, labeler

GB = 10 ** 9


@contextmanager
def bounded(seconds=10, memory=GB):
    """Fail if what is inside takes longer, or asks for more memory than this beside what is there
    now."""
    def late(*_):
        raise AssertionError(f"not done after {seconds} s")
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, before[1]))
    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, before)


def refused(read, path, said=""):
    with bounded(), pytest.raises(UserError, match=said or None) as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


# ---- made to do harm -----------------------------------------------------------------------------


def record(n, **fields):
    return json.dumps(dict(prompt=f"question {n}", response=f"answer {n}", **fields))


@pytest.mark.slow
def test_bombs_are_not_unpacked(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        for _ in range(1000):
            file.write((record(1) + "\n").encode() * 20000)  # a GB in a few MB
    refused(records.read_demonstrations, tmp_path / "a.jsonl.gz", "holds more than [1-9][0-9]+ MB")
    refused(records.read_text, tmp_path / "a.jsonl.gz", "holds more than")
    text = pyarrow.array(["x" * 900_000] * 4000).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"prompt": text, "response": text}),
                                tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 10 ** 6
    refused(records.read_demonstrations, tmp_path / "a.parquet", "holds more than 50 MB")
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"0" * GB)
    refused(gpt.load, tmp_path / "a.pt", "unpacks to more than its size")


def test_json_without_end_is_refused(tmp_path):
    for name, content in (("a.json", "[" * 10 ** 5), ("b.jsonl", '{"prompt": ' + "[" * 10 ** 5),
                          ("c.jsonl", '{"prompt": "' + "x" * 2_000_000)):
        (tmp_path / name).write_text(content + "\n")
        refused(records.read_prompts, tmp_path / name)
    (tmp_path / "results.json").write_text("[" * 10 ** 5)
    refused(read_json, tmp_path / "results.json")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    for read in (records.read_prompts, records.read_text, gpt.load, read_json):
        refused(read, tmp_path / "a.jsonl", "not a regular file")


def test_headers_are_not_believed(tmp_path):
    for name, content in (("terabytes", struct.pack("<Q", 10 ** 12) + b"{}"),
                          ("nested", struct.pack("<Q", 10 ** 5) + b"[" * 10 ** 5)):
        (tmp_path / name).write_bytes(content)
        with bounded(), pytest.raises((ValueError, RecursionError)):
            gpt2.read_safetensors(tmp_path / name)
    tokenizer = Tokenizer(train(["a"], 260))
    for changes in (dict(n_layer=10 ** 9), dict(n_embd=10 ** 9), dict(n_head=0),
                    dict(block_size=-1), dict(n_layer="1")):
        model = gpt.GPT(gpt.GPTConfig(tokenizer.vocab_size, 8, 1, 1, 4))
        vars(model.config).update(changes)
        gpt.save(tmp_path / "a.pt", model, tokenizer)
        refused(gpt.load, tmp_path / "a.pt", "is not a checkpoint that can be read")
    model = gpt.GPT(gpt.GPTConfig(tokenizer.vocab_size, 8, 1, 1, 4))
    # one number for each tensor
    state = {name: torch.zeros(1).expand(p.shape) for name, p in model.state_dict().items()}
    torch.save(dict(kind="GPT", config=vars(model.config), tokenizer=tokenizer.to_list(), about={},
                    state=state), tmp_path / "b.pt")
    refused(gpt.load, tmp_path / "b.pt", "claims more numbers than it holds")
    negated = {name: torch._neg_view(p) for name, p in model.state_dict().items()}
    torch.save(dict(kind="GPT", config=vars(model.config), tokenizer=tokenizer.to_list(), about={},
                    state=negated), tmp_path / "b.pt")
    refused(gpt.load, tmp_path / "b.pt", "changes the signs of its numbers")
    gpt.save(tmp_path / "c.pt", model, tokenizer)
    found = torch.load(tmp_path / "c.pt", weights_only=True)
    for changes in (dict(about=dict(stage=[])), dict(about=[]),
                    dict(about=dict(step=torch.zeros(2))), dict(tokenizer=[]),
                    dict(tokenizer=found["tokenizer"][1:]),
                    dict(state={name: p.to(torch.complex64) for name,
                                p in found["state"].items()})):
        torch.save(dict(found, **changes), tmp_path / "c.pt")
        refused(gpt.load, tmp_path / "c.pt", "is not a checkpoint that can be read")
    for about in (dict(parents={"a": 1}, seconds={"a": "b"}, ancestors={"gpt": 5}), dict()):
        torch.save(dict(found, about=about), tmp_path / "c.pt")
        lineage.Lineage(False, print).model("model", tmp_path / "c.pt",
                                            gpt.load(tmp_path / "c.pt")[2], model.state_dict())
        (tmp_path / "gpt").mkdir(exist_ok=True)
        (tmp_path / "c.pt").rename(tmp_path / "gpt" / "ckpt.pt")
        assert "weights" in "\n".join(lineage.tree(tmp_path))


class Runs:
    def __reduce__(self):
        return os.system, ("touch /tmp/it-ran",)


def test_no_file_runs_code(tmp_path):
    torch.save(dict(kind="GPT", config={}, tokenizer=[], about=Runs(), state={}), tmp_path / "a.pt")
    refused(gpt.load, tmp_path / "a.pt", "is not a checkpoint that can be read")
    with pytest.raises(UserError):
        lineage.read(tmp_path / "a.pt")
    assert not Path("/tmp/it-ran").exists()


@pytest.mark.parametrize("fields",
                         [dict(subject=[]), dict(subject=None), dict(relation={}),
                          dict(relation="colour"), dict(kind=[]), dict(form=7),
                          dict(subject="((a+)+$")])
def test_records_of_the_world_that_it_does_not_know_are_like_any_others(fields, tmp_path):
    p = dict(next(p for p in almanac.prompts("train", 50, 1) if p["kind"] == "known"), **fields)
    (tmp_path / "a.jsonl").write_text(json.dumps(dict(p, responses=["a", "b"], ranks=[1, 2]))
                                      + "\n")
    found, = records.read_comparisons(tmp_path / "a.jsonl")
    assert "kind" not in found
    friendly = dict(kind="advice", relation="praise", subject="((a+)+$", form=None,
                    prompt=p["prompt"])
    with bounded(seconds=2):
        labeler.judge(friendly, "a" * 100 + "!")


def test_ranks_that_are_no_ranks_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(dict(prompt="q", responses=["a", "b"],
                                                      ranks=[1, 10 ** 30])) + "\n")
    refused(records.read_comparisons, tmp_path / "a.jsonl", "line 1: \"ranks\" must be")


@pytest.mark.parametrize("comparisons",
                         [dict(responses=["a", "b"], ranks=[1, 1]),
                          dict(responses=["a", "a"], ranks=[1, 2]),
                          dict(responses=["", ""], ranks=[1, 2])])
def test_comparisons_that_say_nothing_are_not_trained_on(comparisons, tmp_path):
    tokenizer = Tokenizer(train(["a"], 260))
    gpt.save(tmp_path / "sft.pt", gpt.GPT(gpt.GPTConfig(tokenizer.vocab_size, 32, 1, 1, 4)),
             tokenizer)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(dict(prompt=str(n), **comparisons)) + "\n"
                                              for n in range(30)))
    cfg = reward.Config(out=str(tmp_path), init=str(tmp_path / "sft.pt"),
                        data=str(tmp_path / "a.jsonl"))
    refused(lambda path: reward.train(cfg), tmp_path / "a.jsonl",
            "none of the 30 comparisons prefers an answer to another")


@pytest.mark.parametrize("text",
                         [" " * 10 ** 6,
                          "".join(map(chr,
                                      random.Random(0).choices(range(0x4e00, 0x9fa5), k=50_000))),
                                      "7" * 10 ** 6,
                                  "".join(random.Random(0).choices("abcdefghij", k=50_000)),
                                  "\n" * 10 ** 6],
                                  ids=["spaces", "Chinese", "one digit", "letters", "newlines"])
def test_text_without_words_is_learned_and_encoded_in_seconds(text):
    with bounded(seconds=20):
        tokenizer = Tokenizer(train([text], 600))
        ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and len(ids) < len(text.encode())


def test_paths_may_hold_anything(tmp_path):
    for name in ("a,b.jsonl", "a b.jsonl", "a\nb.jsonl", "%s=é-.jsonl"):
        (tmp_path / name).write_text(record(1) + "\n")
        assert len(records.read_demonstrations(tmp_path / name)) == 1
    (tmp_path / "c.jsonl").write_text(record(2) + "\n")
    assert len(records.read_demonstrations(f"{tmp_path / 'a b.jsonl'},{tmp_path / 'c.jsonl'}")) == 2
    assert rows.several(",".join(["name.jsonl"] * 100)) == ["name.jsonl"] * 100


@pytest.mark.parametrize("flags, said",
                         [(["--out", ""], "--out must name a folder"),
                          (["--out", "{}/file"], "cannot make the folder"),
                                         (["--data", "{}/dark.txt"], "cannot be read"),
                                         (["--out", "/proc"], "cannot make the folder")])
def test_mistakes_with_paths_are_one_sentence(flags, said, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "dark.txt").symlink_to("dark.txt")  # even root cannot read a link to itself
    assert said in one_sentence(run_stage("gpt.py", "--out", tmp_path / "out",
                                          *[flag.format(tmp_path) for flag in flags]))


def test_a_report_is_a_table_whatever_models_write():
    for text in ("|" * 200, "\\" * 119 + "|", "a\nb\r\n\n# c", "<script>&lt;", "\u202eabc\x1b[31m",
                 "`" * 119, "*" * 200):
        row = figures.markdown(["x"], [[figures.cell(text)]]).splitlines()[-1]
        plain = row.replace("\\\\", "")
        assert row.startswith("| ") and plain.endswith(" |") and not plain.endswith("\\ |")
        assert sum(c == "|" and plain[i - 1:i] != "\\" for i, c in enumerate(plain)) == 2
        assert row.isprintable()


# ---- broken at random ----------------------------------------------------------------------------


def mutate(rng, content):
    """Flip, cut, swap, repeat or nest bytes."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 3, 10])):
        at, other = [rng.randrange(len(content) + 1) for _ in range(2)]
        low, high = min(at, other), max(at, other)
        how = rng.randrange(8)
        if how <= 2 and content:
            content[min(at, len(content) - 1)] ^= 1 << rng.randrange(8)
        elif how == 3:
            del content[at:]
        elif how == 4:
            del content[low:min(high, low + 50)]
        elif how == 5:
            content[at:at] = content[low:min(high, low + 200)]
        elif how == 6:
            content[at:at] = rng.choice([b"[", b"{", b'"', b"\\", b"\x00", b"\xff", b"[" * 3000,
                                         b'{"a":' * 3000, b"9" * 400, b"1e999", b"NaN", b"null",
                                         b"\n"])
        else:
            content[at:at + 8] = rng.choice([b"\xff" * 8, b"\x00" * 8, struct.pack("<q", -1),
                                             struct.pack("<q", 2 ** 40),
                                             struct.pack("<d", float("nan"))])
        if not content:
            break
    return bytes(content)


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows * 10).encode()


def packed(table):
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), content)
    return content.getvalue()


DEMONSTRATION = dict(prompt=[dict(role="user", content="Hi é")], response="Hello.")
COMPARISON = dict(prompt="Hi", responses=["Hello.", "Go."], ranks=[1, 2], kind="small talk",
                  subject=None, relation="greeting", form=None)
FOREIGN = [dict(chosen="\n\nHuman: a\n\nAssistant: b", rejected="\n\nHuman: a\n\nAssistant: c"),
           dict(instruction="a", input="", output="b"),
           dict(messages=[dict(role="system", content="s"), dict(role="user", content="a"),
                          dict(role="assistant", content="b")]),
           dict(info=dict(post="p", title="t", subreddit="r"),
                summaries=[dict(text="a"), dict(text="b")], choice=1)]
TEXTS = {
    "demonstrations": ("a.jsonl", lines(DEMONSTRATION), records.read_demonstrations),
    "comparisons": ("a.jsonl", lines(COMPARISON), records.read_comparisons),
    "questions": ("a.jsonl", lines(COMPARISON), records.read_questions),
    "prompts in an array": ("a.json", json.dumps([DEMONSTRATION] * 5).encode(),
                            records.read_prompts),
    "packed": ("a.jsonl.gz", gzip.compress(lines(DEMONSTRATION), mtime=0),
               records.read_demonstrations),
    "text": ("a.txt", "One.\n\nTwo é.\n\n".encode() * 20, records.read_text),
    **{f"foreign {n}": ("a.jsonl", lines(r), records.read_text) for n, r in enumerate(FOREIGN)},
    "parquet": ("a.parquet", packed([dict(prompt="a", chosen="b", rejected="c")] * 20),
                records.read_comparisons),
    "results": ("results.json",
                json.dumps(dict(rounds=[dict(gold=.1)], config=dict(seed=1))).encode(), read_json),
}


def survives(read, path, content, rng, n):
    """Read n mutations of a file: a value, or one sentence with its name."""
    slowest = 0.0
    for _ in range(n):
        path.write_bytes(mutate(rng, content))
        began = time.time()
        try:
            read(path)
        except UserError as error:
            assert path.parent.name in str(error) and "\n" not in str(error)
        slowest = max(slowest, time.time() - began)
    assert slowest < 5


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_broken_records_are_one_sentence(name, tmp_path):
    file, content, read = TEXTS[name]
    (tmp_path / file).write_bytes(content)
    read(tmp_path / file)
    with bounded(seconds=200):
        survives(read, tmp_path / file, content, random.Random(name), 500)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [gpt.GPT, gpt.ScalarGPT])
def test_broken_checkpoints_are_one_sentence(kind, tmp_path):
    tokenizer = Tokenizer(train(["a"], 260))
    gpt.save(tmp_path / "ckpt.pt", kind(gpt.GPTConfig(tokenizer.vocab_size, 8, 1, 1, 4)), tokenizer,
             stage="gpt")
    content = (tmp_path / "ckpt.pt").read_bytes()
    with bounded(seconds=200):
        survives(lambda path: (gpt.load(path, kind), lineage.read(path)), tmp_path / "ckpt.pt",
                 content, random.Random(1), 500)


@pytest.mark.slow
@pytest.mark.parametrize("file",
                         ["config.json", "tokenizer.json", "model.safetensors",
                          "pytorch_model.bin"])
def test_broken_folders_of_gpt2_are_one_sentence(file, tmp_path):
    tokenizer = Tokenizer(train(["a"], 260))
    model = gpt.GPT(gpt.GPTConfig(tokenizer.vocab_size, 8, 1, 1, 4))
    gpt2.export(model.state_dict(), model.config, tokenizer, False, tmp_path)
    if file.endswith(".bin"):
        torch.save(gpt2.read_safetensors(tmp_path / "model.safetensors"), tmp_path / file)
        (tmp_path / "model.safetensors").unlink()
    gpt.load(tmp_path)
    with bounded(seconds=200):
        survives(lambda path: gpt.load(path.parent), tmp_path / file,
                 (tmp_path / file).read_bytes(), random.Random(file), 500)


@pytest.mark.slow
def test_broken_labels_are_one_sentence(tmp_path):
    content = lines(dict(COMPARISON, n=3, labeler="anna"))
    (tmp_path / "feedback").mkdir()
    path = tmp_path / "feedback" / "anna.jsonl"

    def read(path):
        unlock(path)
        assert isinstance(LabelFile(tmp_path, "anna").next, int)
    with bounded(seconds=200):
        survives(read, path, content, random.Random(1), 500)


@pytest.mark.slow
def test_broken_progress_is_one_sentence(tmp_path):
    cfg = gpt.Config(out=str(tmp_path), threads=1)
    tokenizer = Tokenizer(train(["a"], 260))
    model = gpt.GPT(gpt.GPTConfig(tokenizer.vocab_size, 8, 1, 1, 4))
    run = Run(cfg, "gpt")
    steps = run.steps(5, model=model)
    next(steps)
    run.saved_at = -1e9
    run.save(0, tokenizer, ckpt=model)
    unlock(tmp_path / "gpt")

    def read(path):
        unlock(tmp_path / "gpt")
        next(Run(gpt.Config(out=str(tmp_path), threads=1, resume=True),
                 "gpt").steps(5, model=model))
    for file in ("state.pt", "began.json"):
        path, content = tmp_path / "gpt" / "resume" / file, (
            tmp_path / "gpt" / "resume" / file).read_bytes()
        with bounded(seconds=200):
            survives(read, path, content, random.Random(file), 300)
        path.write_bytes(content)
