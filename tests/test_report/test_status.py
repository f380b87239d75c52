"""What `kvbench status` says of a folder."""

from kvbench.report.console import status
from kvbench.report.run import load
from kvbench.runs.store import Store


def test_a_command_that_died_is_not_hidden_by_one_that_finished(tmp_path, accuracy):
    records = accuracy(tasks=("vt",), samples=2)
    store, half = Store(tmp_path), len(records) // 2
    cells = [(record["task"], record["method"], record["cell"]) for record in records]
    store.write_plan(cells[:half], {"seeds": 0}, "kvbench run quickstart 'seeds=[0]'")
    store.write_plan(cells[half:], {"seeds": 1}, "kvbench run quickstart 'seeds=[1]'")
    store.extend(records[half:])
    text = status(tmp_path)
    assert f"{len(records) - half} of {len(records)} cells done" in text
    (name,) = [plan.file for plan in store.planned().plans if "[0]" in plan.command]
    assert (
        f"unfinished: {half} of {half} cells of kvbench run quickstart 'seeds=[0]'; delete {name} to drop it"
        in text
    )
    assert load(tmp_path).notes()[0] == (f"incomplete run: {half} of {len(records)} planned cells missing")
    # dropped, the folder is complete
    (tmp_path / name).unlink()
    assert f"{len(records) - half} of {len(records) - half} cells done" in status(tmp_path)
    assert not any("incomplete" in note for note in load(tmp_path).notes())
