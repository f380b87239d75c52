"""What the comparisons with official codes share: they count, and they fail."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

PARITY = Path(__file__).parents[1] / "parity"

#: a stand-in for the official cache: its first tokens, then its recent ones
CACHE = """
import torch

class StartRecentKVCache:
    def __init__(self, start_size, recent_size):
        self.start, self.recent = start_size, recent_size

    def __call__(self, pairs):
        return [[self.cut(x) for x in pair] for pair in pairs]

    def cut(self, x):
        return torch.cat([x[:, :, :self.start], x[:, :, x.shape[2] - self.recent{shift}:]], 2)
"""


def run(clone, *more):
    command = [sys.executable, str(PARITY / "check_streaming_llm.py"), str(clone), "--cases", "3", *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("shift", "code"), [("", 0), (" - 1", 1)])
def test_a_script_counts_what_differs_and_fails(tmp_path, shift, code):
    (tmp_path / "streaming_llm").mkdir()
    (tmp_path / "streaming_llm" / "kv_cache.py").write_text(CACHE.replace("{shift}", shift))
    done = run(tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == f"check_streaming_llm: 6 compared, {6 * code} mismatches"


def test_another_folder_is_refused_in_one_line(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 1 and "there is no such file; give the path of a clone" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_every_script_is_in_the_table_and_says_how_it_is_run():
    table = (PARITY / "README.md").read_text(encoding="utf-8")
    scripts = {path.name for path in PARITY.glob("check_*.py")}
    assert scripts == {
        line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| check_")
    }
    for name in scripts:
        assert f"tests/parity/{name}" in (PARITY / name).read_text(encoding="utf-8").split('"""')[1]


def test_missing_modules_and_names_become_stand_ins(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(PARITY))
    from common import difference, load, positions

    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    (tmp_path / "installed.py").write_text("present = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (
        "import no_such_library.part\nfrom installed import no_such_name\nfrom no_such_library import Base\n"
    )
    (tmp_path / "theirs.py").write_text(text + "class Mine(Base):\n    kept = 3\n")
    assert load(tmp_path, "theirs.py").Mine().kept == 3
    assert difference("x", [1, 2], [1, 2]) is None and "officially" in difference("x", [1], [2])
    import torch

    keys = torch.randn(9, 4)
    chosen = random.Random(0).sample(range(9), 5)
    assert positions(keys[chosen], keys) == sorted(chosen)
