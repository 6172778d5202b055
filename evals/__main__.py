"""`python -m evals`: measure recall and cost of a memory over labelled conversations."""

from __future__ import annotations

import argparse
import asyncio
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec
import structlog

from evals.quality import cost, recall
from evals.quality.datasets import committed, load
from evals.reporting import report
from evals.reporting.progress import progress
from evals.speed import bench, scale
from memory import MemoryConfig
from memory.errors import ConfigError, InvalidInput, StrataError

DEFAULT_BUDGETS = (512, 1024, 2048)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; `--help` tells the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def budgets(text: str) -> list[int]:
    """`512,1024` as numbers, each once."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of token numbers above 0 (write --budgets 512,1024,2048)"
        )
    return list(dict.fromkeys(found))


def at_least_one(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0 (write --turns 100)")
    return int(text)


def load_config(path: Path | None) -> MemoryConfig:
    """The memory's part of the configuration: `path`, else what the service would read."""
    from service.config.loading import load_settings

    return load_settings(path).memory()


def parser() -> argparse.ArgumentParser:
    main_parser = _Parser(prog="python -m evals", description=__doc__)
    commands = main_parser.add_subparsers(required=True, metavar="COMMAND")

    command = _command(commands, "recall", _recall, "how much labelled evidence recall finds")
    _add_data(command)
    command.add_argument(
        "--budgets",
        type=budgets,
        default=list(DEFAULT_BUDGETS),
        metavar="N,N…",
        help="recall budgets in tokens (default: 512,1024,2048)",
    )

    command = _command(commands, "cost", _cost, "what a turn's prompt costs, turn by turn")
    _add_data(command)
    command.add_argument(
        "--turns", type=at_least_one, metavar="N", help="turns of each conversation (default: all)"
    )

    command = _command(commands, "bench", _bench, "latency, memory and start-up of the service")
    command.add_argument(
        "--rounds",
        type=at_least_one,
        default=40,
        metavar="N",
        help="short and long sessions compared (default: 40)",
    )
    command.add_argument("--store", metavar="URL", help="a MongoDB server to measure too")
    command.add_argument("--index", metavar="URL", help="a Qdrant server to measure too")
    command.add_argument(
        "--turns",
        type=int,
        default=1_000_000,
        metavar="N",
        help="other users' turns in the filled stores (default: 1,000,000); servers keep them",
    )
    command.add_argument(
        "--points", type=int, default=100_000, metavar="N", help="in the index (default: 100,000)"
    )
    return main_parser


def _command(
    commands: argparse._SubParsersAction[_Parser],
    name: str,
    run: Callable[[argparse.Namespace], str],
    text: str,
) -> argparse.ArgumentParser:
    """A subcommand with the options that all share; `run` writes its reports and returns what
    is to be printed."""
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument(
        "--out",
        type=Path,
        default=Path("out") / name,
        metavar="DIR",
        help=f"where the reports go (default: out/{name})",
    )
    command.set_defaults(run=run)
    return command


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, metavar="FILE", help="strata.toml")
    command.add_argument(
        "--data",
        type=Path,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="labelled conversations in the uniform format (default: the sets in evals/data)",
    )


def _recall(options: argparse.Namespace) -> str:
    config = load_config(options.config)
    parts, lines = [], []
    for data in load(options.data or committed()):
        with progress(f"recall {data.name}") as tell:
            rows, part = asyncio.run(
                recall.run(data, budgets=options.budgets, config=config, tell=tell)
            )
        parts.append(part)
        lines += [recall.retrieved_line(row) for row in rows]
    measured = recall.effective(config, options.budgets)
    report.write_lines(options.out / "retrieved.jsonl", lines)
    return report.write(
        options.out, report.report(options.command, measured, parts), report.recall_tables
    )


def _cost(options: argparse.Namespace) -> str:
    config = load_config(options.config)
    parts = []
    for data in load(options.data or committed()):
        with progress(f"cost {data.name}") as tell:
            parts.append(asyncio.run(cost.run(data, config=config, turns=options.turns, tell=tell)))
    measured = cost.effective(config)
    return report.write(
        options.out, report.report(options.command, measured, parts), report.cost_tables
    )


def _bench(options: argparse.Namespace) -> str:
    def tell(line: str) -> None:
        print(line, file=sys.stderr)

    figures = asyncio.run(bench.run(rounds=options.rounds, tell=tell))
    scaled = asyncio.run(
        scale.run(
            rounds=options.rounds * 2,
            turns=options.turns,
            points=options.points,
            store=options.store,
            index=options.index,
            tell=tell,
        )
    )
    text = f"{bench.table(figures)}\n{scale.table(scaled)}"
    lines = [msgspec.json.encode(figure) for figure in (*figures, *scaled)]
    report.write_lines(options.out / "bench.jsonl", lines)
    (options.out / "bench.md").write_text(text, "utf-8")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    options.command = shlex.join(["python", "-m", "evals", *arguments])
    # Results stand on stdout alone; what the library logs there by default would mix with them.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        report.make_folder(options.out)
        print(options.run(options), end="")
    except (StrataError, OSError) as error:
        print(f"python -m evals: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError | InvalidInput) else 1
    except KeyboardInterrupt:
        return 130
    print(f"written to {options.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
