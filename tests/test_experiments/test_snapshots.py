"""Prefills that are kept: a sweep that is extended does none of them again, and no number depends on them."""

import functools
import json
import os
import shlex
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from kvbench_testing.chaos import TIMES
from kvbench_testing.docs import ROOT, shortened
from safetensors import SafetensorError

from kvbench.cli import main as cli
from kvbench.config.errors import UserError
from kvbench.engine import snapshot_file
from kvbench.experiments.accuracy import run as accuracy
from kvbench.methods import registry
from kvbench.runs import context, provenance, snapshots
from kvbench.runs.config import from_yaml, load, resolved_yaml
from kvbench.runs.context import RunContext
from kvbench.runs.progress import Progress
from kvbench.runs.snapshots import ASIDE
from kvbench.runs.store import Store
from kvbench.runs.workers import worker_overrides

OVERRIDES = [
    "experiment=quickstart", "task=[ruler_niah_single_1]", "task.length=[1024]", "task.samples=2",
    "task.max_new_tokens=4", "task.wording=own", "method=[dense,snapkv]", "budget.tokens=[64]",
    "decode.block_rows=8",
]  # fmt: skip
KEEP = "snapshots.keep=true"


@pytest.fixture(scope="module")
def config(tiny_model_dir):
    folder = tiny_model_dir("llama", group=3, layers=3)

    def make(run_dir, *more):
        return load([*OVERRIDES, f"model.path={folder}", "model.name=tiny", f"run_dir={run_dir}", *more])

    return make


@pytest.fixture
def prefills(monkeypatch):
    """Lengths of the prompts that were prefilled."""
    found, original = [], accuracy.prefill_for

    def counted(*args):
        found.append(len(args[3]))
        return original(*args)

    monkeypatch.setattr(accuracy, "prefill_for", counted)
    return found


def run(cfg):
    assert accuracy.run_accuracy(cfg, Progress) == []
    return rows(cfg.run_dir)


def rows(folder):
    """Every row as text without its times, by id."""
    found = Store(folder).scan()[0]
    return {
        row["cell"]: json.dumps({k: v for k, v in row.items() if k not in TIMES}, sort_keys=True)
        for row in found
    }


def files(folder):
    return sorted((Path(folder) / "snapshots").glob("*.safetensors"))


def test_an_extended_sweep_prefills_nothing_and_has_the_rows_of_a_fresh_one(config, tmp_path, prefills):
    first = run(config(tmp_path / "kept", KEEP))
    assert len(prefills) == 2 and len(files(tmp_path / "kept")) == 2
    more = ["method=[dense,snapkv,knorm,quest]", "budget.tokens=[64,96]", "kl=true"]
    extended = run(config(tmp_path / "kept", KEEP, *more))
    assert len(prefills) == 2
    fresh = run(config(tmp_path / "fresh", *more))
    assert len(prefills) == 4 and not (tmp_path / "fresh" / "snapshots").exists()
    assert extended == fresh and first.items() < extended.items() and len(extended) == 2 * 7
    # the time is that of the prefill that was made
    times = {row["sample"]: set() for row in Store(tmp_path / "kept").scan()[0]}
    for row in Store(tmp_path / "kept").scan()[0]:
        times[row["sample"]].add(row["prefill_s"])
    assert all(len(known) == 1 for known in times.values())


def test_the_example_of_the_docs_extends_a_sweep_by_a_second_worker(
    tiny_model_dir, tmp_path, prefills, capsys
):
    """Its commands in a short form, in order; then one command for everything, elsewhere."""
    page = (ROOT / "docs" / "sweeps.md").read_text()
    lines = [
        shlex.split(line)
        for line in page.splitlines()
        if line.startswith("kvbench") and "/shared/extended" in line
    ]
    assert [line[1] for line in lines] == ["run", "run", "status"]
    values = {
        "tiny": str(tiny_model_dir("llama", group=3, layers=3)),
        "/shared/extended": str(tmp_path / "run"),
    }
    first, second, status = (shortened(line, values, tmp_path) for line in lines)
    # the short form has one of each
    first, second = (
        [w for w in words if not w.startswith(("method=", "budget.tokens="))] for words in (first, second)
    )
    first += [word for word in lines[0] if word.startswith("method=")] + ["budget.tokens=[64]"]
    second += [word for word in lines[1] if word.startswith(("method=", "budget.tokens="))] + ["report=false"]
    assert cli.main(first) == 0
    begun, count = rows(tmp_path / "run"), len(prefills)
    assert count and len(begun) == 3 * count
    assert cli.main(second) == 0
    assert len(prefills) == count and len(rows(tmp_path / "run")) == (1 + 3 * 4) * count
    assert cli.main(status) == 0 and f"{13 * count} of {13 * count}" in capsys.readouterr().out
    # two workers, and what the first one did is not done again
    stored = sorted(Store(tmp_path / "run").files("cells"), key=os.path.getmtime)
    assert [len(path.read_text().splitlines()) for path in stored] == [3 * count, 10 * count]
    other = [word for word in second if not word.startswith(("run_dir=", "snapshots."))]
    assert cli.main([*other, f"run_dir={tmp_path / 'other'}"]) == 0
    assert rows(tmp_path / "other") == rows(tmp_path / "run") and len(prefills) == 2 * count


def test_without_keep_nothing_is_kept_and_nothing_used(config, tmp_path, prefills):
    run(config(tmp_path / "a", KEEP))
    run(config(tmp_path / "a", "budget.tokens=[96]"))
    assert len(prefills) == 4 and len(files(tmp_path / "a")) == 2


def test_a_snapshot_serves_methods_that_need_no_more_than_is_in_it(config, tmp_path, prefills):
    """One that was made for SnapKV cannot serve H2O; one that was made for H2O serves whatever needs its sums."""

    def extended(*methods):
        prefills.clear()
        run(config(tmp_path, KEEP, "limit=1", f"method=[{','.join(methods)}]"))
        return len(prefills)

    assert extended("dense", "snapkv") == 1
    assert extended("dense", "snapkv", "knorm", "streaming_llm", "quest", "chunkkv") == 0
    assert extended("dense", "h2o") == 1  # its sums
    assert extended("dense", "observed_attention", "knorm") == 0
    assert extended("dense", "expected_attention") == 1  # queries of the whole prompt
    assert extended("dense", "decode_every") == 0
    assert [path.name.partition("-")[2] for path in files(tmp_path)] == sorted(
        ["last32.safetensors", "last1-sums.safetensors", f"last{length(tmp_path)}.safetensors"]
    )


def length(folder):
    return Store(folder).scan()[0][0]["compressed_tokens"]


def test_more_last_queries_than_are_kept_are_another_snapshot(config, tmp_path, prefills):
    run(config(tmp_path, KEEP, "limit=1"))
    run(config(tmp_path, KEEP, "limit=1", "method.snapkv.window=48"))
    assert len(prefills) == 2
    run(config(tmp_path, KEEP, "limit=1", "method.snapkv.window=40"))
    assert len(prefills) == 2


EVERY = sorted(name for name, cls in registry().items() if cls.family in ("eviction", "selection", "method"))


@pytest.mark.parametrize("protocol", ["query_aware", "query_agnostic"])
def test_every_method_has_the_same_rows_from_a_kept_snapshot(config, tmp_path, prefills, protocol):
    methods = [name for name in EVERY if protocol == "query_agnostic" or name != "kvzip"]
    settings = [
        f"protocol=[{protocol}]",
        f"method=[{','.join(methods)}]",
        "limit=1",
        "decode.ignore_eos=true",
    ]
    settings.append(f"snapshots.folder={tmp_path / 'shared'}")
    fresh = run(config(tmp_path / "fresh", *settings))
    made = run(config(tmp_path / "made", *settings, KEEP))
    assert len(prefills) == 2
    used = run(config(tmp_path / "used", *settings, KEEP))
    assert len(prefills) == 2 and made == fresh and used == fresh and len(fresh) >= len(methods)


@pytest.mark.parametrize(
    "model", [{}, pytest.param({"dtype": "bfloat16", "prefill_chunk": 100}, marks=pytest.mark.slow)]
)
def test_conversations_use_kept_snapshots(config, tmp_path, prefills, model):
    """Those of the first turn, and of every turn for what filters again."""
    settings = [
        "task=[niah_turns]",
        "task.samples=4",
        "task.length=[2048]",
        "method=[dense,snapkv,h2o,rocketkv_mt]",
    ]
    settings += [f"model.{key}={value}" for key, value in model.items()]
    fresh = run(config(tmp_path / "fresh", *settings))
    assert len(prefills) == 7
    # every turn prefills the first one's tokens, and the last three all of theirs besides
    made = run(config(tmp_path / "kept", *settings, KEEP))
    assert made == fresh and len(prefills) == 7 + 4
    again = [*settings, KEEP, f"snapshots.folder={tmp_path / 'kept' / 'snapshots'}"]
    assert run(config(tmp_path / "run", *again)) == fresh
    assert len(prefills) == 7 + 4


def test_another_worker_goes_on_where_one_died(config, tmp_path, prefills, monkeypatch):
    """A prompt whose prefill is kept, and whose rows are not."""

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(accuracy, "decode_apart", killed)
    with pytest.raises(KeyboardInterrupt):
        accuracy.run_accuracy(config(tmp_path, KEEP), Progress)
    monkeypatch.setattr(accuracy, "decode_apart", snapshot_apart)
    assert len(prefills) == 1 and not rows(tmp_path)
    run(config(tmp_path, KEEP))
    assert len(prefills) == 2


snapshot_apart = accuracy.decode_apart


def spoilt(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 64
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [spoilt, lambda path: path.write_bytes(path.read_bytes()[:-1]), lambda path: path.write_bytes(b"")],
    ids=["a bit", "cut", "empty"],
)
def test_a_damaged_file_is_set_aside_and_its_prompt_prefilled_anew(config, tmp_path, prefills, damage):
    fresh = run(config(tmp_path, KEEP, "limit=1"))
    (path,) = files(tmp_path)
    damage(path)
    damaged = path.read_bytes()
    with pytest.warns(
        UserWarning, match=rf"^snapshots: {path.name} is damaged \([^\n]+\); set aside as [^\n]+$"
    ):
        extended = run(config(tmp_path, KEEP, "limit=1", "budget.tokens=[64,96]"))
    assert len(prefills) == 2 and fresh.items() < extended.items()
    assert files(tmp_path) == [path]
    assert path.with_name(path.name + ASIDE).read_bytes() == damaged != path.read_bytes()
    # the new one is used
    run(config(tmp_path, KEEP, "limit=1", "budget.tokens=[64,96,128]"))
    assert len(prefills) == 2


def test_a_file_that_was_renamed_to_anothers_key_is_not_believed(config, tmp_path, prefills):
    """Each file says whose it is."""
    run(config(tmp_path / "a", KEEP))
    one, two = files(tmp_path / "a")
    other = two.read_bytes()
    one.write_bytes(other)
    with pytest.warns(UserWarning, match="snapshots: .* is damaged"):
        run(config(tmp_path / "a", KEEP, "budget.tokens=[96]"))
    assert len(prefills) == 3


def test_what_was_not_used_for_longest_makes_room(config, tmp_path, prefills):
    run(config(tmp_path, KEEP, "task.samples=3"))
    sizes = {path: path.stat().st_size for path in files(tmp_path)}
    assert len(sizes) == 3
    for number, path in enumerate(sizes):
        os.utime(path, (1000 + number, 1000 + number))
    oldest, used, _ = sizes
    aside = oldest.with_name(oldest.name + ASIDE)
    oldest.rename(aside)
    (tmp_path / "snapshots" / "notes.txt").write_text("not a snapshot")
    # the second is used, so that the third goes first, after the damaged one
    order = rows_by_file(config, tmp_path, used)
    most = (2 * max(sizes.values()) + 2000) / 1e9
    cfg = config(tmp_path, KEEP, "task.samples=5", f"snapshots.max_gb={most}")
    prefills.clear()
    run(cfg)
    assert len(prefills) == 2 and not aside.exists()
    left = files(tmp_path)
    assert len(left) == 2 and used not in left and sum(path.stat().st_size for path in left) <= most * 1e9
    assert (tmp_path / "snapshots" / "notes.txt").exists() and order


def rows_by_file(config, folder, path):
    before = path.stat().st_mtime
    run(config(folder, KEEP, "task.samples=3", "budget.tokens=[96]"))
    # used: newer than it was
    return path.stat().st_mtime > before


def test_one_that_is_larger_than_all_that_may_be_kept_removes_none(config, tmp_path, prefills):
    run(config(tmp_path, KEEP, "limit=1"))
    with pytest.warns(
        UserWarning, match=r"^snapshots: one takes [^\n]+ GB, and snapshots\.max_gb=1e-05: not kept$"
    ) as told:
        run(config(tmp_path, KEEP, "task.samples=4", "snapshots.max_gb=1e-5"))
    assert len([one for one in told if "snapshots" in str(one.message)]) == 1
    assert len(files(tmp_path)) == 1 and len(prefills) == 4


@pytest.mark.parametrize(
    "error", [SafetensorError("I/O error: No space left on device"), OSError(30, "Read-only")]
)
def test_what_cannot_be_kept_costs_time_only(config, tmp_path, prefills, monkeypatch, error):
    def refused(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(snapshot_file, "save_file", refused)
    with pytest.warns(UserWarning, match=r"^snapshots: cannot write [^\n]+; prefills are not kept$") as told:
        found = run(config(tmp_path, KEEP))
    assert len([one for one in told if "snapshots" in str(one.message)]) == 1
    monkeypatch.undo()
    assert os.listdir(tmp_path / "snapshots") == []
    assert found == run(config(tmp_path / "fresh"))


def test_a_disk_without_room_for_the_rows_keeps_none(config, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.warns(UserWarning, match=r"^snapshots: one takes [^\n]+ are free in [^\n]+: not kept$"):
        run(config(tmp_path, KEEP, "limit=1"))
    assert not files(tmp_path)


def test_one_that_is_removed_or_unreadable_meanwhile_is_made_anew(config, tmp_path, prefills, monkeypatch):
    run(config(tmp_path, KEEP, "limit=1"))

    def gone(path, *_):
        raise FileNotFoundError(2, "gone", str(path))

    monkeypatch.setattr(snapshots, "load", gone)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(config(tmp_path, KEEP, "limit=1", "budget.tokens=[96]"))

    def unreadable(path, *_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(snapshots, "load", unreadable)
    with pytest.warns(UserWarning, match=r"^snapshots: cannot read [^\n]+: Input/output error; its prompt "):
        run(config(tmp_path, KEEP, "limit=1", "budget.tokens=[128]"))
    assert len(prefills) == 3


def test_a_snapshot_that_is_not_finite_is_not_kept(config, tmp_path, prefills, monkeypatch):
    original = accuracy.prefill_for

    @torch.inference_mode()
    def broken(*args):
        snapshot = original(*args)
        snapshot.layers[1].k_HTD[0, 3, 2] = torch.nan
        return snapshot

    monkeypatch.setattr(accuracy, "prefill_for", broken)
    with pytest.raises(UserError, match="keys of layer 1 are not finite"):
        accuracy.run_accuracy(config(tmp_path, KEEP), Progress)
    assert not files(tmp_path)


# --- what the name depends on


@pytest.fixture
def name(config, tmp_path, monkeypatch):
    """The name of the file of a prompt under some settings."""

    load_model = functools.cache(context.load_model)
    monkeypatch.setattr(context, "load_model", load_model)

    def of(*more, ids=(1, 2, 3), protocol="query_aware"):
        cfg = config(tmp_path / "run", KEEP, *more)
        kept = RunContext.load(cfg).snapshots
        names = []
        monkeypatch.setattr(kept, "_keep", lambda path, *_: names.append(path.name))
        kept.get(list(ids), protocol, [], None, lambda: None)
        return names[0]

    return of


def test_the_name_depends_on_all_that_the_numbers_do(name, tiny_model_dir, monkeypatch):
    first = name()
    assert name() == first and name("budget.tokens=[96]", "seeds=[3]", "kl=false") == first
    others = [
        name(ids=(1, 2, 4)),
        name(ids=(1, 2)),
        name(protocol="query_agnostic"),
        name("model.dtype=bfloat16"),
        name("model.prefill_chunk=7"),
        name(f"model.path={tiny_model_dir('llama', group=3, layers=3, seed=1)}"),
    ]
    for what, change in {
        "attention": lambda patch: patch.setattr(
            snapshots, "_setting", altered(snapshots._setting, attention="flash_attention_2")
        ),
        "engine": lambda patch: patch.setattr(snapshots, "ENGINE_VERSION", -1),
        "device": lambda patch: patch.setattr(provenance, "device_name", lambda _: "CPU other, 5 threads"),
        "packages": lambda patch: patch.setattr(provenance, "versions", lambda: {"torch": "0"}),
        "kernels": lambda patch: patch.setattr("kvbench.kernels.masked_attention.VERSION", 77),
        "forms": lambda patch: patch.setattr(snapshots, "forms_for", lambda *_: {"attention_sum": "triton"}),
    }.items():
        with monkeypatch.context() as patch:
            change(patch)
            others.append(name())
        assert others[-1] != first, what
    assert len({first, *others}) == 1 + len(others)


def altered(setting, **values):
    return lambda *args: setting(*args) | values


# --- settings


def test_how_prefills_are_kept_is_no_part_of_what_is_asked(config, tmp_path):
    cfg = config(tmp_path, KEEP, f"snapshots.folder={tmp_path}/x y", "snapshots.max_gb=0.5")
    assert cfg.request == config(tmp_path).request and from_yaml(resolved_yaml(cfg)) == cfg
    found = worker_overrides(cfg)
    assert KEEP in found and load(found).snapshots == cfg.snapshots
    relative = config(tmp_path, KEEP, "snapshots.folder=kept")
    assert load(worker_overrides(relative)).snapshots.folder == str(Path.cwd() / "kept")
    (row,) = [row for row in [cfg] if row.snapshots.place(row.run_dir) == tmp_path / "x y"]
    assert row and config(tmp_path).snapshots.place("r") == Path("r/snapshots")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["snapshots=true"], "snapshots: "),
        (["snapshots.keep=maybe"], "snapshots.keep: "),
        (["snapshots.max_gb=0"], "snapshots.max_gb: 0.0 is not allowed"),
        (["snapshots.max_gb=-1"], "snapshots.max_gb: "),
        (["snapshots.max_gb=nan"], "snapshots.max_gb: "),
        (["snapshots.folder=' '"], "snapshots.folder: "),
        (["snapshots.folder=[a]"], "snapshots.folder: "),
        (["snapshots.kep=true"], "snapshots.kep: "),
        ([KEEP, "kind=efficiency"], "snapshots.keep: an efficiency run measures its prefills"),
    ],
)
def test_a_wrong_setting_is_one_line(words, message, capsys, tmp_path):
    assert cli.main(["run", "quickstart", *words, f"run_dir={tmp_path / 'out'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kvbench: error: {message}"), line


def test_other_kinds_of_experiments_keep_no_prefills(capsys, tmp_path):
    assert cli.main(["run", "roofline", KEEP, f"run_dir={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith("kvbench: error: snapshots: is for experiments of")


def test_a_plan_counts_the_disk(config, tmp_path, capsys):
    words = [
        "plan",
        "quickstart",
        *OVERRIDES[1:],
        "model=llama31_8b",
        "task.length=[8192]",
        f"run_dir={tmp_path}/run",
    ]
    assert cli.main([*words, KEEP]) == 0
    out = capsys.readouterr().out
    # 2 prompts of 8,188 tokens: keys and values, and the last 32 queries of 32 heads in 32 layers, of 128 channels
    expected = 2 * 32 * 128 * 2 * (2 * 8 * 8188 + 32 * 32)
    assert f"snapshots: {tmp_path}/run/snapshots; they take about {expected / 1e9:.2g} GB, " in out
    assert cli.main([*words, KEEP, "snapshots.max_gb=1"]) == 0
    assert ", of which snapshots.max_gb=1 keeps the last ones, " in capsys.readouterr().out
    assert cli.main([*words, KEEP, "task.samples=100000", "snapshots.max_gb=1e9"]) == 0
    assert "; that is too little" in capsys.readouterr().out
    assert cli.main(words) == 0 and "snapshots" not in capsys.readouterr().out
