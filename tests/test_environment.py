"""Any locale, any terminal: it works, or one sentence says why not."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from conftest import ROOT, one_sentence

pytestmark = pytest.mark.slow
TINY = ("--threads 1 --steps 2 --documents 50 --n_layer 1 --n_embd 16 --n_head 2 "
        "--vocab_size 300 --block_size 64").split()


def run(*args, typed=None, **env):
    """A stage in a process of its own, with these variables in its environment; typed: bytes, or
    None to close the input."""
    command = [sys.executable, *map(str, args)]
    if typed is None:
        command = ["/bin/bash", "-c", '"$@" 0<&-', "-", *command]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, input=typed,
                          capture_output=True, timeout=120)
    done.stdout, done.stderr = done.stdout.decode(errors="replace"), done.stderr.decode(
        errors="replace")
    return done


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    assert run("gpt.py", *TINY, "--out", folder).returncode == 0
    return folder


@pytest.mark.parametrize("env",
                         [dict(PYTHONIOENCODING="cp1252"), dict(PYTHONIOENCODING="ascii:strict"),
                          dict(MPLBACKEND="Qt4Agg"),
                                 dict(MPLBACKEND="module://matplotlib_inline.backend_inline"),
                                 dict(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0"),
                                 dict(PYTHONWARNDEFAULTENCODING="1",
                                      PYTHONWARNINGS="error::EncodingWarning:__main__,"
                                                      "error::EncodingWarning:data")],
                         ids=["Windows", "ASCII", "an unknown backend", "Jupyter's backend",
                              "no locale", "encodings are named"])
def test_a_run_ends_well(env, tmp_path):
    done = run("gpt.py", *TINY, "--out", tmp_path, **env)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert (tmp_path / "gpt" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "gpt" / "results.json").exists()


def test_results_are_written_before_anything_is_drawn(tmp_path):
    (tmp_path / "gpt" / "curves.png").mkdir(parents=True)  # where the picture should go
    assert "curves.png cannot be written" in one_sentence(run("gpt.py", *TINY, "--out", tmp_path))
    assert (tmp_path / "gpt" / "results.json").exists() and (tmp_path / "gpt" / "ckpt.pt").exists()


@pytest.mark.parametrize("env",
                         [dict(PYTHONIOENCODING="utf-8:strict"), dict(LC_ALL="C"),
                          dict(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")])
def test_half_a_character_does_not_end_the_chat(env, out, tmp_path):
    done = run("gpt.py", "--chat", "--ckpt", out / "gpt" / "ckpt.pt", "--out", tmp_path,
               typed="hello é".encode()[:-1] + b"\n/good\n", **env)
    assert done.returncode == 0 and "(noted)" in done.stdout and "Goodbye." in done.stdout
    assert not done.stderr


@pytest.mark.parametrize("command", [["gpt.py", "--chat"], ["reward.py", "--label"]])
def test_without_an_input_nobody_is_asked(command, out):
    assert "a person is asked here" in one_sentence(run(*command, "--out", out))


def test_an_export_is_read_where_the_locale_is_not_utf8(out, tmp_path):
    assert run("gpt.py", "--export", tmp_path / "export", "--out", out).returncode == 0
    done = run("sft.py", "--init", tmp_path / "export", "--steps", 1, "--demonstrations", 50,
               "--out", tmp_path, LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sysconfig.get_platform().startswith("win"), reason="no PATH of this sort")
def test_compiling_without_a_compiler_is_one_sentence(tmp_path):
    assert "--compile does not work here" in one_sentence(
        run("gpt.py", *TINY, "--out", tmp_path, "--compile", PATH="/nonexistent", CXX="",
            TORCHINDUCTOR_CACHE_DIR=str(tmp_path)))
