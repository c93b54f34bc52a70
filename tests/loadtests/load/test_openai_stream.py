"""Streams of chat completions: times, counts and every way in which an answer is not whole."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import pytest

from nightjar.loadtests.load.connections import MAX_IDLE_S, Connections
from nightjar.loadtests.load.openai_stream import (
    AddressError,
    ChatRequest,
    ChatResult,
    Server,
    StreamParser,
    first_model,
    stream_chat,
)
from tests.loadtests.fake_server import FakeServer, chunk, usage, whole_answer

REQUEST = ChatRequest(model="tiny", prompt="What do bees make?", max_tokens=4)


def parsed(*events: dict[str, Any] | str, times: tuple[float, ...] = (), end_s: float = 9.0) -> ChatResult:
    parser = StreamParser(sent_s=1.0)
    for number, event in enumerate(events):
        now_s = times[number] if times else 2.0 + number
        data = event if isinstance(event, str) else json.dumps(event)
        parser.feed(f"data: {data}\r\n".encode(), now_s)
        parser.feed(b"\r\n", now_s)
    return parser.result(end_s)


def test_times_count_from_sending_to_the_first_text_and_over_the_tokens_after_it() -> None:
    result = parsed(
        chunk(role="assistant"),
        chunk("a"),
        chunk("b c"),
        chunk("", "stop"),
        usage(5, 4),
        "[DONE]",
        times=(1.5, 2.0, 5.0, 5.5, 6.0, 6.5),
        end_s=7.0,
    )
    assert (result.ttft_s, result.tpot_s, result.e2e_s) == (1.0, 1.0, 6.0)
    assert (result.text, result.finish_reason, result.error) == ("ab c", "stop", "")
    assert (result.prompt_tokens, result.completion_tokens) == (5, 4)


def test_the_role_event_before_the_first_token_is_no_token() -> None:
    assert parsed(chunk(role="assistant"), chunk("a"), usage(), "[DONE]", times=(2.0, 4.0, 4.0, 4.0)).ttft_s == 3.0


def test_one_token_has_no_time_per_token() -> None:
    assert parsed(chunk("a"), usage(5, 1), "[DONE]").tpot_s is None


def test_a_completion_without_any_text_is_timed_at_its_finish() -> None:
    result = parsed(chunk(role="assistant"), chunk("", "stop"), usage(5, 1), "[DONE]", times=(2.0, 3.0, 3.0, 3.0))
    assert (result.ttft_s, result.error) == (2.0, "")


def test_reasoning_counts_as_text() -> None:
    event = {"choices": [{"delta": {"reasoning_content": "hm "}, "finish_reason": None}]}
    assert parsed(event, chunk("yes", "stop"), usage(), "[DONE]").text == "hm yes"


def test_logprobs_become_tokens_with_the_best_first() -> None:
    result = parsed(chunk("a", logprobs=[-0.5, -0.2]), usage(), "[DONE]")
    assert [(token.text, token.top_logprobs) for token in result.tokens] == [("a", (-0.2, -0.5))]


def test_comments_events_ids_and_data_over_several_lines_are_read_as_server_sent_events() -> None:
    parser = StreamParser(sent_s=0.0)
    for line in (
        b": ping\n",
        b"event: message\n",
        b'data: {"choices": [{"delta":\n',
        b'data: {"content": "a"}}]}\n',
        b"\n",
        b"data:[DONE]\n",
        b"\n",
    ):
        parser.feed(line, 1.0)
    assert (parser.done, parser.result(1.0).text) == (True, "a")


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([chunk("a")], "ended before [DONE]"),
        ([], "ended before [DONE]"),
        (["[DONE]"], "held no completion"),
        ([chunk("a"), {"error": {"message": "engine died", "code": 500}}], "engine died"),
        ([chunk("a"), {"error": "plain words"}], "plain words"),
        ([chunk("a"), "{broken"], "not a JSON object"),
        (["3"], "not a JSON object"),
        ([{"choices": [None]}], "an event of another form"),
        ([{"choices": 3}], "an event of another form"),
        ([{"usage": "n/a"}], "an event of another form"),
        ([{"choices": [{"delta": {"content": ["a"]}}]}], "an event of another form"),
    ],
)
def test_an_answer_that_is_not_whole_says_why(events: list[dict[str, Any] | str], told: str) -> None:
    assert told in parsed(*events).error


def test_a_whole_answer_comes_back_over_http_with_its_replica(server: FakeServer) -> None:
    result = stream_chat(Server(server.url), REQUEST)
    assert (result.status, result.error, result.text, result.completion_tokens) == (200, "", "Bees make honey.", 4)
    assert result.ttft_s is not None
    assert 0 < result.ttft_s <= result.e2e_s
    assert server.requests[0]["stream_options"] == {"include_usage": True}
    assert server.authorizations == [None]


def test_an_api_key_is_sent_and_kept_out_of_reprs(server: FakeServer) -> None:
    keyed = Server(server.url, api_key="sesame")
    stream_chat(keyed, REQUEST)
    assert server.authorizations == ["Bearer sesame"]
    assert "sesame" not in repr(keyed)


def test_tokens_are_timed_when_they_arrive_not_when_the_stream_ends(server: FakeServer) -> None:
    read_first = threading.Event()

    def answer(body: dict[str, Any]) -> Any:
        for number, event in enumerate(whole_answer(body)):
            if number == 2:
                assert read_first.wait(5)
            yield event

    server.answer = answer
    reads = 0

    def clock() -> float:
        nonlocal reads
        reads += 1
        if reads == 4:  # sent, role event's two lines, then the first token's data line: nothing after it was sent yet
            read_first.set()
        return time.perf_counter()

    assert stream_chat(Server(server.url), REQUEST, clock=clock).error == ""


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (503, b'{"error": {"message": "no room"}}', "HTTP 503: no room"),
        (404, b'{"message": "no such model"}', "HTTP 404: no such model"),
        (500, b"Internal Server Error", "HTTP 500: Internal Server Error"),
        (502, b"", "HTTP 502: (empty body)"),
        (400, b"[1]", "HTTP 400: [1]"),
    ],
)
def test_an_error_status_becomes_the_error_with_what_the_body_says(server: FakeServer, status: int, body: bytes, told: str) -> None:
    server.status, server.error_body = status, body
    result = stream_chat(Server(server.url), REQUEST)
    assert (result.status, result.error, result.ttft_s) == (status, told, None)


def test_a_stream_that_breaks_off_is_an_error_with_the_text_so_far(server: FakeServer) -> None:
    server.answer = lambda body: whole_answer(body)[:3]
    result = stream_chat(Server(server.url), REQUEST)
    assert (result.status, result.text) == (200, "Bees make")
    assert "ended before [DONE]" in result.error


def test_a_connection_is_used_again_once_its_answer_has_ended(server: FakeServer) -> None:
    connections = Connections(server.url, 5.0)
    results = [stream_chat(Server(server.url), REQUEST, connections=connections) for _ in range(3)]
    assert [(result.error, result.text) for result in results] == [("", "Bees make honey.")] * 3
    connections.close()
    assert len(set(server.client_ports)) == 1


def test_a_connection_whose_answer_failed_or_that_was_idle_for_too_long_is_not_used_again(server: FakeServer) -> None:
    now_s = 0.0
    connections = Connections(server.url, 5.0, clock=lambda: now_s)
    server.answer = lambda body: whole_answer(body)[:3]
    assert "ended before" in stream_chat(Server(server.url), REQUEST, connections=connections).error
    server.answer = whole_answer
    assert stream_chat(Server(server.url), REQUEST, connections=connections).error == ""
    now_s = 10 * MAX_IDLE_S
    assert stream_chat(Server(server.url), REQUEST, connections=connections).error == ""
    connections.close()
    assert len(set(server.client_ports)) == 3


def test_a_connection_that_the_server_closed_meanwhile_costs_no_request(server: FakeServer) -> None:
    connections = Connections(server.url, 5.0)
    assert stream_chat(Server(server.url), REQUEST, connections=connections).error == ""
    server.close_connections()
    assert stream_chat(Server(server.url), REQUEST, connections=connections).error == ""
    connections.close()
    assert len(server.requests) == 2


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_dead_server_is_an_error_not_an_exception() -> None:
    result = stream_chat(Server(f"http://127.0.0.1:{closed_port()}"), REQUEST)
    assert (result.status, result.text) == (0, "")
    assert "ConnectionRefusedError" in result.error


def test_the_first_model_is_the_one_that_the_server_lists_first(server: FakeServer) -> None:
    assert first_model(Server(server.url)) == "tiny"


def test_a_server_without_models_or_no_server_at_all_is_one_clear_message(server: FakeServer) -> None:
    server.models = b'{"data": []}'
    with pytest.raises(ConnectionError, match="list of models"):
        first_model(Server(server.url))
    with pytest.raises(ConnectionError, match="HTTP 404"):
        first_model(Server(server.url + "/elsewhere"))
    with pytest.raises(ConnectionError, match="no server at http"):
        first_model(Server(f"http://127.0.0.1:{closed_port()}"))


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "http://[::1"])
def test_an_address_that_is_no_url_is_refused_with_the_form(url: str) -> None:
    with pytest.raises(AddressError, match="for example http"):
        Server(url)
