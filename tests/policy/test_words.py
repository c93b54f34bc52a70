"""Causes are codes with numbers; one module says them, whatever they hold, and no other code reads what it says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy import words as module
from nightjar.policy.planners.base import GroupPlan, rows_of
from nightjar.policy.status.explanation import explain
from nightjar.policy.status.fleet import fleet_status
from nightjar.policy.wire.cause import Cause, Code, because, codes
from nightjar.policy.wire.explanation import Explanation
from nightjar.policy.wire.status import ReplicaStatus
from nightjar.policy.words import NOT_MEASURED, explained, has_guesses, in_words, step_codes
from tests.policy.engines import Fleet, Replica

ROOT = Path(__file__).parents[2]
ROOMS = ("policy", "cluster", "deployments", "loadtests")
SENTENCES = {"reason", "decision_reason", "words", "summary", "warning", "steering_reason", "serving_plainly", "not_known", "fault"}
READING = {"startswith", "endswith", "find", "index", "count", "split", "rsplit", "partition", "rpartition", "removeprefix"}

numbers = st.one_of(st.integers(-(1 << 60), 1 << 60), st.floats(allow_nan=False, allow_infinity=False))
names = sorted(
    set(re.findall(r"said\[.([a-z_]+).\]", Path(module.__file__).read_text())) | {"num_speculative_tokens", "clean_steps"}
)
causes = st.builds(
    Cause,
    code=st.sampled_from(Code),
    numbers=st.dictionaries(st.sampled_from(names), numbers, max_size=16),
    text=st.text(min_size=1, max_size=40),
)


@pytest.mark.parametrize("code", Code)
def test_each_code_has_words_of_its_own(code: Code) -> None:
    said = in_words((because(code, "a text"),))
    assert said
    assert said != f"{code}: a text", "words, and not the code"


@given(st.lists(causes, min_size=1, max_size=8).map(tuple))
def test_any_causes_whatever_their_numbers_have_words_and_come_back_equal_from_json(given: tuple[Cause, ...]) -> None:
    assert in_words(given)
    assert explained(given)
    assert tuple(Cause.model_validate_json(cause.model_dump_json()) for cause in given) == given
    assert tuple(Cause.from_wire(cause.to_wire()) for cause in given) == given


def test_a_code_that_a_newer_release_invented_is_kept_and_said_by_its_name() -> None:
    heard = Cause.model_validate({"code": "moonlight", "numbers": {"phase": 0.5}, "text": "it is full"})
    assert in_words((because(Code.PLAN), heard)) == "the plan's K for this decode batch; moonlight: it is full"
    assert Cause.from_wire(heard.to_wire()) == heard


def test_a_plan_is_said_row_by_row_and_beside_prefill() -> None:
    plan = GroupPlan(rows_of((3, 3, 0), 3), mixed_rows=rows_of((1, 1, 0), 3))
    assert in_words(plan.summary) == "K=3 at batch 1-2, off at batch 3; beside prefill K=1 at batch 1-2, off at batch 3"


def test_numbers_that_nobody_measured_are_marked_and_their_causes_say_so() -> None:
    fleet = Fleet([Replica("a", 16)])
    fleet.run(5.0)
    (group,), _ = fleet_status(fleet.state, fleet.decisions, fleet.now_s)
    assert has_guesses(group.causes)
    assert NOT_MEASURED in group.reason


def test_what_status_and_explain_say_are_the_words_of_their_causes() -> None:
    fleet = Fleet([Replica("a", 16), Replica("b", 4)])
    fleet.run(5.0)
    for replica in fleet_status(fleet.state, fleet.decisions, fleet.now_s)[1]:
        assert replica.causes
        assert replica.reason == in_words(replica.causes)
        assert replica.decision_reason == in_words(replica.step_causes)
    told = explain(fleet.state, fleet.decisions, fleet.settings, (), "a", fleet.now_s)
    assert Explanation.from_wire(told.to_wire()) == told
    assert all(statement.causes and statement.words for statement in told.statements)


@pytest.mark.parametrize("beside", [(), (Code.SHADOW,), (Code.OWN_MODE,), (Code.SHADOW, Code.OWN_MODE)])
@pytest.mark.parametrize("code", [Code.SEGMENT, Code.DWELL, Code.BESIDE_PREFILL])
def test_a_status_of_the_release_before_has_its_codes_by_its_sentence(code: Code, beside: Sequence[Code]) -> None:
    said = sorted((code, *beside), key=[Code.SHADOW, code, Code.OWN_MODE].index)
    fleet = Fleet([Replica("a", 16)])
    fleet.run(1.0)
    _, (replica,) = fleet_status(fleet.state, fleet.decisions, fleet.now_s)
    old = replica.model_dump(mode="json", exclude={"causes", "step_causes"}) | {"decision_reason": in_words(map(because, said))}
    heard = ReplicaStatus.model_validate(old)
    assert (step_codes(heard), heard.reason) == (frozenset(said), replica.reason)
    assert step_codes(replica) == codes(replica.step_causes)


def test_no_code_but_the_module_that_makes_it_asks_what_stands_in_a_sentence() -> None:
    read = [
        f"{path.relative_to(ROOT)}:{line}"
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        if path != Path(module.__file__).resolve()
        for line in sentences_read(ast.parse(path.read_text(encoding="utf-8")))
    ]
    page = (ROOT / "cluster/api/page/index.html").read_text(encoding="utf-8")
    told = "|".join(SENTENCES)
    read += re.findall(rf"\b(?:{told})\.(?:includes|startsWith|endsWith|split|match|indexOf|search)\(.*", page)
    assert read == []


def test_a_question_to_a_sentence_is_found() -> None:
    for text in (
        "'old' in snapshot.decision_reason",
        "said = one.reason\nif Code.AGED in said: pass",
        "any('~' in reason for reason in group.plan.reasons)",
        "status.reason.split('; ')",
        "replica.warning == 'slow'",
    ):
        assert list(sentences_read(ast.parse(text))), text
    assert not list(sentences_read(ast.parse("if Code.AGED in codes(snapshot.causes) and one.reason: pass")))


def sentences_read(tree: ast.Module) -> Iterator[int]:
    """Lines where a sentence, or a name that was given one, is looked into or compared with a text."""
    given = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and node.value.attr in SENTENCES
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    given |= {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.comprehension) and isinstance(node.target, ast.Name) and node.target.id in SENTENCES
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            looks = isinstance(node.ops[0], ast.In | ast.NotIn) and is_sentence(node.comparators[0], given)
            same = isinstance(node.ops[0], ast.Eq | ast.NotEq) and any(is_sentence(side, given) for side in sides)
            if looks or same:
                yield node.lineno
        if isinstance(node, ast.Attribute) and node.attr in READING and is_sentence(node.value, given):
            yield node.lineno


def is_sentence(node: ast.expr, given: set[str]) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr in SENTENCES) or (isinstance(node, ast.Name) and node.id in given)
