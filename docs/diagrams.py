"""Draws the pictures of architecture.md as SVG: plain shapes and text, nothing loaded."""

from __future__ import annotations

from html import escape

_HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
    'height="{height}" font-family="system-ui, sans-serif" font-size="13" role="img">\n'
    "<title>{title}</title>\n"
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
    'orient="auto-start-reverse"><path d="M0,0L8,4L0,8z" fill="#37474f"/></marker></defs>\n'
    '<rect width="{width}" height="{height}" fill="#fff"/>\n'
)
_LINE = "#37474f"
_PAPER = "#eceff1"
_ACCENT = "#00796b"

# (from, to, text) is a message; (at, at, text) is what one does by itself; a str is a mark.
Step = tuple[int, int, str] | str

PARTS = ("client", "service", "Memory", "log (store)", "recall (index)", "model", "projector")
TURN: tuple[Step, ...] = (
    (0, 1, "POST …/turns"),
    (1, 1, "key, body, limits"),
    (1, 2, "begin(request)"),
    (2, 4, "query, two searches"),
    (2, 3, "session, newest turns"),
    (2, 3, "insert the turn: running"),
    "durable: the user's message",
    (1, 0, "event accepted"),
    (2, 4, "hits, until the deadline"),
    (2, 3, "hydrate: text, owner, expiry"),
    (2, 2, "pack, assemble"),
    (1, 0, "event context (receipt)"),
    (1, 5, "messages"),
    (5, 1, "pieces of the answer"),
    (1, 0, "event token, many"),
    (1, 3, "checkpoint, renews the lease"),
    (1, 2, "finish(answer)"),
    (2, 3, "update where token = mine"),
    "durable: the answer",
    (1, 0, "event done"),
    (2, 6, "wake"),
    (6, 4, "passages become points"),
    (6, 3, "watermarks, summary"),
)


def turn_sequence() -> str:
    gap, top, row = 150, 46, 34
    width, height = gap * len(PARTS), top + row * (len(TURN) + 1)
    out = [_HEAD.format(width=width, height=height, title="A streamed turn, from top to bottom")]
    for number, name in enumerate(PARTS):
        x = gap * number + gap // 2
        out.append(_line(x, 38, x, height - 8, dash="3 4", color="#b0bec5"))
        out.append(_box(x - 58, 10, 116, 28, name))
    for number, step in enumerate(TURN):
        y = top + row * (number + 1)
        if isinstance(step, str):
            out.append(_line(12, y - 6, width - 12, y - 6, color=_ACCENT))
            out.append(_text(width - 16, y - 11, step, color=_ACCENT, anchor="end"))
            continue
        start, end, text = step
        x1, x2 = (gap * at + gap // 2 for at in (start, end))
        if start == end:
            out.append(_box(x1 - 58, y - 16, 116, 24, text, fill="#fff"))
        else:
            out.append(_line(x1, y, x2, y, tip=True))
            out.append(_text((x1 + x2) // 2, y - 7, text, halo=True))
    return "\n".join(out) + "\n</svg>\n"


def turn_states() -> str:
    width, height = 920, 350
    out = [_HEAD.format(width=width, height=height, title="The states of a turn")]
    out.append('<circle cx="30" cy="150" r="8" fill="#37474f"/>')
    out.append(_line(38, 150, 148, 150, tip=True))
    out.append(_text(92, 142, "accepted"))
    out.append(_box(150, 130, 120, 40, "running", fill="#e0f2f1"))
    ends = (
        (20, "done", "the model's answer is stored", False),
        (90, "partial", "reader left, cancel, shutdown: kept as far as it came", False),
        (190, "interrupted", "crash, or taken over after the lease", True),
        (270, "failed", "the model or a store failed", True),
    )
    for y, name, why, again in ends:
        out.append(_box(420, y, 120, 40, name))
        out.append(_line(272, 150, 418, y + 20, tip=True))
        out.append(_text(556, y + 24, why, anchor="start"))
        if again:
            out.append(
                f'<path d="M418,{y + 30} Q260,{y + 60} 210,172" fill="none" stroke="{_ACCENT}" '
                f'stroke-dasharray="5 4" marker-end="url(#tip)"/>'
            )
    note = "re-run: the same key again, still the newest turn: attempt + 1"
    out.append(_text(20, 338, note, color=_ACCENT, anchor="start"))
    return "\n".join(out) + "\n</svg>\n"


def _box(x: int, y: int, width: int, height: int, text: str, *, fill: str = _PAPER) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{fill}" '
        f'stroke="{_LINE}"/>\n{_text(x + width // 2, y + height // 2 + 5, text)}'
    )


def _line(
    x1: int, y1: int, x2: int, y2: int, *, tip: bool = False, dash: str = "", color: str = _LINE
) -> str:
    more = ' marker-end="url(#tip)"' if tip else ""
    more += f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{color}"{more}/>'


def _text(
    x: int, y: int, text: str, *, color: str = "#263238", anchor: str = "middle", halo: bool = False
) -> str:
    # A halo of paper, so that a line that is crossed does not run through the words.
    paint = ' paint-order="stroke" stroke="#fff" stroke-width="4"' if halo else ""
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{color}"{paint}>{escape(text)}</text>'
    )
