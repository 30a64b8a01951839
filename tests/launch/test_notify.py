"""Who asked for it is told of a launch's end, once, by a real server on this machine."""

from __future__ import annotations

import json
import os
import signal
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from folders import end, planned_launch
from launching import wait_for

from latentbridge.config import Tree, check
from latentbridge.launch import finish as finish_module
from latentbridge.launch.cli import main
from latentbridge.launch.finish import conclude
from latentbridge.launch.notify import tell
from latentbridge.launch.preserve import preserve
from latentbridge.launch.record import Launch
from latentbridge.launch.spec import Notify, Spec
from latentbridge.rundir import read_json, write_json

SECRET = "xoxb-123"
SPEC = "name: s\njob: count\ncluster: local\nruns: {a: {}, b: {steps: 4}}\n"


class Hook(ThreadingHTTPServer):
    """Takes POSTs; answers with `code`, after `pause_s`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Post)
        self.code, self.pause_s, self.got = 200, 0.0, []


class _Post(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append((self.path, self.headers["Content-Type"], body))
        time.sleep(self.server.pause_s)
        self.send_response(self.server.code)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


class Mailbox(socketserver.ThreadingTCPServer):
    """Speaks as much SMTP as smtplib asks for, and knows one recipient."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Smtp)
        self.got = []


class _Smtp(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self._say("220 here")
        while line := self.rfile.readline().decode().strip():
            verb = line[:4].upper()
            if verb == "DATA":
                self._say("354 go on")
                text = b"".join(iter(self.rfile.readline, b".\r\n"))
                self.server.got.append(text.decode().replace("\r\n", "\n"))
            is_known = verb != "RCPT" or "<me@lab.example>" in line
            self._say(
                ("221" if verb == "QUIT" else "250") + " well" if is_known else "550 nobody of that name"
            )

    def _say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


@pytest.fixture
def hook(monkeypatch):
    with Hook() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("HOOK", f"http://127.0.0.1:{server.server_port}/{SECRET}")
        yield server
        server.shutdown()


@pytest.fixture
def mailbox(monkeypatch):
    with Mailbox() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("LATENTBRIDGE_SMTP", f"127.0.0.1:{server.server_address[1]}")
        yield server
        server.shutdown()


@pytest.fixture
def make_launch(project, write_spec):
    """A launch whose two runs have ended by these causes (None: never started)."""

    def make(notify: str, *causes: str | None) -> Launch:
        write_spec(f"{SPEC}notify: {notify}\nbudget_gpu_hours: 1.0\n")
        launch = planned_launch(project)
        for run, cause in zip(launch.runs.values(), causes, strict=True):
            if cause:
                end(run, cause, took_s=900)
        return launch

    return make


def events(hook: Hook) -> list[str]:
    return [body["event"] for _, _, body in hook.got]


def test_a_webhook_is_told_what_a_person_asks_first(make_launch, hook):
    launch = make_launch("{webhook: $HOOK}", "done", "done")
    for name, value in {"a": 0.25, "b": 0.5}.items():
        run = launch.runs[name].folder
        run.config.write_text("early_stop: {metric: nll, mode: min}\n")
        run.mark("DONE", {"best_metric": value, "best_step": 3})

    assert tell(launch) == []

    ((path, kind, body),) = hook.got
    assert (path, kind) == (f"/{SECRET}", "application/json")
    assert body.pop("gpu_hours") == pytest.approx(0.5)
    text = f"{launch.name}: finished; 2 done; best nll 0.25 (a, update 3); {launch.path}"
    best = {"run": "a", "metric": "nll", "value": 0.25, "step": 3}
    places = {"launch": launch.name, "path": str(launch.path), "archive": None}
    assert body == {"text": text, "event": "finished", "runs": {"done": 2}, "best": best, **places}


@pytest.mark.parametrize(
    ("causes", "hours", "event"),
    [
        (("done", "done"), 1.0, "finished"),
        (("done", "error"), 1.0, "failed"),
        (("done", None), 0.25, "over_budget"),
    ],
)
def test_how_a_launch_ended_is_the_event(make_launch, hook, causes, hours, event):
    launch = make_launch("{webhook: $HOOK}", *causes)
    write_json(launch.path / "plan.json", launch.plan | {"budget_gpu_hours": hours})

    assert tell(Launch(launch.path)) == []
    assert events(hook) == [event]


def test_only_the_ends_that_were_asked_for_are_told(make_launch, hook):
    launch = make_launch("{webhook: $HOOK, on: [failed]}", "done", "done")

    assert tell(launch) == []
    assert hook.got == []


def test_an_end_is_told_once_and_another_end_after_a_retry_again(make_launch, hook):
    launch = make_launch("{webhook: $HOOK}", "done", "error")

    assert [tell(Launch(launch.path)) for _ in range(3)] == [[], [], []]
    assert events(hook) == ["failed"]

    end(launch.runs["b"], "done")
    assert [tell(Launch(launch.path)) for _ in range(2)] == [[], []]
    assert events(hook) == ["failed", "finished"]


def killed(work, when) -> None:
    """Do `work` in a process of its own that is killed once `when` holds."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    wait_for(when, 20)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_sender_killed_before_the_answer_has_told_once_and_its_successor_says_so(make_launch, hook):
    launch = make_launch("{webhook: $HOOK}", "done", "done")
    hook.pause_s = 5
    killed(lambda: tell(launch), lambda: hook.got)

    (complaint,) = tell(Launch(launch.path))

    assert events(hook) == ["finished"]
    assert complaint.startswith(
        "webhook: its sender died, so it may have arrived or not; nothing is sent a second"
    )


def test_a_finishing_job_killed_before_it_told_is_repeated_and_tells(make_launch, hook, project, monkeypatch):
    launch = make_launch("{webhook: $HOOK}", "done", "done")
    begun = project / "begun"

    def hang(*words):
        begun.touch()
        time.sleep(20)

    with monkeypatch.context() as patch:
        patch.setattr(finish_module, "finish", hang)
        killed(lambda: conclude(launch, project / "preserved_data"), begun.exists)
    assert hook.got == []

    for _ in range(2):
        conclude(Launch(launch.path), project / "preserved_data")
    assert events(hook) == ["finished"]
    assert hook.got[0][2]["archive"] == str(project / "preserved_data" / launch.name)


def test_a_launch_that_cannot_be_preserved_has_ended_all_the_same(make_launch, hook, project, monkeypatch):
    launch = make_launch("{webhook: $HOOK}", "done", "done")

    def fail(*words):
        raise OSError("no space left on device")

    monkeypatch.setattr(finish_module, "finish", fail)
    with pytest.raises(OSError, match="no space"):
        conclude(launch, project / "preserved_data")

    assert events(hook) == ["finished"]


def test_what_a_server_refuses_is_noted_harms_nothing_and_is_sent_the_next_time(
    make_launch, hook, project, capsys
):
    launch = make_launch("{webhook: $HOOK}", "done", "done")
    hook.code = 503
    archive = conclude(launch, project / "preserved_data")

    assert archive.exists()
    assert "webhook: not sent: HTTP Error 503" in capsys.readouterr().err
    (note,) = (launch.path / "ledger" / "notices").glob("finished-*.webhook.json")
    assert read_json(note)["outcome"].startswith("HTTP Error 503")

    hook.code = 200
    assert tell(launch) == []
    assert read_json(note)["outcome"] == "sent"
    assert events(hook) == ["finished", "finished"]


@pytest.mark.parametrize(
    ("code", "times"), [(502, 1), (504, 1), (500, 1), (503, 2), (404, 2), (429, 2), (403, 2)]
)
def test_what_may_have_been_delivered_behind_a_gateway_is_not_sent_again(make_launch, hook, code, times):
    launch = make_launch("{webhook: $HOOK}", "done", "done")
    hook.code = code

    for _ in range(2):
        (complaint,) = tell(launch)
        assert f"HTTP Error {code}" in complaint
    assert events(hook) == ["finished"] * times


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (None, "$HOOK holds no http:// or https:// address here"),
        (f"ftp://lab.example/{SECRET}", "$HOOK holds no http:// or https:// address here"),
        (f"http://127.0.0.1:1/{SECRET}", "Connection refused"),
        (f"http://127.0.0.1/{SECRET} x", "InvalidURL"),
        (f"http://127.0.0.1:{SECRET}/", "InvalidURL"),
    ],
)
def test_an_address_that_cannot_work_is_noted_and_never_written(make_launch, monkeypatch, address, why):
    launch = make_launch("{webhook: $HOOK}", "done", "done")
    monkeypatch.delenv("HOOK", raising=False)
    if address:
        monkeypatch.setenv("HOOK", address)

    (complaint,) = tell(launch)

    assert why in complaint
    assert SECRET not in complaint
    assert all(SECRET not in path.read_text() for path in launch.path.glob("ledger/**/*.json"))


def test_mail_goes_by_smtp_beside_the_webhook(make_launch, mailbox, hook):
    launch = make_launch("{webhook: $HOOK, mail: me@lab.example}", "done", "error")

    assert [tell(launch) for _ in range(2)] == [[], []]

    (text,) = mailbox.got
    head, _, body = text.partition("\n\n")
    assert f"To: me@lab.example\nSubject: {launch.name}: failed" in head
    assert body.splitlines()[:2] == [f"{launch.name}: failed", "1 done, 1 failed"]
    assert events(hook) == ["failed"]


def test_a_recipient_that_is_refused_is_noted(make_launch, mailbox):
    launch = make_launch("{mail: you@lab.example}", "done", "done")

    (complaint,) = tell(launch)

    assert "mail: not sent: " in complaint
    assert "nobody of that name" in complaint
    assert mailbox.got == []


def test_neither_the_address_nor_the_notices_are_in_an_archive(make_launch, hook, project):
    launch = make_launch("{webhook: $HOOK}", "done", "done")
    first = conclude(launch, project / "preserved_data")
    before = (first / "SHA256SUMS").read_bytes()

    assert not (first / "ledger" / "notices").exists()
    texts = [path.read_bytes() for path in first.rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in text for text in texts)
    assert (preserve(launch.path, project / "preserved_data") / "SHA256SUMS").read_bytes() == before


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ({"webhook": f"https://lab.example/{SECRET}"}, "webhook is no $NAME; a spec is copied into archives"),
        ({}, "it names nobody; set webhook or mail"),
        ({"mail": "me"}, "'mail' is 'me' (text)"),
        ({"mail": "me@lab", "on": []}, "'on' is [] (a list)"),
    ],
)
def test_what_cannot_work_or_would_give_a_secret_away_is_refused(written, complaint):
    _, (found,) = check(Notify, Tree(written, {(): "spec.yaml:3"}))

    assert complaint in found.text
    assert SECRET not in found.text


def test_a_variable_that_is_not_set_is_refused_before_anything_is_made(
    write_spec, project, monkeypatch, capsys
):
    monkeypatch.delenv("HOOK", raising=False)
    write_spec(f"{SPEC}notify: {{webhook: $HOOK}}\n")

    with pytest.raises(SystemExit) as ended:
        main(["launch", "spec", "--no-submit"])

    assert ended.value.code == 2
    assert "notify.webhook is $HOOK, which is not set here; export HOOK=" in capsys.readouterr().err
    assert not list(Path(project / "runs").glob("s_*"))


def test_who_asks_for_nothing_is_told_nothing(project, write_spec):
    write_spec(SPEC)
    launch = planned_launch(project)

    assert tell(launch) == []
    assert not (launch.path / "ledger" / "notices").exists()
    assert Spec.model_fields["notify"].default is None
