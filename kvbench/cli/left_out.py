"""Methods that people ask for and kvbench does not have, with the reason."""

from collections.abc import Mapping
from types import MappingProxyType

LEFT_OUT: Mapping[str, str] = MappingProxyType(
    {
        "TriAttention, KVzip+, DMS thresholds, Compactor, eviction during chunked prefill": (
            "next: they need calibrated state, norms of the output projection, heads that drop different numbers of "
            "tokens while decoding, or a prefill of their own"
        ),
        "CriticalKV, CriticalAdaKV, LagKV, CurDKV, DuoAttention": "after these",
        "KVzap, FastKVzip, Q-Filter, RestoreKV, DMS (trained)": (
            "they need trained weights that no package ships, some of them as pickles, which kvbench never loads"
        ),
        "SkipKV, Lethe, CAOTE, ThinKV": "no official code to compare with",
        "ThinK": "it sets key channels to zero and frees no memory",
        "SimLayerKV": "a switch between dense and StreamingLLM by layer; the composition of both is here",
        "FINCH": "SnapKV divided by the number of queries that see a key, with keys turned to consecutive places",
        "CaM, KVMerger and other merging": "values are drawn at random or mixed, so that no token set can be checked",
        "LServe, ArkVale, OmniKV, DoubleSparse, InfLLM": (
            "selections that reuse an earlier list, recall from host memory or need files of channels; block_topk and "
            "sparq are their nearest relatives here"
        ),
        "MInference, NSA, DSA": "sparse prefill, or trained with the model; decoding is dense or needs their weights",
        "PQCache, RetrievalAttention": "an index is built for every prompt, a cost that belongs into another benchmark",
        "KVQuant": "keys before RoPE with codebooks that need gradients and calibration",
        "NVFP4, MXFP4": "formats of accelerators that cannot be tried here yet",
        "SCOPE, MorphKV": "variants of a window and heavy hitters while decoding: decode_every with another scorer",
    }
)
