"""Requests as JSON: order, markers, what changes which tier, and the documented errors."""

import copy

import pytest

from kvbench.claude import request_json
from kvbench.claude.request import MESSAGES, SYSTEM, THINKING, TIERS, TOOLS, Hashing
from kvbench.claude.tokens import CharCounter
from kvbench.claude.validate import errors

MARK = {"type": "ephemeral"}
HOUR = {"type": "ephemeral", "ttl": "1h"}
SCHEMA = {"type": "object", "properties": {"query": {"type": "string"}}}


def body(**changes):
    base = {
        "model": "claude-sonnet-4-6",
        "max_tokens": 100,
        "tools": [{"name": "a", "input_schema": SCHEMA}, {"name": "b", "input_schema": SCHEMA}],
        "system": [{"type": "text", "text": "be brief"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hello"}]},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t", "name": "a", "input": {"q": 1, "p": 2}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "found"}]},
        ],
    }
    return {**copy.deepcopy(base), **changes}


def build(json, hashing=None, betas=()):
    sent = request_json.parse(json, CharCounter(), betas)
    return request_json.build_request(sent, id="r", t=0.0, model=json["model"], hashing=hashing or Hashing())


def kept(first, second, hashing=None, betas=()):
    """Name of the last tier that two requests share completely."""
    one, two = build(first, hashing), build(second, hashing, betas)
    same = {
        TIERS[tier]: getattr(one, end) is not None and getattr(one, end).cum == getattr(two, end).cum
        for tier, end in ((TOOLS, "tools_end"), (SYSTEM, "system_end"), (MESSAGES, "head"))
    }
    return [name for name, equal in same.items() if equal]


ALL, STABLE, TOOLS_ONLY = ["tools", "system", "messages"], ["tools", "system"], ["tools"]


@pytest.mark.parametrize(
    ("change", "survives"),
    [
        ({}, ALL),
        ({"max_tokens": 5, "metadata": {"user_id": "u"}, "stream": True}, ALL),
        ({"tools": [{"name": "b", "input_schema": SCHEMA}, {"name": "a", "input_schema": SCHEMA}]}, []),
        ({"system": [{"type": "text", "text": "be long"}]}, TOOLS_ONLY),
        ({"speed": "fast"}, TOOLS_ONLY),
        ({"tools": [*body()["tools"], {"type": "web_search_20250305", "name": "web_search"}]}, TOOLS_ONLY),
        ({"tool_choice": {"type": "any"}}, STABLE),
        ({"tool_choice": {"type": "auto"}}, ALL),
        ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, STABLE),
        ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": False}}, ALL),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, STABLE),
        ({"thinking": {"type": "disabled"}}, ALL),
        ({"output_config": {"effort": "low"}}, STABLE),
        ({"output_config": {"effort": "high"}}, ALL),
    ],
)
def test_invalidation_table(change, survives):
    assert kept(body(), body(**change)) == survives


def test_parameters_with_an_unpublished_tier_are_an_assumption():
    change = body(thinking={"type": "enabled", "budget_tokens": 2000})
    assert kept(body(), change, Hashing(params_scope="tools")) == []
    assert kept(body(), body(), betas=("context-management-2025-06-27",)) == STABLE


def test_an_image_anywhere_loses_the_messages():
    image = body()
    image["messages"].append({"role": "user", "content": [{"type": "image", "source": {}}]})
    assert build(image).head.parent.cum != build(body()).head.cum


def test_key_order_of_tool_input():
    """U6."""
    swapped = body()
    swapped["messages"][1]["content"][0]["input"] = {"p": 2, "q": 1}
    assert kept(body(), swapped) == STABLE
    assert kept(body(), swapped, Hashing(key_order="ignored")) == ALL


def test_a_string_is_one_text_block():
    """U4."""
    string = body()
    string["messages"][0]["content"] = "hello"
    assert kept(body(), string) == ALL
    assert kept(body(), string, Hashing(string_form="distinct")) == STABLE


def test_two_messages_are_not_one():
    one, two = body(), body()
    one["messages"] = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    ]
    two["messages"] = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert kept(one, two) == STABLE


def test_deferred_tools_are_not_in_the_prefix():
    deferred = body()
    deferred["tools"].insert(0, {"name": "c", "input_schema": SCHEMA, "defer_loading": True})
    assert kept(body(), deferred) == ALL


TOOLSET = {"type": "mcp_toolset", "mcp_server_name": "calendar"}
LATER = {"default_config": {"defer_loading": True}}


@pytest.mark.parametrize("entry", [TOOLSET, {"type": "computer_toolset_20260801", "name": "computer"}])
def test_a_marked_toolset_is_one_breakpoint_after_its_tools(entry):
    """R6: the entry stands for its tools; their token count is not in the request."""
    json = body(tools=[{**entry, "cache_control": MARK}, {"name": "a", "input_schema": SCHEMA}])
    request = build(json)
    assert [(node.index, ttl) for node, ttl in request.markers] == [(1, 300)]
    assert request.tools_end.index == 2
    assert errors(json) == []
    assert kept(json, body(tools=[entry, {"name": "a", "input_schema": SCHEMA}])) == ALL
    changed = {**entry, "configs": {"erase": {"enabled": False}}}
    assert kept(json, body(tools=[changed, {"name": "a", "input_schema": SCHEMA}])) == []


class Exact:
    def count(self, text, model):
        return 7, "fixture"


def test_the_tokens_of_a_toolset_are_an_estimate():
    entries = request_json.parse(
        body(tools=[TOOLSET, {"name": "a", "input_schema": SCHEMA}]), Exact()
    ).blocks[:2]
    assert [block.source for block in entries] == ["estimate", "fixture"]


@pytest.mark.parametrize(
    ("extra", "outside"),
    [(LATER, True), ({**LATER, "configs": {"add": {"defer_loading": False}}}, False), ({}, False)],
)
def test_a_toolset_that_is_deferred_as_a_whole_is_not_in_the_prefix(extra, outside):
    json = body(tools=[*body()["tools"], {**TOOLSET, **extra}])
    assert kept(body(), json) == (ALL if outside else [])


def test_a_marker_inside_a_toolset_or_on_a_deferred_tool_is_an_error():
    json = body(tools=[{**TOOLSET, "configs": {"add": {"cache_control": MARK}}}])
    assert errors(json) == ["tools.0.configs.add.cache_control: Extra inputs are not permitted"]
    deferred = {"name": "c", "input_schema": SCHEMA, "defer_loading": True, "cache_control": MARK}
    json = body(tools=[*body()["tools"], deferred])
    assert errors(json) == [
        "Tool 'c' cannot have both defer_loading=true and cache_control set. "
        "Tools with defer_loading cannot use prompt caching."
    ]


@pytest.mark.parametrize(
    ("change", "which"),
    [
        ({}, "auto"),
        ({"tool_choice": {"type": "none"}}, "auto"),
        ({"tool_choice": {"type": "tool", "name": "a"}}, "any"),
        ({"tool_choice": {"type": "any"}}, "any"),
        ({"tools": []}, ""),
    ],
)
def test_the_tool_prompt_that_the_api_adds(change, which):
    """R21."""
    assert request_json.parse(body(**change), CharCounter()).tool_prompt == which


def test_the_apis_own_prompt_is_in_the_prefix_or_never_cached():
    """R21: whether it counts towards the prefix is not documented, so it is an assumption."""

    def sizes(hashing, hidden):
        sent = request_json.parse(body(), CharCounter())
        found = request_json.build_request(sent, id="r", t=0.0, model="m", hashing=hashing, hidden=hidden)
        return found.tools_end.tokens, found.head.tokens, found.tail, found.head.index

    tools, head, _, count = sizes(Hashing(), 0)
    assert sizes(Hashing(), 497) == (tools + 497, head + 497, 0, count)
    assert sizes(Hashing(tool_prompt="uncached"), 497) == (tools, head, 497, count)


def test_automatic_caching_marks_the_last_eligible_block():
    """R4, R5: thinking and empty text cannot be marked; a marked last block makes it a no-op."""
    json = body(cache_control=HOUR)
    json["messages"].append({"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}]})
    request = build(json)
    assert [(node.index, ttl) for node, ttl in request.markers] == [(6, 3600)]
    assert request.head.kind == THINKING
    json = body(cache_control=MARK)
    json["messages"][2]["content"][0]["cache_control"] = MARK
    assert [(node.index, ttl) for node, ttl in build(json).markers] == [(6, 300)]
    assert errors(json) == []


def test_a_marker_on_the_last_part_of_a_tool_result_marks_the_result():
    json = body()
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": MARK}]
    json["messages"][2]["content"][0]["content"] = parts
    assert [node.index for node, _ in build(json).markers] == [6]
    assert errors(json) == []
    parts[0]["cache_control"] = MARK
    assert "only the last block" in errors(json)[0]


def test_markers_do_not_change_the_prefix():
    marked = body(cache_control=MARK)
    marked["tools"][1]["cache_control"] = MARK
    marked["system"][0]["cache_control"] = MARK
    assert kept(body(), marked) == ALL


def test_old_models_drop_thinking_at_a_new_turn():
    json = body(model="claude-sonnet-4-5")
    json["messages"][1]["content"].insert(0, {"type": "thinking", "thinking": "hm", "signature": "s"})
    assert build(json).head.index == 7
    json["messages"].append({"role": "user", "content": "next"})
    assert build(json).head.index == 7
    json["model"] = "claude-sonnet-4-6"
    assert build(json).head.index == 8


def marked(*places, top=None):
    """A body of 6 user texts whose markers are {index: control}."""
    texts = [{"type": "text", "text": f"part {number}"} for number in range(6)]
    for number, control in places:
        texts[number]["cache_control"] = control
    json = body(messages=[{"role": "user", "content": texts}])
    return {**json, "cache_control": top} if top else json


@pytest.mark.parametrize(
    ("json", "message"),
    [
        (
            marked(*((k, MARK) for k in range(5))),
            "A maximum of 4 blocks with cache_control may be provided. Found 5.",
        ),
        (
            marked(*((k, MARK) for k in range(4)), top=MARK),
            "automatic caching needs one of the 4 breakpoints",
        ),
        (
            marked((0, MARK), (1, HOUR)),
            "messages.0.content.1.cache_control.ttl: a ttl='1h' cache_control block",
        ),
        (
            marked((0, MARK), top=HOUR),
            "cache_control.ttl: a ttl='1h' cache_control block must not come after",
        ),
        (marked((5, MARK), top=HOUR), "conflicts with the ttl on messages.0.content.5"),
        (
            marked((0, {"type": "ephemeral", "ttl": "2h"})),
            "messages.0.content.0.cache_control.ttl: Input should be",
        ),
        (marked((0, {"type": "persistent"})), "messages.0.content.0.cache_control.type: Input should be"),
        (body(max_tokens=0, stream=True), "max_tokens: 0 cannot be combined with stream"),
        (body(max_tokens=0, tool_choice={"type": "any"}), "tool_choice"),
        (body(max_tokens=0, thinking={"type": "enabled", "budget_tokens": 1}), "thinking"),
        (body(max_tokens=0, output_config={"format": {"type": "json_schema"}}), "output_config.format"),
    ],
)
def test_documented_errors(json, message):
    found = errors(json)
    assert len(found) == 1
    assert message in found[0]


def test_order_error_across_tiers_is_worded_as_reported():
    json = body(system=[{"type": "text", "text": "x", "cache_control": HOUR}])
    json["tools"][1]["cache_control"] = MARK
    assert errors(json) == [
        "system.0.cache_control.ttl: a ttl='1h' cache_control block must not come after a ttl='5m' "
        "cache_control block. Note that blocks are processed in the following order: "
        "`tools`, `system`, `messages`."
    ]


def test_blocks_that_cannot_be_marked():
    json = body(messages=[{"role": "user", "content": [{"type": "text", "text": "", "cache_control": MARK}]}])
    assert errors(json) == ["messages.0.content.0.text: cache_control cannot be set for empty text blocks"]
    thinking = {"type": "thinking", "thinking": "x", "cache_control": MARK}
    json = body(messages=[{"role": "assistant", "content": [thinking]}])
    assert errors(json) == ["messages.0.content.0.thinking.cache_control: Extra inputs are not permitted"]


def test_prewarming_is_legal_on_its_own_and_not_in_batches():
    assert errors(body(max_tokens=0)) == []
    assert "batches" in errors(body(max_tokens=0), batch=True)[0]


def test_four_explicit_markers_in_order_are_legal():
    assert errors(marked((0, HOUR), (1, HOUR), (2, MARK), (3, MARK))) == []
    assert errors(marked((0, HOUR), (1, HOUR), (2, MARK), (5, MARK), top=MARK)) == []


def test_images_count_by_number_not_by_bytes():
    source = {"type": "base64", "media_type": "image/png", "data": "A" * 100_000}
    picture = {"type": "image", "source": source}
    result = {
        "type": "tool_result",
        "tool_use_id": "t",
        "content": [picture, {"type": "text", "text": "two"}],
    }
    for item in (picture, result):
        (block,) = request_json.parse(
            {"messages": [{"role": "user", "content": [item]}]}, CharCounter()
        ).blocks
        assert 4784 < block.tokens < 4784 + 100


def test_new_markers_replace_existing_ones():
    json = marked((0, MARK), (5, HOUR), top=MARK)
    sent = request_json.parse(request_json.with_markers(json, {2: "1h", 3: "5m"}), CharCounter())
    assert (sent.markers, sent.automatic) == (((2, 3600), (3, 300)), None)
    assert json["cache_control"] == MARK
    plain = request_json.with_markers(
        body(messages=[{"role": "user", "content": "hi"}], system="be brief"), {3: "5m"}
    )
    assert plain["messages"][0]["content"][0]["cache_control"] == {"type": "ephemeral", "ttl": "5m"}
    assert kept(body(), request_json.with_markers(body(), {})) == ALL


def test_a_parameter_named_cache_control_is_content():
    tool = {
        "name": "c",
        "input_schema": {"type": "object", "properties": {"cache_control": {"type": "string"}}},
    }
    other = {"name": "c", "input_schema": {"type": "object", "properties": {}}}
    assert kept(body(tools=[tool]), body(tools=[other])) == []
