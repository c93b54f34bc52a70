"""What an operator sees of the page in a real browser, served by the real API: history, trouble, strangers' names, any screen."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("websockets")
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.settings import TableRow, k_at
from nightjar.policy.wire.status import FleetStatus
from tests.cluster.page.devtools import BROWSER, Page, new_page, running_browser
from tests.cluster.page.fake_policy import ChangingPolicy, learned_fleet, served

if not BROWSER:
    pytest.skip("no browser: `make page` unpacks one, NIGHTJAR_BROWSER names yours", allow_module_level=True)

MARKUP = "<img src=x onerror=document.title='owned'><b>bold</b>"
ROWS = "document.querySelectorAll('.replicas tbody tr')"
SPANS = "(document.querySelector('.replicas .seen path.batch').getAttribute('d') ?? '').split('M').length - 1"
"""Stretches of time in the first replica's chart."""


@pytest.fixture(scope="module")
def devtools_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One browser for all tests."""
    with running_browser(tmp_path_factory.mktemp("browser")) as url:
        yield url


@pytest.fixture
def policy() -> ChangingPolicy:
    return ChangingPolicy(learned_fleet())


@pytest.fixture
def url(policy: ChangingPolicy) -> Iterator[str]:
    with served(policy) as address:
        yield address


@pytest.fixture
def page(devtools_url: str) -> Iterator[Page]:
    """A tab in which nothing may go wrong."""
    with new_page(devtools_url) as tab:
        yield tab
        tab.evaluate("1")
        assert tab.problems == []


def look(page: Page, url: str) -> None:
    """Open the page and wait for the first answer."""
    page.open(f"{url}?every=0.2")
    page.wait_for("!document.querySelector('#fleet').hidden")


def named(fleet: FleetStatus, name: str) -> FleetStatus:
    """The fleet with a stranger's words wherever a stranger may write some."""
    (group,) = fleet.groups
    names = {"replica_id": name, "application": name, "node_id": name, "group_id": name, "warning": name}
    replicas = (fleet.replicas[0].model_copy(update=names), *fleet.replicas[1:])
    return fleet.model_copy(
        update={
            "policy": fleet.policy.model_copy(update={"settings_error": name, "last_refusal": name}),
            "overrides": (fleet.overrides[0].model_copy(update={"name": name, "reason": name}),),
            "groups": (group.model_copy(update={"group_id": name, "reason": name}),),
            "replicas": replicas,
        }
    )


def test_every_replica_has_a_row_with_what_it_runs_and_why(page: Page, url: str) -> None:
    look(page, url)
    assert page.evaluate(f"{ROWS}.length") == 5
    first = page.text(".replicas tbody tr")
    for part in ("smollm2/abc", "auto", "4/1", "25 %", "0.80", "41.5", "active", "3.17", "the guard holds batch 9 off"):
        assert part in first
    assert "node 4c39ac0f\n" in f"{first}\n".replace("\t", "\n"), "and not all of its 56 characters"
    assert "K=5 up to batch 4" not in first, "explain says why"
    asleep = page.text(".replicas tbody tr:nth-child(3)")
    assert "lag 840 tokens" in asleep
    assert "dormant" in asleep


def test_k_and_batch_per_step_grow_into_a_history(page: Page, url: str) -> None:
    look(page, url)
    before = page.wait_for(SPANS)
    page.wait_for(f"{SPANS} >= {before + 3}")
    assert "K=5 in 75 %, off in 25 % of steps" in page.text(".replicas tbody tr [data-field=history]")
    assert page.text(".replicas tbody tr [data-field=most-rows]") == "batch 9"
    assert page.text(".replicas tbody tr:nth-child(2) [data-field=history]") == "no step yet", "a silent one leaves a gap"


def test_a_chart_shows_the_mean_since_the_engine_started_before_there_is_a_history(page: Page, url: str) -> None:
    page.open(f"{url}?every=60")
    page.wait_for("!document.querySelector('#fleet').hidden")
    assert page.text(".replicas tbody tr [data-field=history]") == "since it started: K=5 in 75 %, off in 25 % of steps"
    before = "document.querySelector('.replicas tbody .before path.batch').getAttribute('d')"
    assert page.evaluate(before).startswith("M0.0 "), "over the whole width"
    assert not page.evaluate(before.replace(".before", ".seen"))


def test_what_was_gained_is_told_with_its_doubt(page: Page, url: str) -> None:
    look(page, url)
    assert page.text("#gained") == "+12 %"
    assert page.text("#gained-doubt") == "+7 to +17 % of K=5's engine time"
    assert "Gained in 1 h 5 min: +12 % (+7 to +17 %) of K=5's engine time; of off's not known." in page.text(".group")


def test_a_group_shows_goodput_gain_doubt_plan_and_its_restarts(page: Page, url: str) -> None:
    look(page, url)
    best = page.text(".heat tbody tr:first-child td:last-child")
    assert re.search(r"◆ 7\d\.\d\n\+\d\d % ±6", best)
    assert page.evaluate("document.querySelectorAll('.heat tbody tr').length") == 8
    group = page.text(".group")
    for part in (
        "+26 %",
        "K=5 at batch 1\N{EN DASH}5, off at batch 6\N{EN DASH}16",
        "1 lease open, 1 wish waiting",
        "2310",
        "3 now",
    ):
        assert part in group
    assert "smollm2/jkl" in page.text(".group [data-field=queue]")


def test_what_needs_attention_is_said_in_words(page: Page, url: str) -> None:
    look(page, url)
    attention = page.text("#attention")
    assert "settings were refused, the previous ones hold: modee: no such setting" in attention
    assert "by hand (release), until it is ended: no new plan, measurement or lease." in attention
    assert "Ray's memory monitor killed 2 replicas within the last hour, the last smollm2/abd at 12:00:00 UTC" in attention
    assert page.text("#mode").endswith(", frozen")
    assert "canary mode pin=3 on 25 % of the replicas: better" in attention.lower()
    assert "smollm2/def is silent" in attention
    assert "smollm2/mno: served plainly: suffix decoding asserts K" in attention
    assert "application smollm2\toff\t1 min 30 s more\ttoo [hot]" in page.text("#overrides tbody")


def test_a_policy_that_does_not_answer_is_said_and_asked_again_until_it_does(page: Page, url: str, policy: ChangingPolicy) -> None:
    look(page, url)
    policy.reachable = False
    page.wait_for("document.querySelector('#notice').innerText.includes('does not answer')")
    notice = page.text("#notice")
    assert "replicas keep serving with their last settings" in notice
    assert "Below is what was heard last" in notice
    page.wait_for("document.body.classList.contains('stale')")
    assert "stale" in page.text("#age")
    assert page.evaluate(f"{ROWS}.length") == 5
    policy.reachable = True
    page.wait_for("document.querySelector('#notice').textContent === '' && !document.body.classList.contains('stale')")


def test_a_service_that_is_gone_is_said_and_what_was_heard_last_stays(page: Page, policy: ChangingPolicy) -> None:
    with served(policy) as address:
        look(page, address)
    page.wait_for("document.querySelector('#notice').innerText.startsWith('Nothing answers at this address')")
    assert page.evaluate(f"{ROWS}.length") == 5


def test_a_policy_that_never_answered_leaves_nothing_but_the_notice(page: Page, url: str, policy: ChangingPolicy) -> None:
    policy.reachable = False
    page.open(f"{url}?every=0.2")
    page.wait_for("document.querySelector('#notice').innerText.includes('does not answer')")
    assert page.evaluate("document.querySelector('#fleet').hidden")
    policy.reachable = True
    page.wait_for("!document.querySelector('#fleet').hidden")


def test_without_a_replica_the_page_waits_for_the_first(page: Page, url: str, policy: ChangingPolicy) -> None:
    everything = policy.fleet
    nobody_yet = everything.policy.model_copy(update={"reports": 0})
    policy.fleet = everything.model_copy(update={"policy": nobody_yet, "replicas": (), "groups": ()})
    look(page, url)
    assert "No replica has reported yet" in page.text("main")
    assert not page.evaluate("document.querySelector('.replicas').checkVisibility()")
    policy.fleet = everything.model_copy(update={"replicas": ()})
    page.wait_for(
        "document.querySelector('#no-replica').innerText.startsWith('No replica reports any more, 9 reports came before')"
    )
    policy.fleet = everything
    page.wait_for(f"{ROWS}.length === 5")


def test_names_and_reasons_with_markup_in_them_are_shown_as_text(page: Page, url: str, policy: ChangingPolicy) -> None:
    policy.fleet = named(policy.fleet, MARKUP)
    look(page, url)
    for selector in (".replicas tbody th", ".replicas [data-field=warning]", ".group h3", "#overrides tbody", "#attention"):
        assert MARKUP in page.text(selector)
    assert page.evaluate("document.querySelectorAll('main img, main b').length") == 0
    assert page.evaluate("document.title") == "Nightjar: the fleet"


def test_even_a_page_that_failed_to_escape_could_run_no_foreign_script(page: Page, url: str) -> None:
    look(page, url)
    page.evaluate("document.body.append(Object.assign(document.createElement('b'), {onclick: null, id: 'probe'}))")
    refused = page.evaluate(
        f"(() => {{ try {{ probe.innerHTML = {MARKUP!r}; return 'taken'; }} catch (error) {{ return error.name; }} }})()"
    )
    assert refused == "TypeError"
    assert len(page.problems) == 1
    assert "TrustedHTML" in page.problems.pop()


def test_a_replica_that_stays_keeps_its_row_and_one_that_goes_loses_it(page: Page, url: str, policy: ChangingPolicy) -> None:
    look(page, url)
    page.evaluate(f"{ROWS}[1].mark = 'kept'")
    policy.fleet = policy.fleet.model_copy(update={"replicas": policy.fleet.replicas[1:3]})
    page.wait_for(f"{ROWS}.length === 2")
    assert page.evaluate(f"{ROWS}[0].mark") == "kept"


def test_the_filter_finds_replicas_by_keyboard(page: Page, url: str) -> None:
    look(page, url)
    page.type("#filter", "dormant jkl")
    page.wait_for(f"{ROWS}.length === 1")
    assert "1 of 5 shown" in page.text(".filter")


def test_pause_holds_the_page_still_until_it_goes_on(page: Page, url: str, policy: ChangingPolicy) -> None:
    look(page, url)
    page.evaluate("document.querySelector('#pause').focus()")
    page.press(" ", 32, " ")
    page.wait_for("document.querySelector('#age').innerText.startsWith('paused')")
    assert page.evaluate("document.querySelector('#pause').getAttribute('aria-pressed')") == "true"
    policy.fleet = policy.fleet.model_copy(update={"replicas": policy.fleet.replicas[:1]})
    assert page.evaluate(f"{ROWS}.length") == 5
    page.press(" ", 32, " ")
    page.wait_for(f"{ROWS}.length === 1")


@pytest.mark.parametrize("width_px", [320, 400, 768, 1280, 1400, 1600])
def test_no_width_makes_the_whole_page_scroll_sideways(page: Page, url: str, policy: ChangingPolicy, width_px: int) -> None:
    policy.fleet = named(policy.fleet, "a-name-without-any-place-to-break-" * 7)
    page.resize(width_px)
    look(page, url)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width_px


@pytest.mark.parametrize("width_px", [400, 1600])
def test_a_screen_reader_meets_a_table_of_replicas_at_any_width(page: Page, url: str, width_px: int) -> None:
    page.resize(width_px)
    look(page, url)
    roles = page.roles()
    assert roles.count("rowheader") == 5 + 8, "one a replica, and one a bucket of the heat map"
    assert roles.count("columnheader") >= 12 + 7
    assert {"status", "searchbox", "main"} <= set(roles)


def test_dark_and_light_follow_the_persons_system(page: Page, url: str) -> None:
    look(page, url)
    colours = {}
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        style = "getComputedStyle(document.body)"
        colours[scheme] = [
            sum(map(int, re.findall(r"\d+", page.evaluate(f"{style}.{name}")))) for name in ("backgroundColor", "color")
        ]
    assert colours["light"][0] > 600 > 300 > colours["light"][1]
    assert colours["dark"][0] < 300 < 600 < colours["dark"][1]


def test_it_works_with_and_without_the_slash_behind_its_prefix(page: Page, url: str) -> None:
    for address in (url, f"{url}/"):
        page.open(address)
        page.wait_for("!document.querySelector('#fleet').hidden")
        assert page.evaluate("location.href") == address


def test_the_plans_k_is_marked_where_an_engine_runs_it_also_in_a_gap_of_the_plan(
    page: Page, url: str, policy: ChangingPolicy
) -> None:
    (group,) = policy.fleet.groups
    rows = (
        TableRow(first_batch_size=2, last_batch_size=3, num_speculative_tokens=3),
        TableRow(first_batch_size=8, last_batch_size=11, num_speculative_tokens=1),
    )
    policy.fleet = policy.fleet.model_copy(update={"groups": (group.model_copy(update={"rows": rows}),)})
    look(page, url)
    heat = "[...document.querySelectorAll('.heat tbody tr')]"
    marked = f"{heat}.map((row) => [...row.children].findIndex((one) => one.matches('.planned')) - 1)"
    assert page.evaluate(marked) == [k_at(rows, batch) for batch in (1, 2, 3, 4, 6, 8, 12, 16)]


def test_what_is_set_by_hand_shows_with_its_planner_limit_and_objective(page: Page, url: str, policy: ChangingPolicy) -> None:
    aims = {"mode": Mode.parse("auto"), "planner": "nightjar", "max_step_ms": 40.0, "objective": "throughput"}
    policy.fleet = policy.fleet.model_copy(update={"overrides": (policy.fleet.overrides[0].model_copy(update=aims),)})
    look(page, url)
    assert "auto, planner nightjar, steps of up to 40 ms, objective throughput" in page.text("#overrides tbody")


def test_a_planner_that_does_not_learn_shows_what_was_measured_alone(page: Page, url: str, policy: ChangingPolicy) -> None:
    (group,) = policy.fleet.groups
    policy.fleet = policy.fleet.model_copy(
        update={"groups": (group.model_copy(update={"goodput_model": None, "planner": "fixed"}),)}
    )
    look(page, url)
    assert "planner fixed does not say how sure it is" in page.text("[data-field=legend]")
    unmeasured = group.model_copy(update={"goodput_model": None, "cells": ()})
    policy.fleet = policy.fleet.model_copy(update={"groups": (unmeasured,)})
    page.wait_for("document.querySelector('[data-field=nothing]').checkVisibility()")


def test_of_a_k_that_never_ran_nothing_is_shown_and_the_page_says_what_finds_out(
    page: Page, url: str, policy: ChangingPolicy
) -> None:
    (group,) = policy.fleet.groups
    assert group.goodput_model is not None
    of_one = {
        name: tuple(row[-1:] for row in getattr(group.goodput_model, name))
        for name in ("goodput_tokens_per_s", "goodput_deviation")
    }
    model = group.goodput_model.model_copy(update={"num_speculative_tokens": (5,), "gain_deviation": (), **of_one})
    words = "not known what other K give: only K=5 ever ran here (`nightjar mode auto --for 5m` finds out)"
    update = {"goodput_model": model, "not_known": words, "predicted_tokens_per_s": None, "predicted_off_tokens_per_s": None}
    policy.fleet = policy.fleet.model_copy(update={"groups": (group.model_copy(update=update),)})
    look(page, url)
    assert page.evaluate("[...document.querySelectorAll('.heat thead th')].map((head) => head.textContent).join()") == "batch,K=5"
    assert words in page.text("[data-field=facts]")
    assert "%" not in page.text(".heat tbody")
