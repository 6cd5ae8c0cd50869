"""Other people's data sets: each format is recognised and becomes ours."""

import gzip
import json
from pathlib import Path

import pytest

import ppo
import reward
import sft
from data.files import records
from data.run.cli import UserError

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
USER, SAID, ASKED = [{"role": who, "content": text} for who, text in (("user", "Hi"), ("assistant", "Hello"), ("user", "And?"))]
HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?\n\nAssistant: {}"
INFO = dict(subreddit="cats", title="A cat", post="It is old.", id="x")
POST = "SUBREDDIT: r/cats\n\nTITLE: A cat\n\nPOST: It is old.\n\nTL;DR:"


def answer(text):
    return [{"role": "assistant", "content": text}]


def write(path, records):
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else json.dumps(records).encode() if path.suffix == ".json" else lines)
    return path


@pytest.mark.parametrize("name, record, prompt", [
    ("transcripts of two assistants (Anthropic HH-RLHF)", dict(chosen=HH.format("good"), rejected=HH.format("bad")), [USER, SAID, ASKED]),
    ("comparisons of summaries (OpenAI TL;DR)", dict(info=INFO, summaries=[{"text": " bad"}, {"text": " good"}], choice=1), [dict(role="user", content=POST)]),
    ("preferred conversations (TRL)", dict(chosen=[USER, SAID, ASKED, *answer("good")], rejected=[USER, SAID, ASKED, *answer("bad")]), [USER, SAID, ASKED]),
    ("prompts and preferences (TRL)", dict(prompt=[USER], chosen=answer("good"), rejected=answer("bad")), [USER]),
    (records.OURS, dict(prompt="Hi", chosen="good", rejected="bad"), [USER]),
    ("instructions (Alpaca)", dict(instruction="Hi", input="", output="good", chosen="good", rejected="bad"), [USER]),
])
@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json"])
def test_preferences(name, record, prompt, ending, tmp_path, capsys):
    path = write(tmp_path / f"data.{ending}", [record] * 3)
    assert records.read_comparisons(path) == [dict(prompt=prompt, responses=["good", "bad"], ranks=[1, 2])] * 3
    assert name == records.OURS or name in capsys.readouterr().out
    assert records.read_demonstrations(path) == [dict(prompt=prompt, response="good")] * 3
    assert records.read_prompts(path) == [dict(prompt=prompt)] * 3


@pytest.mark.parametrize("record, prompt", [
    (dict(instruction="Sort.", input="b a", output="good"), [dict(role="user", content="Sort.\n\nb a")]),
    (dict(INFO, summary=" good"), [dict(role="user", content=POST)]),
    (dict(messages=[dict(role="system", content="Be kind."), USER, SAID, ASKED, *answer("good")]), [dict(role="user", content="Be kind.\n\nHi"), SAID, ASKED]),
    (dict(prompt=[USER], completion=answer("good")), [USER]),
    (dict(prompt="Hi", completion="good"), [USER]),
])
def test_demonstrations(record, prompt, tmp_path):
    path = write(tmp_path / "data.jsonl", [record])
    assert records.read_demonstrations(path) == [dict(prompt=prompt, response="good")] and records.read_prompts(path) == [dict(prompt=prompt)]
    assert records.read_text(path) == ["\n".join([m["content"] for m in prompt] + ["good"])]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet
    pyarrow.parquet.write_table(pyarrow.table(dict(chosen=[[USER, *answer("good")]], rejected=[[USER, *answer("bad")]])), tmp_path / "data.parquet")
    assert records.read_comparisons(tmp_path / "data.parquet") == [dict(prompt=[USER], responses=["good", "bad"], ranks=[1, 2])]
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="data.parquet cannot be read"):
        records.read_prompts(tmp_path / "data.parquet")


@pytest.mark.parametrize("record, said", [
    (dict(chosen=HH.format("good"), rejected=HH.format("bad").replace("Hello", "Ho")), "must differ in their last answer"),
    (dict(chosen=HH.format("good"), rejected=None), "must differ in their last answer"),
    (dict(prompt="Hi", chosen="a", rejected="b"), "another format"),
    (dict(instruction="Hi", output="x"), "another format"),
    ([], "not a JSON object"),
    (dict(chosen=HH.format("\ud83d"), rejected=HH.format("bad")), "surrogate"),
])
def test_a_broken_record_is_named_and_one_in_a_hundred_refuses_the_file(record, said, tmp_path, capsys):
    good = dict(chosen=HH.format("good"), rejected=HH.format("bad"))
    with pytest.raises(UserError, match=rf"data.jsonl, line 3: .*{said}"):
        records.read_comparisons(write(tmp_path / "data.jsonl", [good, good, record]))
    assert len(records.read_comparisons(write(tmp_path / "data.json", [good] * 99 + [record]))) == 99
    assert "record 100" in (out := capsys.readouterr().out) and "left out" in out


@pytest.mark.parametrize("record", [dict(instruction="Add", input=5, output="6"), dict(info={}, summaries=["a", "b"], choice=0), dict(prompt="Hi", response=None),
                                    dict(prompt=[USER], completion=answer("x"), chosen=None), dict(messages=[5])])
def test_a_field_of_the_wrong_type_is_named(record, tmp_path):
    path = write(tmp_path / "data.jsonl", [record])
    for read in (records.read_comparisons, records.read_demonstrations, records.read_text):
        with pytest.raises(UserError, match="data.jsonl, line 1"):
            read(path)


def test_text_comes_from_several_files_and_folders(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    write(tmp_path / "b.json", [dict(prompt="Hi", chosen="three", rejected="x")])
    assert records.read_text(tmp_path) == records.read_text(f"{tmp_path}/a.txt,{tmp_path}/b.json") == ["one", "two", "Hi\nthree"]


def test_no_prompt_is_both_trained_on_and_held_out():
    found = [dict(prompt=[dict(role="user", content=str(n % 50))], response=str(n)) for n in range(200)]
    training, held_out = records.split(found)
    assert {r["prompt"][0]["content"] for r in held_out} == {"0", "20", "40"} and len(training) + len(held_out) == 200
    assert not {str(r["prompt"]) for r in training} & {str(r["prompt"]) for r in held_out}
    assert records.split(["a", "b", "a"]) == (["b"], ["a", "a"]) and records.split(found[:1]) == (found[:1], found[:1])


def test_a_broken_archive_is_one_sentence(tmp_path):
    write(tmp_path / "data.jsonl.gz", [dict(prompt="Hi")] * 50)
    (tmp_path / "data.jsonl.gz").write_bytes((tmp_path / "data.jsonl.gz").read_bytes()[:-20])
    with pytest.raises(UserError, match="data.jsonl.gz cannot be unpacked"):
        records.read_prompts(tmp_path / "data.jsonl.gz")
    (tmp_path / "data.json").write_text("[{]")
    with pytest.raises(UserError, match="data.json is not JSON"):
        records.read_prompts(tmp_path / "data.json")


@pytest.mark.skipif(not DATA.exists(), reason="the real files are not here")
def test_the_real_sets():
    pairs = records.read_comparisons(DATA / "instruction-data-with-preference.json")
    assert len(pairs) == 1100 and all(len(r["responses"]) == 2 for r in pairs)
    assert len(records.read_demonstrations(DATA / "instruction-data.json")) == len(records.read_text(DATA / "instruction-data.json")) == 1100
