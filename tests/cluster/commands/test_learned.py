"""`nightjar export` and `nightjar import`: a file out of one policy and into another, and one line where that fails."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml
from typer.testing import CliRunner, Result

from nightjar.cluster import cli
from nightjar.cluster.storage.learned_file import MAX_FILE_BYTES, parse_learned_file, to_text
from nightjar.policy.status.stock_table import StockTable
from tests.cluster.protocol import GROUP
from tests.cluster.seeds import some_file, some_table

Handler = Callable[[httpx.Request], httpx.Response]
TEXT = to_text(some_file())
pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good file."""
    path = tmp_path / "learned.json"
    path.write_bytes(TEXT)
    return path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def learned(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=TEXT)


def taken(_: httpx.Request) -> httpx.Response:
    groups = [{"group_id": "a-1", "cells": 30, "replicas": 0}, {"group_id": "b-2", "cells": 5, "replicas": 2}]
    return httpx.Response(200, json={"groups": groups})


def refused(_: httpx.Request) -> httpx.Response:
    return httpx.Response(403, json={"detail": "read-only: no API token is configured"})


def test_export_writes_the_file_and_says_what_is_in_it(serve: Callable[[Handler], list[httpx.Request]], tmp_path: Path) -> None:
    requests = serve(learned)
    target = tmp_path / "out.json"
    target.write_text("older")
    done = call("export", str(target), "--url", "http://gpu-box:9000")
    assert done.exit_code == 0, done.stderr
    assert str(requests[0].url) == "http://gpu-box:9000/nightjar/learned"
    assert parse_learned_file(target.read_bytes()) == some_file()
    assert "out.json: 1 group with 30 cells, written 2026-05-01T12:00:00+00:00 by incarnation 3" in done.stdout
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("place", [".", "/", "pipe"])
def test_what_is_no_file_is_not_written_over(
    serve: Callable[[Handler], list[httpx.Request]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    serve(learned)
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    failed = call("export", place)
    assert (failed.exit_code, failed.stderr) == (1, f"error: {place}: a folder or a device; name a file\n")
    assert Path("pipe").is_fifo()


def test_an_export_through_a_link_writes_where_it_leads(
    serve: Callable[[Handler], list[httpx.Request]], tmp_path: Path, file: Path
) -> None:
    serve(learned)
    file.write_text("older")
    link = tmp_path / "latest.json"
    link.symlink_to(file)
    assert call("export", str(link)).exit_code == 0
    assert link.is_symlink()
    assert parse_learned_file(file.read_bytes()) == some_file()


def test_export_as_json_names_groups_and_cells(serve: Callable[[Handler], list[httpx.Request]], tmp_path: Path) -> None:
    serve(learned)
    done = call("export", str(tmp_path / "out.json"), "-o", "json")
    assert json.loads(done.stdout) == {
        "file": str(tmp_path / "out.json"),
        "incarnation": 3,
        "groups": [{"group_id": GROUP.group_id, "cells": 30}],
    }


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (httpx.Response(200, text="<html>"), "not JSON"),
        (httpx.Response(404, text="Not Found"), "no Nightjar policy app there"),
        (httpx.Response(503, json={"detail": "the policy actor does not answer"}), "the policy actor does not answer (HTTP 503)"),
    ],
)
def test_an_export_that_brought_nothing_leaves_the_older_file(
    serve: Callable[[Handler], list[httpx.Request]], file: Path, answer: httpx.Response, part: str
) -> None:
    serve(lambda _: answer)
    done = call("export", str(file))
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert part in done.stderr
    assert file.read_bytes() == TEXT


@pytest.mark.parametrize("target", ["nowhere/out.json", "."])
def test_a_file_that_cannot_be_written_is_one_line(
    serve: Callable[[Handler], list[httpx.Request]], tmp_path: Path, target: str
) -> None:
    serve(learned)
    done = call("export", str(tmp_path / target))
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: ")


def test_import_sends_the_file_with_the_token_and_says_who_waits(
    serve: Callable[[Handler], list[httpx.Request]], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = serve(taken)
    monkeypatch.setenv("NIGHTJAR_API_TOKEN", "s3cret")
    done = call("import", str(file), "--group", GROUP.group_id)
    assert done.exit_code == 0, done.stderr
    (request,) = requests
    assert (request.method, str(request.url)) == ("POST", f"http://127.0.0.1:8000/nightjar/learned?group={GROUP.group_id}")
    assert (request.content, request.headers["Authorization"]) == (TEXT, "Bearer s3cret")
    assert "a-1: 30 cells, waits for a replica of its key" in done.stdout
    assert "b-2: 5 cells, for its 2 replicas" in done.stdout


def test_import_as_json_is_the_answer(serve: Callable[[Handler], list[httpx.Request]], file: Path) -> None:
    serve(taken)
    assert len(json.loads(call("import", str(file), "-o", "json").stdout)["groups"]) == 2


def test_a_refusal_is_shown_as_the_api_worded_it(serve: Callable[[Handler], list[httpx.Request]], file: Path) -> None:
    serve(refused)
    done = call("import", str(file))
    assert done.exit_code == 1
    assert done.stderr == "error: read-only: no API token is configured (HTTP 403)\n"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"{}", "format: None"),
        (TEXT.replace(b"500.0", b"501.0", 1), "the file was cut or edited"),
        (b" " * (MAX_FILE_BYTES + 9), f"allowed are at most {MAX_FILE_BYTES}"),
    ],
)
def test_a_wrong_file_is_refused_before_anybody_is_called(
    serve: Callable[[Handler], list[httpx.Request]], file: Path, content: bytes, part: str
) -> None:
    requests = serve(taken)
    file.write_bytes(content)
    done = call("import", str(file))
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert str(file) in done.stderr
    assert part in done.stderr
    assert not requests


def test_a_missing_file_and_an_unknown_group_are_one_line(serve: Callable[[Handler], list[httpx.Request]], file: Path) -> None:
    requests = serve(taken)
    assert "No such file or directory" in call("import", str(file.with_name("gone.json"))).stderr
    assert f"is not in the file, which holds {GROUP.group_id}" in call("import", str(file), "--group", "smolm").stderr
    assert not requests


def with_tables(*tables: StockTable) -> Handler:
    return lambda _: httpx.Response(200, content=to_text(some_file(vllm_tables=tables)))


def test_a_table_is_printed_as_yaml_that_belongs_under_speculative_config_with_what_it_loses(
    serve: Callable[[Handler], list[httpx.Request]],
) -> None:
    requests = serve(with_tables(some_table()))
    done = call("export", "--vllm-table", "--url", "http://gpu-box:9000")
    assert done.exit_code == 0, done.stderr
    assert str(requests[0].url) == "http://gpu-box:9000/nightjar/learned"
    assert yaml.safe_load(done.stdout) == {"num_speculative_tokens_per_batch_size": [[1, 4, 5], [5, 8, 2]]}
    assert "-2.0 % of tokens a second (-1.0 % to -3.0 %) at the batches that ran, -4.1 % at batch 6-7" in done.stdout
    for told in ("num_speculative_tokens: 5", "those in prefill too", "still runs the drafter", "piecewise CUDA graphs"):
        assert told in done.stdout


def test_a_table_as_json_is_a_part_of_a_speculative_config(serve: Callable[[Handler], list[httpx.Request]]) -> None:
    serve(with_tables(some_table("a-1"), some_table("b-2")))
    printed = json.loads(call("export", "--vllm-table", "--group", "b-2", "-o", "json").stdout)
    assert printed["group_id"] == "b-2"
    assert printed["speculative_config"] == {
        "num_speculative_tokens": 5,
        "num_speculative_tokens_per_batch_size": [[1, 4, 5], [5, 8, 2]],
    }
    assert printed["lost"] == {"share": 0.02, "low": 0.01, "high": 0.03}


def test_a_table_of_ceilings_names_adaptive_verification_beside_its_k(serve: Callable[[Handler], list[httpx.Request]]) -> None:
    serve(with_tables(some_table().model_copy(update={"adaptive_verification": True})))
    printed = json.loads(call("export", "--vllm-table", "-o", "json").stdout)
    assert printed["speculative_config"]["enable_adaptive_verification"] is True
    assert "enable_adaptive_verification: true" in call("export", "--vllm-table").stdout


@pytest.mark.parametrize(
    ("tables", "arguments", "part"),
    [
        ((some_table("a-1"), some_table("b-2")), (), "group: there are 2, name one of a-1, b-2"),
        ((some_table("a-1"), some_table("b-2")), ("--group", "b-3"), "group: 'b-3' is not known, there is b-2"),
        ((some_table("a-1", "it drafts with suffix, which"),), (), "group a-1: it drafts with suffix"),
        ((some_table("a-1", "it has learned nothing yet"),), ("--group", "a-1"), "group a-1: it has learned nothing yet"),
        ((), (), "group: there is none, no replica has ever reported"),
    ],
)
def test_why_there_is_no_table_is_one_line(
    serve: Callable[[Handler], list[httpx.Request]], tables: tuple[StockTable, ...], arguments: tuple[str, ...], part: str
) -> None:
    serve(with_tables(*tables))
    done = call("export", "--vllm-table", *arguments)
    assert (done.exit_code, done.stderr.count("\n"), done.stdout) == (1, 1, "")
    assert part in done.stderr


def test_a_policy_of_an_older_release_gives_no_table_in_one_line(serve: Callable[[Handler], list[httpx.Request]]) -> None:
    serve(learned)
    done = call("export", "--vllm-table")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "upgrade the policy" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [((), "give FILE"), (("out.json", "--vllm-table"), "one of them"), (("out.json", "--group", "a"), "--group a: goes with")],
)
def test_an_export_that_is_neither_a_file_nor_a_table_is_refused_before_anybody_is_called(
    serve: Callable[[Handler], list[httpx.Request]], arguments: tuple[str, ...], part: str
) -> None:
    requests = serve(learned)
    done = call("export", *arguments)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert part in done.stderr
    assert not requests
