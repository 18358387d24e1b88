"""The campaign in a small form: no traceback, no hang, nothing wrong that is passed, and nothing lost by a kill."""

import pytest

from tests.campaign import inputs, processes

pytestmark = pytest.mark.slow


def test_bad_inputs_are_answered_in_sentences():
    bad = []

    def report(case: inputs.Case, answer: inputs.Answer) -> None:
        if answer.verdict in inputs.BAD:
            bad.append((case, answer))

    inputs.run(list(inputs.cases(3)), report)
    assert not bad


@pytest.mark.parametrize("how", ["killed", "two at once", "no space"])
def test_a_disturbed_batch_ends_as_one_that_was_not(how, tmp_path):
    bad = []

    def report(kind: str, verdict: str, said: str) -> None:
        if verdict != processes.RIGHT:
            bad.append((kind, verdict, said))

    processes.disturb("register", how, 1, tmp_path / "runs", report)
    assert not bad
