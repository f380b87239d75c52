"""The bill of files with usage, as the command line makes it."""

import json

import pandas as pd
import pytest

pytest.importorskip("hydra")

from kvbench.cli.main import main

START = "2026-11-20T"


def line(kind, uuid, parent, time, message):
    base = {"type": kind, "uuid": uuid, "parentUuid": parent, "sessionId": "S", "isSidechain": False}
    return {**base, "timestamp": f"{START}{time}.000Z", "message": message}


def answer(uuid, parent, time, read, five, model="claude-sonnet-4-6"):
    usage = {"input_tokens": 5, "output_tokens": 100, "cache_read_input_tokens": read}
    usage |= {"cache_creation_input_tokens": five, "cache_creation": {"ephemeral_5m_input_tokens": five}}
    message = {"id": f"m{uuid}", "role": "assistant", "model": model, "content": [], "usage": usage}
    return line("assistant", uuid, parent, time, message)


def user(uuid, parent, time):
    return line("user", uuid, parent, time, {"role": "user", "content": "x"})


def bill(capsys, *words):
    code = main(["run", "experiment=claude_bill", *words])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_a_transcript_from_the_file_to_the_table(tmp_path, capsys):
    rows = [
        user("u1", None, "10:00:00"),
        answer("a1", "u1", "10:00:05", 0, 20_000),
        user("u2", "a1", "10:10:00"),
        answer("a2", "u2", "10:10:05", 0, 21_000),
        user("u3", "a2", "10:11:00"),
        answer("a3", "u3", "10:11:05", 0, 22_000, "claude-opus-4-6"),
        answer("a4", "u3", "10:11:06", 0, 22_000, "claude-<b>9|"),
    ]
    (tmp_path / "projects" / "p").mkdir(parents=True)
    (tmp_path / "projects" / "p" / "S.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{oops\n")
    out = tmp_path / "out"
    code, text, _ = bill(capsys, f"trace={tmp_path / 'projects'}", f"run_dir={out}")
    assert code == 0
    models = pd.read_csv(out / "models.csv").set_index("of")
    sonnet = (41_000 * 3.75 + 2 * 5 * 3 + 2 * 100 * 15) / 1e6
    opus = (22_000 * 6.25 + 5 * 5 + 100 * 25) / 1e6
    assert models["paid_usd"].to_dict() == pytest.approx(
        {"claude-sonnet-4-6": sonnet, "claude-opus-4-6": opus, "all": sonnet + opus}
    )
    losses = pd.read_csv(out / "losses.csv")
    assert losses[["call", "cause", "tokens"]].values.tolist() == [
        ["ma2", "idle gap", 20_000],
        ["ma3", "model switch", 21_000],
    ]
    assert losses["usd"].tolist() == pytest.approx([20_000 * 3.45e-6, 21_000 * 5.75e-6])
    instead = pd.read_csv(out / "instead.csv").set_index("instead")["usd"]
    assert instead["as billed"] == pytest.approx(sonnet + opus)
    assert instead["pings every 240 s, only in gaps that end"] == pytest.approx(
        sonnet + opus + 2 * 20_000 * 0.3e-6 - 20_000 * 3.45e-6
    )
    days = pd.read_csv(out / "days.csv")
    assert days["day"].tolist() == ["2026-11-20"]
    paid = days[["read", "write_5m", "write_1h", "uncached", "output"]].sum(axis=1)
    assert paid.tolist() == pytest.approx([sonnet + opus])
    assert (out / "figures" / "days.svg").stat().st_size > 1_000
    # what is not priced is told, and nothing in it reaches the page as HTML
    assert "p/S.jsonl, line 7: model=claude-&lt;b&gt;9\\|: no prices for this model" in text
    assert "p/S.jsonl, line 8: JSONDecodeError" in text
    assert "Transcripts hold neither the system prompt nor the tools" in text


def test_mistakes_are_one_line(tmp_path, capsys):
    for words, message in (
        ((), "trace: give a file or folder"),
        ((f"trace={tmp_path / 'none'}",), "no such file or folder"),
        ((f"trace={tmp_path}", "ping_every=300"), "ping_every: 300 is not allowed"),
        ((f"trace={tmp_path}", "ping_for=-1"), "ping_for: -1 is not allowed"),
        ((f"trace={tmp_path}", "input_tokens=some"), "input_tokens: there is no choice 'some'"),
    ):
        code, out, err = bill(capsys, *words, f"run_dir={tmp_path / 'out'}")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
