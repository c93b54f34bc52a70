"""`nightjar assess` before a Prometheus in memory: the planner of production, its gain, its silence, and one line for bad input."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import yaml
from pydantic import SecretStr
from typer.testing import CliRunner

from nightjar.cluster.cli import app
from nightjar.loadtests.assessment import command
from nightjar.loadtests.assessment.findings import Findings, find
from nightjar.loadtests.assessment.forecast import UNCOMPARED, Fit, break_even, fit, forecast, priced
from nightjar.loadtests.assessment.history import History, scraped
from nightjar.loadtests.assessment.prometheus import PrometheusError, open_prometheus, read_recording, read_scrapes
from nightjar.loadtests.assessment.report import headline, render_page, to_markdown
from nightjar.loadtests.assessment.scrapes import Collector, EngineScrapes, Metric, Series
from nightjar.loadtests.simulation.profiles import read_profile
from nightjar.policy.wire.batch_buckets import batch_bucket
from tests.loadtests.assessment.recorded_run import Recorded, labelled, run
from tests.loadtests.assessment.sample import engine_series
from tests.loadtests.assessment.test_history import drafting, engine

PROFILE = "cpu-smollm2"
UNTIL = "2026-01-01T12:00:00Z"
UNTIL_S = 1767268800.0

Selected = Iterable[tuple[Mapping[str, str], list[tuple[float, float]]]]


@pytest.fixture(scope="module")
def fixed() -> Recorded:
    """Forty minutes of K = 5 on a slow engine."""
    return run("fixed-5", profile=PROFILE, users=(2, 10, 20), phase_s=800.0)


def engines_of(*recorded: Recorded) -> list[EngineScrapes]:
    collector = Collector()
    for number, one in enumerate(recorded):
        for labels, samples in labelled(one, engine=str(number)):
            collector.add(labels, samples)
    return collector.engines()


def answering(series: Selected, begin_s: float = UNTIL_S - 3600.0) -> httpx.MockTransport:
    """A Prometheus with these series, whose times count from `begin_s`."""
    held = list(series)

    def answer(request: httpx.Request) -> httpx.Response:
        to_s = float(request.url.params["time"])
        from_s = to_s - float(request.url.params["query"].rpartition("[")[2].rstrip("s]"))
        result = [
            {"metric": labels, "values": values}
            for labels, samples in held
            if (values := [[begin_s + at, str(value)] for at, value in samples if from_s < begin_s + at <= to_s])
        ]
        return httpx.Response(200, json={"status": "success", "data": {"resultType": "matrix", "result": result}})

    return httpx.MockTransport(answer)


def test_the_sample_that_ships_needs_no_prometheus_and_says_that_it_is_simulated(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["assess", "--sample", "--profile", "qwen-32b-0.5b-2xl20", "--page", str(page)])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("simulated-32b: 2 engines, 2026-01-01 00:00 to 2026-01-01 01:30 UTC, 3.0 busy engine hours")
    assert "The planner would have given +11.9 % tokens a second (+6.3 % to +14.8 %)" in done.stdout
    assert "a simulated service" in done.stderr
    assert "not a measured one" in page.read_text()


def test_the_plan_is_told_as_vllms_own_table_with_what_that_loses_and_not_where_there_is_no_gain(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    priced_run = CliRunner().invoke(app, ["assess", "--sample", "--profile", "qwen-32b-0.5b-2xl20", "--page", str(page)])
    told = priced_run.stdout.partition("```yaml\n")[2].partition("```")[0]
    ((name, rows),) = yaml.safe_load(told).items()
    assert name == "num_speculative_tokens_per_batch_size"
    assert (rows[0][:1], rows[0][2], rows[-1][1:]) == ([1], 3, [256, 0])
    assert "# predicted against steering: -" in told
    assert name in page.read_text()
    assert name not in CliRunner().invoke(app, ["assess", "--sample"]).stdout


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "give --prometheus ADDRESS, or --sample"),
        (("--sample", "--prometheus", "http://127.0.0.1:1"), "one of them"),
        (("--sample", "--selector", 'model_name="chat"'), "it takes no --selector"),
    ],
)
def test_a_sample_beside_a_prometheus_or_neither_is_one_line(words: tuple[str, ...], part: str) -> None:
    done = CliRunner().invoke(app, ["assess", *words])
    assert (done.exit_code, done.stdout) == (2, "")
    assert part in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_recording_without_a_sample_is_refused_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "recording.json"
    for text, part in (('{"data": {"result": []}}', "holds no sample"), ("{}", "no answer of Prometheus")):
        file.write_text(text)
        with pytest.raises(PrometheusError, match=part):
            read_recording(file)


@pytest.mark.heavy
def test_the_sample_is_what_its_command_makes() -> None:
    whole = json.loads(command.SAMPLE.read_text())
    made = engine_series("off")
    kept = [series for series in whole["data"]["result"] if series["metric"]["engine"] == "off"]
    assert json.loads(json.dumps(made)) == kept


def assess(monkeypatch: pytest.MonkeyPatch, transport: httpx.MockTransport, *words: str) -> Any:
    monkeypatch.setattr(command, "open_prometheus", lambda url, token: open_prometheus(url, token, transport))
    return CliRunner().invoke(app, ["assess", "--prometheus", "http://127.0.0.1:1", "--until", UNTIL, "--hours", "2", *words])


def test_batches_and_acceptance_are_those_of_the_run(fixed: Recorded) -> None:
    history = History(scraped(engines_of(fixed)).stretches)
    truth = sum(fixed.batch_seconds.values())
    told = sum(history.seconds.values())
    off = sum(abs(history.bucket_seconds.get(b, 0.0) / told - fixed.batch_seconds.get(b, 0.0) / truth) for b in range(16))
    assert off / 2.0 < 0.05
    shares = [kept / rows for kept, rows in zip(fixed.accepted, fixed.reached, strict=True)]
    assert history.acceptance.measured() == pytest.approx(shares, rel=0.05)


def test_the_planner_runs_what_it_would_in_production_and_never_less_than_ran_beyond_its_doubt(fixed: Recorded) -> None:
    history = History(scraped(engines_of(fixed)).stretches)
    ahead = forecast(priced(read_profile(PROFILE), history), 1)
    assert ahead is not None
    assert ahead.buckets[batch_bucket(20)].num_speculative_tokens == 0
    assert ahead.buckets[batch_bucket(2)].num_speculative_tokens > 0
    assert ahead.gain.low < ahead.gain.ratio < ahead.gain.high
    assert ahead.gain.low > 1.0


def test_the_fewer_steps_can_be_compared_with_the_profile_the_more_doubt_is_left() -> None:
    timed = drafting(3.0)
    untimed: dict[Metric, Series] = {**timed.series, Metric.STEP_SECONDS: Series.of(())}
    price = priced(read_profile(PROFILE), History(scraped([replace(timed, series=untimed)]).stretches))
    assert fit(price) is None
    assert Fit(1.0, 0.0, 1).doubt > Fit(1.0, 0.0, 20).doubt > 0.0
    assert Fit(1.0, 0.0, 1).doubt < UNCOMPARED < Fit(1.0, 0.2, 3).doubt


def test_batches_that_jump_from_scrape_to_scrape_leave_more_doubt_than_steady_ones() -> None:
    batches = [1.0] * 200 + [30.0] * 200

    def doubt(running: list[float]) -> float:
        scrapes = drafting(5.0, running, (0.7, 0.5, 0.3, 0.2, 0.1))
        ahead = forecast(priced(read_profile(PROFILE), History(scraped([scrapes]).stretches)), 1)
        assert ahead is not None
        return ahead.sampling_doubt

    assert doubt(Random(1).sample(batches, len(batches))) > 3.0 * doubt(batches)


def test_nobody_knows_from_counters_whether_every_draft_was_verified() -> None:
    assert any(
        "enable_adaptive_verification" in line for line in told(drafting(5.0, [4.0] * 10, (0.7, 0.5, 0.3, 0.2, 0.1))).unknown
    )
    assert not any("enable_adaptive_verification" in line for line in told(engine([4.0] * 10)).unknown)


def test_without_a_draft_there_is_no_gain_but_the_acceptance_that_would_pay() -> None:
    found = told(engine([4.0] * 10))
    assert found.gain is None
    assert [row.gain for row in found.batches] == [None]
    assert found.batches[0].break_even is not None
    text = to_markdown(found)
    assert "acceptance is unknown" in text
    assert "%" not in text.partition("What this cannot know")[0].partition("| batch")[0]


def told(*engines: EngineScrapes, profile: str = PROFILE) -> Findings:
    return find(
        scraped(engines),
        prometheus="http://p",
        selector="",
        model="chat",
        engines=len(engines),
        from_s=0.0,
        to_s=1.0,
        profile=read_profile(profile) if profile else None,
    )


def test_a_gain_whose_interval_holds_none_is_not_known_and_the_command_that_finds_out_is_offered(fixed: Recorded) -> None:
    found = told(*engines_of(fixed))
    assert found.gain is not None
    doubtful = found.model_copy(update={"gain": found.gain.model_copy(update={"ratio": 1.1, "low": 0.9, "high": 1.3})})
    assert headline(doubtful).startswith("Not known whether the planner would have given more: +10.0 % tokens a second (-10.0 % to")
    assert headline(doubtful).endswith("ever ran here; with Nightjar, `nightjar mode auto --for 5m` finds out.")
    assert headline(found).startswith("The planner would have given")


def test_drafts_whose_accepted_tokens_nobody_counted_by_position_give_no_gain() -> None:
    found = told(replace(drafting(3.0), accepted_at=()))
    assert found.gain is None
    assert "spec_decode_num_accepted_tokens_per_pos was not scraped" in found.silent


@pytest.mark.parametrize("profile", [PROFILE, ""])
@pytest.mark.parametrize("running", [[4.0], [0.0] * 10])
def test_a_time_without_requests_or_of_one_scrape_is_told_as_such(running: list[float], profile: str) -> None:
    found = told(engine(running), profile=profile)
    assert (found.gain, found.batches) == (None, ())
    assert "No gain is given: no request ran in this time." in to_markdown(found)
    assert "no request ran in this time" in render_page(found)


def test_some_k_pays_exactly_from_the_break_even_acceptance_on() -> None:
    price = priced(read_profile(PROFILE), History(scraped([engine([4.0] * 3)]).stretches))
    bucket = batch_bucket(1)
    share = break_even(price, bucket)
    assert share is not None

    def best(accepted: float) -> float:
        off = price.step_seconds(1, 0)
        return max(sum(accepted**n for n in range(k + 1)) * off / price.step_seconds(1, k) for k in price.ks if k)

    assert best(share - 0.01) < 1.0 <= best(share + 0.01)


def test_a_k_that_the_profile_does_not_know_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match="profile cpu-smollm2: K=7 ran, it knows step times up to K=5"):
        priced(read_profile(PROFILE), History(scraped([drafting(7.0, kept=(0.5,) * 7)]).stretches))


def test_batches_above_the_profiles_are_told_and_in_no_gain() -> None:
    history = History(scraped([drafting(3.0), drafting(3.0, [200.0] * 5)]).stretches)
    ahead = forecast(priced(read_profile(PROFILE), history), 2)
    assert ahead is not None
    assert ahead.priced_share == pytest.approx(0.5)
    assert list(ahead.buckets) == [batch_bucket(4)]


def test_the_command_prints_a_table_and_writes_a_page_that_loads_nothing(
    fixed: Recorded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    done = assess(monkeypatch, answering(labelled(fixed, engine="0")), "--profile", PROFILE, "--page", str(page))
    assert done.exit_code == 0, done.stderr
    assert "| batch | hours | of busy | ran | accepted | step ms | the planner | tokens/s |" in done.stdout
    assert "The planner would have given +" in done.stdout
    html = page.read_text()
    assert "prefers-color-scheme: dark" in html
    assert "The planner would have given +" in html
    assert [word for word in ("<script", "<link", "src=", "url(", "@import") if word in html] == []


def test_programs_get_the_same_as_json(fixed: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    done = assess(monkeypatch, answering(labelled(fixed, engine="0")), "--profile", PROFILE, "-o", "json")
    found = json.loads(done.stdout)
    assert found["gain"]["low"] < found["gain"]["ratio"] < found["gain"]["high"]
    assert found["engines"] == 1
    assert len(found["acceptance"]) == 5


def test_without_a_profile_it_names_those_that_ship_with_how_they_fit(fixed: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    done = assess(monkeypatch, answering(labelled(fixed, engine="0")))
    assert done.exit_code == 0, done.stderr
    assert "No gain is given: no profile of step times was named (--profile)" in done.stdout
    (own,) = (line for line in done.stdout.splitlines() if line.startswith("- cpu-smollm2"))
    assert 0.97 < float(own.partition("these steps take ")[2].partition(" times")[0]) < 1.03


def test_a_name_in_a_label_is_text_on_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    labels = {"__name__": "vllm:num_requests_running", "model_name": "<script>alert(1)</script>"}
    page = tmp_path / "page.html"
    done = assess(monkeypatch, answering([(labels, [(0.0, 1.0), (15.0, 1.0), (30.0, 1.0)])]), "--page", str(page))
    assert done.exit_code == 0, done.stderr
    assert "<script" not in page.read_text()


def test_a_prometheus_without_the_metrics_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    done = assess(monkeypatch, answering([]), "--selector", 'namespace="prod"')
    assert done.exit_code == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line == (
        "error: http://127.0.0.1:1: no series vllm:num_requests_running or ray_vllm_num_requests_running with "
        'namespace="prod" in 2 hours; does this Prometheus scrape vLLM?'
    )


def test_two_models_are_one_line_that_says_how_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    series = [
        ({"__name__": "vllm:num_requests_running", "model_name": name}, [(0.0, 1.0), (15.0, 1.0)]) for name in ("chat", "code")
    ]
    done = assess(monkeypatch, answering(series))
    assert done.exit_code == 1
    assert "2 models were scraped (chat, code); choose one: --selector 'model_name=\"chat\"'" in done.stderr


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, "no", "it wants a bearer token"),
        (400, json.dumps({"status": "error", "error": "parse\nerror at char 9"}), "refused the query: parse error at char 9"),
        (404, "<html>", "is this a Prometheus?"),
        (200, "<html>", "is this a Prometheus?"),
        (200, "{}", "is this a Prometheus?"),
    ],
)
def test_an_answer_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch, status: int, body: str, says: str) -> None:
    done = assess(monkeypatch, httpx.MockTransport(lambda _: httpx.Response(status, text=body)))
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert says in line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--profile", "no-such"), "name one of cpu-smollm2"),
        (("--until", "yesterday"), "is no time such as"),
        (("--token-file", "/no/such/file"), "No such file"),
        (("--page", "/no/such/folder/page.html"), "No such file"),
    ],
)
def test_a_wrong_option_is_one_line(monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str) -> None:
    series = [({"__name__": "vllm:num_requests_running"}, [(0.0, 1.0), (15.0, 1.0)])]
    done = assess(monkeypatch, answering(series), *words)
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert says in line


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(PrometheusError, match="is no address such as"):
        open_prometheus("prometheus:9090")


def test_a_token_goes_with_every_question_and_nothing_but_queries_do() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={"data": {"result": []}, "warnings": ["a store is away"]})

    with open_prometheus("http://p:9090/prefix/", SecretStr("secret"), httpx.MockTransport(answer)) as client:
        found = read_scrapes(client, '{namespace="prod"}', 0.0, 3.5 * 3600.0)
    assert found.warnings == ("a store is away",)
    assert len(asked) == 4
    for request in asked:
        assert (request.method, request.url.path, request.content) == ("GET", "/prefix/api/v1/query", b"")
        assert request.headers["Authorization"] == "Bearer secret"
        assert request.url.params["query"].endswith(',namespace="prod"}[3150s]')
