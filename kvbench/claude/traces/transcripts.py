"""Claude Code's own transcripts as a trace: prompts put together again from the messages, behind an assumed block.

A transcript has every message but neither the system prompt nor the tools. They are one assumed block at the start of
each conversation, of as many tokens as the first call's reported input has beyond its messages. What conversations
share cannot be seen, so each has a block of its own. The markers are assumed too: one behind that block and one at the
end, with the lifetime that the call was billed for. Schema and sources: `kvbench.claude.usage.transcripts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvbench.claude.behaviour import strips_thinking
from kvbench.claude.files import place_of
from kvbench.claude.request import SYSTEM, TEXT, THINKING, TOOL_RESULT, ContentBlock, digest
from kvbench.claude.request_json import parse
from kvbench.claude.tokens import CharCounter
from kvbench.claude.traces.checks import MALFORMED
from kvbench.claude.traces.problems import Problems
from kvbench.claude.traces.recorded import RecordedTrace, Row
from kvbench.claude.usage.call import Call
from kvbench.claude.usage.transcripts import Line, file_calls, read_lines

ASSUMED = "assumed system prompt and tools"


@dataclass
class TranscriptTrace(RecordedTrace):
    """Transcripts, whose calls are held in memory.

    Attributes:
        assumed: tokens of each conversation's assumed block.
    """

    assumed: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Lists the files; raises `UserError` if there are none."""
        super().__post_init__()
        self._kept: dict[Path, list[Row]] = {}
        self._owners: dict[str, Path] = {}  # the first file that has an answer; others are copies of it

    def _rows(self, file: Path, place: str, problems: Problems) -> Iterator[Row]:
        if not self._owners:
            for each in self.files:
                for call in file_calls(each, place_of(each, self.path), Problems()):
                    self._owners.setdefault(call.id, each)
        if file not in self._kept:
            self._kept[file] = list(self._read(file, place, problems))
        yield from self._kept[file]

    def _read(self, file: Path, place: str, problems: Problems) -> Iterator[Row]:
        calls = sorted(file_calls(file, place, problems), key=lambda call: call.t)
        history = _History(read_lines(file, place, Problems()))
        states: dict[str, _State] = {}
        for number, call in enumerate(calls, 1):
            if self._owners[call.id] != file:
                continue
            state = states.setdefault(call.session, _State())
            try:
                blocks, params = history.prompt(call)
            except MALFORMED as error:
                problems.skip(call.place, f"{type(error).__name__}: {error}")
                continue
            if state.block is None:
                tokens = max(0, call.usage.total - sum(block.tokens for block in blocks))
                state.block = _assumed(f"{place}: {call.session}", tokens)
                self.assumed[f"{place}: {call.session}"] = tokens
            yield number, call.place, state.row(call, [state.block, *blocks], params)


@dataclass
class _State:
    """A conversation: its assumed block, its previous prompt, and the lifetime of its entries."""

    block: ContentBlock | None = None
    before: Sequence[ContentBlock] = ()
    ttl: str = "5m"

    def row(self, call: Call, blocks: Sequence[ContentBlock], params: Mapping[str, Any]) -> dict[str, Any]:
        """The call in the form of a recording's line."""
        usage = call.usage
        self.ttl = "1h" if usage.write_1h else "5m" if usage.write_5m else self.ttl
        cached = usage.total > usage.uncached
        same = 0
        while same < min(len(self.before), len(blocks)) and self.before[same].hash == blocks[same].hash:
            same += 1
        self.before = blocks
        return {
            "id": call.id,
            "session": call.session,
            "t": call.t,
            "model": call.model,
            "same": same,
            "blocks": blocks[same:],
            "params": params,
            "markers": [[0, self.ttl]] if cached else [],
            "automatic": self.ttl if cached else None,
            # what is billed behind the last marker is no block of its own
            "tail": usage.uncached if cached else 0,
            "usage": {
                "read": usage.read,
                "write_5m": usage.write_5m,
                "write_1h": usage.write_1h,
                "uncached": usage.uncached,
                "output": usage.output,
            },
            "geo": call.geo,
            "speed": call.speed,
            "batch": call.batch,
            "server_tools": call.server_tools,
        }


class _History:
    """The messages of one file, by the tree that their parents make."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines: dict[str, Line] = {}
        self._first: dict[str, Line] = {}  # first line of every answer, by message id
        self._results: dict[str, Line] = {}  # by tool_use_id
        self._parsed: dict[tuple[str, ...], tuple[Sequence[ContentBlock], Mapping[str, Any]]] = {}
        for line in lines:
            if "uuid" in line.row:
                self._lines[str(line.row["uuid"])] = line
            if line.answer:
                name = str(line.message.get("id") or line.row.get("uuid") or line.place)
                self._first.setdefault(name, line)
            for item in _items(line):
                if item.get("type") == "tool_result":
                    self._results[str(item.get("tool_use_id"))] = line

    def prompt(self, call: Call) -> tuple[list[ContentBlock], dict[str, dict[str, str]]]:
        """Blocks and parameters of the prompt that a call answered."""
        blocks: list[ContentBlock] = []
        params: dict[str, dict[str, str]] = {}
        for number, lines in enumerate(self._messages(self._first[call.id])):
            found, given = self._message(lines, call.model)
            blocks += [replace(block, message=number) for block in found]
            for name, group in given.items():
                params.setdefault(name, {}).update(group)
        if strips_thinking(call.model):
            blocks = _without_old_thinking(blocks)
        return blocks, params

    def _messages(self, answer: Line) -> list[list[Line]]:
        """The lines of every message before an answer; lines of one answer are one message."""
        chain: list[Line] = []
        seen = set()
        name = answer.row.get("parentUuid")
        while name is not None and name not in seen and (line := self._lines.get(str(name))) is not None:
            seen.add(name)
            chain.append(line)
            # what stands before a compaction is no longer sent
            name = None if line.compaction and not line.message else line.row.get("parentUuid")
        messages: list[list[Line]] = []
        open_calls: list[str] = []
        placed = {id(line) for line in chain}
        for line in reversed(chain):
            if not _sent(line):
                continue
            before = messages[-1][-1] if messages else None
            same = before is not None and line.answer and line.message.get("id") == before.message.get("id")
            if same and before is not None and before.answer:
                messages[-1].append(line)
            else:
                # results of parallel calls that hang from other branches of the tree
                for call in open_calls:
                    result = self._results.get(call)
                    if result is not None and id(result) not in placed:
                        placed.add(id(result))
                        messages.append([result])
                open_calls = []
                messages.append([line])
            open_calls += [str(item.get("id")) for item in _items(line) if item.get("type") == "tool_use"]
        return messages

    def _message(self, lines: Sequence[Line], model: str) -> tuple[Sequence[ContentBlock], Mapping[str, Any]]:
        key = (model, *(line.place for line in lines))
        if key not in self._parsed:
            content: Any = lines[0].message.get("content")
            if len(lines) > 1 or not isinstance(content, str):
                content = [item for line in lines for item in _items(line)]
            role = str(lines[0].message.get("role"))
            parsed = parse({"model": "", "messages": [{"role": role, "content": content}]}, CharCounter())
            self._parsed[key] = parsed.blocks, parsed.params
        return self._parsed[key]


def _sent(line: Line) -> bool:
    """Whether a line is a message that goes to the API."""
    if line.row.get("isApiErrorMessage"):
        return False
    return line.answer or (line.row.get("type") == "user" and "content" in line.message)


def _items(line: Line) -> list[Mapping[str, Any]]:
    """The content of a line's message as blocks; without markers."""
    content = line.message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        return []
    return [
        {name: value for name, value in item.items() if name != "cache_control"}
        for item in content
        if isinstance(item, Mapping)
    ]


def _without_old_thinking(blocks: Sequence[ContentBlock]) -> list[ContentBlock]:
    """Drops the thinking before the last user message that is more than tool results."""
    kinds: dict[int, set[int]] = {}
    for block in blocks:
        kinds.setdefault(block.message, set()).add(block.kind)
    turns = [number for number, found in kinds.items() if found == {TEXT} or found == {TEXT, TOOL_RESULT}]
    last = max(turns, default=-1)
    return [block for block in blocks if block.kind != THINKING or block.message > last]


def _assumed(name: str, tokens: int) -> ContentBlock:
    return ContentBlock(SYSTEM, TEXT, digest(f"{ASSUMED}/{name}"), tokens, type=ASSUMED)
