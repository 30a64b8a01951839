"""Intents before submissions, and what people ask about single runs."""

from __future__ import annotations

import time

from latentbridge.launch.ledger import Ledger, Orders


def test_an_intent_is_on_disk_before_the_answer_and_the_answer_replaces_it(tmp_path):
    ledger = Ledger(tmp_path)

    intent = ledger.intend(["a", "b", "c"])
    assert Ledger(tmp_path).latest()["b"].submission.job_id is None
    ledger.accepted(intent, "71")

    assert Ledger(tmp_path).latest()["b"].task == "71_1"


def test_a_job_of_one_run_has_no_index(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.accepted(ledger.intend(["a"]), "5")

    assert ledger.latest()["a"].task == "5"


def test_a_refused_submission_leaves_the_one_before_it_in_force(tmp_path):
    ledger = Ledger(tmp_path)
    first = ledger.accepted(ledger.intend(["a"]), "5")

    ledger.refused(ledger.intend(["a"]), "no such partition")

    assert ledger.latest()["a"].submission == first


def test_an_answer_that_another_process_wrote_is_seen_by_who_read_the_intent_before(tmp_path):
    mine, other = Ledger(tmp_path), Ledger(tmp_path)
    intent = mine.intend(["a"])
    assert mine.latest()["a"].task is None

    other.accepted(intent, "9")

    assert mine.latest()["a"].task == "9"


def test_orders_outlive_the_process_that_gave_them(tmp_path):
    Ledger(tmp_path).intend(["a"])
    assert Ledger(tmp_path).orders == Orders()

    Ledger(tmp_path).order(Orders(held={"a": "cancelled"}, forgiven={"b": 3}))

    assert Ledger(tmp_path).orders.forgiven == {"b": 3}


def test_a_later_submission_counts_even_if_the_clock_of_its_host_is_behind(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path)
    ledger.accepted(ledger.intend(["a"]), "5")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)

    ledger.accepted(Ledger(tmp_path).intend(["a"]), "6")

    assert Ledger(tmp_path).latest()["a"].task == "6"


def test_a_job_whose_run_was_given_to_another_since_is_not_current(tmp_path):
    ledger = Ledger(tmp_path)
    first = ledger.intend(["a", "b"])
    assert ledger.is_current(first.token, "a")

    Ledger(tmp_path).refused(first, "no answer")
    assert not ledger.is_current(first.token, "a")
    second = Ledger(tmp_path).intend(["a"])

    assert ledger.is_current(second.token, "a")
    assert not ledger.is_current(first.token, "b")


def test_the_bound_of_an_array_is_remembered_where_squeue_forgets_it(tmp_path):
    ledger = Ledger(tmp_path)
    answered = ledger.accepted(ledger.intend(["a", "b", "c"], parallel=1), "5")

    ledger.throttled(answered, 2)

    (found,) = Ledger(tmp_path)
    assert (found.parallel, found.job_id) == (2, "5")
