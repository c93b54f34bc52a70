"""The ledger by hand: blocks of four tokens, one call at a time. What it says is there is there; what it forgets is recomputed."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from nightjar.deployments.engine.scheduler.lag_ledger import Lag, LagLedger, known_tokens

SIZE = 4


class Cache:
    """A ledger over sixteen blocks, and which of them each request holds."""

    def __init__(self, **tables: Sequence[int]) -> None:
        self.tables = dict(tables)
        self.ledger = LagLedger(num_blocks=16, block_size=SIZE, blocks=self._blocks)

    def _blocks(self, request_id: str) -> Sequence[Any]:
        return [SimpleNamespace(block_id=block_id) for block_id in self.tables.get(request_id, ())]

    def found(self, block_ids: Sequence[int], num_computed_tokens: int) -> int:
        """How many tokens a newcomer that finds these blocks has of the draft."""
        self.tables["newcomer"] = block_ids
        self.ledger.draft_runs({name: at(name, 1 << 30) for name in self.ledger.behind})
        self.ledger.enter("newcomer", num_computed_tokens, ())
        valid = self.ledger.behind.get("newcomer", num_computed_tokens)
        self.ledger._entries.pop("newcomer")
        self.ledger._behind.pop("newcomer", None)
        return valid


def at(request_id: str, num_computed_tokens: int, num_tokens: int | None = None) -> Any:
    return SimpleNamespace(
        request_id=request_id,
        num_computed_tokens=num_computed_tokens,
        num_tokens=num_computed_tokens + 1 if num_tokens is None else num_tokens,
    )


def test_what_the_target_reads_while_the_draft_sleeps_is_missing() -> None:
    ledger = Cache(a=[1, 2, 3, 4]).ledger
    ledger.enter("a", 0, ())
    assert ledger.lag(at("a", 5)) is None, "a row in sync misses nothing"
    ledger.draft_sleeps([at("a", 10)])
    assert (ledger.lag(at("a", 10)), ledger.is_behind(at("a", 10))) == (None, False)
    assert (ledger.lag(at("a", 13)), ledger.is_behind(at("a", 13))) == (Lag("a", 10, 13), True)
    assert Lag("a", 10, 13).tokens == 3
    ledger.draft_sleeps([at("a", 20)])
    assert ledger.behind == {"a": 10}, "it sleeps since then"


def test_a_token_counts_once_its_id_is_known() -> None:
    assert (known_tokens(at("a", 15, 13)), known_tokens(at("a", 13, 15))) == (13, 13)
    ledger = Cache(a=[1, 2, 3, 4]).ledger
    ledger.enter("a", 0, ())
    ledger.draft_sleeps([at("a", 12, 10)])
    assert ledger.behind == {"a": 10}


def test_only_requests_that_entered_fall_behind() -> None:
    ledger = Cache().ledger
    assert not ledger.knows("stranger")
    ledger.draft_sleeps([at("stranger", 10)])
    assert ledger.behind == {}
    assert not ledger.is_behind(at("stranger", 10))


def test_a_request_that_enters_while_the_draft_sleeps_misses_all_it_reads() -> None:
    ledger = Cache(a=[1]).ledger
    ledger.draft_sleeps([])
    ledger.enter("a", 0, ())
    assert ledger.behind == {"a": 0}
    assert ledger.knows("a")


def test_when_the_draft_runs_rows_that_miss_nothing_are_in_sync_and_others_are_not() -> None:
    ledger = Cache(a=[1], b=[2]).ledger
    for name in "ab":
        ledger.enter(name, 0, ())
    ledger.draft_sleeps([at("a", 3), at("b", 2)])
    ledger.draft_runs({"a": at("a", 3), "b": at("b", 3)})
    assert ledger.behind == {"b": 2}
    ledger.enter("c", 0, ())
    assert ledger.behind == {"b": 2}, "and so are rows that begin"
    ledger.draft_sleeps([at("a", 4)])
    assert ledger.behind == {"a": 4, "b": 2}


@pytest.mark.parametrize(
    ("slept_at", "blocks", "asked", "valid"),
    [
        (None, [1, 2], 8, 8),
        (None, [1, 2, 3], 10, 10),  # the last block is half full
        (None, [1, 2, 3], 9, 9),
        (None, [1, 9], 8, 4),  # another block after the first
        (None, [1, 9, 2], 12, 4),  # and one of its own after that
        (6, [1, 2], 8, 6),
        (6, [1, 2, 3], 10, 6),  # nothing counts after a gap
        (6, [1], 4, 4),
        (0, [1, 2], 8, 0),
    ],
)
def test_what_a_request_leaves_in_its_blocks_is_there_for_the_next(
    slept_at: int | None, blocks: list[int], asked: int, valid: int
) -> None:
    cache = Cache(a=[1, 2, 3])
    cache.ledger.enter("a", 0, ())
    if slept_at is not None:
        cache.ledger.draft_sleeps([at("a", slept_at)])
    cache.ledger.leave(at("a", 10))
    assert not cache.ledger.knows("a")
    assert cache.ledger.behind == {}
    assert cache.found(blocks, asked) == valid


def test_leaving_twice_changes_nothing() -> None:
    cache = Cache(a=[1, 2])
    cache.ledger.enter("a", 0, ())
    cache.ledger.leave(at("a", 8))
    cache.ledger.leave(at("a", 0))
    assert cache.found([1, 2], 8) == 8


def test_blocks_of_running_requests_are_read_as_they_are_now() -> None:
    cache = Cache(a=[1, 2], b=[1, 2, 5])
    ledger = cache.ledger
    ledger.enter("a", 0, ())
    ledger.enter("b", 8, [at("a", 8), at("b", 8)])
    assert ledger.behind == {}, "the draft had read them; the newcomer's own blocks say nothing yet"
    cache.tables["c"] = [1, 2]
    ledger.draft_sleeps([at("a", 5), at("b", 8)])
    ledger.leave(at("b", 8))
    ledger.enter("c", 8, [at("a", 8)])
    assert ledger.behind == {"a": 5, "c": 8}, "b had read all of the shared blocks"


def test_a_shared_block_keeps_the_higher_count_and_an_own_block_the_newest() -> None:
    cache = Cache(a=[1, 2], b=[1, 2, 3])
    ledger = cache.ledger
    ledger.enter("a", 0, ())
    ledger.draft_sleeps([at("a", 0)])
    ledger.enter("b", 8, [at("a", 8)])
    assert ledger.behind == {"a": 0, "b": 0}
    ledger.recomputed("a", 8)
    ledger.leave(at("a", 8))
    ledger.leave(at("b", 12))
    assert cache.found([1, 2, 3], 12) == 8, "b had none, a had both that they share"
    cache.tables["own"] = [1, 2]
    ledger.draft_sleeps([])
    ledger.enter("own", 0, ())
    ledger.leave(at("own", 8))
    assert cache.found([1, 2], 8) == 0, "a block that was handed out anew is its new owner's"


def test_counts_follow_a_row_that_goes_on_and_one_that_catches_up() -> None:
    cache = Cache(a=[1, 2, 3, 4])
    ledger = cache.ledger
    ledger.enter("a", 0, ())
    for computed in (3, 6, 7, 14):
        cache.tables["b"] = [1, 2, 3, 4]
        ledger.enter("b", computed, [at("a", computed)])
        assert ledger.behind == {}
        ledger._entries.pop("b")
    ledger.draft_sleeps([at("a", 14)])
    ledger.leave(at("a", 16))
    assert cache.found([1, 2, 3, 4], 16) == 14


@pytest.mark.parametrize(("recomputed_to", "valid"), [(4, 4), (8, 8), (12, 12), (15, 15), (16, 16)])
def test_a_row_that_was_written_while_behind_is_written_again_once_it_caught_up(recomputed_to: int, valid: int) -> None:
    cache = Cache(a=[1, 2, 3, 4])
    ledger = cache.ledger
    ledger.enter("a", 0, ())
    ledger.draft_sleeps([at("a", 2)])
    assert cache_prefix(cache, at("a", 16)) == 2
    ledger.recomputed("a", recomputed_to)
    ledger.leave(at("a", 16))
    assert cache.found([1, 2, 3, 4], 16) == valid


def cache_prefix(cache: Cache, running: Any) -> int:
    """What a newcomer finds beside a running request whose blocks it shares, without staying."""
    cache.tables["beside"] = cache.tables[running.request_id]
    cache.ledger.enter("beside", running.num_computed_tokens, [running])
    valid: int = cache.ledger._behind.pop("beside", running.num_computed_tokens)
    cache.ledger._entries.pop("beside")
    return valid


@pytest.mark.parametrize(("known", "counts"), [(3, [3, 7, 7, 7]), (4, [4, 0, 7, 7]), (5, [4, 1, 7, 7])])
def test_the_blocks_that_a_request_fills_are_written_and_none_after_them(known: int, counts: list[int]) -> None:
    cache = Cache(a=[1, 2, 3, 4])
    cache.ledger.enter("a", 0, ())
    cache.ledger._valid_in_block[1:5] = [7, 7, 7, 7]
    cache.ledger.leave(at("a", known))
    assert cache.ledger._valid_in_block[1:5] == counts


def test_a_request_that_fills_its_first_block_writes_nothing_into_its_last() -> None:
    cache = Cache(a=[1, 2, 3, 4])
    cache.ledger.enter("a", 0, ())
    cache.ledger.leave(at("a", 3))
    assert cache.ledger._valid_in_block[1:5] == [3, 0, 0, 0]


def test_after_the_weights_left_a_request_writes_that_it_holds_nothing() -> None:
    cache = Cache(a=[1, 2, 3, 4])
    cache.ledger.enter("a", 0, ())
    cache.ledger.forget()
    cache.ledger.leave(at("a", 5))
    assert cache.ledger._valid_in_block[1:5] == [0, 0, 0, 0]


def test_only_the_blocks_that_a_request_found_are_shared() -> None:
    cache = Cache(a=[1, 2], b=[1, 2])
    ledger = cache.ledger
    ledger.enter("a", 0, ())
    ledger.leave(at("a", 8))
    ledger.enter("b", 4, ())
    ledger.draft_sleeps([at("b", 4)])
    ledger.leave(at("b", 8))
    assert cache.found([1, 2], 8) == 4, "the second is its own, and holds nothing of the draft any more"


def test_a_request_that_found_half_and_caught_up_writes_the_rest() -> None:
    cache = Cache(a=[1, 2], b=[1, 2])
    ledger = cache.ledger
    ledger.enter("a", 0, ())
    ledger.draft_sleeps([at("a", 4)])
    ledger.leave(at("a", 8))
    ledger.enter("b", 8, ())
    assert ledger.behind == {"b": 4}
    ledger.recomputed("b", 8)
    ledger.leave(at("b", 8))
    assert cache.found([1, 2], 8) == 8


def test_no_more_is_found_of_a_block_than_was_asked_for() -> None:
    cache = Cache(a=[1, 2, 3], b=[1, 2, 3])
    ledger = cache.ledger
    ledger.enter("a", 0, ())
    ledger.leave(at("a", 12))
    ledger.draft_sleeps([])
    ledger.enter("b", 10, ())
    assert ledger.behind == {"b": 10}


def test_the_new_blocks_of_a_request_that_begins_hold_nothing_of_others() -> None:
    cache = Cache(a=[1, 2, 3, 4])
    cache.ledger.enter("a", 0, ())
    cache.ledger.leave(at("a", 16))
    cache.tables["b"] = [1, 2, 3, 4]
    cache.ledger.clear_new_blocks("b", 6)
    assert cache.ledger._valid_in_block[1:5] == [4, 2, 0, 0]
    cache.ledger.enter("b", 6, ())
    cache.tables["c"] = [1]
    cache.ledger.clear_new_blocks("c", 4)
    assert cache.ledger._valid_in_block[1:5] == [4, 2, 0, 0], "found blocks are not new"
    cache.tables["d"] = [1, 2]
    cache.ledger.clear_new_blocks("d", 7)
    assert cache.ledger._valid_in_block[1:5] == [4, 2, 0, 0], "and a count never rises by it"
    cache.ledger.clear_new_blocks("b", 0)
    assert cache.ledger._valid_in_block[1:5] == [4, 2, 0, 0], "a session that goes on keeps its own"


def test_a_copied_block_holds_what_its_source_holds() -> None:
    cache = Cache(a=[1, 2])
    cache.ledger.enter("a", 0, ())
    cache.ledger.leave(at("a", 7))
    cache.ledger.copied(2, 5)
    assert cache.found([1, 5], 7) == 7


@pytest.mark.parametrize(
    ("behind_at", "cut_to", "expected"),
    [(None, 6, {"a": 6}), (3, 6, {"a": 3}), (9, 6, {"a": 6}), (6, 6, {"a": 6})],
)
def test_a_session_that_is_cut_back_while_the_draft_sleeps_has_no_more_than_it_is_cut_to(
    behind_at: int | None, cut_to: int, expected: dict[str, int]
) -> None:
    ledger = Cache(a=[1, 2, 3]).ledger
    ledger.enter("a", 0, ())
    ledger.draft_sleeps([] if behind_at is None else [at("a", behind_at)])
    ledger.enter("a", cut_to, ())
    assert ledger.behind == expected


def test_a_session_in_sync_that_is_cut_back_stays_so_and_its_blocks_are_written_anew() -> None:
    cache = Cache(a=[1, 2, 3])
    ledger = cache.ledger
    ledger.enter("a", 0, ())
    assert cache_prefix(cache, at("a", 12)) == 12
    ledger.enter("a", 5, ())
    assert ledger.behind == {}
    ledger.draft_sleeps([at("a", 5)])
    ledger.leave(at("a", 12))
    assert cache.found([1, 2, 3], 12) == 5, "what was behind the cut is another text's"


def test_a_lagging_session_that_is_cut_back_after_the_draft_ran_keeps_its_lag() -> None:
    ledger = Cache(a=[1, 2, 3], b=[4]).ledger
    for name in "ab":
        ledger.enter(name, 0, ())
    ledger.draft_sleeps([at("a", 2), at("b", 1)])
    ledger.draft_runs({"a": at("a", 9), "b": at("b", 1)})
    ledger.enter("a", 6, ())
    assert ledger.behind == {"a": 2}


def cold_prompts(found: int, writer_tokens: int, *, reader: Sequence[int] = (1, 2, 3)) -> LagLedger:
    """Two requests of one cold prompt in one step: the second found blocks that the first fills in it."""
    cache = Cache(writer=[1, 2, 3], reader=reader)
    ledger = cache.ledger
    requests = {"writer": at("writer", 0, 13), "reader": at("reader", found, 13)}
    ledger.enter("writer", 0, ())
    ledger.enter("reader", found, [requests["writer"]])
    ledger.draft_runs(requests)
    entered = [("writer", 0), ("reader", found)]
    ledger.read_together(entered, requests, {"writer": writer_tokens, "reader": 4})
    return ledger


@pytest.mark.parametrize(
    ("found", "writer_tokens", "reader", "is_behind"),
    [
        (8, 8, (1, 2, 3), False),
        (8, 11, (1, 2, 3), False),
        (8, 7, (1, 2, 3), True),  # the writer does not fill the second block
        (4, 7, (1, 5), False),
        (8, 8, (1, 9, 3), True),  # a block that nobody fills
        (9, 12, (1, 2, 3), True),  # part of a block
        (12, 99, (1, 2, 3), False),  # no more blocks than the writer has
    ],
)
def test_requests_of_one_cold_prompt_read_it_together(
    found: int, writer_tokens: int, reader: tuple[int, ...], is_behind: bool
) -> None:
    ledger = cold_prompts(found, writer_tokens, reader=reader)
    assert ("reader" in ledger.behind) is is_behind
    assert "writer" not in ledger.behind


def test_rows_that_are_behind_fill_no_block_for_others_and_old_blocks_count() -> None:
    cache = Cache(old=[1], writer=[2], reader=[1, 2])
    ledger = cache.ledger
    ledger.enter("old", 0, ())
    ledger.leave(at("old", 4))
    requests = {"writer": at("writer", 0, 9), "reader": at("reader", 8, 9)}
    ledger.enter("writer", 0, ())
    ledger.enter("reader", 8, ())
    assert ledger.behind == {"reader": 4}
    ledger.recomputed("writer", 0)
    ledger.read_together([("reader", 8)], requests, {"writer": 4})
    assert ledger.behind == {"reader": 4, "writer": 0}
    del ledger._behind["writer"]
    ledger.read_together([("writer", 0)], requests, {"writer": 4})
    assert ledger.behind == {"reader": 4}, "it is asked of rows that entered"
    ledger.read_together([("reader", 8)], requests, {"writer": 4})
    assert ledger.behind == {}


def test_a_draft_whose_weights_left_has_nothing_of_any_row_or_block() -> None:
    cache = Cache(a=[1, 2], b=[3, 4])
    ledger = cache.ledger
    for name in "ab":
        ledger.enter(name, 0, ())
    ledger.leave(at("b", 8))
    assert cache_prefix(cache, at("a", 8)) == 8
    ledger.forget()
    assert ledger.behind == {"a": 0}
    assert cache.found([3, 4], 8) == 0
    ledger.forget()
    ledger.enter("c", 0, ())
    assert ledger.behind == {"a": 0, "c": 0}, "rows that begin are behind, since nobody reads along"
    ledger.recomputed("a", 6)
    ledger.leave(at("a", 8))
    assert cache.found([1, 2], 8) == 6


def test_a_ledger_that_holds_what_cannot_be_says_so() -> None:
    cache = Cache(a=[1])
    ledger = cache.ledger
    ledger.enter("a", 0, ())
    ledger.check_integrity({"a": at("a", 0)})
    with pytest.raises(AssertionError, match=r"hold no blocks: \['a'\]"):
        ledger.check_integrity({})
    ledger.recomputed("b", 3)
    with pytest.raises(AssertionError, match=r"hold no blocks: \['b'\]"):
        ledger.check_integrity({"a": at("a", 0), "b": at("b", 3)})
    del ledger._behind["b"]
    for count in (-1, SIZE + 1):
        ledger._valid_in_block[7] = count
        with pytest.raises(AssertionError, match=r"impossible counts: \[7\]"):
            ledger.check_integrity({"a": at("a", 0)})
    ledger._valid_in_block = [-1] * 16
    with pytest.raises(AssertionError, match=r"impossible counts: \[0, 1, 2, 3, 4, 5, 6, 7, 8, 9\]"):
        ledger.check_integrity({"a": at("a", 0)})
    ledger._valid_in_block = [0] * 16
    for count in (0, SIZE):
        ledger._valid_in_block[7] = count
        ledger.check_integrity({"a": at("a", 0)})
