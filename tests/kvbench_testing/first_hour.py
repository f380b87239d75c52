"""The first hour on a GPU: every check and measurement, each with a time limit; `make gpu`.

    python tests/kvbench_testing/first_hour.py [--model NAME_OR_FOLDER] [--only NAME,...] [--rehearse] [--folder FOLDER]

What a step printed and measured stays, whatever happens to it or to those behind it. `--rehearse` runs every step in a
small form on the CPU; its numbers say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from kvbench.config.files import write
from kvbench.runs.stopping import EXIT_CODE as STOPPED

#: seconds that a step gets to store what it has, after it was told to stop
GRACE = 30
_KVBENCH = [sys.executable, "-m", "kvbench.cli.main"]
_PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
_METHODS = "method=[dense,snapkv,chunkkv,quest,rocketkv]"


@dataclass(frozen=True)
class Step:
    """A command with a time limit.

    Attributes:
        name: one word.
        seconds: after them it is told to stop.
        command: what is run.
        environment: set for it, besides this process's environment.
        run: the run folder that it writes, if any, whose summary is copied beside the logs.
    """

    name: str
    seconds: float
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    run: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a step.

    Attributes:
        step: the step.
        seconds: that it took.
        state: done, failed (with its exit code), or stopped at its limit.
        log: what it printed.
    """

    step: Step
    seconds: float
    state: str
    log: Path


def steps(model: Sequence[str], folder: Path, *, rehearse: bool) -> list[Step]:
    """All steps in order; together their limits are below 45 minutes.

    Args:
        model: settings that name the model.
        folder: where logs and tables go; runs go into folders of it.
        rehearse: small forms for the CPU.
    """
    compiled = {"TRITON_INTERPRET": "1" if rehearse else "0"}
    place = (
        ["model.device=cpu", "model.dtype=float32"]
        if rehearse
        else ["model.device=cuda", "model.dtype=bfloat16"]
    )
    lengths, long, budget = ("512,128", 2000, 64) if rehearse else ("32768,131072,4096", 32768, 1024)
    few = ["efficiency.steps=2", "efficiency.warmup=1"] if rehearse else []
    tests = ["tests/test_kernels/test_pool.py", "-k", "triton"] if rehearse else ["tests/test_kernels"]
    efficiency, accuracy = folder / "efficiency", folder / "accuracy"
    return [
        Step("doctor", 60, [*_KVBENCH, "doctor"]),
        Step("kernel_tests", 600, [*_PYTEST, *tests], compiled),
        Step(
            "device_tests",
            240,
            [*_PYTEST, "-m", "gpu", *(["--collect-only", "tests/test_kernels"] if rehearse else [])],
            compiled,
        ),
        Step(
            "kernels",
            300,
            [
                *[sys.executable, "-m", "kvbench.kernels.dev.bench", "--lengths", lengths, "--limit", "240"],
                *["--csv", str(folder / "kernels.csv"), *(["--repeats", "2"] if rehearse else [])],
            ],
        ),
        Step(
            "efficiency",
            600,
            [
                *[*_KVBENCH, "run", "experiment=efficiency", *model, *place, _METHODS, *few],
                *[
                    f"task.length=[{'1500,' if rehearse else '2048,8192,'}{long}]",
                    f"budget.tokens=[{budget}]",
                ],
                *["stop_after=9m", f"run_dir={efficiency}"],
            ],
            run=efficiency,
        ),
        Step(
            "accuracy",
            720,
            [
                *[*_KVBENCH, "run", "experiment=quickstart", *model, *place, _METHODS],
                *[
                    f"task.samples={1 if rehearse else 6}",
                    f"task.length=[{long}]",
                    f"budget.tokens=[{budget}]",
                ],
                *["stop_after=11m", f"run_dir={accuracy}"],
            ],
            run=accuracy,
        ),
    ]


def run(planned: Sequence[Step], folder: Path, grace: float = GRACE) -> list[Outcome]:
    """Run steps one after the other; Ctrl-C and SIGTERM end the one that runs and leave out the others.

    Args:
        planned: the steps.
        folder: where logs and summaries go.
        grace: seconds between being told to stop and being killed.

    Returns:
        What became of each that began.
    """
    done: list[Outcome] = []
    with _interruptible():
        try:
            for step in planned:
                print(f"== {step.name}: at most {step.seconds / 60:.0f} minutes", flush=True)
                outcome = _one(step, folder, grace)
                done.append(outcome)
                print(f"== {step.name}: {outcome.state}, {outcome.seconds:.0f} s, {outcome.log}", flush=True)
        except KeyboardInterrupt:
            print("== stopped; what is there stays, and the same command goes on with the runs", flush=True)
    return done


def _one(step: Step, folder: Path, grace: float) -> Outcome:
    log, start = folder / f"{step.name}.log", time.monotonic()
    with log.open("wb") as out:
        # a session of its own, so that its children end with it
        child = subprocess.Popen(
            step.command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=os.environ | step.environment, start_new_session=True,
        )  # fmt: skip
        try:
            code = child.wait(step.seconds)
            state = {0: "done", STOPPED: "stopped at its limit"}.get(code, f"failed, exit code {code}")
        except subprocess.TimeoutExpired:
            state = "stopped at its limit"
        finally:
            _end(child, grace)
    if step.run is not None and (step.run / "summary.csv").is_file():
        shutil.copyfile(step.run / "summary.csv", folder / f"{step.name}.csv")
    return Outcome(step, time.monotonic() - start, state, log)


def _end(child: subprocess.Popen[bytes], grace: float) -> None:
    """Tell a process to store what it has; kill it and its children if it does not end."""
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            child.wait(grace)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


@contextmanager
def _interruptible():
    """SIGTERM, which a scheduler sends, ends the steps as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: list[str] | None = None) -> int:
    """Run the steps and say what they came to.

    Returns:
        0; 1 if a step failed or did not begin; 2 for a mistake of the user.
    """
    parser = argparse.ArgumentParser(prog="first_hour.py", description=__doc__)
    parser.add_argument("--model", default="smollm2_135m", help="a name of conf/model, or a folder")
    parser.add_argument("--only", default="", help="names of steps, comma-separated")
    parser.add_argument("--rehearse", action="store_true", help="small, on the CPU")
    parser.add_argument("--folder", type=Path, help="where everything goes (results/gpu/DATE)")
    options = parser.parse_args(arguments)
    folder = options.folder or Path("results") / "gpu" / datetime.date.today().isoformat()
    model = [f"model{'.path' if os.sep in options.model else ''}={options.model}"]
    planned = steps(model, folder, rehearse=options.rehearse)
    names, wanted = [step.name for step in planned], [name for name in options.only.split(",") if name]
    if unknown := set(wanted) - set(names):
        parser.error(f"--only: {', '.join(sorted(unknown))}: not among {', '.join(names)}")
    if not options.rehearse and not _has_gpu():
        print("error: torch sees no CUDA device; --rehearse runs the steps on the CPU", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    planned = [step for step in planned if not wanted or step.name in wanted]
    outcomes = run(planned, folder)
    text = _report(outcomes, planned, folder, options.model)
    write(folder / "report.md", text)
    print(text)
    return int(len(outcomes) < len(planned) or any(o.state.startswith("failed") for o in outcomes))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _report(outcomes: Sequence[Outcome], planned: Sequence[Step], folder: Path, model: str) -> str:
    from kvbench.report.format import markdown_table

    done = {outcome.step.name: outcome for outcome in outcomes}
    rows = []
    for step in planned:
        outcome = done.get(step.name)
        state, spent = (outcome.state, f"{outcome.seconds:.0f}") if outcome else ("not begun", "")
        rows.append([step.name, state, spent])
    parts = [markdown_table(["step", "state", "s"], rows)]
    if (folder / "efficiency.csv").is_file() and "efficiency" in done:
        parts.append(_gaps(folder / "efficiency.csv", model))
    return "\n\n".join(parts) + "\n"


def _gaps(summary: Path, model: str) -> str:
    """Measured beside modelled, at the bandwidth that this machine reaches."""
    import pandas as pd

    from kvbench.cost.gaps import table
    from kvbench.cost.measure import measure
    from kvbench.cost.shapes import model_shape

    return table(pd.read_csv(summary), model_shape(model), measure().bandwidth())


if __name__ == "__main__":
    sys.exit(main())
