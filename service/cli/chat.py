"""The terminal chat: a line in, the answer as it streams; `/context` shows the last receipt."""

from __future__ import annotations

import asyncio
from typing import Any

from rich.console import Console
from rich.table import Table

from service.cli.clients.base import Client

HELP = "/context shows the receipt of the last answer, /quit ends (or Ctrl-D)"


async def chat(client: Client, session_id: str, console: Console) -> None:
    """Ask and answer until `/quit` or the end of input."""
    console.print(f"session [bold]{session_id}[/bold]: {HELP}", highlight=False)
    receipt: dict[str, Any] | None = None
    while True:
        try:
            line = (await asyncio.to_thread(console.input, "[bold]you>[/bold] ")).strip()
        except EOFError:
            console.print()
            return
        match line:
            case "":
                continue
            case "/quit" | "/exit":
                return
            case "/context":
                show_receipt(receipt, console)
            case _ if line.startswith("/"):
                console.print(HELP)
            case _:
                receipt = await _say(client, session_id, line, console) or receipt


async def _say(
    client: Client, session_id: str, line: str, console: Console
) -> dict[str, Any] | None:
    receipt = None
    async for name, data in client.turn(session_id, line):
        match name:
            case "context":
                receipt = data
            case "token":
                console.print(data["text"], end="", markup=False, highlight=False)
            case "error":
                console.print(f"\n[red]{data['code']}[/red]: {data['message']}", highlight=False)
            case "done":
                console.print()
    return receipt


def show_receipt(receipt: dict[str, Any] | None, console: Console) -> None:
    """Tokens per layer, what was recalled, what was left out, what was degraded."""
    if receipt is None:
        console.print("no answer yet")
        return
    table = Table(
        title=f"{receipt['used_tokens']} of {receipt['budget_tokens']} tokens"
        + (" (estimated)" if receipt["estimated"] else "")
    )
    table.add_column("layer")
    table.add_column("tokens", justify="right")
    table.add_column("what")
    for name, layer in receipt["layers"].items():
        table.add_row(name, str(layer["tokens"]), _describe(name, layer))
    console.print(table)
    for item in receipt["layers"]["recall"]["items"]:
        console.print(
            f"  {item['session_id']} #{item['seq']}  score {item['score']:.2f}  "
            f"meaning {item['dense_rank'] or '-'}  words {item['lexical_rank'] or '-'}",
            highlight=False,
        )
    for drop in receipt["dropped"]:
        console.print(f"  left out: {drop['count']} of {drop['layer']} ({drop['reason']})")
    if receipt["degraded"]:
        console.print(f"  degraded: {', '.join(receipt['degraded'])}")


def _describe(name: str, layer: dict[str, Any]) -> str:
    if name == "summary" and layer["version"]:
        return f"covers messages 1…{layer['covers_through']}, {layer['retired']} retired"
    if name == "window" and layer["messages"]:
        return f"{layer['messages']} messages, {layer['first_seq']}…{layer['last_seq']}"
    if name == "recall" and layer["items"]:
        return f"{len(layer['items'])} messages"
    return ""
