"""A function whose text changed its meaning is named with what we assume of it, until somebody read it; comments change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.contract import bodies
from tests.contract.__main__ import main
from tests.contract.bodies import ABSENT, Body, accept, digest_in, unread
from tests.contract.sources import Sources
from tests.contract.touched import FEATURES, ROOT

SCHEDULE = "vllm.sched:Scheduler.schedule"
TEXT = '''
class Scheduler:
    def schedule(self, tokens):
        """Schedule."""
        note = """two
lines"""
        slots = tokens + self.lookahead  # past the step
        return slots, note
'''
READ = Body(SCHEDULE, "steering", "deployments/engine/scheduler/steered.py", "Look-ahead is added to the tokens.", {})
Written = Callable[[str, str], Sources]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(version: str, text: str) -> Sources:
        (tmp_path / version / "vllm").mkdir(parents=True)
        (tmp_path / version / "vllm/sched.py").write_text(text)
        return Sources(tmp_path / version)

    return write


def never(version: str) -> Sources:
    raise AssertionError(f"the sources of {version} were asked for")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# past the step", "# elsewhere"),
        ('"""Schedule."""', '"""Schedule.\n\n        In more words.\n        """'),
        ("tokens + self.lookahead", "(\n            tokens\n            + self.lookahead)"),
    ],
)
def test_a_body_means_the_same_in_other_words_and_on_other_lines(old: str, new: str, written: Written) -> None:
    assert old in TEXT
    digest = digest_in(written("1.0", TEXT), SCHEDULE)
    assert digest_in(written("1.1", TEXT.replace(old, new)), SCHEDULE) == digest


@pytest.mark.parametrize(
    ("old", "new"),
    [("tokens + self", "tokens - self"), ("schedule(self, tokens)", "schedule(self, tokens=1)"), ("two\nlines", "two lines")],
)
def test_a_changed_body_is_named_with_what_we_assume_and_how_much_changed(old: str, new: str, written: Written) -> None:
    before, after = written("1.0", TEXT), written("1.1", TEXT.replace(old, new))
    assert all(sources.find("vllm.sched", "Scheduler.schedule") for sources in (before, after))  # the name has not moved
    (changed,) = unread(accept([READ], [SCHEDULE], "1.0", before), "1.1", ["steering"], after, lambda version: before)
    assert changed.what == f"vLLM 1.1, steering: {SCHEDULE} has another body than in 1.0, 1 of 4 lines"
    assert changed.body.assumption == READ.assumption
    assert [line for line in changed.diff if line[0] in "+-"][:2] == ["--- 1.0", "+++ 1.1"]


def test_a_version_is_held_against_the_newest_that_was_read_and_only_then_against_its_own_digest(written: Written) -> None:
    old, new = written("0.9.0", TEXT), written("0.10.0", TEXT.replace("tokens +", "2 * tokens +"))
    known = accept(accept([READ], [SCHEDULE], "0.9.0", old), [SCHEDULE], "0.10.0", new)
    assert unread(known, "0.9.0", ["steering"], old, never) == []
    (changed,) = unread(known, "0.11.0", ["steering"], old, lambda version: {"0.10.0": new}[version])
    assert changed.read_version == "0.10.0"
    assert unread(accept(known, [SCHEDULE], "0.11.0", old), "0.11.0", ["steering"], old, never) == []


def test_a_function_that_is_gone_is_named_and_may_be_accepted_as_absent(written: Written) -> None:
    before, after = written("1.0", TEXT), written("1.1", TEXT.replace("def schedule", "def plan"))
    known = accept([READ], [SCHEDULE], "1.0", before)
    (gone,) = unread(known, "1.1", ["steering"], after, lambda version: before)
    assert gone.what == f"vLLM 1.1, steering: {SCHEDULE} is gone"
    (body,) = known = accept(known, [SCHEDULE], "1.1", after)
    assert body.digests["1.1"] == ABSENT
    assert unread(known, "1.1", ["steering"], after, never) == []
    assert body.newest_before("1.2") == "1.0"  # there is something to compare with


def test_a_body_that_nobody_read_is_named_and_one_of_a_feature_that_the_version_does_without_is_not(written: Written) -> None:
    sources = written("1.0", TEXT)
    (new,) = unread([READ], "1.0", ["steering"], sources, never)
    assert new.what == f"vLLM 1.0, steering: {SCHEDULE} was never read"
    assert unread([READ], "1.0", ["sleeping"], sources, never) == []


def test_accepting_one_function_accepts_no_other(written: Written) -> None:
    sources = written("1.0", TEXT)
    other = Body("vllm.sched:Scheduler", "steering", READ.ours, "It has one method.", {})
    assert [bool(body.digests) for body in accept([READ, other], [SCHEDULE], "1.0", sources)] == [True, False]


def test_what_is_written_down_is_read_as_it_was_written(tmp_path: Path) -> None:
    copy = tmp_path / "bodies.toml"
    bodies.save(bodies.load(), copy)
    assert copy.read_text() == bodies.FILE.read_text()
    odd = Body("f", "steering", "a", 'It says "K" \\ and é so on.', {"1.0": ABSENT})
    bodies.save([odd], copy)
    assert bodies.load(copy) == [odd]


def test_each_sentence_names_a_feature_and_a_file_that_are_there() -> None:
    for body in bodies.load():
        assert body.feature in FEATURES
        assert (ROOT / body.ours).is_file(), body
        assert body.assumption.endswith(".")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # vLLM, on import
def test_every_method_of_vllm_that_we_override_has_a_sentence() -> None:
    pytest.importorskip("vllm")
    from nightjar.deployments.engine.scheduler import steered
    from nightjar.deployments.engine.worker import v1, v2
    from nightjar.deployments.engine.worker import v1 as drafter

    known = {body.function for body in bodies.load()}
    ours = (
        steered.SteeredScheduler,
        steered.SteeredAsyncScheduler,
        drafter.SteeredDraftModelProposer,
        v1.SteeredGPUWorker,
        v2.SteeredV2Worker,
    )
    overridden = {method for cls in ours for method in _overridden(cls)}
    assert "vllm.v1.core.sched.scheduler:Scheduler._update_after_schedule" in overridden
    assert "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer.propose" in overridden
    assert sorted(overridden - known) == []


def _overridden(cls: type) -> Iterator[str]:
    """The methods of vLLM's classes that this one, or one of ours above it, puts another in place of; constructors left out."""
    lineage = cls.__mro__
    for place, owner in enumerate(lineage):
        if not owner.__module__.startswith("nightjar."):
            continue
        for name in vars(owner):
            theirs = [each for each in lineage[place + 1 :] if name in vars(each) and each.__module__.startswith("vllm.")]
            if theirs and callable(vars(owner)[name]) and not name.startswith("__"):
                yield f"{theirs[0].__module__}:{theirs[0].__name__}.{name}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # vLLM, on import
def test_every_body_of_the_installed_vllm_that_we_lean_on_was_read() -> None:
    version = pytest.importorskip("vllm.version")
    found = unread(bodies.load(), version.__version__, tuple(FEATURES), Sources(Path(version.__file__).parents[1]), never)
    assert [each.what for each in found] == []


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # vLLM, on import
def test_a_body_that_changed_under_its_name_is_named_until_it_was_read(tmp_path: Path) -> None:
    version = pytest.importorskip("vllm.version")
    schedule = "vllm.v1.core.sched.scheduler:Scheduler.schedule"
    _tree_with(tmp_path / "99.0.0/vllm", Path(version.__file__).parent, Path("v1/core/sched/scheduler.py"), "current_step += 1")
    notes = tmp_path / "bodies.toml"
    read = bodies.load()
    bodies.save([replace(body, digests={version.__version__: body.digests[version.__version__]}) for body in read], notes)

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(command, [*arguments, "--folder", str(tmp_path), "--bodies", str(notes)])
        return result.exit_code, result.output

    command = typer.Typer()
    command.command()(main)
    code, told = run("99.0.0", "--diff")
    assert code == 1
    assert f"vLLM 99.0.0, steering: {schedule} has another body than in {version.__version__}, 1 of " in told
    assert told.count("has another body") == 1
    assert "assumes: num_lookahead_tokens is read only as" in told
    assert "+        self.current_step += 1 + 1" in told
    assert run("--accept", schedule)[0] == 2
    code, told = run("99.0.0", "--accept", "Scheduler.schedule")
    assert (code, f"did you mean {schedule}?" in told) == (2, True)
    assert run("99.0.0", "--accept", schedule)[0] == 0
    assert [body.function for body in bodies.load(notes) if "99.0.0" in body.digests] == [schedule]


def _tree_with(target: Path, source: Path, changed: Path, statement: str) -> None:
    """The same package by links, but for one file, in which a number is raised and a comment added."""
    target.mkdir(parents=True)
    first, *rest = changed.parts
    for entry in source.iterdir():
        if entry.name != first:
            (target / entry.name).symlink_to(entry)
    if rest:
        _tree_with(target / first, source / first, Path(*rest), statement)
        return
    text = (source / first).read_text()
    assert text.count(f"{statement}\n") == 1
    (target / first).write_text(f"# of another version\n{text.replace(statement, f'{statement} + 1')}")
