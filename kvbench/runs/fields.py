"""Every field of a stored row and every column of summary.csv: name, type, unit, meaning.

The one place where they are declared: rows are checked against it where they are built, summary.csv takes its columns
from it, and `make docs` writes docs/columns.md from it. A new field is one line here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from kvbench.config.numbers import NotFiniteError, all_finite
from kvbench.runs.schema import Field, problems

R = TypeVar("R", bound=Mapping[str, Any])

#: what a row is about, by its kind
KINDS = {
    "accuracy": "one method at one budget on one prompt, scored (`timing` is `amortised`)",
    "efficiency": "one method at one budget, alone on one prompt at one batch size (`timing` is `isolated`)",
    "failure": "an attempt at an accuracy or efficiency row that failed, in `failures-<worker>.jsonl`",
    "setup": "facts of one of several vLLM servers",
    "answer": "one greedy answer of a vLLM server (vllm_fp8, vllm_vs_compression)",
    "load": "one load on a vLLM server (vllm_load, vllm_fp8)",
    "rag": "one layout of an agentic RAG workload on a vLLM server (vllm_rag)",
    "server": "facts of the vLLM server of vllm_prefix_caching",
    "grid": "requests that share a prefix (vllm_prefix_caching)",
    "grain": "as `grid`, one request after another, for further lengths of the prefix",
}
_BOTH = ("accuracy", "efficiency")
_CELLS = (*_BOTH, "failure")
_SERVERS = ("setup", "server")
_CAMPAIGN = ("setup", "answer", "load", "rag")
_PREFIX = ("grid", "grain")
_COUNTED = ("load", "rag")


def _of(kinds: Iterable[str], *fields: Field) -> tuple[Field, ...]:
    return tuple(replace(field, kinds=tuple(kinds)) for field in fields)


# fmt: off
DECLARED = (
    *_of(
        KINDS,
        Field("schema", int, "", "version of the row's form; rows without it are version 1"),
        Field("cell", str, "", "id: hash of everything that can change the row's numbers"),
        Field("time", str, "", "when the row was made, UTC, ISO 8601"),
    ),
    *_of(
        _CELLS,
        Field("model", str, "", "name of the model"),
        Field("model_fingerprint", str, "", "hash of the model's configuration and weights"),
        Field("task", str, "", "label of the task in the run"),
        Field("task_family", str, "", "family that makes its prompts and scores"),
        Field("task_version", int, "", "version of family and scorer, raised when prompts or scores change"),
        Field("wording", str | None, "", "whose sentences the prompts use; null for a user's own prompts"),
        Field("length", int, "tokens", "requested prompt length; 0 for prompts as they are"),
        Field("sample", int, "", "number of the sample within task, length and seed"),
        Field("sample_hash", str, "", "hash of the prompt's tokens, and of its number among equal ones"),
        Field("prompt_tokens", int, "tokens", "length of the prompt"),
        Field("protocol", str, "", "query_aware: the question is compressed too; query_agnostic: it is not"),
        Field("max_new_tokens", int, "tokens", "longest answer"),
        Field("seed", int, "", "seed of the sample"),
        Field("metric", str, "", "name of the score"),
        Field("aggregate", dict[str, str], "", "how metrics of `scores` are summed up, where that is no mean"),
        Field("data", str, "", "the task's rows: name of the file, or name and commit of a data set of the hub"),
        Field("sampling", dict[str, float | str], "", "temperature, top_p and key of drawn answers; absent for greedy"),
        Field("device", str, "", "device, with the threads of a CPU"),
        Field("dtype", str, "", "the model's dtype"),
        Field("attention", str, "", "attention backend of the prefill"),
        Field("kernels", str, "", "forms of the operations: compiled, triton, portable, and exceptions"),
        Field("eos_ids", list[int] | None, "", "tokens that end an answer, by config, generation config or tokenizer"),
        Field("operations", dict[str, list[str | int]], "", "those called: `[form, version]` by name"),
        Field("versions", dict[str, str], "", "versions of Python and packages, by name"),
        Field("commit", str | None, "", "commit of the source tree, `+` after it for a changed tree"),
        Field("method", str, "", "label of the method in the run"),
        Field("eviction", str, "", "what is kept after prefill; `none` keeps everything"),
        Field("selection", str, "", "what a decode step reads; `all` reads everything"),
        Field("format", str, "", "how K and V are stored; `native` is the model's dtype"),
        Field("params", dict[str, object], "", "parameters of the method, those of its parts by role"),
        Field("budget_requested", str, "", "`512` tokens or `0.1x` of the prompt; empty for none"),
        Field("timing", str, "", "`amortised`: shared by the cells of a prompt; `isolated`: the method's own"),
    ),
    *_of(
        _BOTH,
        Field("prefill_s", float, "s", "prefill of the prompt, shared by its cells; of a kept one, when it was made"),
        Field("budget_covers_prompt", bool, "", "whether the budget covers prompt and answer"),
        Field("notes", list[str], "", "remarks of the method on how it took its budget"),
        Field("kept_tokens", float, "tokens", "kept prompt tokens, mean over layers and KV heads"),
        Field("bytes_resident", int, "bytes", "KV cache after compression, with auxiliary data"),
        Field("bytes_resident_bf16", int, "bytes", "`bytes_resident` with a model in bf16"),
        Field("bytes_read_per_step", float | None, "bytes", "read per decode step, mean over steps"),
        Field("bytes_read_per_step_bf16", float | None, "bytes", "`bytes_read_per_step` with a model in bf16"),
        Field("compress_s", float, "s", "compression; accuracy: shared equally by the cells, KVzip's pass in full"),
        Field("decode_ms_per_token", float, "ms", "a decode step; accuracy: shared equally by the cells"),
        Field("peak_bytes", int, "bytes", "peak memory, weights and the prompt's whole cache included"),
        Field("score", float | None, "", "score of the answer, 0 to 1; of a metric that says so a loss, 0 or more"),
        Field("scores", dict[str, float | list[float]], "", "scores by metric, where the task has several"),
        Field("kl_to_dense", float | None, "nats", "KL(dense || method), mean over dense's own continuation"),
        Field("output_ids", list[int] | None, "", "tokens of the answer, the end token included"),
    ),
    *_of(
        ["failure"],
        Field("row", str, "", "kind of the row"),
        Field("failure", str, "", "class: not_finite, out_of_memory, audit, refused, raised, or dense (dense failed)"),
        Field("stage", str, "", "prefill, compress, decode or score; measure in efficiency runs"),
        Field("reason", str, "", "what went wrong, on one line"),
        Field("error", str, "", "class of the exception"),
        Field("traceback", str, "", "traceback of the exception"),
        Field("batch", int | None, "sequences", "sequences decoded together; null in accuracy runs"),
    ),
    *_of(
        ["accuracy", "failure"],
        Field("command", str, "", "command that runs this cell again"),
    ),
    *_of(
        ["accuracy", "answer"],
        Field("meta", dict[str, object], "", "facts of the sample, by name; a task may add its own"),
        Field("meta.depth", float, "%", "depth of the needle in the context"),
        Field("meta.haystack", str, "", "kind of filler text, a file by its hash"),
        Field("meta.conversation", int, "", "number of the conversation of a turn"),
        Field("meta.turn", int, "", "number of the turn, from 0"),
        Field("meta.line", int, "", "line of the user's file"),
        Field("meta.hidden", bool, "", "true where prompt and answer are not shown in reports"),
        Field("meta.document", int, "", "number of the document of a repeat, from 0"),
        Field("meta.repeat", int, "", "number of the repeat, from 0"),
        Field("meta.cut_tokens", int, "tokens", "cut from a context that was too long"),
        Field("meta.answer_cut", bool, "", "true where all places that state an answer were cut with it"),
    ),
    *_of(
        ["accuracy"],
        Field("compressed_tokens", int, "tokens", "prefilled and compressed tokens of the prompt"),
        Field("gold", list[str], "", "the right answers"),
        Field("bytes_resident_end", int, "bytes", "KV cache after decoding"),
        Field("compressed", bool, "", "whether anything was evicted, left unread or stored in fewer bits"),
        Field("held_mean", float | None, "tokens", "held after a decode step, mean over steps, layers and KV heads"),
        Field("held_peak", int | None, "tokens", "most tokens that a KV head held while a decode step ran"),
        Field("held_end", float | None, "tokens", "held after decoding, mean over layers and KV heads"),
        Field("held_bytes_mean", float | None, "bytes", "KV cache with auxiliary data after a decode step, mean"),
        Field("held_bytes_peak", int | None, "bytes", "the largest of these"),
        Field("drops", int | None, "", "decode steps after which tokens were dropped"),
        Field("dropped_tokens", float | None, "tokens", "dropped while decoding, mean over layers and KV heads"),
        Field("first_drop", int | None, "", "number of the first such step, from 1; null without one"),
        Field("after_first_drop", float | None, "", "share of the decode steps that came behind it"),
        Field("kl_tokens", int, "tokens", "tokens that `kl_to_dense` is the mean over"),
        Field("agree_top1", float | None, "", "share of them where the likeliest token is dense's"),
        Field("output", str, "", "text of the answer, up to the text that ends it"),
        Field("output_raw", str, "", "all that was generated, where a text can end the answer"),
        Field("stop", str, "", "why the answer ended: eos, string (a text of the task's), length; forced: known texts"),
    ),
    *_of(
        ["efficiency"],
        Field("batch", int, "sequences", "sequences decoded together"),
        Field("decode_ms_p20", float, "ms", "20th percentile of a decode step"),
        Field("decode_ms_p80", float, "ms", "80th percentile of a decode step"),
        Field("tokens_per_s", float, "tokens/s", "batch over `decode_ms_per_token`"),
        Field("step", str, "", "how steps run: eager, or a recorded CUDA graph"),
    ),
    *_of(
        _CAMPAIGN,
        Field("row", str, "", "kind of the row"),
        Field("setup", str, "", "label of the server"),
        Field("kv_cache_dtype", str, "", "the server's setting of that name"),
        Field("scales", bool, "", "whether the checkpoint holds calibrated scales of the KV cache"),
        Field("model", str, "", "name of the model"),
        Field("device", str, "", "device of the server: cpu, cuda or `not given`"),
        Field("note", str, "", "caveat of the setup's numbers; empty for none"),
        Field("vllm", str | None, "", "version of vLLM"),
        Field("load_average", float, "", "load average of the machine over the minute before"),
    ),
    *_of(
        ["setup"],
        Field("numbers_per_token", int, "", "numbers in K and V per token of context, all layers"),
        Field("cache_bits", float | None, "bits", "per number of the KV cache, from its memory and capacity"),
        Field("refused", str, "", "why the server did not start"),
    ),
    *_of(
        ["server"],
        Field("row", str, "", "kind of the row"),
        Field("model", str, "", "name of the model, as the server names it"),
        Field("device", str, "", "device of the server: cpu, cuda or `not given`"),
        Field("vllm", str | None, "", "version of vLLM"),
    ),
    *_of(
        _SERVERS,
        Field("package", str, "", "package that vLLM was installed from"),
        Field("versions", dict[str, str], "", "versions of vLLM and what it computes with, by name"),
        Field("hardware", str, "", "name of the processor or GPU"),
        Field("flags", str, "", "flags of the server, without model, name and address"),
        Field("variables", dict[str, str], "", "environment variables of the server"),
        Field("start_s", float, "s", "from the start to the first answer of the health check"),
        Field("backend", str | None, "", "attention backend"),
        Field("capacity", dict | None, "", "size of the KV cache; null where the server does not report it"),
        Field("capacity.tokens", int, "tokens", "tokens of context that fit"),
        Field("capacity.block_size", int, "tokens", "tokens per block, the grain of prefix caching"),
        Field("capacity.blocks", int, "", "number of blocks"),
        Field("capacity.dtype", str, "", "the server's name for the cache's dtype"),
        Field("capacity.memory_bytes", int | None, "bytes", "memory of the cache, where it was set"),
        Field("capacity.prefix_caching", bool, "", "whether prefix caching is on"),
        Field("capacity.engines", int, "", "data-parallel engines"),
    ),
    *_of(
        ["answer"],
        Field("task", str, "", "label of the task"),
        Field("task_family", str, "", "family that makes its prompts and scores"),
        Field("length", int, "tokens", "requested prompt length; 0 for prompts as they are"),
        Field("sample", int, "", "number of the sample within task, length and seed"),
        Field("seed", int, "", "seed of the sample"),
        Field("sample_hash", str, "", "hash of the prompt's tokens, and of its number among equal ones"),
        Field("prompt_tokens", int, "tokens", "length of the prompt"),
        Field("metric", str, "", "name of the score"),
        Field("score", float, "", "score of the answer, 0 to 1"),
        Field("output", str, "", "text of the answer"),
        Field("output_ids", list[int] | None, "", "tokens of the answer; null where the server does not return them"),
        Field("stop", str, "", "finish reason of the server: stop or length"),
        Field("cached_tokens", int | None, "tokens", "prompt tokens found in the prefix cache"),
        Field("output_tokens", int, "tokens", "length of the answer"),
        Field("ttft_s", float, "s", "time to the first token"),
        Field("per_token_s", float | None, "s", "per token after the first"),
        Field("warm_score", float, "", "`score` of the same request once more"),
        Field("warm_ttft_s", float, "s", "`ttft_s` of the same request once more"),
        Field("warm_per_token_s", float | None, "s", "`per_token_s` of the same request once more"),
        Field("warm_cached_tokens", int | None, "tokens", "`cached_tokens` of the same request once more"),
        Field("warm_same", bool, "", "whether both answers have the same text"),
        Field("same_tokens", int, "tokens", "length of the common prefix with the reference's answer"),
        Field("reference_tokens", int, "tokens", "length of the reference's answer"),
        Field("prompt_positions", int, "", "compared positions of the prompt"),
        Field("prompt_kl", float | None, "nats", "KL(reference || server), a lower bound from top-k logprobs"),
        Field("prompt_covered", float | None, "", "the reference's probability on tokens that both list, mean"),
        Field("prompt_top1", float | None, "", "share of positions with the same likeliest token"),
        Field("answer_positions", int, "", "compared positions of the reference's answer"),
        Field("answer_kl", float | None, "nats", "KL(reference || server), a lower bound from top-k logprobs"),
        Field("answer_covered", float | None, "", "the reference's probability on tokens that both list, mean"),
        Field("answer_top1", float | None, "", "share of positions with the same likeliest token"),
    ),
    *_of(
        ["load"],
        Field("requests", int, "", "turns of the load"),
        Field("failed", int, "", "turns without a whole answer"),
        Field("seconds", float, "s", "from the first turn due to the last token"),
        Field("prompt_tokens", int, "tokens", "prompts of the whole answers, sum"),
        Field("cached_tokens", int | None, "tokens", "of them found in the prefix cache"),
        Field("output_tokens", int, "tokens", "generated, sum"),
        Field("requests_per_s", float, "1/s", "whole answers per second"),
        Field("ttft_limit_s", float, "s", "limit of the first token for goodput"),
        Field("good", int, "", "answers within the limit"),
        Field("good_share", float | None, "", "their share of all turns"),
        Field("goodput_per_s", float, "1/s", "answers within the limit per second"),
        Field("waited_s", float, "s", "longest wait of a turn for a free place"),
        Field("output_tokens_per_s", float, "tokens/s", "generated tokens per second"),
        *(
            Field(f"{name}_p{percent}_s", float | None, "s", f"{meaning}, {percent}th percentile; null for few answers")
            for name, meaning in {
                "ttft": "first token, from when the turn was due",
                "per_token": "per token after the first",
                "latency": "whole answer, from when the turn was due",
            }.items()
            for percent in (50, 90, 99)
        ),
        Field("errors", list[str], "", "distinct errors of the failed turns"),
        Field("rate", float | None, "1/s", "sessions per second; null for all at once or as recorded"),
        Field("sessions", int, "", "number of sessions"),
        Field("most", int, "", "requests under way at once, at most"),
        Field("source", str, "", "where the sessions come from"),
        Field("recorded", bool, "", "whether they were recorded"),
    ),
    *_of(
        _COUNTED,
        Field("shared_prefix", int | None, "tokens", "longest prefix that two of the prompts share; null if not known"),
        Field("block", int | None, "tokens", "block size of the server; null where it does not report it"),
        Field("server_prefix_queries", float | None, "tokens", "looked up in the prefix cache, by the server"),
        Field("server_prefix_hits", float | None, "tokens", "found in the prefix cache, by the server"),
        Field("server_prompt_tokens", float | None, "tokens", "prompts, by the server"),
        Field("server_output_tokens", float | None, "tokens", "generated, by the server"),
        Field("server_preemptions", float | None, "", "preempted requests, by the server"),
        *(
            Field(f"server_{name}_{what}_s", float | None, "s", f"{meaning}, {what}, from the server's histogram")
            for name, meaning in {"ttft": "first token", "per_token": "per token after the first"}.items()
            for what in ("mean", "p50", "p90")
        ),
        Field("server_restarted", bool, "", "whether a counter fell, so that the server's numbers are unusable"),
    ),
    *_of(
        ["rag"],
        Field("layout", str, "", "layout of the prompts: article_graph, corrected, append_only"),
        Field("grades", str, "", "how retrieved documents are graded: by the model, or always yes"),
        Field("steps", list[dict[str, object]], "", "requests: node, tokens, cached tokens, seconds"),
        Field("turns", list[dict[str, object]], "", "questions: answer, error"),
    ),
    *_of(
        _PREFIX,
        Field("row", str, "", "kind of the row"),
        Field("kind", str, "", "as `row`"),
        Field("prefix", int, "tokens", "prefix that the requests share"),
        Field("suffix", int, "tokens", "of each request alone"),
        Field("concurrency", int, "", "requests under way at once"),
        Field("gap", float, "s", "between two requests that become due"),
        Field("way", str, "", "cache salts: own for each request, shared, or warm (shared and filled before)"),
        Field("requests", int, "", "number of requests"),
        Field("output", int, "tokens", "length of each answer"),
        Field("seed", int, "", "seed of the prompts"),
        Field("block", int, "tokens", "block size of the server"),
        Field("predicted", int, "tokens", "expected hits of a request whose prefix is cached"),
        Field("prompt_tokens", int, "tokens", "length of a prompt"),
        Field("cached", list[int | None], "tokens", "found in the prefix cache, per request"),
        Field("hits", float | None, "tokens", "found in the prefix cache, by the server"),
        Field("queries", float | None, "tokens", "looked up in the prefix cache, by the server"),
        Field("preemptions", float | None, "", "preempted requests, by the server"),
        Field("counters_reset", bool, "", "whether a counter fell, so that the server's numbers are unusable"),
        Field("ttft_s", list[float], "s", "first token from when a request was sent, per request"),
        Field("ttft_due_s", list[float], "s", "first token from when a request was due, per request"),
        Field("per_token_s", list[float | None], "s", "per token after the first, per request"),
        Field("answers", list[list[int] | None], "", "tokens of the answers"),
        Field("load_average", float, "", "load average of the machine over the minute before"),
    ),
)
# fmt: on

#: the columns of summary.csv, in their order
# fmt: off
COLUMNS = (
    Field("run", str, "", "name of the run"),
    Field("model", str, "", "name of the model"),
    Field("task", str, "", "label of the task in the run"),
    Field("task_version", int, "", "version of the task's family"),
    Field("length", int, "tokens", "requested prompt length; 0 for prompts as they are"),
    Field("protocol", str, "", "query_aware or query_agnostic"),
    Field("method", str, "", "label of the method in the run"),
    Field("eviction", str, "", "what is kept after prefill"),
    Field("selection", str, "", "what a decode step reads"),
    Field("format", str, "", "how K and V are stored"),
    Field("params", str, "", "parameters of the method, as JSON"),
    Field("budget_requested", str, "", "`512` tokens or `0.1x` of the prompt; empty for none"),
    Field("budget_covers_prompt", bool, "", "whether the budget covers prompt and answer in all cells"),
    Field("max_new_tokens", int, "tokens", "longest answer"),
    Field("seed", int | str, "", "seed of the samples, or `all`: several seeds, averaged by sample"),
    Field("metric", str, "", "name of the score"),
    Field("kept_tokens", float, "tokens", "kept prompt tokens per layer and KV head", over="mean"),
    Field("bytes_resident", float, "bytes", "KV cache after compression, with auxiliary data", over="mean"),
    Field("bytes_read_per_step", float, "bytes", "read per decode step", over="mean"),
    Field("score", float, "", "mean score of the samples"),
    Field("ci_low", float, "", "lower end of its 95 % interval"),
    Field("ci_high", float, "", "upper end of its 95 % interval"),
    Field("n", int, "", "scored samples; the turns of a conversation are one"),
    Field("delta_vs_dense", float, "", "mean of score minus dense's on the same sample"),
    Field("delta_ci_low", float, "", "lower end of its 95 % interval"),
    Field("delta_ci_high", float, "", "upper end of its 95 % interval"),
    Field("p_value", float, "", "paired test against dense"),
    Field("kl_to_dense", float, "nats", "mean of the samples' KL(dense || method)"),
    Field("prefill_s", float, "s", "prefill of a prompt", over="median"),
    Field("compress_s", float, "s", "compression", over="median"),
    Field("decode_ms_per_token", float, "ms", "a decode step", over="median"),
    Field("timing", str, "", "`amortised`: shared by the cells of a prompt; `isolated`: the method's own"),
    Field("device", str, "", "devices, joined by +"),
    Field("dtype", str, "", "the model's dtype"),
    Field("label", str, "", "method, with the parameters that tell it from others of its name"),
    Field("task_label", str, "", "task, with the settings that tell it from others of its name"),
    Field("is_dense", bool, "", "whether the row is dense"),
    Field("wording", str, "", "whose sentences the prompts use; `-` for a user's own prompts"),
    Field("attention", str, "", "attention backend of the prefill"),
    Field("kernels", str, "", "forms of the operations"),
    Field("model_fingerprint", str, "", "hash of the model's configuration and weights"),
    Field("batch", float, "sequences", "sequences decoded together; isolated rows only"),
    Field("n_cells", int, "", "cells of the row"),
    Field("n_failed", int, "", "further cells of the row, which failed: the row's means lack them"),
    Field("n_cut", float, "", "cells whose answer was cut by the token limit; empty where that is not known"),
    Field("n_pairs", int, "", "samples that dense has too"),
    Field("n_different", int, "", "of them those with another score than dense's"),
    Field("dense_score", float, "", "dense's mean score on the `n_pairs` samples"),
    Field("floor", bool, "", "whether dense is too poor at the task for a comparison"),
    Field("p_holm", float, "", "`p_value` after Holm's correction over the table"),
    Field("verdict", str, "", "what test and interval say, in words"),
    Field("stats_version", int, "", "version of the intervals and tests"),
    Field("kl_ci_low", float, "nats", "lower end of the 95 % interval of `kl_to_dense`"),
    Field("kl_ci_high", float, "nats", "upper end of the 95 % interval of `kl_to_dense`"),
    Field("agree_top1", float, "", "share of tokens where the likeliest is dense's", over="mean"),
    Field("bytes_resident_share", float, "", "`bytes_resident` over dense's on the same sample", over="mean"),
    Field("bytes_read_share", float, "", "`bytes_read_per_step` over dense's on the same sample", over="mean"),
    Field("bytes_resident_end", float, "bytes", "KV cache after decoding", over="mean"),
    Field("bytes_resident_bf16", float, "bytes", "`bytes_resident` with a model in bf16", over="mean"),
    Field("bytes_read_per_step_bf16", float, "bytes", "`bytes_read_per_step` with a model in bf16", over="mean"),
    Field("n_not_compressed", int, "", "cells that nothing compressed, and that the row's numbers leave out"),
    Field("held_mean", float, "tokens", "held after a decode step, per layer and KV head", over="mean"),
    Field("held_peak", float, "tokens", "most tokens of a KV head while a decode step ran", over="mean"),
    Field("held_end", float, "tokens", "held after decoding, per layer and KV head", over="mean"),
    Field("held_bytes_mean", float, "bytes", "KV cache with auxiliary data after a decode step", over="mean"),
    Field("held_bytes_peak", float, "bytes", "the largest of these", over="mean"),
    Field("drops", float, "", "decode steps after which tokens were dropped", over="mean"),
    Field("first_drop", float, "", "number of the first such step, of cells with one", over="mean"),
    Field("after_first_drop", float, "", "share of the decode steps that came behind it", over="mean"),
    Field("decode_s", float, "s", "decoding an answer", over="median"),
    Field("decode_ms_p20", float, "ms", "20th percentile of a decode step; isolated rows only", over="median"),
    Field("decode_ms_p80", float, "ms", "80th percentile of a decode step; isolated rows only", over="median"),
    Field("tokens_per_s", float, "tokens/s", "generated tokens per second; isolated rows only", over="median"),
    Field("step", str, "", "how steps run: eager, or a recorded CUDA graph; isolated rows only"),
    Field("speedup", float, "", "of a decode step over dense's at the same length and batch; isolated rows only"),
    Field("peak_bytes", float, "bytes", "peak memory", over="median"),
)
# fmt: on

_of_plugins: list[Field] = []


def declare(*fields: Field) -> None:
    """Declares fields of a plugin: keys of `meta` of its tasks, or fields of rows that it stores itself.

    Args:
        fields: with their `kinds`; a kind may be the plugin's own, the `row` of its rows.

    Raises:
        ValueError: a field of that name and kind is declared already, with another type, unit or meaning.

    Example:
        `declare(Field("meta.hops", int, "", "documents between question and answer", ("accuracy",)))`
    """
    for field in fields:
        for other in declared():
            if other.name == field.name and set(other.kinds) & set(field.kinds) and other != field:
                raise ValueError(f"{field.name}: declared already: {other.meaning}")
        if field not in _of_plugins:
            _of_plugins.append(field)


def declared() -> tuple[Field, ...]:
    """All declared fields of rows, those of plugins last."""
    return (*DECLARED, *_of_plugins)


def checked(row: R) -> R:
    """The row, if its fields are declared for its kind and have their types.

    Raises:
        NotFiniteError: a number is NaN or infinite.
        TypeError: names every field for which this is not so.
    """
    if found := problems(row, declared()):
        raise (TypeError if all_finite(row) else NotFiniteError)("; ".join(found))
    return row
