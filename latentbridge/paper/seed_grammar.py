r"""The grammar of the published paper template, rewritten into calls of our own, line for line.

    [RESULTS PLACEHOLDER: ...]   [RESULTS PLACEHOLDER]   [DISCUSSION PLACEHOLDER - ...]
    [TABLE n HERE: title]        with its rows of X.XXX and its caption with [INSTRUCTIONS: ...], n of 1 to 3
    [FIGURE n HERE: title]       with the list of what it should show, n of 1 to 5
    [ACHIEVED/DID NOT ACHIEVE]   [GDN/Softmax]   [X% GDN/Softmax]   [XX%]   [If successful:]   [If failed:]

A discussion is written by the choice rule, so its alternatives are dropped, up to the next section.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial

_FENCE = re.compile(r"^(```.*?^```[^\n]*$)", re.DOTALL | re.MULTILINE)
_LIST = r"(?:\n[ \t]*[-*] [^\n]*|\n[ \t]+[^\n]*)+"
_DISCUSSION = re.compile(
    r"\**\[DISCUSSION PLACEHOLDER[^\]]*\]\**.*?(?=^#{1,2} |^---[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
_FIGURE = re.compile(
    r"\**\[FIGURE (?P<n>\d+) HERE(?:: (?P<title>[^\]]*))?\]\**"
    rf"(?:\n+\*Figure (?P=n) should show:?\*:?{_LIST}|\n+(?:> [^\n]*\n?)+)?"
)
_TABLE = re.compile(
    r"\**\[TABLE (?P<n>\d+) HERE(?:: (?P<title>[^\]]*))?\]\**"
    r"(?P<rows>\n+(?:\|[^\n]*(?:\n|\Z))+)?"
    r"(?:\n*\*Table (?P=n): (?P<caption>(?:[^\[\]*]|\[INSTRUCTIONS:[^\]]*\])*)\*)?"
)
_CONDITION = {"If successful": "won()", "If failed": "not won()", "If collapse occurred": "collapsed()"}
_LAYERS = {"X": 0, "Y": 1}


def translate(text: str) -> str:
    """A template with every construct of the published grammar as a call; other text stays as it is."""
    parts = _FENCE.split(text)
    return "".join(part if place % 2 else _translate(part) for place, part in enumerate(parts))


def _translate(text: str) -> str:
    text = _replace(_DISCUSSION, lambda found: "{{ discussion() }}\n\n", text)
    text = _replace(_FIGURE, _figure, text)
    text = _replace(_TABLE, _table, text)
    for pattern, call in (
        (r"\**\[RESULTS PLACEHOLDER: ?[^\]]*\]\**\.?", "abstract()"),
        (r"\**\[RESULTS PLACEHOLDER\]\**", "results()"),
        (r"\[ACHIEVED/DID NOT ACHIEVE\]", "achieved()"),
        (r"\[GDN/Softmax\]", "larger_mixer()"),
        (r"\[XX%\]", "largest_share()"),
    ):
        text = _replace(re.compile(pattern), partial(_call, call), text)
    text = _replace(
        re.compile(r"\[([XY])% GDN/Softmax\]"), lambda m: f"{{{{ split({_LAYERS[m.group(1)]}) }}}}", text
    )
    text = _replace(re.compile(r" ?\[INSTRUCTIONS:[^\]]*\]"), lambda _: "", text)
    return _replace(
        re.compile(rf"^([^\n\[]*)\[({'|'.join(_CONDITION)}):\] ?([^\n]*)$", re.MULTILINE), _condition, text
    )


def _call(call: str, found: re.Match[str]) -> str:
    return f"{{{{ {call} }}}}"


def _figure(found: re.Match[str]) -> str:
    return f"{{{{ paper_figure({found['n']}, {_quoted(found['title'])}) }}}}"


def _table(found: re.Match[str]) -> str:
    lines = [line for line in (found["rows"] or "").splitlines() if line.strip()]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    caption = re.sub(r"\s*\[INSTRUCTIONS:[^\]]*\]", "", found["caption"] or "")
    # the second line is the rule below the header
    body = json.dumps([rows[:1], rows[2:]], ensure_ascii=False)
    return f"{{{{ paper_table({found['n']}, {_quoted(found['title'])}, {_quoted(caption)}, {body}) }}}}"


def _condition(found: re.Match[str]) -> str:
    before, condition, text = found.groups()
    return f"{{% if {_CONDITION[condition]} %}}{before}{text}{{% endif %}}"


def _replace(pattern: re.Pattern[str], make: Callable[[re.Match[str]], str], text: str) -> str:
    """Substitute; as many lines as before, so that a mistake is told by the template's own line."""

    def padded(found: re.Match[str]) -> str:
        made = make(found)
        return made + "\n" * max(0, found.group().count("\n") - made.count("\n"))

    return pattern.sub(padded, text)


def _quoted(text: str | None) -> str:
    return json.dumps(" ".join((text or "").split()), ensure_ascii=False)
