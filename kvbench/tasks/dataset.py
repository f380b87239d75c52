"""Base of the families whose samples are the rows of a published data set."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from kvbench.config.errors import UserError
from kvbench.tasks.base import Family
from kvbench.tasks.prompt import Sample
from kvbench.tasks.rows import Hub, Kind, Rows, download, read


@dataclass(frozen=True, kw_only=True)
class DataSet(Family):
    """Rows of a published data set, in their order.

    Attributes:
        data: a .jsonl, .json, .parquet or .csv file; a folder that `datasets` saved; or a folder that holds one of
            these under the name of the data set.
        download: whether rows may come from the Hugging Face hub where `data` is not given.
        samples: number of samples, the first ones; None for all.
        max_new_tokens: longest answer; None for the data set's own.
    """

    seeded: ClassVar[bool] = False
    from_file: ClassVar[bool] = True
    paths: ClassVar[tuple[str, ...]] = ("data", "download")
    #: the data set in messages, as `LongBench, zai-org/LongBench on the hub`
    home: ClassVar[str]
    #: fields that a row must have
    fields: ClassVar[Mapping[str, Kind]]

    length: tuple[int, ...] = (0,)
    samples: int | None = None
    max_new_tokens: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    data: str | None = None
    download: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length != (0,):
            raise UserError(f"length: {list(self.length)} is not allowed, rows are as long as they are")
        if self.data is None and not self.download:
            name = f"{self.data_name}.jsonl" if self.data_name else "FILE"
            raise UserError(
                f"data: give the rows of {self.home} ({self.licence}): data={name} or a folder of such files, rows of "
                f"{{{', '.join(self.fields)}}}; or download=true"
            )

    @property
    def data_name(self) -> str:
        """Name of the data set within a folder of several; "" for none."""
        return ""

    @property
    @abstractmethod
    def hub(self) -> Hub:
        """Where the rows are on the Hugging Face hub."""

    def defect(self, row: Mapping[str, Any]) -> str | None:
        """What is wrong with a row that has the fields, or None."""
        return None

    @abstractmethod
    def examples(self, count: int, words: int) -> Sequence[Mapping[str, Any]]:
        """Made-up rows in the data set's form, for trying and for tests.

        Args:
            count: number of rows.
            words: length of each context.
        """

    @cached_property
    def rows(self) -> Rows:
        """The checked rows."""
        rows = read(self.data, self.data_name) if self.data is not None else download(self.hub)
        return rows.checked(self.fields, self.defect)

    @property
    def data_digest(self) -> str:
        return self.rows.digest

    @property
    def data_source(self) -> str:
        return self.rows.source

    def available(self) -> int:
        return len(self.rows.rows)

    def score(self, output: str, sample: Sample) -> float:
        score = self.scores(output, sample)[self.metric]
        assert not isinstance(score, list)
        return score
