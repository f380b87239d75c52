"""The command line. Heavy imports happen inside the commands that need them."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from kvbench import __version__
from kvbench.cli import dry
from kvbench.config.errors import CellsFailed, Stopped, UserError
from kvbench.config.secrets import masked
from kvbench.config.text import printable
from kvbench.config.typed import unknown
from kvbench.runs.stopping import EXIT_CODE, ends_with_parent, raised_at_once

if TYPE_CHECKING:
    from kvbench.config.compose import Composed

# what `kvbench ls` lists
KINDS = ("methods", "tasks", "models", "experiments", "hardware", "shapes", "runs")

_FIRST = """\
first steps:
  kvbench doctor              is everything there?
  kvbench ls experiments      what can I run?
  kvbench run quickstart      compare methods, into results/runs/quickstart
  kvbench open quickstart     show the page of that run
"""
_SETTINGS = """\
settings that most experiments share (all of them: conf/config.yaml):
  method=[snapkv,rocketkv]    methods; kvbench ls methods lists them
  method.snapkv.window=64     a parameter of a method; kvbench ls methods snapkv
  task=[ruler_niah_single_2]  tasks; kvbench ls tasks
  task.length=[1024,2048]     a setting, for every task that has it
  budget.tokens=[128,256]     tokens that are kept or read, per layer and KV head
  budget.ratio=[0.1]          the same as a fraction of the prompt
  model=llama31_8b            a model; kvbench ls models
  model.path=FOLDER           a model of your own
  limit=2                     at most 2 samples per task and length
  retry_failed=true           run cells again that failed before
  run_dir=FOLDER              where results go, instead of results/runs/NAME
  workers=4                   processes that share the work; the same command on other machines joins in
  snapshots.keep=true         keep prefills on disk, for a sweep that is extended later
  dry=true                    only say what would be done, as kvbench plan
  stop_after=3h30m            begin no prompt after that time; the same command goes on
quote brackets for your shell: 'method=[snapkv]'
"""


_CELL = """\
a cell is its id, the beginning of its id, or its fields:
  kvbench explain quickstart method=snapkv budget=128 task=ruler_niah_single_2 sample=0
"""


_CHECK = """\
random prompts of several lengths and shapes, budgets from 1 to more than there is; a few seconds, no model:
  kvbench check mymethod.py window=16
exit code: 0 if every rule is met, 1 if one is broken, 2 if there is no such method
"""


_PLAN = """\
  kvbench plan quickstart hardware=h100_sxm
  kvbench run quickstart dry=true hardware=h100_sxm      the same
kvbench ls hardware lists the devices; kvbench doctor --bandwidth measures yours
"""


_PREVIEW = """\
  kvbench preview 'task=[ruler_vt]' task.length=[1024]
  kvbench preview 'task=[longbench_qasper]' task.data=FOLDER --sample 3
"""


_LM_EVAL = """\
for people who live in lm-eval; task=[lm_eval] runs its tasks with one prefill for all methods, and dense beside each:
  kvbench lm-eval --tasks gsm8k_cot --method rocketkv --tokens 512 --limit 20
"""


_CLAUDE = """\
in another shell, with the address that the command prints:
  ANTHROPIC_BASE_URL=http://127.0.0.1:8787 claude
"""


class _AsWritten(argparse.RawDescriptionHelpFormatter):
    """Keeps line breaks of examples."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0; 1 for failed cells or a method that breaks its contract; 2 for a user's mistake; 75 for a run
        that was stopped and that the same command resumes; 130 for Ctrl-C.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        try:
            args = _parse(argv)
            code = args.handler(args) or 0
            sys.stdout.flush()
        except BrokenPipeError:
            # the reader (`| head`) is gone
            _drop_output()
            return 0
        except CellsFailed as failed:
            _say(failed.text, flush=True)
            for line in failed.failures:
                _tell(f"failed: {line}")
            return 1
        except UserError as error:
            _tell(f"error: {error}")
            return 2
        except OSError as error:
            # of a file or folder that no one place reads or writes, or of a full disk behind standard output
            if error.filename is None:
                _drop_output()
            _tell(f"error: {error.filename or 'output'}: {error.strerror or error}")
            return 2
        except Stopped as stop:
            _tell(str(stop))
            return EXIT_CODE
        except KeyboardInterrupt as stop:
            _tell("; ".join(["interrupted", *map(str, stop.args)]))
            return 130
    return code


def _drop_output() -> None:
    """Flushing the buffer at exit must not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(text: object, **how: Any) -> None:
    """Prints; what a terminal would obey in texts of models and files is written out."""
    print(printable(str(text)), **how)


def _tell(message: str) -> None:
    """Prints one line to standard error, without secrets."""
    print(f"kvbench: {printable(masked(' '.join(message.splitlines())))}", file=sys.stderr)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    # argparse accepts overrides in one place only, not on both sides of an option
    options = [word for word in rest if word.startswith("-") or "overrides" not in args]
    if options:
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    if rest:
        args.overrides += rest
    return args


def _parser() -> argparse.ArgumentParser:
    question = "How small can the KV cache of a model be, and what does it cost?"
    parser = _Parser(prog="kvbench", description=question, epilog=_FIRST, formatter_class=_AsWritten)
    parser.add_argument("--version", action="version", version=f"kvbench {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    parser.set_defaults(handler=lambda _: parser.print_help())

    def add(name: str, handler: Any, text: str, more: str | None = None) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=text, epilog=more, formatter_class=_AsWritten
        )
        command.set_defaults(handler=handler)
        return command

    run = add("run", _run, "run an experiment; the same command again resumes it", _SETTINGS)
    run.add_argument(
        "overrides", nargs="*", metavar="NAME KEY=VALUE", help="an experiment, and settings to change"
    )
    run.add_argument("--table", action="store_true", help="also print all tables, as in table.md")
    planned = add("plan", _plan, "what a run would do, need and cost; loads and runs nothing", _PLAN)
    planned.add_argument("overrides", nargs="*", metavar="NAME KEY=VALUE", help="as for kvbench run")
    listing = add("ls", _ls, "list methods, tasks, models, experiments, hardware, shapes or runs")
    listing.add_argument("what", nargs="?", metavar="KIND", help=f"one of {', '.join(KINDS)}")
    listing.add_argument("name", nargs="?", metavar="NAME", help="everything about one of them")
    listing.add_argument("--json", action="store_true", help="print everything about all of them as JSON")
    text = "print docs/methods.md"
    listing.add_argument("--markdown", action="store_true", help=text)
    for command in (run, planned, listing):
        text = "a folder with configuration of your own, laid out as conf/"
        command.add_argument("--config-dir", action="append", default=[], metavar="DIR", help=text)
    shown = add("preview", _preview, "one prompt of each chosen task, as the model reads it", _PREVIEW)
    shown.add_argument("overrides", nargs="*", metavar="NAME KEY=VALUE", help="as for kvbench run")
    shown.add_argument("--sample", type=int, default=0, metavar="N", help="number of the sample, from 0")
    shown.add_argument("--whole", action="store_true", help="show all of a long text")
    shown.add_argument("--config-dir", action="append", default=[], metavar="DIR", help="as for kvbench run")
    rows = add("data", _data, "write made-up rows in the form of a task's data, to try it with")
    rows.add_argument("task", metavar="TASK", help="one of kvbench ls tasks that needs data")
    rows.add_argument(
        "file", nargs="?", metavar="FILE", help="a new file; by default named after the data set"
    )
    rows.add_argument("--rows", type=int, default=3, metavar="N", help="number of rows (default: 3)")
    rows.add_argument(
        "--words", type=int, default=600, metavar="N", help="words of each context (default: 600)"
    )
    new = add("new", _new, "write a file to start a method or a task of your own from")
    new.add_argument("what", choices=("method", "task"))
    new.add_argument("name", metavar="NAME", help="lower-case letters, digits and underscores")
    check = add("check", _check, "check a method of your own against what the engine relies on", _CHECK)
    text = "a Python file or module with methods of your own, or the name of a method"
    check.add_argument("what", metavar="METHOD", help=text)
    check.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="parameters, as window=16"
    )
    a_run = "a run: its folder, or its name in results/runs"
    status = add("status", _status, "progress of a run, or of all runs")
    status.add_argument("folder", nargs="?", metavar="RUN", help=a_run)
    status.add_argument("--json", action="store_true", help="as JSON, with the workers and what they work on")
    text = "repeat every SECONDS (default: 10) until Ctrl-C or the end, with the workers"
    status.add_argument("--watch", nargs="?", type=float, const=10.0, metavar="SECONDS", help=text)
    text = "read every row: schema versions, duplicates, and rows of one cell that contradict each other"
    status.add_argument("--check", action="store_true", help=text)
    text = "put the rows of all workers into one file, each cell once; no worker may be at work"
    status.add_argument("--compact", action="store_true", help=text)
    bridge = add(
        "lm-eval", _lm_eval, "run lm-eval with a method's cache; every method prefills anew", _LM_EVAL
    )
    bridge.add_argument(
        "--tasks", required=True, metavar="NAME,NAME", help="tasks of lm-eval that generate text"
    )
    bridge.add_argument(
        "--model", default="smollm2_135m", help="one of kvbench ls models, or a folder; %(default)s"
    )
    bridge.add_argument("--method", default="dense", help="one of kvbench ls methods; %(default)s")
    bridge.add_argument("--tokens", type=int, metavar="N", help="budget in tokens")
    bridge.add_argument("--ratio", type=float, metavar="R", help="budget as a fraction of the prompt")
    bridge.add_argument("--limit", type=int, metavar="N", help="documents of each task, the first ones")
    bridge.add_argument("--include-path", metavar="FOLDER", help="a folder with tasks of your own")
    bridge.add_argument(
        "--output", metavar="FILE", help="results as JSON, with what was kept and how many bytes"
    )
    bridge.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="parameters, as window=16"
    )
    text = "say which methods and budgets lose less than a margin against dense"
    best = add("best", _best, text)
    best.add_argument("folder", metavar="RUN", help=a_run)
    text = "allowed loss of score (default: 0.05)"
    best.add_argument("--within", type=float, default=0.05, metavar="LOSS", help=text)
    text = "allowed KL from dense (default: 0.1)"
    best.add_argument("--kl", type=float, default=0.1, metavar="NATS", help=text)
    best.add_argument("--json", action="store_true", help="print every method, task and budget as JSON")
    report = add("report", _report, "write the table, figures and page of a run anew")
    report.add_argument("folder", metavar="RUN", help=a_run)
    opened = add("open", _open, "open the page of a run, or an index of all runs, in a browser")
    opened.add_argument("folder", nargs="?", metavar="RUN", help=a_run)
    explain = add("explain", _explain, "everything about one cell, and the command that repeats it", _CELL)
    explain.add_argument("folder", metavar="RUN", help=a_run)
    explain.add_argument(
        "cell", nargs="+", metavar="CELL", help="its id or the beginning of it, or FIELD=VALUE"
    )
    text = "leave out the kept and evicted tokens, which need the model"
    explain.add_argument("--no-tokens", action="store_true", help=text)
    compare = add("compare", _compare, "compare two runs on the same samples")
    compare.add_argument("folders", nargs=2, metavar="RUN", help=a_run)
    claims = add("claims", _claims, "published numbers, what we find, and a verdict")
    text = "only those of this paper or page, as RocketKV; several times for several"
    claims.add_argument("--source", action="append", default=[], metavar="NAME", help=text)
    text = "only those with this verdict, as contradicted"
    claims.add_argument("--verdict", action="append", default=[], metavar="NAME", help=text)
    text = "also write all of them as results/claims.csv, claims.md and claims.html"
    claims.add_argument("--write", action="store_true", help=text)
    text = "also check against this run of yours: its folder, or its name in results/runs"
    claims.add_argument("--run", action="append", default=[], metavar="RUN", help=text)
    doctor = add("doctor", _doctor, "versions, device, and what is missing for which use")
    text = "measure memory bandwidth and arithmetic, and print them as a device for the cost model"
    doctor.add_argument("--bandwidth", action="store_true", help=text)
    text = "vLLM instead, and whether the article's command line works with it; PYTHON is that of its environment"
    doctor.add_argument("--vllm", nargs="?", const=".venv-vllm/bin/python", metavar="PYTHON", help=text)
    text = (
        "with --vllm: check this command line instead of the article's, as 'vllm serve MODEL --block-size 16'"
    )
    doctor.add_argument("--command", metavar="COMMAND", help=text)
    _add_claude(add)
    return parser


def _add_claude(add: Any) -> None:
    """Adds the commands on Claude's API."""
    claude = add(
        "claude", _claude, "record what a tool sends to Claude; a Messages API on this machine", _CLAUDE
    )
    parts = claude.add_subparsers(metavar="COMMAND", required=True, dest="what")
    text = "a proxy on this machine that passes everything on and writes a trace; keys are not stored"
    record = parts.add_parser("record", help=text, description=text)
    record.add_argument("file", metavar="FILE", help="the trace; lines are appended")
    record.add_argument("--port", type=int, default=8787, help="0 for any free one; %(default)s")
    record.add_argument(
        "--upstream", metavar="URL", help="where requests go, instead of the official address"
    )
    record.add_argument("--contents", action="store_true", help="also store the prompts")
    text = "a Messages API that answers with one text and counts as the cache's rules say; nothing is sent anywhere"
    serve = parts.add_parser("serve", help=text, description=text)
    serve.add_argument("--port", type=int, default=8788, help="0 for any free one; %(default)s")
    serve.add_argument("--answer", default="This is a scripted answer.", help="the text")
    serve.add_argument("--prices", metavar="PATH", help="your own price file or folder")


def _run(args: argparse.Namespace) -> None:
    from kvbench import experiments
    from kvbench.config.compose import compose, run_dir
    from kvbench.runs.progress import Progress

    if dry.wanted(args.overrides):
        return _plan(args)
    composed = compose(dry.taken(args.overrides)[0], args.config_dir)
    try:
        with raised_at_once():
            ends_with_parent()
            text = experiments.run(composed, Progress)
        if args.table:
            _print_table(run_dir(composed), text)
        _say(text)
    except CellsFailed as failed:
        if args.table:
            _print_table(run_dir(composed), failed.text)
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_kept_in(composed)) from None
    except Stopped as stop:
        raise Stopped(f"{stop}; {_kept_in(composed)}") from None


def _plan(args: argparse.Namespace) -> None:
    from kvbench.cli.plan import plan

    _say(plan(args.overrides, args.config_dir))


def _kept_in(composed: Composed) -> str:
    from kvbench.config.compose import run_dir

    return f"what is done is kept in {run_dir(composed)}, the same command resumes"


def _print_table(folder: Path, text: str) -> None:
    """All tables of a run, unless the text that follows has them."""
    path = folder / "table.md"
    table = path.read_text(encoding="utf-8") if path.is_file() else ""
    if table and table not in text:
        _say(table)


def _best(args: argparse.Namespace) -> None:
    from kvbench import report

    best = report.load(args.folder).best(args.within, args.kl)
    _say(best.json() if args.json else best.text())


def _status(args: argparse.Namespace) -> int | None:
    from kvbench import report
    from kvbench.report import console

    if args.folder is None:
        if args.watch is not None or args.check or args.compact:
            raise UserError("status: --watch, --check and --compact need a run")
        args.what, args.name, args.markdown, args.config_dir = "runs", None, False, []
        _ls(args)
    elif args.check or args.compact:
        return _check_rows(args)
    elif args.watch is not None:
        _watch(args)
    elif args.json:
        _say(json.dumps(console.overview_of(args.folder), indent=1, allow_nan=False))
    else:
        _say(report.status(args.folder))
    return None


def _check_rows(args: argparse.Namespace) -> int:
    """Exit code 1 where rows contradict each other."""
    from kvbench import report
    from kvbench.runs import check
    from kvbench.runs.store import Store

    store = Store(report.load(args.folder).path)
    if args.compact:
        _say(check.compact(store))
        return 0
    found = check.check(store)
    _say(found.text())
    return int(bool(found.conflicts))


def _watch(args: argparse.Namespace) -> None:
    from kvbench.report import console

    if args.watch < 1:
        raise UserError(f"--watch: {args.watch:g} is not allowed, give a second or more")
    workers: list[dict[str, Any]] = []
    while True:
        text, workers = console.watched(args.folder, workers)
        now = console.overview_of(args.folder)
        _say(json.dumps(now, allow_nan=False) if args.json else text, flush=True)
        if now["done"] + now["failed"] >= now["planned"] and not workers:
            return
        time.sleep(args.watch)


def _report(args: argparse.Namespace) -> None:
    from kvbench import report

    _say(report.write_report(args.folder)["report.html"])


def _open(args: argparse.Namespace) -> None:
    import webbrowser

    from kvbench import report

    page = report.page_of(args.folder) if args.folder else report.write_index()
    # a path that can be copied where there is no browser
    _say(page)
    webbrowser.open(page.resolve().as_uri())


def _compare(args: argparse.Namespace) -> None:
    from kvbench import report

    _say(report.comparison_text(report.compare(*args.folders), *args.folders))


def _explain(args: argparse.Namespace) -> None:
    from kvbench import report

    _say(report.explain(args.folder, *args.cell))
    if not args.no_tokens:
        _say(f"\n{_kept(report.find(args.folder, *args.cell))}")


def _kept(record: Mapping[str, Any]) -> str:
    """What a cell keeps of its prompt, or why that cannot be shown."""
    if (record.get("meta") or {}).get("hidden"):
        return "tokens kept after prefill: the text is not shown"
    if record.get("timing") == "isolated":
        return "tokens kept after prefill: shown for cells with answers, this one measures times"
    text = f"loads the model {record.get('model')} to compress the cell again; --no-tokens leaves that out"
    _tell(text)
    from kvbench.experiments.accuracy import kept

    try:
        return kept.shown(kept.kept_prompt(record))
    except UserError as error:
        return f"tokens kept after prefill: cannot be shown: {error}"


def _ls(args: argparse.Namespace) -> None:
    from kvbench.cli import listing
    from kvbench.config.compose import checked_dirs

    if args.markdown and args.what != "methods":
        raise UserError(f"--markdown: there is no page of {args.what or 'a bare ls'}, only of methods")
    if args.markdown:
        _say(listing.methods_page(), end="")
    elif args.what is None:
        _say(listing.kinds(KINDS))
    elif args.what not in KINDS:
        raise unknown("ls", args.what, KINDS, "listing")
    else:
        _say(listing.show(args.what, args.name, checked_dirs(args.config_dir), args.json))


def _preview(args: argparse.Namespace) -> None:
    from kvbench.cli import tasks

    if args.sample < 0:
        raise UserError(f"--sample: {args.sample} is not allowed, give 0 or more")
    print(tasks.preview(args.overrides, args.config_dir, args.sample, args.whole))


def _data(args: argparse.Namespace) -> None:
    from kvbench.cli import tasks

    print(tasks.data(args.task, args.file, args.rows, args.words))


def _lm_eval(args: argparse.Namespace) -> None:
    from kvbench.cli import lm_eval

    _tell(lm_eval.WARNING)
    print(lm_eval.run(args))


def _new(args: argparse.Namespace) -> None:
    from kvbench.cli import scaffold

    _say(scaffold.new(args.what, args.name))


def _check(args: argparse.Namespace) -> int:
    from kvbench.cli import check

    text, good = check.check(args.what, args.overrides)
    _say(text)
    return 0 if good else 1


def _claims(args: argparse.Namespace) -> None:
    from kvbench import claims
    from kvbench.claims import evidence, table

    claims.check_names(args.source, args.verdict)
    results = claims.evaluate(evidence.load(runs=args.run))
    wanted = claims.chosen(results, args.source, args.verdict)
    parts = [table.plain(wanted, shutil.get_terminal_size().columns), table.counts_text(wanted)]
    if commands := table.commands_text(wanted):
        parts.append(f"to be run, and then claims again with --run NAME:\n{commands}")
    if args.write:
        parts.append(f"written: {', '.join(map(str, claims.write_tables(results)))}")
    _say("\n\n".join(part for part in parts if part))


def _claude(args: argparse.Namespace) -> None:
    from kvbench.cli import claude

    if args.what == "record":
        claude.record(args.file, args.port, args.upstream, args.contents)
    else:
        claude.serve(args.port, args.answer, args.prices)


def _doctor(args: argparse.Namespace) -> None:
    if args.bandwidth:
        from kvbench.cost.measure import description, measure

        _say(description(measure()), end="")
        return
    if args.vllm:
        from kvbench.cli import doctor_vllm as vllm

        _say(vllm.report(args.vllm, args.command))
        return
    if args.command is not None:
        raise UserError("--command: a command line of vLLM, give --vllm too")
    from kvbench.cli import doctor

    _say(doctor.report())


def _warn(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    _tell(f"warning: {message}")


if __name__ == "__main__":
    sys.exit(main())
