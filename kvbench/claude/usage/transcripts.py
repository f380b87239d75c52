"""Claude Code's own transcripts: `~/.claude/projects/**/*.jsonl`, one JSON object per line.

The format is not documented by Anthropic. Its public sources: the schema of ccusage (ryoppippi/ccusage,
apps/ccusage/src/adapter/claude/data-loader.ts, commit 0ed94176), the session format of microsoft/amplifier
(ai_working/claude_code_logging, commit 0e671211) for compaction and branches, and 23min/copilot-lens
(docs/research/claude-code-sessions.md, commit 3163988e, Claude Code 2.1.39) for sub-agents and the 5m/1h split.

An answer is written once per content block, with the same `message.id` and a usage that grows; the last one is billed.
A resumed conversation copies earlier answers into its own file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvbench.claude.files import place_of, rows_of
from kvbench.claude.traces.checks import MALFORMED
from kvbench.claude.traces.problems import Problems
from kvbench.claude.usage.call import Call, seconds
from kvbench.claude.usage_json import read_usage
from kvbench.config.errors import UserError

SOURCE = (
    "Claude Code transcripts (schema: ccusage 0ed94176, microsoft/amplifier 0e671211, copilot-lens 3163988e)"
)
NOTES = (
    "Transcripts hold neither the system prompt nor the tools; both are in the reported usage, which is counted here.",
    "A call starts when the message that it answers was written: transcripts have no other time of sending.",
    "Calls that Claude Code does not write down (such as titles) are in no transcript, and so not in this bill.",
)
_SYNTHETIC = "<synthetic>"  # messages that Claude Code writes itself, without a call


def looks_so(row: object) -> bool:
    """Whether a line is one of a transcript."""
    return (
        isinstance(row, Mapping)
        and "sessionId" in row
        and ("uuid" in row or "leafUuid" in row or "type" in row)
    )


@dataclass
class Line:
    """A line of a transcript that is a message or a mark.

    Attributes:
        row: its JSON.
        place: file and line.
        agent: its sub-agent or side chain, "" for the main conversation.
    """

    row: Mapping[str, Any]
    place: str
    agent: str = ""

    @property
    def message(self) -> Mapping[str, Any]:
        """The message as the API has it; empty if there is none."""
        found = self.row.get("message")
        return found if isinstance(found, Mapping) else {}

    @property
    def answer(self) -> bool:
        """Whether it is (a part of) an answer of the API."""
        model = self.message.get("model")
        return self.row.get("type") == "assistant" and "usage" in self.message and model != _SYNTHETIC

    @property
    def model(self) -> str:
        """Its model.

        Raises:
            UserError: it names none.
        """
        found = self.message.get("model")
        if not isinstance(found, str):
            raise UserError(f"model={found}: must be a text")
        return found

    @property
    def session(self) -> str:
        """Its conversation; a sub-agent's is its own."""
        name = str(self.row.get("sessionId") or "")
        return f"{name}/{self.agent}" if self.agent else name

    @property
    def compaction(self) -> bool:
        """Whether the conversation was compacted here."""
        boundary = self.row.get("type") == "system" and self.row.get("subtype") == "compact_boundary"
        return boundary or bool(self.row.get("isCompactSummary"))


def read_lines(file: Path, place: str, problems: Problems) -> Iterator[Line]:
    """The lines of a transcript, each with its sub-agent."""
    chains: dict[str, str] = {}  # side chain of each message, by uuid
    for _, where, row in rows_of(file, place, problems):
        agent = ""
        if row.get("isSidechain"):
            # without an id, a side chain is named by its first message
            before = chains.get(str(row.get("parentUuid")), "")
            agent = str(row.get("agentId") or before or row.get("uuid") or "side chain")
            chains[str(row.get("uuid"))] = agent
        yield Line(row, where, agent)


def calls(files: Sequence[Path], root: Path, problems: Problems) -> Iterator[Call]:
    """The calls of all files, each file's in order of time; an answer that stands in several files is marked.

    Args:
        files: the transcripts.
        root: the folder that was given, for messages.
        problems: collects defects.
    """
    seen: set[str] = set()
    for file in files:
        found = file_calls(file, place_of(file, root), problems)
        for call in sorted(found, key=lambda call: call.t):
            yield replace(call, copy=True) if call.id in seen else call
        seen.update(call.id for call in found)


def file_calls(file: Path, place: str, problems: Problems) -> list[Call]:
    """The calls of one file; the arguments are those of `calls`, with the file's place in the folder."""
    sent: dict[str, float] = {}  # time of every message that is no answer, by uuid
    found: dict[str, Call] = {}
    compacted: set[str] = set()
    for line in read_lines(file, place, problems):
        try:
            if line.compaction:
                compacted.add(line.session)
            if not line.answer:
                if "uuid" in line.row and "timestamp" in line.row and line.row.get("type") == "user":
                    sent[str(line.row["uuid"])] = seconds(line.row["timestamp"])
                continue
            if line.row.get("isApiErrorMessage"):
                continue
            name = str(line.message.get("id") or line.row.get("uuid") or line.place)
            billed = read_usage(line.message["usage"])
            if not billed.usage.total and not billed.usage.output:
                continue
            written = seconds(line.row["timestamp"])
            before = found.get(name)
            start = before.t if before else min(written, sent.get(str(line.row.get("parentUuid")), written))
            found[name] = Call(
                id=name,
                t=start,
                model=before.model if before else line.model,
                usage=billed.usage,
                session=line.session or place,
                agent=line.agent,
                batch=billed.tier == "batch",
                geo=billed.geo,
                speed=billed.speed,
                server_tools=billed.server_tools,
                compacted=before.compacted if before else line.session in compacted,
                place=before.place if before else line.place,
            )
            compacted.discard(line.session)
        except UserError as error:
            problems.skip(line.place, str(error))
        except MALFORMED as error:
            problems.skip(line.place, f"{type(error).__name__}: {error}")
    return list(found.values())
