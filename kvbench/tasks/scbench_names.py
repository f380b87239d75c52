"""The tasks of SCBench."""

NAMES: dict[str, str] = {
    "kv": "A long JSON object: values of several keys, one per turn.",
    "prefix_suffix": "A long dictionary: keys that begin and end with given texts.",
    "vt": "Assignments of variables: all that have a value.",
    "repoqa": "Code of a repository: functions by description.",
    "qa_eng": "A novel: questions.",
    "qa_chn": "A Chinese book: questions.",
    "choice_eng": "A novel: questions with four options.",
    "many_shot": "Hundreds of examples: the answer to another one.",
    "mf": "A long list of numbers: the largest, the median, and so on.",
    "summary": "Several articles: a summary of each.",
    "summary_with_needles": "Several articles with numbers hidden in them: summaries and numbers.",
    "repoqa_and_kv": "Code with keys hidden in it: functions and values.",
}
