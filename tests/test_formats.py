"""Other people's data sets: each format is recognised and becomes ours."""

import gzip
import json
import time
from pathlib import Path

import pytest

import gpt
import ppo
import reward
import sft
from conftest import SMALL
from data.files import foreign, records
from data.run.system import UserError
from data.world import almanac

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
USER, SAID, ASKED = [{"role": who, "content": text} for who,
                     text in (("user", "Hi"), ("assistant", "Hello"), ("user", "And?"))]
HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?\n\nAssistant: {}"
INFO = dict(subreddit="cats", title="A cat", post="It is old.", id="x")
POST = "SUBREDDIT: r/cats\n\nTITLE: A cat\n\nPOST: It is old.\n\nTL;DR:"


def answer(text):
    return [{"role": "assistant", "content": text}]


def write(path, records):
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else json.dumps(records).encode()
                     if path.suffix == ".json" else lines)
    return path


@pytest.mark.parametrize("name, record, prompt", [
    ("Anthropic HH-RLHF", dict(chosen=HH.format("good"), rejected=HH.format("bad")),
     [USER, SAID, ASKED]),
    ("OpenAI TL;DR comparisons",
     dict(info=INFO, summaries=[{"text": " bad"}, {"text": " good"}], choice=1),
     [dict(role="user", content=POST)]),
    ("TRL and UltraFeedback binarized: two conversations",
     dict(chosen=[USER, SAID, ASKED, *answer("good")],
          rejected=[USER, SAID, ASKED, *answer("bad")]), [USER, SAID, ASKED]),
    ("TRL: a prompt and two answers",
     dict(prompt=[USER], chosen=answer("good"), rejected=answer("bad")), [USER]),
    (foreign.OWN.name, dict(prompt="Hi", chosen="good", rejected="bad"), [USER]),
    ("Alpaca", dict(instruction="Hi", input="", output="good", chosen="good", rejected="bad"),
     [USER]),
])
@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json"])
def test_preferences(name, record, prompt, ending, tmp_path, capsys):
    path = write(tmp_path / f"data.{ending}", [record] * 3)
    assert (records.read_comparisons(path)
            == [dict(prompt=prompt, responses=["good", "bad"], ranks=[1, 2])] * 3)
    assert name == foreign.OWN.name or name in capsys.readouterr().out
    assert records.read_demonstrations(path) == [dict(prompt=prompt, response="good")] * 3
    assert records.read_prompts(path) == [dict(prompt=prompt)] * 3


@pytest.mark.parametrize("record, prompt", [
    (dict(instruction="Sort.", input="b a", output="good"),
     [dict(role="user", content="Sort.\n\nb a")]),
    (dict(INFO, summary=" good"), [dict(role="user", content=POST)]),
    (dict(messages=[dict(role="system", content="Be kind."), USER, SAID, ASKED, *answer("good")]),
     [dict(role="user", content="Be kind.\n\nHi"), SAID, ASKED]),
    (dict(prompt=[USER], completion=answer("good")), [USER]),
    (dict(prompt="Hi", completion="good"), [USER]),
])
def test_demonstrations(record, prompt, tmp_path):
    path = write(tmp_path / "data.jsonl", [record])
    *earlier, last = records.read_demonstrations(path)  # of a conversation each answer
    assert last == dict(prompt=prompt, response="good")
    assert len(earlier) == (len(prompt) == 3)
    assert records.read_prompts(path)[-1] == dict(prompt=prompt)
    assert records.read_text(path) == ["\n".join([m["content"] for m in prompt] + ["good"])]


CASES = Path(__file__).parent / "cases"
EAT, OPEN, FRUIT = "May I have a plum?", "How do I open a plum?", "Is a plum a fruit?"
BRIEF = [dict(role="user", content="Answer in one word.\n\nIt is noon.\n\nIs a plum a fruit?")]


@pytest.mark.parametrize("file, read, first, count, unused", [
    ("01_ultrafeedback_binarized.jsonl", "comparisons",
     ["Describe a plum.", "A plum is a fruit that grows on a tree.", "No idea."], 4,
     "prompt, prompt_id, messages, score_chosen, score_rejected"),
    ("01_ultrafeedback_binarized.jsonl", "demonstrations",
     ["Describe a plum.", "A plum is a fruit that grows on a tree."], 4,
     "prompt, prompt_id, messages, score_chosen, score_rejected"),
    ("02_kto_label.jsonl", "demonstrations", [EAT, "Yes, please take one."], 2, ""),
    ("02_kto_messages_label.jsonl", "demonstrations", [EAT, "Yes, please take one."], 2, ""),
    ("02_kto_label.jsonl", "prompts", [EAT], 4, ""),
    ("04_two_system_messages.jsonl", "demonstrations", [BRIEF, "Yes."], 4, ""),
    ("04_system_before_the_answer.jsonl", "demonstrations",
     [FRUIT + "\n\nAnswer in one word.", "Yes."], 4, ""),
    ("05_prompt_is_a_transcript.jsonl", "demonstrations",
     [[dict(role="user", content="Hello!"), dict(role="assistant", content="Hi."),
       dict(role="user", content=FRUIT)], "Yes, it is."], 4, ""),
    ("05_prompt_is_a_transcript.jsonl", "comparisons",
     [[dict(role="user", content="Hello!"), dict(role="assistant", content="Hi."),
       dict(role="user", content=FRUIT)], "Yes, it is.", "Who cares."], 4, ""),
    ("08_dolly.jsonl", "demonstrations", [FRUIT, "Yes, it is."], 4, "category"),
    ("08_helpsteer2.jsonl", "demonstrations", [OPEN, "Do not."], 4,
     "correctness, coherence, complexity, verbosity"),
    ("08_openai_preference.jsonl", "comparisons", [OPEN, "With a knife.", "Do not."], 4,
     "parallel_tool_calls"),
    ("08_pairs.csv", "demonstrations", [FRUIT, "Yes"], 4, ""),
    ("08_pku_saferlhf.jsonl", "comparisons", [OPEN, "With a knife.", "Throw it at somebody."], 4,
     "is_response_0_safe, is_response_1_safe, safer_response_id"),
    ("08_prompt_only_with_system.jsonl", "prompts", ["Be brief.\n\n" + OPEN], 4, ""),
    ("08_sharegpt.jsonl", "demonstrations", [FRUIT, "Yes, it is."], 4, "id"),
    ("08_wrapped.json", "demonstrations", [FRUIT, "Yes."], 4, ""),
])
def test_files_as_people_have_them(file, read, first, count, unused, capsys):
    found = getattr(records, f"read_{read}")(CASES / file)
    prompt = first[0] if isinstance(first[0], list) else [dict(role="user", content=first[0])]
    assert len(found) == count and found[0]["prompt"] == prompt
    assert (found[0].get("responses")
            or [found[0][name] for name in ("response",) if name in found[0]]) == first[1:]
    said = capsys.readouterr().out
    assert (f"not used: {unused}\n" in said) if unused else ("not used" not in said)
    assert (f"answers called bad: {4 - count}, skipped" in said) == (count < 4)


READERS = dict(text=records.read_text, prompt=records.read_prompts,
               response=records.read_demonstrations, ranks=records.read_comparisons)


@pytest.mark.parametrize("form", foreign.FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("field", READERS)
def test_every_format_is_recognised_by_its_example(form, field, tmp_path, capsys):
    examples = [form.example] * 3
    if form.name.startswith(("HelpSteer", "KTO")) and field == "ranks":  # rated one at a time
        name = "response" if "response" in form.example else "completion"
        examples = [form.example, {**form.example, name: "No", "helpfulness": 1, "label": False}]
    path = write(tmp_path / "data.jsonl", examples)
    if field not in form.provided:
        with pytest.raises(UserError, match="such records hold no|must be"):
            READERS[field](path)
        return
    first = READERS[field](path)[0]
    assert f"read as {form.name}\n" in capsys.readouterr().out and form.name in foreign.table()
    if field == "ranks":
        ranking = sorted(zip(first["ranks"], first["responses"]))
        assert ranking in ([(1, "Yes?"), (2, "No")], [(1, "An old cat."), (2, "A dog.")])


def test_all_formats_are_there():
    assert len(foreign.FORMATS) >= 21 and all(map(any, zip(*[
        [field in form.provided for field in READERS] for form in foreign.FORMATS])))


def test_a_tree_gives_a_record_for_each_question(tmp_path):
    further = dict(text="more", role="prompter",
                   replies=[dict(text="only", role="assistant", rank=None, replies=[])])
    again = dict(text="again", role="prompter",
                 replies=[dict(text="first", role="assistant", rank=0, replies=[]),
                          dict(text="second", role="assistant", rank=1, replies=[])])
    rejected = dict(text="not this", role="prompter", deleted=True,
                    replies=[dict(text="no", role="assistant", rank=0, replies=[])])
    replies = [dict(text="worse", role="assistant", rank=1, replies=[further, rejected, again]),
               dict(text="better", role="assistant", rank=0, replies=[]),
               dict(text="gone", role="assistant", rank=2, deleted=True, replies=[])]
    path = write(tmp_path / "data.jsonl",
                 [dict(message_tree_id="1",
                       prompt=dict(text="Hi", role="prompter", replies=replies))])
    first, second, _ = records.read_demonstrations(path)
    assert first["response"] == "better" and second["response"] == "only"
    assert [m["content"] for m in second["prompt"]] == ["Hi", "worse", "more"]
    assert ([r["responses"] for r in records.read_comparisons(path)]
            == [["better", "worse"], ["first", "second"]])


@pytest.mark.parametrize("record, read, expected", [
    (dict(question="Hi", answer="x"), "demonstrations", dict(prompt=[USER], response="x")),
    (dict(system="", question="Hi", chosen="x", rejected="y"), "comparisons",
     dict(prompt=[USER], responses=["x", "y"], ranks=[1, 2])),
    (dict(prompt="Hi", question="Hi", chosen="x", rejected="y"), "comparisons",
     dict(prompt=[USER], responses=["x", "y"], ranks=[1, 2])),
    (dict(prompt="Hi", responses=["x", "y"], ranks=[1, 2], verdict=None, chosen=None),
     "comparisons", dict(prompt=[USER], responses=["x", "y"], ranks=[1, 2])),
    (dict(prompt=HH.format("")[:12] + "\n\nAssistant:", completion=" x", label=1.0),
     "demonstrations", dict(prompt=[USER], response="x")),
    (dict(messages=[USER, *answer("x"), ASKED]), "demonstrations",
     dict(prompt=[USER], response="x")),
    (dict(messages=[USER, *answer("x"), ASKED]), "text", "Hi\nx\nAnd?"),
    (dict(messages=[dict(role="system", content=""), USER, *answer("x")]), "demonstrations",
     dict(prompt=[USER], response="x")),
    (dict(instruction="Hi", output="x", label=0), "demonstrations",
     dict(prompt=[USER], response="x")),
    (dict(prompt="\n\nHuman: Hi\nAssistant:", response=" x\n"), "demonstrations",
     dict(prompt=[USER], response="x")),
    (dict(prompt=json.dumps([USER]), chosen=json.dumps(answer("x")), rejected=str(answer("y"))),
     "comparisons", dict(prompt=[USER], responses=["x", "y"], ranks=[1, 2])),
    (dict(chosen=str([USER, *answer("x")]), rejected=str([USER, *answer("y")]), prompt="Hi"),
     "comparisons", dict(prompt=[USER], responses=["x", "y"], ranks=[1, 2])),
    (dict(instruction="Human:Hi\nAssistant: Hello\nHuman:And?\nAssistant:", input="", output=" x"),
     "demonstrations", dict(prompt=[USER, SAID, ASKED], response="x")),
    (dict(prompt="And?", response="x", history=[["Hi", "Hello"]]), "demonstrations",
     dict(prompt=[USER, SAID, ASKED], response="x")),
    (dict(prompt=[USER, SAID, ASKED], context="b a", input="c", response="x"), "demonstrations",
     dict(prompt=[USER, SAID, dict(role="user", content="b a\n\nAnd?\n\nc")], response="x")),
    (dict(instruction="", input="Hi", output="x"), "demonstrations",
     dict(prompt=[USER], response="x")),
    (dict(question="Sort.", context="b a", answer="x"), "demonstrations",
     dict(prompt=[dict(role="user", content="b a\n\nSort.")], response="x")),
    (dict(question="What is a plum?", context="A plum is a fruit.",
          answers=dict(text=["a fruit", "fruit"], answer_start=[10, 12])), "demonstrations",
     dict(prompt=[dict(role="user", content="A plum is a fruit.\n\nWhat is a plum?")],
          response="a fruit")),
    (dict(instruction="Hi", input=float("nan"), output="x"), "demonstrations",
     dict(prompt=[USER], response="x")),
])
def test_what_was_misread(record, read, expected, tmp_path):
    assert (getattr(records, f"read_{read}")(write(tmp_path / "data.json", [record] * 2))
            == [expected] * 2)


@pytest.mark.parametrize("record, said", [
    (dict(prompt="Hi", response_0="x", response_1="y", better_response_id=2),
     "must be number 0 or 1"),
    (dict(history="Hi", human_ref_A="x", human_ref_B="y", labels=7), "must be number 0 or 1"),
    (dict(instruction="Hi",
          completions=[dict(response="x", overall_score=float("nan")),
                       dict(response="y", overall_score=1)]), "'overall_score'"),
    (dict(instruction="Hi",
          completions=[dict(response="x", overall_score=10 ** 400),
                       dict(response="y", overall_score=1)]), "int too large"),
    (dict(messages=[USER, dict(role="tool", content="5")]), "role 'tool'"),
    (dict(chosen=HH.format(""), rejected=HH.format("y")),
     "one of the two conversations has no answer"),
    (dict(messages=[USER, *answer("x")], weight=.5), '"weight" is 0.5, and only 0 and 1 are known'),
    (dict(messages=[USER, *answer("x")], label=2), '"label" is 2, neither good'),
    (dict(messages=[USER, *answer("x")], system="Linux"), "no sentence: rename the field"),
    (dict(prompt="<|im_start|>user\nHi<|im_end|>", chosen="x", rejected="y"),
     "a mark of a chat templ"),
    (dict(prompt="Hi", chosen="x </s>", rejected="y"), "a mark of a chat template"),
    (dict(prompt="[{'role': 'user', 'content': ", chosen="x", rejected="y"),
     "begins as a list of mes"),
])
def test_what_makes_no_sense_is_named(record, said, tmp_path):
    with pytest.raises(UserError, match=f"record 1: .*{said}"):
        (records.read_demonstrations if "messages" in record
         else records.read_comparisons)(write(tmp_path / "data.json", [record]))


def test_a_first_record_of_no_format_does_not_refuse_the_others(tmp_path, capsys):
    found = records.read_demonstrations(write(tmp_path / "data.json",
                                              [dict(instruction="Hi")]
                                              + [dict(instruction="Hi", output="x")] * 200))
    assert len(found) == 200
    said = capsys.readouterr().out
    assert "record 1: its fields are instruction: this is none of the formats" in said
    assert (records.read_text(write(tmp_path / "data.json", [dict(text=""), dict(text="x")]))
            == ["x"])


def test_more_than_nine_answers_to_a_prompt(tmp_path, capsys):
    rated = [dict(prompt="Hi", response=str(n), helpfulness=n % 6) for n in range(12)]
    found, = records.read_comparisons(write(tmp_path / "data.json", rated))
    assert len(found["responses"]) == 9 and {"5", "11", "0", "6"} <= set(found["responses"])
    assert "3 answers beyond nine" in capsys.readouterr().out


def test_tables_hold_numbers_and_lists_of_files_may_have_spaces(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("prompt,response_0,response_1,better_response_id\nHi,x,y,1\n")
    (tmp_path / "b.csv").write_text("prompt,response,helpfulness\nHi,x,1\nHi,y,4\n")
    monkeypatch.chdir(tmp_path)
    first, second = records.read_comparisons("a.csv, b.csv,")
    assert first["responses"] == second["responses"] == ["y", "x"]


@pytest.mark.parametrize("record, said", [
    (dict(messages=[USER, dict(answer("x")[0], weight=0)]), "no answer: 1, skipped"),
    (dict(prompt="Hi", response="x", weight=0), "weight 0 or a false `train`: 1, skipped"),
    (dict(instruction="Hi", output="x", train=False), "weight 0 or a false `train`"),
    (dict(prompt="Hi", response="x", verdict="bad"), "answers called bad"),
    (dict(prompt="Hi", completion="x", label="False"), "answers called bad"),
])
def test_what_is_not_to_be_learned_is_not(record, said, tmp_path, capsys):
    good = {**record,
            **{name: value for name,
               value in dict(weight=1, train=True, verdict="good", label="True").items()
               if name in record}}
    if "messages" in record:
        # the last answer that is to be learned
        good = dict(messages=[USER, *answer("x"), USER, dict(answer("y")[0], weight=0)])
    path = write(tmp_path / "data.jsonl", [record, good])
    found, = records.read_demonstrations(path)
    assert found == dict(prompt=[USER], response="x") and said in capsys.readouterr().out
    assert len(records.read_prompts(path)) == 2


@pytest.mark.parametrize("record",
                         [dict(system="Be kind.", instruction="Hi", output="x"),
                          dict(system_prompt="Be kind.", question="Hi", response="x"),
                                    dict(system="Be kind.", prompt="Hi", response="x"),
                                    dict(system="Be kind.",
                                         conversations=[{"from": "human", "value": "Hi"},
                                                        {"from": "gpt", "value": "x"}])])
def test_a_system_column_begins_the_conversation(record, tmp_path, capsys):
    found, = records.read_demonstrations(write(tmp_path / "data.jsonl", [record]))
    assert found == dict(prompt=[dict(role="user", content="Be kind.\n\nHi")], response="x")
    assert "not used" not in capsys.readouterr().out


def test_lines_of_windows_are_lines(tmp_path):
    pair = {name: text.replace("\n", "\r\n") for name,
            text in dict(chosen=HH.format("good\nof all"), rejected=HH.format("bad")).items()}
    assert (records.read_comparisons(write(tmp_path / "data.jsonl", [pair]))
            == [dict(prompt=[USER, SAID, ASKED], responses=["good\nof all", "bad"], ranks=[1, 2])])
    (tmp_path / "data.csv").write_bytes(
        "prompt;response\r\n\"Hi; you\";\"Hello,\r\nfriend\"\r\n".encode("utf-8-sig"))
    assert (records.read_demonstrations(tmp_path / "data.csv")
            == [dict(prompt=[dict(role="user", content="Hi; you")], response="Hello,\nfriend")])


@pytest.mark.parametrize("name, content, said", [
    ("data.jsonl.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
     "is a pointer of Git LFS and not the file itself: run git lfs pull"),
    ("data.parquet", b"<!DOCTYPE html>\n<html>", "is a web page and not the file itself"),
    ("dataset_infos.json", b'{"default": {}}', "describes a data set and holds none of it"),
    ("data.csv", b"prompt,response\na,b,c\n", "line 2: more cells than the first line has names"),
    ("data.csv", "prompt,response\nä,b\n".encode("latin-1"), "line 2: not UTF-8"),
    ("data.csv", b"What is a plum?,A fruit.\nx,y\n",
     "line 2: its fields are What is a plum?, A fruit.: this is none of the formats"),
    ("data.json", b'{"title": "x", "n": 3}',
     "its fields are title, n: this is none of the formats that python -m data.files.foreign "
     "lists"),
])
def test_what_is_no_data_is_named_as_what_it_is(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as error:
        records.read_demonstrations(tmp_path / name)
    assert said in str(error.value)


def test_of_a_folder_the_data_are_read_and_named(tmp_path, capsys):
    write(tmp_path / "b.jsonl", [dict(prompt="Hi", response="b")])
    write(tmp_path / "a.csv", [])
    (tmp_path / "a.csv").write_text("prompt,response\nHi,a\n")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "README.md").write_text("# Data")
    assert [r["response"] for r in records.read_demonstrations(tmp_path)] == ["a", "b"]
    assert f"{tmp_path}: reads a.csv, b.jsonl\n" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no file that ends with .jsonl"):
        records.read_prompts(tmp_path / "empty")


# ---- held out ------------------------------------------------------------------------------------

ARTICLES = [
    f"A {fruit} is a fruit that grows on a tree, and in autumn people make jam of it, number {n}."
    for n in range(60) for fruit in ("plum", "pear", "fig", "lime")]


@pytest.mark.parametrize("documents, count, said", [
    (ARTICLES, 240, ""),
    (["\n".join(ARTICLES)], 240, "each line is one"),
    ([" ".join(ARTICLES)], 41, "cut into pieces"),
    (["".join(map(chr, range(0x4e00, 0x9000)))], 34, "cut into pieces"),
    (["\n".join(ARTICLES[:140]), "\n".join(ARTICLES[140:])], 41, "cut into pieces"),
    (["A plum.", "A pear."], 2, ""),
])
def test_some_of_every_text_is_held_out(documents, count, said):
    found, how = records.enough(documents)
    assert abs(len(found) - count) <= 2 and (said in how if said else not how)
    assert "".join("".join(found).split()) == "".join("".join(documents).split())
    training, held_out = records.split(found)
    assert len(held_out) == len(found) // 20 and not set(training) & set(held_out)


def test_where_nothing_can_be_held_out_the_stages_say_so(tmp_path, capsys):
    out, common = tmp_path / "out", dict(out=str(tmp_path / "out"), log_every=1)
    (tmp_path / "text.txt").write_text(
        "A plum is a fruit.\n\nA pear is a fruit, too, and grows on a tree.")
    gpt.train(gpt.Config(data=str(tmp_path / "text.txt"), steps=1, **{**SMALL, "block_size": 20},
                         **common))
    write(tmp_path / "d.jsonl", [dict(prompt="a", response="b", chosen="b", rejected="c")] * 30)
    data = dict(data=str(tmp_path / "d.jsonl"))
    sft.train(sft.Config(steps=1, batch=4, **data, **common))
    reward.train(reward.Config(batch=4, **data, **common))
    ppo.train(ppo.Config(steps=1, batch=4, max_new_tokens=4, **data, **common))
    said = capsys.readouterr().out
    for stage in ("gpt", "sft", "reward", "ppo"):
        assert f"{stage}: nothing is held out" in said
        results = json.loads((out / stage / "results.json").read_text())
        assert results.get("valid_loss") is None and "accuracy" not in results
    assert "valid_loss" not in said and "on prompts they have practised on" in said


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet
    pyarrow.parquet.write_table(pyarrow.table(dict(chosen=[[USER, *answer("good")]],
                                                   rejected=[[USER, *answer("bad")]])),
                                                   tmp_path / "data.parquet")
    assert (records.read_comparisons(tmp_path / "data.parquet")
            == [dict(prompt=[USER], responses=["good", "bad"], ranks=[1, 2])])
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="data.parquet cannot be read"):
        records.read_prompts(tmp_path / "data.parquet")


@pytest.mark.parametrize("record, said", [
    (dict(chosen=HH.format("good"), rejected=HH.format("bad").replace("Hello", "Ho")),
     "must differ in their last answer"),
    (dict(chosen=HH.format("good"), rejected=None), "its fields are chosen: this is none"),
    (dict(prompt="Hi", chosen="a", rejected="b"), "another format"),
    (dict(instruction="Hi", output="x"), "such records hold no comparison for reward.py"),
    (dict(promt="Hi", chosen="x"), "its fields are promt, chosen: this is none of the formats"),
    ([], "not a JSON object"),
    (dict(chosen=HH.format("\ud83d"), rejected=HH.format("bad")), "surrogate"),
])
def test_a_broken_record_is_named_and_one_in_a_hundred_refuses_the_file(
    record, said, tmp_path, capsys):
    good = dict(chosen=HH.format("good"), rejected=HH.format("bad"))
    with pytest.raises(UserError, match=rf"data.jsonl, line 3: .*{said}"):
        records.read_comparisons(write(tmp_path / "data.jsonl", [good, good, record]))
    assert (len(records.read_comparisons(write(tmp_path / "data.json", [good] * 99 + [record])))
            == 99)
    assert "record 100" in (out := capsys.readouterr().out) and "skipped" in out


@pytest.mark.parametrize("record",
                         [dict(instruction="Add", input=5, output="6"),
                          dict(info={}, summaries=["a", "b"], choice=0),
                          dict(prompt="Hi", response=3),
                                    dict(messages=[5]),
                                    dict(messages=[dict(role="user",
                                                        content=[dict(type="image_url")])])])
def test_a_field_of_the_wrong_type_is_named(record, tmp_path):
    path = write(tmp_path / "data.jsonl", [record])
    for read in (records.read_comparisons, records.read_demonstrations, records.read_text):
        with pytest.raises(UserError, match="data.jsonl, line 1"):
            read(path)


def test_text_comes_from_several_files_and_folders(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    write(tmp_path / "b.json", [dict(prompt="Hi", chosen="three", rejected="x")])
    assert records.read_text(tmp_path) == records.read_text(
        f"{tmp_path}/a.txt,{tmp_path}/b.json") == ["one", "two", "Hi\nthree"]


def test_no_prompt_is_both_trained_on_and_held_out():
    found = [dict(prompt=[dict(role="user", content=str(n % 50))], response=str(n))
             for n in range(200)]
    training, held_out = records.split(found)
    assert {r["prompt"][0]["content"] for r in held_out} == {"19", "39"}
    assert len(training) + len(held_out) == 200
    assert not {str(r["prompt"]) for r in training} & {str(r["prompt"]) for r in held_out}
    assert records.split(["a"] * 100) == (["a"] * 100, [])
    assert records.split(found[:19]) == (found[:19], [])


def test_a_broken_archive_is_one_sentence(tmp_path):
    write(tmp_path / "data.jsonl.gz", [dict(prompt="Hi")] * 50)
    (tmp_path / "data.jsonl.gz").write_bytes((tmp_path / "data.jsonl.gz").read_bytes()[:-20])
    with pytest.raises(UserError, match="data.jsonl.gz cannot be read"):
        records.read_prompts(tmp_path / "data.jsonl.gz")
    (tmp_path / "data.json").write_text("[{]")
    with pytest.raises(UserError, match="data.json is not JSON"):
        records.read_prompts(tmp_path / "data.json")


@pytest.mark.skipif(not DATA.exists(), reason="the real files are not here")
def test_the_real_sets():
    pairs = records.read_comparisons(DATA / "instruction-data-with-preference.json")
    assert len(pairs) == 1100 and all(len(r["responses"]) == 2 for r in pairs)
    assert len(records.read_demonstrations(DATA / "instruction-data.json")) == len(
        records.read_text(DATA / "instruction-data.json")) == 1100


def test_what_the_labeler_must_know_survives_the_file(tmp_path):
    prompts = almanac.prompts("train", 200, 3)
    assert records.read_prompts(write(tmp_path / "data.jsonl", prompts)) == prompts


def test_two_people_may_rate_one_answer_and_their_mean_counts(tmp_path):
    rated = [dict(prompt="Hi", response=r, helpfulness=n) for r,
             n in (("x", 4), ("x", 0), ("y", 1))]
    path = write(tmp_path / "data.jsonl", rated[::-1])
    ranking, = records.read_comparisons(path)
    assert sorted(zip(ranking["ranks"], ranking["responses"])) == [(1, "x"), (2, "y")]
    assert {r["response"] for r in records.read_demonstrations(path)} == {"x"}


def test_documents_end_where_the_file_says_so(tmp_path):
    documents = ["a\n\nb", "c", "d\n\ne\n\nf"]
    for text in ("<|endoftext|>".join(documents), records.join_text(documents)):
        (tmp_path / "a.txt").write_text(text)
        assert records.read_text(tmp_path / "a.txt") == documents
    assert records.split_text(records.join_text(["a", "b"])) == ["a", "b"]
    assert records.split_text(records.join_text(["a\n\nb"])) == ["a\n\nb"]
    write(tmp_path / "b.jsonl", [dict(text="<s>" + "word " * 300_000 + "</s>")])  # a book in a line
    book, = records.read_text(tmp_path / "b.jsonl")
    assert book.startswith("word") and book.endswith("word")


def test_quotes_with_a_backslash_and_files_of_other_kinds(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,response\n"Who said \\"hi, you\\"?","I, ""too"""\n'
                                    .replace('""', '\\"'))
    assert records.read_demonstrations(tmp_path / "a.csv") == [
        dict(prompt=[dict(role="user", content='Who said "hi, you"?')], response='I, "too"')]
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match="of a kind that this code does not read"):
        records.read_demonstrations(tmp_path / "a.xlsx")


INDENTED = "    return 1\n    # x"


@pytest.mark.parametrize("record, read, expected", [
    (dict(prompt="And?", response="x", history=[USER, SAID]), "demonstrations",
     dict(prompt=[USER, SAID, ASKED], response="x")),
    (dict(prompt="Hi", response="x", text="Hi x"), "demonstrations",
     dict(prompt=[USER], response="x")),
    (dict(prompt="Hi", text="A plum."), "text", "A plum."),
    (dict(text="A plum.", part=1, whole=True), "text", "A plum."),
    (dict(prompt=json.dumps([dict(role="user", content="if (a) { b } { c }")]), response="x"),
     "prompts", dict(prompt=[dict(role="user", content="if (a) { b } { c }")])),
    (dict(prompt="Hi", response='[{"role": "admin", "name": "x"}]'), "demonstrations",
     dict(prompt=[USER], response='[{"role": "admin", "name": "x"}]')),
    (dict(prompt="Hi", response=INDENTED), "demonstrations",
     dict(prompt=[USER], response=INDENTED)),
    (dict(prompt="Hi", chosen="User: hi\nAssistant: Ho", rejected="<s>no</s>"), "comparisons",
     dict(prompt=[USER], responses=["User: hi\nAssistant: Ho", "<s>no</s>"], ranks=[1, 2])),
    (dict(instruction="Hi", output="x", system="你是助手。"), "demonstrations",
     dict(prompt=[dict(role="user", content="你是助手。\n\nHi")], response="x")),
    (dict(prompt=HH.format("")[:12] + "\n\nAssistant:", response="x", helpfulness=4),
     "demonstrations", dict(prompt=[USER], response="x")),
    (dict(prompt="Hi", responses=["x", "y", "z"], ranks=[1, 2, 3], chosen="x", rejected="z"),
     "comparisons", dict(prompt=[USER], responses=["x", "y", "z"], ranks=[1, 2, 3])),
    (dict(messages=[*answer("Welcome"), USER, *answer("x")]), "demonstrations",
     dict(prompt=[*answer("Welcome"), USER], response="x")),
])
def test_what_is_meant_is_read(record, read, expected, tmp_path):
    path = write(tmp_path / "data.json", [record] * 2)
    assert getattr(records, f"read_{read}")(path)[-1] == expected


@pytest.mark.parametrize("record", [
    dict(prompt="And?", response="x", history=["Hi", "Hello"]),
    dict(prompt="And?", response="x", history=[["Hi"], ["Ho", "Hello"]]),
    dict(prompt="Hi", response="x", rating=10 ** 400),
    dict(prompt="Hi", response="x", rating=float("inf")),
    dict(prompt="Hi", responses=["x", "y"], ranks=[1, 2], left_out="many"),
])
def test_a_value_that_makes_no_sense_is_a_sentence(record, tmp_path):
    read = records.read_comparisons if "ranks" in record else records.read_demonstrations
    with pytest.raises(UserError, match="record 1: "):
        read(write(tmp_path / "data.json", [record] * 2))


def test_tables_as_pandas_writes_them_and_tables_that_are_broken(tmp_path):
    text = 'prompt,response,rating\n"Type ""C:\\"" now","a \\alpha",\nHi,x,4\n'
    (tmp_path / "a.csv").write_text(text)
    rows = records.read_demonstrations(tmp_path / "a.csv")
    assert rows[0]["prompt"][0]["content"] == 'Type "C:\\" now'
    assert rows[0]["response"] == "a \\alpha" and len(rows) == 2
    for broken in ('prompt,response\nHi,"hello\nA,b\n', "prompt,response,response\na,b,c\n"):
        (tmp_path / "a.csv").write_text(broken)
        with pytest.raises(UserError, match="a.csv"):
            records.read_demonstrations(tmp_path / "a.csv")
    (tmp_path / "b.jsonl").write_text(json.dumps([dict(prompt="Hi", response="x")]))
    assert len(records.read_demonstrations(tmp_path / "b.jsonl")) == 1


def test_a_label_beside_an_instruction_is_named(tmp_path, capsys):
    path = write(tmp_path / "data.jsonl", [dict(instruction="Hi", output="x", label=False)])
    assert len(records.read_demonstrations(path)) == 1
    assert "not used: label" in capsys.readouterr().out


def test_long_records_take_no_longer_than_they_are_long(tmp_path):
    began = time.time()
    records.read_text(write(tmp_path / "a.jsonl", [dict(messages=[USER, *answer("b")] * 3000)]))
    records.read_demonstrations(write(tmp_path / "b.jsonl", [
        dict(prompt="User: a" + "\n" * 100_000 + "x", response="b")]))
    assert time.time() - began < 10
