"""What a measurement leaves behind: report.json for programs, report.md for people.

The lines of retrieved.jsonl come from recall.retrieved_line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from memory import MemoryConfig
from memory.errors import InvalidInput

# The groups of the configuration that bear on what is measured; stores are temporary ones.
CONFIG_GROUPS = {"budget", "window", "recall", "embedding"}


def make_folder(folder: Path) -> None:
    """Make the folder before anything is measured. Raises InvalidInput when it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot be made: {error.strerror} (name a folder that can be written)"
        raise InvalidInput(f"--out {folder}", problem) from error


def report(
    command: str, config: MemoryConfig, datasets: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The whole report; `config` as it was measured."""
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": _written(config.model_dump(mode="json", include=CONFIG_GROUPS)),
        "datasets": list(datasets),
    }


def _written(value: Any) -> Any:
    """JSON knows no infinity; the configuration calls it `never`."""
    if isinstance(value, dict):
        return {key: _written(inner) for key, inner in value.items()}
    return "never" if isinstance(value, float) and math.isinf(value) else value


def write(folder: Path, content: dict[str, Any], tables: Callable[[dict[str, Any]], str]) -> str:
    """Write report.json and report.md into `folder`; returns the latter's text."""
    encoded = msgspec.json.format(msgspec.json.encode(content), indent=2)
    (folder / "report.json").write_bytes(encoded + b"\n")
    text = tables(content)
    (folder / "report.md").write_text(text, encoding="utf-8")
    return text


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(line + b"\n" for line in lines)


def recall_tables(content: dict[str, Any]) -> str:
    parts = [_head("Recall", content)]
    parts.append(
        "Share of the labelled evidence that stands whole inside a recall block of at most N\n"
        "tokens (recall), and share of questions whose whole evidence does (all), in percent."
    )
    for data in content["datasets"]:
        latency = data["latency_ms"]
        parts.append(f"## {data['name']}")
        parts.append(
            f"{data['questions']} questions with evidence; embedding {data['embedding']}; "
            f"{latency['p50']} ms a question (p99 {latency['p99']} ms); {_degraded(data)}."
        )
        parts.append(
            _table(
                ["budget", "recall", "all", "tokens used"],
                [[n, d["recall"], d["all"], d["tokens"]] for n, d in data["budgets"].items()],
            )
        )
        first = next(iter(data["budgets"].values()))
        parts.append(
            _table(
                ["recall by category", "questions", *data["budgets"]],
                [
                    [
                        category,
                        first["by_category"][category]["questions"],
                        *(d["by_category"][category]["recall"] for d in data["budgets"].values()),
                    ]
                    for category in first["by_category"]
                ],
            )
        )
    return "\n\n".join(parts) + "\n"


def cost_tables(content: dict[str, Any]) -> str:
    parts = [_head("Cost", content)]
    parts.append(
        "Prompt tokens of each turn, replayed through the path of real turns, each when every\n"
        "projection has seen the one before. Against it, with the same rules and counter:\n"
        "all_history (everything this user and the assistant said before), session_history (in\n"
        "this session), last_20 (its newest 20 messages). prompt_share is Strata's tokens in\n"
        "percent of theirs, over all turns."
    )
    for data in content["datasets"]:
        parts.append(f"## {data['name']}")
        parts.append(_cost_facts(data))
        columns = ["mean", "p50", "p95", "max"]
        rows = [["prompt", *(data["prompt_tokens"][c] for c in columns), ""]]
        rows += [
            [name, *(values[c] for c in columns), values["prompt_share"]]
            for name, values in data["against"].items()
        ]
        parts.append(_table(["tokens a turn", *columns, "prompt_share"], rows))
        parts.append(
            _table(
                ["layer", *columns],
                [[name, *(v[c] for c in columns)] for name, v in data["layers"].items()],
            )
        )
        parts.append(
            _table(
                ["turn", "conversations", "prompt", "all_history"],
                [list(milestone.values()) for milestone in data["milestones"]],
            )
        )
    return "\n\n".join(parts) + "\n"


def _cost_facts(data: dict[str, Any]) -> str:
    limit = data["turns_limit"]
    stable, summary, latency = data["stable_prefix"], data["summary_versions"], data["latency_ms"]
    return "\n".join(
        [
            f"- turns {data['turns']}, sessions {data['sessions']}, conversations "
            f"{data['conversations']} "
            f"({'whole' if limit is None else f'at most {limit} turns of each'})",
            f"- reusable prefix: {stable['share']} % of the prompt on average, "
            f"{stable['share_within_session']} % from a session's second turn on "
            f"({stable['none']} of these turns had none)",
            f"- {_degraded(data)}",
            f"- sessions with a summary {summary['sessions_with']}, versions {summary['total']}, "
            f"at most {summary['max']} in one",
            f"- accept and context: {latency['p50']} ms (p99 {latency['p99']} ms)",
            f"- embedding {data['embedding']}; tokens "
            f"{'estimated' if data['estimated'] else 'counted by the model’s encoding'}",
        ]
    )


def _degraded(data: dict[str, Any]) -> str:
    times_of = ", ".join(f"{why} {times}×" for why, times in data["degraded"].items())
    return f"degraded: {times_of or 'never'}"


def _head(title: str, content: dict[str, Any]) -> str:
    return f"# {title}\n\n`{content['command']}`, {content['date']}"


def _table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table with aligned columns, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]
    lines = [
        "| " + " | ".join(_pad(cell, widths[i], i) for i, cell in enumerate(row)) + " |"
        for row in cells
    ]
    rule = [("-" * widths[i]) if i == 0 else "-" * (widths[i] - 1) + ":" for i in range(len(head))]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    return "\n".join(lines)


def _pad(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)
