"""Peak memory of a prompt: against what is alive while the engine runs, and what would make it fit."""

import json
import re
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kvbench import cost
from kvbench.cli import main as cli
from kvbench.cost.duration import duration
from kvbench.cost.memory import activations, largest_chunk, memory
from kvbench.engine.attention import register_attention
from kvbench.engine.prefill import prefill
from kvbench.models.load import ModelConfig, load_model
from kvbench.runs.config import load

SHAPE = cost.model_shape("llama31_8b")


class Alive(TorchDispatchMode):
    """Bytes of the tensors that are made inside and alive at the same time."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        before = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.known | before:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key, size):
        self.known.discard(key)
        self.now -= size


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def test_a_prefill_holds_what_the_model_says(tiny_model_dir):
    folder = tiny_model_dir("llama", group=3, layers=3)
    loaded = load_model(ModelConfig(name="tiny", path=str(folder)), register_attention())
    shape = cost.shapes.from_config(json.loads((folder / "config.json").read_text()), "tiny")
    for chunk in (128, 512):
        with Alive() as seen:
            snapshot = prefill(loaded.model, list(range(100)) * 10 + [1] * 24, 8, chunk)
        accounts = [cost.account("dense", shape, prompt=snapshot.length, new=1, element=4)]
        found = memory(accounts, chunk, window=8)
        # a CPU writes the causal mask of a chunk, which flash attention on a GPU does not
        modelled = found.prefill - found.weights + chunk * snapshot.length
        assert 0.8 < modelled / seen.peak < 1.1, (chunk, modelled, seen.peak)


def of(*cells, chunk=1024, prompt=32768):
    """The memory of dense and SnapKV at some budgets."""
    sizes = {"prompt": prompt, "new": 32, "element": 2}
    accounts = [cost.account("dense", SHAPE, **sizes)]
    accounts += [cost.account("snapkv", SHAPE, **sizes, tokens=tokens) for tokens in cells]
    return memory(accounts, chunk)


def test_the_parts_by_hand():
    found = of(256, 512)
    token = 2 * 32 * 8 * 128 * 2
    assert found.weights == SHAPE.weight_bytes(2) and found.dense == 32 * token
    # the snapshot also has the last query of every head and layer
    assert found.snapshot == 32768 * token + 32 * 32 * 128 * 2 and found.block == 32768 * token
    assert [size // token for size in found.cells] == [256 + 32, 512 + 32]
    assert found.decode == found.weights + found.snapshot + found.dense + sum(found.cells) + found.step
    assert found.peak == max(found.prefill, found.decode)
    assert of(chunk=2048).prefill - of(chunk=1024).prefill == activations(SHAPE, 1024, 2)
    # cells in blocks of the snapshot's size
    many = of(*[8192] * 12)
    assert many.decode - many.weights - many.dense - many.step == many.snapshot + many.block
    # what evicts nothing has the snapshot's keys and values, but for the rows of an efficiency run
    sizes = {"prompt": 4096, "new": 8, "element": 2}
    quest = [cost.account("dense", SHAPE, **sizes), cost.account("quest", SHAPE, **sizes, tokens=256)]
    assert memory(quest, 1024).cells[0] < 0.2 * SHAPE.kv_bytes(4096) < memory(quest, 1024, batch=1).cells[0]


def test_blocks_are_as_many_as_needed():
    found = of(*[4096] * 12)
    fixed = found.weights + found.snapshot + found.dense + found.step
    for cells in (12, 6, 5, 1):
        assert found.blocks(fixed + cells * found.cells[0]) == -(-12 // cells)
    assert found.blocks(fixed + 0.99 * found.cells[0]) is None and found.blocks(0) is None


def test_the_largest_chunk_that_fits():
    found = of(chunk=32768)
    for chunk in (8192, 64):
        room = of(chunk=chunk).prefill
        assert largest_chunk(found, SHAPE, 2, room, 32768) == chunk
        assert largest_chunk(found, SHAPE, 2, room - 1, 32768) == chunk // 2
    assert largest_chunk(found, SHAPE, 2, found.weights + found.snapshot, 32768) is None


# --- the command

ARGUMENTS = ["task=[ruler_niah_single_1]", "task.max_new_tokens=32", "model=llama31_8b", "method=[snapkv]",
             "budget.tokens=[1024]"]  # fmt: skip


def plan(tmp_path, capsys, *more, command=("plan", "quickstart")):
    words = [*ARGUMENTS, "task.length=[8192]", "task.samples=3", f"run_dir={tmp_path / 'run'}", *more]
    code = cli.main([*command, *words])
    assert not (tmp_path / "run").exists()
    found = capsys.readouterr()
    return code, found.out, found.err


def test_a_plan_says_what_a_run_needs(tmp_path, capsys):
    code, out, _ = plan(tmp_path, capsys, "hardware=h100_sxm", "seeds=[0,1]")
    assert (
        code == 0 and "does not fit" not in out and f"folder: {tmp_path}/run, no cell in it yet; rows" in out
    )
    (row,) = [line for line in out.splitlines() if line.startswith("| ruler_niah_single_1")]
    task, length, prompts, prefills, cells, peak, _, spent, usd = (
        x.strip() for x in row.strip("|").split("|")
    )
    assert (task, length, prompts, prefills, cells) == ("ruler_niah_single_1", "8,192", "6", "6", "12")
    cfg = load(["experiment=quickstart", *ARGUMENTS, "task.length=[8192]", "task.samples=3", "seeds=[0,1]"])
    (modelled,) = duration(cfg, SHAPE, cost.hardware("h100_sxm"))
    assert (
        peak == f"{modelled.memory / 1e9:.1f}"
        and usd == f"{modelled.usd:.2g}"
        and spent == f"{modelled.seconds:.3g} s"
    )
    # the same before a run
    assert plan(tmp_path, capsys, "hardware=h100_sxm", "seeds=[0,1]", "dry=true", command=("run", "quickstart")) == (
        code, out, ""
    )  # fmt: skip
    _, without, _ = plan(tmp_path, capsys)
    assert "hardware=NAME adds time" in without and "USD" not in without


@pytest.mark.parametrize(
    ("more", "advice"),
    [
        (["hardware=rtx_4090", "task.length=[131072]"], "weights and the prompt's whole cache take "),
        (
            ["hardware=rtx_4090", "task.length=[32000]", "model.prefill_chunk=32000"],
            r"model\.prefill_chunk=\d+ would",
        ),
        (
            ["hardware=rtx_4090", "task.length=[32768]", f"budget.tokens={[8000 + i for i in range(20)]}"],
            r"decoding takes [\d.]+ GB of [^;]+; \d+ blocks ",
        ),
        (
            ["hardware=rtx_4090", "task.length=[36000]", "budget.tokens=[20000]"],
            r"format [a-z0-9_]+ would",
        ),
    ],
)
def test_a_plan_says_what_would_fit(tmp_path, capsys, more, advice):
    code, out, _ = plan(tmp_path, capsys, *more)
    assert code == 0 and re.search(rf"^does not fit: ruler_niah_single_1 [\d,]+: .*{advice}", out, re.M), out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "quickstart", "hardware=h1000"], r"hardware: there is no device 'h1000'"),
        (["plan", "roofline"], r"kind: roofline has no cells to plan, allowed: accuracy, efficiency"),
        (["run", "quickstart", "hardware=h100_sxm"], r"hardware: is for kvbench plan and dry=true"),
        (["run", "quickstart", "dry=maybe"], r"dry: maybe is not one of true, false"),
        (["plan", "quickstart", "methd=[snapkv]"], r"methd: "),
    ],
)
def test_mistakes_are_one_line(words, message, capsys, tmp_path):
    assert cli.main([*words, f"run_dir={tmp_path}/run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"kvbench: error: {message}", line), line
