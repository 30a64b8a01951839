"""Markdown as typst, and typst as PDF: what our papers use of Markdown, and nothing that needs a network."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from latentbridge.errors import ConfigError, PreflightError

PREAMBLE = """\
#set page(paper: "a4", margin: 2.2cm, numbering: "1")
#set text(font: "Libertinus Serif", size: 10pt)
#set par(justify: true)
#set table(stroke: none, inset: (x: 4pt, y: 3pt))
#show heading: set block(above: 1.4em, below: 0.8em)
#show link: set text(fill: rgb("#0b4f8a"))
#show raw: set text(font: "DejaVu Sans Mono", size: 7pt)
#show table: set text(size: 8pt)
#show table: set par(justify: false)
// a sha256 fits its column
#show table: it => { show raw: set text(size: 4.8pt); it }
"""
_ANCHOR = re.compile(r'<a id="([\w-]+)">')
# by token: what typst has around it
_PAIRS = {
    "strong_open": "#strong[",
    "strong_close": "];",
    "em_open": "#emph[",
    "em_close": "];",
    "link_close": "];",
    "paragraph_open": "",
    "paragraph_close": "\n\n",
    "heading_close": "\n\n",
    "bullet_list_open": "",
    "ordered_list_open": "",
    "bullet_list_close": "\n",
    "ordered_list_close": "\n",
    "list_item_close": "]\n",
    "blockquote_open": "#quote(block: true)[",
    "blockquote_close": "]\n\n",
    "thead_open": "",
    "thead_close": "table.hline(stroke: 0.4pt),\n",
    "tbody_open": "",
    "tbody_close": "",
    "tr_open": "",
    "tr_close": "\n",
    "th_close": "]], ",
    "td_close": "], ",
    "th_open": "[#strong[",
    "td_open": "[",
    "softbreak": "\n",
    "hardbreak": " \\\n",
    "hr": "#line(length: 100%, stroke: 0.4pt)\n\n",
}


def to_typst(markdown: str) -> str:
    """The body of a typst document."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    return "".join(_render(tokens))


def to_pdf(markdown: str, folder: Path) -> bytes:
    """A PDF; images are looked up below the folder, and the time of making is in no byte of it."""
    try:
        import typst
    except ImportError:
        raise PreflightError(
            "typst is missing, which makes the PDF: pip install 'latentbridge[report]'"
        ) from None
    from datetime import UTC, datetime

    source = (PREAMBLE + to_typst(markdown)).encode()
    compile_pdf: Callable[..., bytes] = typst.compile
    try:
        return compile_pdf(source, root=str(folder), timestamp=datetime.fromtimestamp(0, UTC))
    except typst.TypstError as error:
        raise ConfigError(f"{folder}: typst refuses the paper: {error}") from None


def _render(tokens: Sequence[Token]) -> list[str]:
    out = []
    for place, token in enumerate(tokens):
        if token.type in _PAIRS:
            out.append(_PAIRS[token.type])
        elif token.type == "inline":
            out += _render(token.children or [])
        elif token.type == "text":
            out.append(escape(token.content))
        elif token.type == "code_inline":
            out.append(f"#raw({_string(token.content)});")
        elif token.type in ("fence", "code_block"):
            out.append(f"#raw({_string(token.content)}, block: true)\n\n")
        elif token.type == "heading_open":
            out.append(f"{'=' * int(token.tag[1:])} ")
        elif token.type == "list_item_open":
            kind = "enum.item" if token.markup in ".)" else "list.item"
            out.append(f"#{kind}({token.info})[")
        elif token.type == "link_open":
            out.append(_link(str(token.attrs["href"])))
        elif token.type == "image":
            out.append(f"#image({_string(str(token.attrs['src']))}, width: 100%);")
        elif token.type == "table_open":
            out.append(f"#table(columns: {_columns(tokens[place:])}, align: left + horizon,\n")
        elif token.type == "table_close":
            out.append(")\n\n")
        elif token.type in ("html_inline", "html_block"):
            out += [f"#metadata(none) <{name}>" for name in _ANCHOR.findall(token.content)]
        else:
            raise ConfigError(f"Markdown's '{token.type}' has no form in our PDF; write it another way")
    return out


def _link(target: str) -> str:
    where = f"<{target[1:]}>" if target.startswith("#") else _string(target)
    return f"#link({where})["


def _columns(tokens: Sequence[Token]) -> str:
    """As many as the header has; those of a wide table share the page by what their longest cell takes."""
    end = next(place for place, token in enumerate(tokens) if token.type == "table_close")
    lengths: list[list[int]] = []
    for token in tokens[:end]:
        if token.type == "tr_open":
            lengths.append([])
        elif token.type == "inline":
            lengths[-1].append(
                sum(len(child.content) for child in token.children or [] if child.type != "html_inline")
            )
    longest = [max(row[column] for row in lengths if column < len(row)) for column in range(len(lengths[0]))]
    if sum(longest) < 90:
        return str(len(longest))
    return "(" + ", ".join(f"{min(length + 4, 66)}fr" for length in longest) + ")"


def escape(text: str) -> str:
    """Text as typst prints it."""
    return re.sub(r"([\\#$*_`<>@\[\]~/=+-])", r"\\\1", text)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
