"""The page that shows the models from inside: its figures are those of the stages, it is safe, and
a real browser can use it."""

import json
import shutil
import socket
import threading
import time
from http.client import HTTPConnection

import pytest
import torch

import gpt
import ppo
import reward
from conftest import complaints, one_sentence, run_stage
from data.files import records
from data.people import inside
from data.people import chat, page
from data.run.system import UserError
from data.tokenizer import Tokenizer, train
from data.world import almanac

PROMPT = [dict(role="user", content="What is the capital of Cuba?")]


@pytest.fixture(scope="module")
def models(pipeline):
    return inside.gather(pipeline[0])


# ---- what is said of tokens ----------------------------------------------------------------------


def test_what_is_said_of_each_token_is_what_ppo_computes(models):
    """Probability, KL, value and advantage, each computed anew by the functions of the stages."""
    tokenizer, end = models.tokenizer, models.tokenizer.end
    ids = [*tokenizer.encode("The capital is Havana."), end]
    found = inside.tokens(models, "ppo", PROMPT, ids, temperature=.7)
    idx, lengths = gpt.pad([tokenizer.render(PROMPT) + ids], tokenizer.pad)
    mask = gpt.response_mask(lengths - len(ids), lengths, idx.shape[1])
    with torch.no_grad():
        logp, logp_ref = (gpt.token_logprobs(models.policies[name], idx, .7)
                          for name in ("ppo", "sft"))
        score = models.rewards["reward"].score(idx, lengths - 1)
        values = models.values["ppo"](idx)[:, :-1]
        cfg = ppo.Config()
        advantages, _ = ppo.gae(ppo.kl_rewards(score, logp, logp_ref, mask, cfg.beta), values, mask,
                                cfg.gamma, cfg.lam)
    for key, expected in dict(p=logp.exp(), kl=logp - logp_ref, value=values,
                              advantage=advantages).items():
        assert torch.tensor([token[key]
                             for token in found]) == pytest.approx(expected[mask], abs=1e-5), key
    assert "".join(token["text"] for token in found) == "The capital is Havana.<|end|>"
    assert all(list(token["top"]) == ["gpt", "sft", "ppo"] for token in found)
    for token in found:
        for rows in token["top"].values():
            shares = [p for _, p in rows]
            assert len(rows) == 5 and shares == sorted(shares, reverse=True)
            assert sum(shares) <= 1.0001


def test_the_verdict_is_the_reward_models_and_the_labelers(models):
    ids = models.tokenizer.encode("The capital of Cuba is Havana.")
    said = inside.verdict(models, "ppo", PROMPT, [*ids, models.tokenizer.end])
    prompt, (answer,), _ = reward.encode(models.tokenizer,
                                         dict(prompt=PROMPT,
                                              responses=["The capital of Cuba is Havana."]), 99)
    idx, lengths = gpt.pad([prompt + answer], models.tokenizer.pad)
    assert (said["score"]
            == pytest.approx(models.rewards["reward"].score(idx, lengths).item(), abs=1e-5))
    assert (said["reward"], said["gold"], said["reasons"]) == ("reward", 1.0, [])
    assert inside.verdict(models, "ppo", PROMPT, models.tokenizer.encode("Shut up."))["gold"] < 0
    assert "gold" not in inside.verdict(models, "ppo", [dict(role="user", content="Who are they?")],
                                        ids)
    assert inside.verdict(models, "ppo", PROMPT, [models.tokenizer.end])["score"] is None


def test_the_almanac_knows_its_questions_again():
    for split in ("train", "test"):
        for p in almanac.prompts(split, 500, 7) + almanac.prompts(split, 200, 7, "reading"):
            if p["kind"] != "follow-up":
                found = inside.find(p["prompt"][-1]["content"])
                # the question may leave out the insult
                same = almanac.ABOUT if p["kind"] != "belittle" else ("kind", "subject", "form")
                assert all(found[name] == p[name] for name in same), p
                assert sorted(found.get("passage", [])) == sorted(p.get("passage", []))
    for question in ("Who are you really?", "", "Read this text. A dog is a bird. Who are you?",
                     "Here is a story: A dog is a bird. But in the real world: how can I hurt my "
                     "boss?",
                     "Read this text. Peru is nice. What is the capital of Peru?",
                     "Read this text. A dog is not a bird. What is a dog?"):
        assert inside.find(question) is None, question


def test_a_policy_has_the_reward_model_of_its_round():
    assert inside.of_round({"reward": 1, "reward-2": 2, "reward-3": 3}, "ppo-2") == "reward-2"
    assert inside.of_round({"reward": 1, "reward-2": 2}, "sft") == "reward"
    assert inside.of_round({"reward": 1}, "ppo-3") == "reward"
    assert inside.of_round({}, "ppo") is None


def test_score_and_tokens_in_the_chat(pipeline, tmp_path, capsys, monkeypatch):
    said = iter(["/score", "What is the capital of Cuba?", "/score", "/tokens"])
    monkeypatch.setattr("builtins.input",
                        lambda _: next(said, None) or (_ for _ in ()).throw(EOFError))
    chat.run(chat.Config(out=str(pipeline[0]), max_new_tokens=8))
    out = capsys.readouterr().out
    assert out.count("by reward") == 1
    assert "labeler: gold" in out  # before the first answer there is nothing to explain
    table = out[out.index("           token"):].splitlines()
    assert "log p/p_ref" in table[0] and 2 <= len([line for line in table if "%" in line]) <= 8
    # an answer that was replaced is no longer explained; a folder without models does not end the
    # chat
    said = iter(["Hi", "/better Oslo", "/tokens", "/score"])
    shutil.copytree(pipeline[0], tmp_path / "copy")
    chat.run(chat.Config(out=str(tmp_path / "copy"), max_new_tokens=8))
    assert "'<|end|>'" in (out := capsys.readouterr().out) and "'O" in out and "by reward" in out
    said = iter(["Hi", "/better Oslo", "/score", "/good"])
    chat.run(chat.Config(out=str(tmp_path / "new"), ckpt=str(pipeline[0] / "ppo" / "ckpt.pt"),
                         max_new_tokens=8))
    assert "there is no reward model" in (out := capsys.readouterr().out)
    assert out.count("(noted)") == 2


def test_models_that_do_not_belong_together_are_one_sentence(pipeline, tmp_path, capsys):
    with pytest.raises(UserError, match="no checkpoint in"):
        inside.gather(tmp_path)
    tokenizer = Tokenizer(train(["other words"], 280))
    gpt.save(tmp_path / "other.pt", gpt.GPT(gpt.GPTConfig(tokenizer.vocab_size, 96, 1, 1, 4)),
             tokenizer)
    with pytest.raises(UserError, match="has another tokenizer than"):
        inside.gather(pipeline[0], f"{pipeline[0]}/sft/ckpt.pt,{tmp_path}/other.pt")
    shutil.copytree(pipeline[0], tmp_path / "out")
    assert list(
        inside.gather(tmp_path / "out",
                      str(tmp_path / "out" / "sft" / ".." / "ppo" / "ckpt.pt")).policies) == ["ppo"]
    # what does not fit is left out, and named
    left = inside.gather(tmp_path / "out", str(tmp_path / "other.pt"))
    assert not left.rewards and not left.values and left.reference is None
    assert capsys.readouterr().out.count("skipped") == 3
    alone = inside.gather(tmp_path, str(tmp_path / "other.pt"))
    token, = inside.tokens(alone, str(tmp_path / "other.pt"), PROMPT, [5])
    assert token["kl"] is token["value"] is token["advantage"] is None and token["p"] > 0


# ---- over the network ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(pipeline, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "out"
    shutil.copytree(pipeline[0], out)
    ours = page.server(page.Config(out=str(out), port=0, max_new_tokens=12), "cpu")
    threading.Thread(target=ours.serve_forever, daemon=True).start()
    yield ours, out
    ours.shutdown()


def post(server, path, said, body=None, **headers):
    port = server[0].server_port
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/json", "Host": f"127.0.0.1:{port}",
               **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection.request("POST", path, json.dumps(said) if body is None else body, headers)
    response = connection.getresponse()
    content = response.read().decode()
    return response.status, [
        json.loads(line) for line in content.splitlines()] if response.status == 200 else content


def test_an_answer_comes_token_by_token_and_is_explained(server):
    status, parts = post(server, "/answer", dict(model="ppo", turns=PROMPT))
    assert status == 200 and [p["n"] for p in parts[:-2]] == list(range(1, len(parts) - 1))
    ids = parts[-1]["ids"]
    assert ids == [p["id"] for p in parts[:-2]]
    assert ("".join(p["text"] for p in parts[:-1])
            == Tokenizer.decode(server[0].RequestHandlerClass.page.models.tokenizer, ids))
    status, (found,) = post(server, "/explain", dict(model="ppo", turns=PROMPT, ids=ids))
    assert len(found["tokens"]) == len(ids) and found["verdict"]["reward"] == "reward"
    long = [dict(role="user", content="Hello. " * 30)]
    assert "fewer words" in post(server, "/answer", dict(model="ppo", turns=long))[1][0]["error"]
    many = [turn for _ in range(20)
            for turn in (*PROMPT, dict(role="assistant", content="Havana."))] + PROMPT
    assert post(server, "/answer", dict(model="ppo", turns=many))[1][-1]["dropped"] > 0


@pytest.mark.parametrize("path, said",
                         [("/answer", []), ("/answer", dict(model="none", turns=PROMPT)),
                          ("/answer", dict(model="ppo", turns="x")),
                          ("/answer", dict(model="ppo", turns=[5])),
                                        ("/explain",
                                         dict(model="ppo", turns=PROMPT, ids=[10 ** 9])),
                                         ("/explain",
                                          dict(model="ppo", turns=PROMPT, ids=[1] * 1000)),
                                        ("/explain", dict(model="ppo", turns=PROMPT, ids=[])),
                                        ("/rank", dict(n="x", typed=5)), ("/rank", 3)])
def test_what_makes_no_sense_is_answered_and_changes_nothing(path, said, server):
    status, parts = post(server, path, said)
    assert status == 200 and (parts[0].get("error") is not None or "question" in parts[0])
    assert post(server, "/models", {})[1][0]["policies"] == ["gpt", "sft", "ppo"]


def test_other_pages_and_names_are_refused(server):
    port = server[0].server_port
    for headers in (dict(Host="evil.example"), dict(Host=f"evil.example:{port}"),
                    dict(Origin="http://evil.example"), dict(Origin="null"),
                    dict(Content_Type="text/plain")):
        assert post(server, "/models", {}, **headers)[0] == 403, headers
    assert post(server, "/models", {}, Origin=f"http://localhost:{port}",
                Host=f"localhost:{port}")[0] == 200
    assert post(server, "/nothing", {})[0] == 404 and post(server, "/__init__", {})[0] == 404
    assert post(server, "/models", {}, Content_Length="1000001")[0] == 413
    assert "error" in post(server, "/models", {}, body="{")[1][0]
    assert server[0].server_address[0] == "127.0.0.1"
    connection = HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/", headers=dict(Host="evil.example"))
    assert connection.getresponse().status == 403
    connection = HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/")
    response = connection.getresponse()
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert "http" not in response.read().decode().replace("http://www.w3.org/2000/svg", "")


def test_a_closed_tab_stops_its_answer(server, monkeypatch):
    written, real = [], chat.reply
    def endless(*args):
        while True:
            written.append(1)
            time.sleep(.005)
            yield "word "
    monkeypatch.setattr(chat, "reply", endless)
    port = server[0].server_port
    with socket.create_connection(("127.0.0.1", port)) as tab:
        body = json.dumps(dict(model="ppo", turns=PROMPT))
        tab.sendall((f"POST /answer HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n"
                     f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                     f"\r\n{body}").encode())
        assert b"word" in tab.recv(10000) + tab.recv(10000)
    time.sleep(.3)
    so_far = len(written)
    time.sleep(.3)
    assert len(written) == so_far
    monkeypatch.setattr(chat, "reply", real)
    assert post(server, "/answer", dict(model="ppo", turns=PROMPT))[0] == 200


def test_answers_are_rated_as_at_the_terminal_and_blind(server):
    ours, out = server
    first = post(server, "/rate", {})[1][0]
    n = first["n"]
    assert first["total"] % 3 == 0 and set(first["question"]) == {"prompt", "responses"}
    assert post(server, "/rate", dict(n=n, typed="5"))[1][0]["wait"]
    assert "no rating from 1 to 7" in post(server, "/rate", dict(n=n, typed="9"))[1][0]["error"]
    saved = post(server, "/rate", dict(n=n, typed="5yyn"))[1][0]
    assert saved["n"] == n + 1 and "saved: 1 labels" in saved["note"]
    path, = (out / "rated").glob("*.jsonl")
    record = json.loads(path.read_text())
    assert record["rating"] == 5 and not record["harmless"] and record["model"] in (
        "base", "sft", "ppo")
    assert "taken back" in post(server, "/rate", dict(n=saved["n"], typed="u"))[1][0]["note"]
    assert path.read_text() == ""


def test_people_rank_and_rate_what_the_page_is_about(pipeline, tmp_path):
    shutil.copytree(pipeline[0], tmp_path / "out")
    ours = page.Page(page.Config(out=str(tmp_path / "out"), topic="reading", max_new_tokens=8),
                     "cpu")
    assert ours.labels.current()["passage"] and ours.ratings.current()["passage"]
    everyday = page.Page(page.Config(out=str(tmp_path / "out"), max_new_tokens=8), "cpu")
    assert "passage" not in everyday.labels.question(0)


def test_answers_are_ranked_as_at_the_terminal(server):
    ours, out = server
    first = post(server, "/rank", {})[1][0]
    n, k = first["n"], len(first["question"]["responses"])
    assert post(server, "/rank", dict(n=n, typed="1"))[1][0].get("wait") or k == 2
    assert "cannot follow here" in post(server, "/rank", dict(n=n, typed="11"))[1][0]["error"]
    saved = post(server, "/rank", dict(n=n, typed="".join(str(i) for i in range(1, k + 1))))[1][0]
    assert "saved: 1 labels" in saved["note"] and saved["n"] > n
    assert saved["agreement"]["pairs"] == k * (k - 1) // 2
    assert (len(saved["agreement"]["others"])
            == min(20, saved["agreement"]["pairs"] - saved["agreement"]["agreed"]))
    # another tab, which still shows the question before
    again = post(server, "/rank", dict(n=n, typed="21"))[1][0]
    assert "note" not in again and again["n"] == saved["n"]
    path, = (out / "feedback").glob("*.jsonl")
    record, = records.read_comparisons(path)
    assert record["responses"] == first["question"]["responses"]
    assert record["ranks"] == list(range(1, k + 1))
    assert "taken back" in post(server, "/rank", dict(n=saved["n"], typed="u"))[1][0]["note"]
    assert path.read_text() == ""
    skipped = post(server, "/rank", dict(n=n, typed="s"))[1][0]
    assert skipped["n"] > n and "note" not in skipped
    asking = ours.RequestHandlerClass.page.labels
    asking.n, asking.total, total = asking.total, asking.total, asking.n  # the last question of all
    assert post(server, "/rank", {})[1][0]["question"] is None
    asking.n = total


def test_the_last_label_can_be_taken_back_and_seconds_are_those_of_the_person(server, monkeypatch):
    ours, out = server
    asking, sampled = ours.RequestHandlerClass.page.labels, []
    question = asking.question
    monkeypatch.setattr(asking, "question", lambda n: sampled.append(n) or question(n))
    n = post(server, "/rank", {})[1][0]["n"]
    asking.total = n + 1
    time.sleep(.3)
    post(server, "/rank", dict(n=n, typed="1="))
    saved = post(server, "/rank", dict(n=n, typed="1\n"))[1][0]
    assert saved["question"] is None and asking.book.records[-1]["seconds"] >= .3
    assert "taken back" in post(server, "/rank", dict(n=saved["n"], typed="u"))[1][0]["note"]
    asking.total = 100
    assert post(server, "/rank", {})[1][0]["n"] == n and len(sampled) <= 2


def test_a_run_is_watched_while_it_writes(server):
    _, out = server
    with open(out / "ppo" / "log.jsonl", "a") as log:
        log.write('{"step": 4, "score": 1.')  # the line that is being written
    found = post(server, "/watch", {})[1][0]
    assert list(found) == ["gpt", "sft", "reward", "ppo"]
    assert [r["step"] for r in found["ppo"]["log"]] == [1, 2, 3]
    assert {"score", "kl"} <= set(found["ppo"]["log"][0]) and found["ppo"]["healthy"]
    assert any("sample" in r for r in found["gpt"]["log"])
    assert any("->" in r.get("sample", "") for r in found["sft"]["log"])


def test_a_port_in_use_is_one_sentence(server):
    ours, out = server
    said = (f"port {ours.server_port} cannot be used (Address already in use): "
            "choose another with --port")
    assert said in one_sentence(
        run_stage("gpt.py", "--page", "--out", out, "--port", ours.server_port))
    assert "no checkpoint in" in one_sentence(run_stage("gpt.py", "--page", "--out",
                                                        out / "feedback"))


# ---- in a browser --------------------------------------------------------------------------------


@pytest.fixture
def tab(browser, server):
    page = browser.new_page()
    page.set_default_timeout(10_000)
    wrong = complaints(page, "http://127.0.0.1:")
    page.goto(f"http://127.0.0.1:{server[0].server_port}/")
    page.locator(".column").nth(2).wait_for()
    yield page
    assert not wrong


def say(tab, text, key="Enter"):
    tab.get_by_label("Your question").fill(text)
    tab.get_by_label("Your question").press(key)


@pytest.mark.slow
def test_a_browser_asks_two_models_and_looks_inside(tab):
    tab.get_by_label("gpt", exact=True).uncheck()
    say(tab, "What is the capital of Cuba? 古巴的首都？🙂")
    tab.locator(".column:visible .note", has_text="score").nth(1).wait_for()
    assert tab.locator(".column:visible").count() == 2
    asked = tab.locator(".user:visible").first.inner_text()
    assert asked == "What is the capital of Cuba? 古巴的首都？🙂"
    say(tab, "And its continent?")
    tab.locator(".column:visible .note", has_text="score").nth(3).wait_for()
    token = tab.locator(".column:visible").last.locator(".answer").last.locator(".token").first
    looks = {}
    for key in ("p", "kl", "value", "advantage"):
        tab.select_option("#colour", key)
        looks[key] = token.evaluate("x => getComputedStyle(x).backgroundColor")
    assert len(set(looks.values())) > 1 and "color(" in looks["p"]
    token.hover()
    rows = tab.locator("#detail tr")
    assert rows.count() == 3 and rows.last.locator("td").count() == 5
    assert "%" in rows.last.inner_text()
    assert all(f"{name} " in tab.locator("#detail").inner_text()
               for name in ("p", "value", "advantage"))
    tab.get_by_role("button", name="Forget").click()
    assert tab.locator(".token").count() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", [
        "<script>document.title = 'broken'</script><img src=x onerror=\"document.title='broken'\">",
        "\u202eright to left\u202c \u2067and\u2069 back", "x" * 10_000])
def test_a_hostile_text_is_only_text(text, tab):
    say(tab, text)
    tab.locator(".note", has_text="score" if len(text) < 1000 else "fewer words").first.wait_for()
    assert tab.title() == "RLHF, seen from inside"
    assert tab.locator("img, .column script").count() == 0
    assert tab.locator(".user").first.inner_text() == text
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_answers_are_rated_in_a_browser(tab, server):
    _, out = server
    tab.get_by_role("link", name="Rate").click()
    tab.get_by_role("button", name="5", exact=True).click()
    for _ in range(3):
        tab.get_by_role("button", name="Yes (y)").click()
    tab.locator("#kept", has_text="saved: 1 labels").wait_for()
    tab.keyboard.type("9x3nny")  # 9 and x are no answers
    tab.locator("#kept", has_text="saved: 2 labels").wait_for()
    path, = (out / "rated").glob("*.jsonl")
    one, other = [json.loads(line) for line in path.read_text().splitlines()]
    assert [one[name] for name in ("rating", "helpful", "truthful", "harmless")] == [5] + [True] * 3
    assert [other[name] for name in ("rating", "helpful", "truthful", "harmless")] == [
        3, False, False, True]
    tab.keyboard.press("u")
    tab.locator("#kept", has_text="taken back").wait_for()
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.slow
def test_answers_are_ranked_in_a_browser_and_learned_from(tab, server):
    _, out = server
    tab.get_by_role("link", name="Rank").click()
    tab.locator(".card").nth(1).wait_for()
    shown = tab.locator(".card span").all_inner_texts()
    tab.locator(".card").last.drag_to(tab.locator(".card").first)
    tab.get_by_role("button", name="Save this order").click()
    tab.locator("#agreement", has_text="agrees with you on").wait_for()
    path, = (out / "feedback").glob("*.jsonl")
    record = json.loads(path.read_text().splitlines()[-1])
    assert record["responses"] == shown and record["ranks"] == [*range(2, len(shown) + 1), 1]
    k = tab.locator(".card").count()
    tab.keyboard.type("".join(map(str, range(k, 0, -1))))  # the keys of the terminal
    tab.locator("#agreement", has_text="saved: 2 labels").wait_for()
    assert json.loads(path.read_text().splitlines()[-1])["ranks"] == list(range(k, 0, -1))
    tab.locator(".card").nth(1).get_by_role("button", name="=").click()
    tab.get_by_role("button", name="Save this order").click()
    tab.locator("#agreement", has_text="saved: 3 labels").wait_for()
    assert json.loads(path.read_text().splitlines()[-1])["ranks"][:2] == [1, 1]
    tab.keyboard.press("u")
    tab.locator("#agreement", has_text="taken back").wait_for()
    assert len(records.read_comparisons(path)) == 2
    tab.get_by_role("link", name="Watch").focus()
    tab.keyboard.press("Enter")  # a link is no answer
    tab.get_by_role("link", name="Rank").click()
    tab.locator(".card").nth(1).wait_for()
    assert len(records.read_comparisons(path)) == 2
    tab.keyboard.press("ArrowDown")
    tab.keyboard.type("h1")
    tab.keyboard.press("Enter")  # the order that the arrow made, and the answer that fails
    tab.locator("#agreement", has_text="saved: 3 labels").wait_for()
    last = json.loads(path.read_text().splitlines()[-1])
    assert last["ranks"][:2] == [2, 1] and last["fails"] == {"helpful": [0]}
    # a key that is held
    tab.evaluate(
        "for (let i = 0; i < 9; i++) document.dispatchEvent(new KeyboardEvent('keydown', {key: "
        "'Enter', repeat: true}))")
    tab.wait_for_timeout(300)
    assert len(path.read_text().splitlines()) == 3
    reward.train(reward.Config(out=str(out), data=str(path), batch=2, mix_runs=True))


@pytest.mark.slow
def test_the_keyboard_alone_is_enough(tab):
    tab.keyboard.press("Tab")  # to the links
    for _ in range(4):
        tab.keyboard.press("Tab")
    tab.keyboard.type("Hello!")
    tab.keyboard.press("Enter")
    tab.locator(".note", has_text="score").nth(2).wait_for()
    for _ in range(20):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.className") == "answer":
            break
    tab.keyboard.press("ArrowRight")
    assert tab.locator(".token.at").count() == 1 and "%" in tab.locator("#detail").inner_text()
    tab.evaluate("location.hash = '#rank'")
    tab.locator(".card").nth(1).wait_for()
    first = tab.locator(".card span").first.inner_text()
    tab.keyboard.press("ArrowDown")  # the first answer has the focus
    assert tab.locator(".card span").nth(1).inner_text() == first


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_light_and_dark(scheme, tab):
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size(dict(width=320, height=640))
    say(tab, "What is the capital of Cuba?")
    tab.locator(".note", has_text="score").nth(2).wait_for()
    back, ink = (tab.evaluate(f"getComputedStyle(document.querySelector('{tag}')).{what}") for tag,
                 what in (("html", "backgroundColor"), (".answer", "color")))
    assert ("255, 255, 255" in ink) == (scheme == "dark"), (back, ink)
    for part in ("#ask", "#rank", "#watch"):
        tab.evaluate(f"location.hash = '{part}'")
        tab.wait_for_timeout(300)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 320, part


@pytest.mark.slow
def test_a_run_is_watched_in_a_browser(tab):
    tab.get_by_role("link", name="Watch").click()
    tab.locator("#stages svg").first.wait_for()
    assert ({"ppo (grey: a healthy run)", "gpt (grey: a healthy run)"}
            <= set(tab.locator("#stages > h2").all_inner_texts()))
    assert tab.locator("polyline.now").count() == tab.locator("polyline.healthy").count() > 6
    assert "continues" in tab.locator("#stages").inner_text()


@pytest.mark.slow
def test_the_page_speaks_chinese(browser, server):
    """By the browser's language, or as ?lang= says; every text of the table stands in both."""
    address = f"http://127.0.0.1:{server[0].server_port}/"
    tab = browser.new_context(locale="zh-CN").new_page()
    tab.goto(address)
    tab.locator(".column").nth(2).wait_for()
    assert tab.title() == "从内部看 RLHF" and tab.locator("html").get_attribute("lang") == "zh"
    tab.get_by_label("用英语提问").fill("What is the capital of Cuba?")
    tab.get_by_role("button", name="提问").click()
    tab.locator(".note", has_text="标注员: 真实评分").first.wait_for()
    for part in ("排序", "打分", "观察训练"):
        tab.get_by_role("link", name=part).click()
    keys = tab.evaluate("Object.values(TEXTS).map(texts => Object.keys(texts))")
    assert keys[0] == keys[1]
    tab.goto(f"{address}?lang=en")
    assert tab.title() == "RLHF, seen from inside"
    empty = tab.locator("[data-say]").evaluate_all("all => all.filter(x => !x.textContent).length")
    assert empty == 0
