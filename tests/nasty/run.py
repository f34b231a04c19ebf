"""Every file through the whole job, each in a process of its own."""

import os
from functools import partial

from tests.nasty.cases import Outcome
from tests.nasty.judge import judge
from tests.nasty.table import cause
from tests.nasty.watch import each


def outcomes(cases, files, work, *, engine="null", trust="named"):
    """Yield the `Outcome` of each case as it ends; `files` holds the unpacked archives, `work` is a scratch folder."""
    work.mkdir(parents=True, mode=0o700)
    os.environ["WIDEFIELD_CACHE"] = str(work / "cache")  # a fault must not leave anything in the user's own
    for ended in each(partial(_judged, files, work, engine, trust), [case.path for case in cases]):
        yield _outcome(ended)


def _judged(files, work, engine, trust, path):
    return judge(files / path, path, work, engine=engine, trust=trust)


def _outcome(ended):
    status, reason = ended.answer or ("fault", ended.problem)
    if ended.problem:
        status, reason = "fault", ended.problem
    elif status == "refused" and cause(reason) is None:
        status, reason = "fault", f"refused without a known cause: {reason}"
    return Outcome(ended.job, status, reason, ended.seconds, ended.peak)
