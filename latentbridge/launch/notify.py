"""Word of a launch's end to a webhook or by mail: once for every end, whoever is killed and repeated.

LAUNCH/ledger/notices/EVENT-ID.CHANNEL.json is written before anything is sent, and answered after. Without an
answer nobody knows whether it arrived: it is not sent again. What was refused for certain is, the next time.
ID names how every run has ended: after a `retry` there is another end to tell of.
"""

from __future__ import annotations

import getpass
import hashlib
import http.client
import json
import os
import smtplib
import socket
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from http import HTTPStatus
from pathlib import Path
from typing import Any

from latentbridge.config import read_yaml
from latentbridge.errors import LatentbridgeError
from latentbridge.launch.account import over_budget
from latentbridge.launch.lease import lease
from latentbridge.launch.record import Launch
from latentbridge.launch.spec import Event, Notify
from latentbridge.launch.status import RunStatus, status
from latentbridge.rundir import RunDir, read_json, write_json

NOTICES = "ledger/notices"
# host or host:port that takes mail
SMTP_VARIABLE = "LATENTBRIDGE_SMTP"
TIMEOUT_S = 10
PATIENCE_S = 60
SENT = "sent"
# after these it has not been taken, and may be sent again
_REFUSALS = (
    ConnectionRefusedError,
    socket.gaierror,
    smtplib.SMTPResponseException,
    smtplib.SMTPRecipientsRefused,
)


def tell(launch: Launch) -> list[str]:
    """Send word that nothing of a launch is at work or will be, if its spec wants it; returns complaints.

    Never raises what a network, a disk or a scheduler can cause: the launch has ended all the same.
    """
    notify = launch.notify
    if notify is None:
        return []
    folder = launch.path / NOTICES
    try:
        folder.mkdir(exist_ok=True)
        with lease(folder / "lock", f"telling of {launch.name}", PATIENCE_S):
            states = status(launch)
            event = _event(launch, states)
            if event not in notify.on:
                return []
            notice = folder / f"{event}-{_ending(launch)}"
            word = _compose(launch, states, event)
            told = [_once(notice.with_name(f"{notice.name}.{c}.json"), c, s, word) for c, s in _ways(notify)]
            return [complaint for complaint in told if complaint]
    except (LatentbridgeError, OSError) as error:
        return [f"nobody was told of the end of {launch.name}: {error}"]


def _event(launch: Launch, states: list[RunStatus]) -> Event:
    if all(state.phase in ("done", "held") for state in states):
        return "finished"
    return "over_budget" if over_budget(launch) else "failed"


def _ending(launch: Launch) -> str:
    """Names how every run has ended, by markers and numbers of attempts alone: all hosts see the same."""
    ends = [(name, run.folder.state, len(run.folder.list_attempts())) for name, run in launch.runs.items()]
    return hashlib.sha256(json.dumps(ends).encode()).hexdigest()[:12]


def _compose(launch: Launch, states: list[RunStatus], event: Event) -> dict[str, Any]:
    counts = Counter(state.phase for state in states)
    best = _best(launch, states)
    archive = Path(launch.plan["archives"]) / launch.name
    parts = [
        f"{launch.name}: {event.replace('_', ' ')}",
        ", ".join(f"{count} {phase}" for phase, count in counts.items()),
        *(["best {metric} {value:.4g} ({run}, update {step})".format_map(best)] if best else []),
        str(launch.path),
    ]
    return {
        # what chat services show
        "text": "; ".join(parts),
        "event": event,
        "launch": launch.name,
        "path": str(launch.path),
        "archive": str(archive) if archive.exists() else None,
        "runs": dict(counts),
        "gpu_hours": sum(state.gpu_hours for state in states),
        "best": best,
    }


def _best(launch: Launch, states: list[RunStatus]) -> dict[str, Any] | None:
    """The best validation among runs that are done; None where they do not all watch one metric."""
    found = list(_validations(launch.runs[state.name].folder for state in states if state.phase == "done"))
    watched = {(one["metric"], one.pop("mode")) for one in found}
    if len(watched) != 1:
        return None
    ((_, mode),) = watched
    return (min if mode == "min" else max)(found, key=lambda one: one["value"])


def _validations(folders: Iterator[RunDir]) -> Iterator[dict[str, Any]]:
    for folder in folders:
        marker, watched = folder.read_marker(), read_yaml(folder.config).values.get("early_stop") or {}
        if marker.get("best_metric") is not None and "metric" in watched:
            step, value = marker["best_step"], marker["best_metric"]
            mode = watched.get("mode", "max")
            yield {
                "run": folder.name,
                "metric": watched["metric"],
                "mode": mode,
                "value": value,
                "step": step,
            }


def _ways(notify: Notify) -> Iterator[tuple[str, Callable[[dict[str, Any]], None]]]:
    """What sends word, by channel."""
    if variable := notify.webhook_variable:
        yield "webhook", lambda word: _post(os.environ.get(variable, ""), variable, word)
    if address := notify.mail:
        yield "mail", lambda word: _mail(address, word)


def _once(
    file: Path, channel: str, send: Callable[[dict[str, Any]], None], word: dict[str, Any]
) -> str | None:
    """Send one notice unless it was sent; returns what went wrong."""
    known = read_json(file) if file.exists() else {"outcome": "not asked", "again": True}
    if known["outcome"] == SENT:
        return None
    if not known["again"]:
        return f"{channel}: {known['outcome']}; nothing is sent a second time ({file})"
    asked = {"asked": time.time(), "word": word}
    write_json(file, asked | {"outcome": "its sender died, so it may have arrived or not", "again": False})
    try:
        send(word)
    except Exception as error:
        outcome, again = _in_words(error), _is_refusal(error)
        if isinstance(error, urllib.error.HTTPError):
            error.close()
    else:
        outcome, again = SENT, False
    write_json(file, asked | {"outcome": outcome, "again": again})
    return None if outcome == SENT else f"{channel}: not sent: {outcome} ({file})"


def _is_refusal(error: Exception) -> bool:
    """Whether nothing has been delivered for certain; a gateway may say 502 or 504 after a delivery."""
    if isinstance(error, urllib.error.HTTPError):
        return 400 <= error.code < 500 or error.code == HTTPStatus.SERVICE_UNAVAILABLE
    return isinstance(error.reason if isinstance(error, urllib.error.URLError) else error, _REFUSALS)


def _in_words(error: Exception) -> str:
    """An error without the address, which may be a secret: http.client and urllib quote what they dislike."""
    if isinstance(error, http.client.HTTPException | ValueError):
        return type(error).__name__
    return str(error)


def _post(url: str, variable: str, word: dict[str, Any]) -> None:
    if not url.startswith(("http://", "https://")):
        raise ConnectionRefusedError(f"${variable} holds no http:// or https:// address here")
    request = urllib.request.Request(
        url, json.dumps(word, allow_nan=False).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S):
        pass


def _mail(address: str, word: dict[str, Any]) -> None:
    message = EmailMessage()
    message["From"] = f"{getpass.getuser()}@{socket.getfqdn()}"
    message["To"] = address
    message["Subject"] = f"{word['launch']}: {word['event'].replace('_', ' ')}"
    message.set_content("\n".join(word["text"].split("; ")))
    with smtplib.SMTP(os.environ.get(SMTP_VARIABLE, "localhost"), timeout=TIMEOUT_S) as server:
        server.send_message(message)
