"""Configuration of the Agentic-RAG workload, and the runner that it describes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.counts import ApiCounter
from kvbench.claude.prices import PriceBook
from kvbench.claude.rag.sizes import Sizes
from kvbench.claude.tokens import best_counter
from kvbench.config.errors import UserError

if TYPE_CHECKING:
    from kvbench.claude.rag.workload import Runner

EXTRA = "the Agentic-RAG workload needs the extra: pip install 'kvbench[claude]'"


@dataclass(frozen=True, kw_only=True)
class RagConfig:
    """Workload, assumptions and outputs of a run.

    Attributes:
        run_dir: output folder.
        claude_model: model to run and to price.
        turns: questions per conversation.
        conversations: number of sequential conversations.
        gap: seconds between turns.
        service: seconds per request (virtual time).
        sizes: sizes of a prompt's parts.
        placements: names of placements to compare.
        live: use the real API with the key in ANTHROPIC_API_KEY; costs money.
        counts: file of token counts written by `take_counts`, null for none.
        take_counts: count every block with the API's count_tokens (needs the key, free of charge) and write
            counts.json into the run's folder.
        prices: price file or folder, null for the default.
        switches: assumptions on the undocumented points.
        seed: seed of the questions.
    """

    run_dir: str
    claude_model: str = "claude-sonnet-4-6"
    turns: int = 10
    conversations: int = 1
    gap: float = 60.0
    service: float = 2.0
    # sizes of the article's table
    sizes: Sizes = field(default_factory=lambda: Sizes(system=2_000, tool=1_000, passage=8_000))
    placements: tuple[str, ...] = ()
    live: bool = False
    counts: str | None = None
    take_counts: bool = False
    prices: str | None = None
    switches: Assumptions = field(default_factory=Assumptions)
    seed: int = 0

    def __post_init__(self) -> None:
        """Validates the numbers.

        Raises:
            UserError: a number that is not allowed.
        """
        for name in ("turns", "conversations"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} is not allowed, give 1 or more")
        for name in ("gap", "service"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: {getattr(self, name)} is not allowed, give 0 or more")


def build_runner(cfg: RagConfig, prices: PriceBook) -> Runner:
    """The runner of the workload; its traces go into the run's folder.

    Raises:
        UserError: the extra is not installed, the model is unknown, or a live run has no key.
    """
    try:
        from kvbench.claude.rag.workload import Runner, Workload
    except ModuleNotFoundError as error:
        raise UserError(f"{EXTRA} ({error.name} is missing)") from None
    workload = Workload(
        model=cfg.claude_model,
        turns=cfg.turns,
        conversations=cfg.conversations,
        gap=cfg.gap,
        service=cfg.service,
        sizes=cfg.sizes,
        seed=cfg.seed,
    )
    folder = Path(cfg.run_dir) / "traces"
    folder.mkdir(parents=True, exist_ok=True)
    counter = ApiCounter.from_environment() if cfg.take_counts else best_counter(cfg.counts)
    return Runner(workload, prices, folder, cfg.switches, live=cfg.live, counter=counter)


def save_counts(cfg: RagConfig, runner: Runner) -> None:
    """Writes counts.json into the run's folder if this run counted with the API."""
    if isinstance(runner.counter, ApiCounter):
        runner.counter.save(Path(cfg.run_dir) / "counts.json")
