"""Measure a memory: how good recall is, what a context costs, how fast the service is."""

from __future__ import annotations

import asyncio
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import structlog
import typer

from evals.quality import cost as cost_
from evals.quality import recall as recall_
from evals.quality.datasets import committed, load
from evals.reporting import report
from evals.reporting.progress import progress
from evals.speed import bench as bench_
from evals.speed import cpu as cpu_
from evals.speed import scale
from evals.speed import start as start_
from evals.speed import trace as trace_
from evals.speed.processes import ROOT
from memory import MemoryConfig
from memory.errors import ConfigError, InvalidInput, StrataError

PROGRAM = "python -m evals"
DEFAULT_BUDGETS = "512,1024,2048"
_LISTS = ("--data",)  # options that several values may follow

app = typer.Typer(no_args_is_help=False, add_completion=False, help=__doc__)

Data = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE…",
        help="labelled conversations in the uniform format (default: the sets in evals/data)",
    ),
]
Config = Annotated[Path | None, typer.Option(metavar="FILE", help="strata.toml")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="where the reports go")]
Against = Annotated[
    Path | None, typer.Option(metavar="DIR", help="another checkout with a .venv, to compare with")
]


@app.command()
def recall(
    context: typer.Context,
    data: Data = None,
    config: Config = None,
    budgets: Annotated[
        str, typer.Option(metavar="N,N…", help="recall budgets in tokens")
    ] = DEFAULT_BUDGETS,
    out: Out = Path("out/recall"),
) -> None:
    """How much labelled evidence recall finds."""
    asked = budgets_of(budgets)
    report.make_folder(out)
    loaded = load_config(config)
    parts, lines = [], []
    for one in load(data or committed()):
        with progress(f"recall {one.name}") as tell:
            rows, part = asyncio.run(recall_.run(one, budgets=asked, config=loaded, tell=tell))
        parts.append(part)
        lines += [recall_.retrieved_line(row) for row in rows]
    content = report.report(context.obj, recall_.effective(loaded, asked), parts)
    report.write_lines(out / "retrieved.jsonl", lines)
    show(report.write(out, content, report.recall_tables), out)


@app.command()
def cost(
    context: typer.Context,
    data: Data = None,
    config: Config = None,
    turns: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="of each conversation (default: all)")
    ] = None,
    out: Out = Path("out/cost"),
) -> None:
    """What a turn's prompt costs, turn by turn."""
    report.make_folder(out)
    loaded = load_config(config)
    parts = []
    for one in load(data or committed()):
        with progress(f"cost {one.name}") as tell:
            parts.append(asyncio.run(cost_.run(one, config=loaded, turns=turns, tell=tell)))
    content = report.report(context.obj, cost_.effective(loaded), parts)
    show(report.write(out, content, report.cost_tables), out)


@app.command()
def bench(
    rounds: Annotated[
        int, typer.Option(min=1, metavar="N", help="short and long sessions compared")
    ] = 40,
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="a MongoDB server to measure too")
    ] = None,
    index: Annotated[
        str | None, typer.Option(metavar="URL", help="a Qdrant server to measure too")
    ] = None,
    turns: Annotated[
        int, typer.Option(metavar="N", help="other users' turns in the filled stores")
    ] = 1_000_000,
    points: Annotated[int, typer.Option(metavar="N", help="in the filled index")] = 100_000,
    out: Out = Path("out/bench"),
) -> None:
    """Latency, memory and start-up of the service. Servers keep what they were filled with."""
    report.make_folder(out)
    figures = asyncio.run(bench_.run(rounds=rounds, tell=tell))
    scaled = asyncio.run(
        scale.run(
            rounds=rounds * 2, turns=turns, points=points, store=store, index=index, tell=tell
        )
    )
    text = f"{bench_.table(figures)}\n{scale.table(scaled)}"
    write_figures(out, "bench", [*figures, *scaled], text)


@app.command()
def start(
    sessions: Annotated[int, typer.Option(min=1, metavar="N", help="in the store")] = 300_000,
    out: Out = Path("out/start"),
) -> None:
    """What a start costs over a large embedded store."""
    report.make_folder(out)
    figures = asyncio.run(start_.run(sessions=sessions, tell=tell))
    write_figures(out, "start", [figures], start_.table(figures))


@app.command()
def trace(
    checkout: Annotated[
        Path, typer.Option(metavar="DIR", help="a checkout with a .venv (default: this one)")
    ] = ROOT,
    files: Annotated[bool, typer.Option("--files", help="name every file")] = False,
    calls: Annotated[bool, typer.Option("--calls", help="list the question's calls")] = False,
) -> None:
    """How far one streamed turn walks through the code."""
    found = trace_.run(checkout.resolve())
    if calls:
        for one in (one for one in found if one.carries):
            print(f"{one.task}\t{one.file}\t{one.function}\tfrom {one.caller}")
    print(trace_.table(found, names=files), end="")


@app.command()
def cpu(
    turns: Annotated[int, typer.Option(min=1, metavar="N", help="of a round")] = 100,
    rounds: Annotated[int, typer.Option(min=1, metavar="N")] = 10,
    against: Against = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="the offline model, not a server for it")
    ] = False,
    out: Out = Path("out/cpu"),
) -> None:
    """CPU of a turn, of this checkout or of two in turns."""
    report.make_folder(out)
    figures = asyncio.run(
        cpu_.run(turns=turns, rounds=rounds, against=against, offline=offline, tell=tell)
    )
    write_figures(out, "cpu", [figures], cpu_.table(figures))


def tell(line: str) -> None:
    print(line, file=sys.stderr)


def show(text: str, out: Path) -> None:
    print(text, end="", flush=True)
    tell(f"written to {out}")


def write_figures(out: Path, name: str, figures: Sequence[msgspec.Struct], text: str) -> None:
    report.write_lines(out / f"{name}.jsonl", [msgspec.json.encode(one) for one in figures])
    (out / f"{name}.md").write_text(text, "utf-8")
    show(text, out)


def budgets_of(text: str) -> list[int]:
    """`512,1024` as numbers, each once."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise typer.BadParameter(
            f"{text!r} is no list of token numbers above 0 (write --budgets 512,1024,2048)",
            param_hint="--budgets",
        )
    return list(dict.fromkeys(found))


def load_config(path: Path | None) -> MemoryConfig:
    """The memory's part of the configuration: `path`, else what the service would read."""
    from service.config.loading import load_settings

    return load_settings(path).memory()


def spread(arguments: Sequence[str]) -> list[str]:
    """`--data A B` as `--data A --data B`: options here take one value each."""
    found: list[str] = []
    option = ""
    for argument in arguments:
        if argument.startswith("-"):
            option = argument if argument in _LISTS else ""
        elif option and found[-1] != option:
            found.append(option)
        found.append(argument)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 for what the caller has to mend, 1 for what failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Results stand on stdout alone; what the library logs there by default would mix with them.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        # Made for each line: stderr may be another one by then.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
    command = typer.main.get_command(app)
    called = shlex.join([*PROGRAM.split(), *arguments])
    try:
        code = command.main(spread(arguments), prog_name=PROGRAM, standalone_mode=False, obj=called)
    except (typer.TyperException, StrataError, OSError) as error:
        wrong = isinstance(error, typer.TyperException | ConfigError | InvalidInput)
        text = error.format_message() if isinstance(error, typer.TyperException) else error
        print(f"{PROGRAM}: {text}", file=sys.stderr)
        return 2 if wrong else 1
    except KeyboardInterrupt:
        return 130
    return int(code or 0)


if __name__ == "__main__":
    raise SystemExit(main())
