"""`kvbench claude record` and `serve`, as commands."""

import json
import signal
import subprocess
import sys
import urllib.request

import pytest

from kvbench.cli.main import main

pytest.importorskip("anthropic")


def started(*words):
    """A command that serves, and the address that it prints."""
    command = [sys.executable, "-m", "kvbench.cli.main", "claude", *words]
    # a background job inherits an ignored SIGINT
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("export ANTHROPIC_BASE_URL="):
            return process, line.split("=", 1)[1].strip()
    raise AssertionError(process.stderr.read())


def ended(process):
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


def test_record_in_front_of_serve(tmp_path):
    server, address = started("serve", "--port", "0", "--answer", "hello")
    proxy, url = started("record", str(tmp_path / "t.jsonl"), "--port", "0", "--upstream", address)
    body = {"model": "claude-sonnet-4-6", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    request = urllib.request.Request(f"{url}/v1/messages", json.dumps(body).encode(), {"x-api-key": "secret"})
    with urllib.request.urlopen(request, timeout=10) as response:
        assert json.loads(response.read())["content"][0]["text"] == "hello"
    code, out, err = ended(proxy)
    assert (code, err) == (0, "")
    assert f"1 line written to {tmp_path / 't.jsonl'}: kvbench run experiment=claude_bill" in out
    assert "secret" not in (tmp_path / "t.jsonl").read_text()
    code, out, err = ended(server)
    assert (code, err) == (0, "")
    assert "1 request answered" in out


def test_mistakes_are_one_line(tmp_path, capsys):
    for words, message in (
        (("record", str(tmp_path)), "give a file in a folder that exists"),
        (("record", str(tmp_path / "t"), "--upstream", "http://example.com"), "upstream=http://example.com"),
        (("record", str(tmp_path / "t"), "--port", "99999"), "port=99999: cannot be used"),
        (("serve", "--port", "-1"), "port=-1: cannot be used"),
        (("serve", "--prices", str(tmp_path / "no")), "prices="),
        (("play",), "invalid choice: 'play'"),
        ((), "required: COMMAND"),
    ):
        assert main(["claude", *words]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert message in err
