"""SLURM's reasons in plain words: those with a name of their own, and the families of limits."""

from __future__ import annotations

import pytest

from latentbridge.launch.view.reasons import ADVICE, advise

JOB = {"Partition": "main", "QOS": "short", "Account": "lab", "TimeLimit": "05:00:00", "JobId": "12"}


@pytest.mark.parametrize("reason", ADVICE)
def test_every_reason_reads_well_with_and_without_the_answer_of_scontrol(reason):
    for job in (JOB, {}):
        advice = advise(reason, job)
        assert "{" not in advice.meaning + advice.remedy
        assert not advice.meaning.endswith(".") and not advice.remedy.endswith(".")


@pytest.mark.parametrize(
    ("reason", "meaning", "is_hopeless"),
    [
        ("QOSMaxWallDurationPerJobLimit", "it asks for more running time than QOS short gives one job", True),
        ("AssocMaxWallDurationPerJobLimit", "more running time than account lab gives one job", True),
        ("QOSMaxGRESPerJob", "it asks for more GPUs than QOS short gives one job", True),
        ("QOSMaxNodePerJobLimit", "it asks for more nodes than QOS short gives one job", True),
        ("AssocMaxCpuPerJobLimit", "it asks for more CPUs than account lab gives one job", True),
        ("AssociationTimeLimit", "it asks for more running time than account lab gives one job", True),
        ("QOSMinGRES", "it asks for less GPUs than QOS short demands of a job", True),
        ("QOSMinCpuNotSatisfied", "it asks for less CPUs than QOS short demands", True),
        ("QOSMaxGRESPerUser", "QOS short lets you have only so much of this at a time: GPUs", False),
        ("QOSMaxJobsPerUserLimit", "lets you have only so much of this at a time: jobs at work", False),
        ("QOSMaxMemoryPerUser", "lets you have only so much of this at a time: memory", False),
        ("AssocMaxJobsLimit", "account lab lets you have only so much of this at a time: jobs", False),
        ("AssocGrpGRES", "account lab lets all its users together have only so much", False),
        ("QOSGrpNodeLimit", "QOS short lets all its users together have only so much", False),
        (
            "QOSGrpWallLimit",
            "lets all its users together have only so much of this at a time: running",
            False,
        ),
        ("AssocGrpCPUMinutesLimit", "only so many minutes of CPUs, and they are used up", False),
        ("AssocGrpGRESRunMinutes", "only so many minutes of GPUs", False),
        ("MaxGRESRunMinsPerUser", "QOS short lets you use only so many minutes of GPUs", False),
    ],
)
def test_limits_are_told_by_their_parts(reason, meaning, is_hopeless):
    advice = advise(reason, JOB)

    assert meaning in advice.meaning
    assert advice.is_hopeless == is_hopeless


def test_what_follows_a_comma_does_not_hide_a_reason():
    assert advise("ReqNodeNotAvail, UnavailableNodes:gpu[01-02]", JOB) == advise("ReqNodeNotAvail", JOB)


def test_an_unknown_reason_is_not_guessed():
    for reason in ("FrobnicationPending", "QOSMaxFrobnicationPerUser", "Max"):
        assert advise(reason, JOB).meaning == "this reason is not known here"
