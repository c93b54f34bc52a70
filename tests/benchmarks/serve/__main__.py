"""`make bench-serve`: `nightjar serve` beside `vllm serve` on the demo's pair: starts, requests at K = 0, a load that crosses.

start     both with the same arguments, in turns: seconds until ready, memory of the process that answers
off       `nightjar serve` with its draft, at K = 0, beside two `vllm serve` without one: all are up, and the same requests go to
          one after the other
crossing  `nightjar serve` under auto, cold: a client, then sixteen, then one; K of the engine's steps, failed requests
shared    two of them under one `nightjar policy`: what one learns at the other; then it is killed, refuses them and finds its disk
          full; failed requests

Every engine runs on one thread. Ends with exit code 1 if something broke, and with --strict if a bar was missed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import yaml

from nightjar.cluster.api.http_client import HttpClient
from nightjar.cluster.api.operations import STATUS
from nightjar.deployments.models import ModelError, resolve_model
from nightjar.loadtests.arms.arm import TurnError
from nightjar.loadtests.load.openai_stream import ChatRequest, ChatResult, Server, stream_chat
from nightjar.loadtests.simulation.evidence.bars import StrictOption
from tests.benchmarks.measuring.outcome import Outcome
from tests.benchmarks.measuring.repeats import latin_rectangle
from tests.benchmarks.measuring.run import BenchRun, effort_of, sections_to_run
from tests.benchmarks.serve.compared import Phase, Start, Turn, median_of, of_phases, of_starts, of_turns, steps_since
from tests.benchmarks.serve.servers import MODEL_ID, OURS, THEIRS, RunningServer, arguments_of, running
from tests.benchmarks.serve.shared import shared

OUTPUT: Final = Path("runs/serve/latest")
PAIR: Final = Path("cluster/configs/local-cpu.yaml")
SECTIONS: Final = ("start", "off", "crossing", "shared")
ANSWER_TOKENS: Final = 32
REQUESTS_A_TURN: Final = 2
ROUNDS: Final = 8
TURNS: Final = 20
UNSCORED: Final = 2
PHASE_S: Final = 90.0
AWAY_S: Final = 20.0
CLIENTS: Final = (1, 16, 1)
ALLOWED: Final = (0, 5)
"""As in the demo's file."""
SPECULATION: Final = "speculative_config"


def pair() -> tuple[str, dict[str, Any]]:
    """Target and engine arguments of the demo's file, with the paths of its models. Raises ModelError."""
    (application, *_) = yaml.safe_load(PAIR.read_text(encoding="utf-8"))["applications"]
    (described,) = application["args"]["llm_configs"]
    options = dict(described["engine_kwargs"])
    draft = options[SPECULATION]
    options[SPECULATION] = draft | {"model": resolve_model(draft["model"])}
    return resolve_model(described["model_loading_config"]["model_source"]), options


def prompt(rng: random.Random) -> str:
    """One that no other request begins with."""
    return f"{rng.randrange(10**6)} and {rng.randrange(10**6)}: tell a short story about these two numbers and a dog by the sea."


def ask(server: RunningServer, content: str) -> ChatResult:
    """A chat whose answer has ANSWER_TOKENS tokens."""
    return stream_chat(Server(server.url), ChatRequest(MODEL_ID, content, ANSWER_TOKENS, ignore_eos=True))


def asked(server: RunningServer, contents: Sequence[str]) -> list[ChatResult]:
    """One after the other. Raises TurnError where one fails."""
    results = [ask(server, content) for content in contents]
    for result in results:
        if result.error:
            raise TurnError(f"a request failed: {result.error}")
    return results


def start(run: BenchRun, model: str, options: Mapping[str, Any], rounds: int) -> Outcome:
    """Both with the same arguments, each first in every other round; one start of each before, unscored, which fills caches."""
    arguments, starts = arguments_of(model, options), []
    orders = latin_rectangle((OURS, THEIRS), rounds, run.rng("start"))
    for number, order in enumerate([(OURS, THEIRS), *orders]):
        found: dict[tuple[str, ...], tuple[float, float]] = {}
        for command in order:
            extra = ("--nightjar-state", str(run.output.resolve() / "state")) if command == OURS else ()
            with running(command, [*arguments, *extra]) as server:
                found[command] = server.ready_s, server.own_mib()
        (ours_s, ours_mib), (theirs_s, theirs_mib) = found[OURS], found[THEIRS]
        if number:
            starts.append(Start(ours_s, theirs_s, ours_mib, theirs_mib))
        run.tell(f"start {number} of {rounds}: ours {ours_s:.1f} s, theirs {theirs_s:.1f} s")
    return of_starts(starts, run.seed)


def off(run: BenchRun, model: str, options: Mapping[str, Any], turns: int) -> Outcome:
    """Three are up, two of them plain; each turn sends the same requests to all, in a drawn order. UNSCORED turns come before."""
    plain = arguments_of(model, {name: value for name, value in options.items() if name != SPECULATION})
    ours = [*arguments_of(model, options), "--nightjar-mode", "off", "--nightjar-state", str(run.output.resolve() / "state-off")]
    rng, found = run.rng("off"), []
    with running(OURS, ours) as steered, running(THEIRS, plain) as stock, running(THEIRS, plain) as again:
        servers = {"ours": steered, "theirs": stock, "again": again}
        orders = latin_rectangle(tuple(servers), turns, rng)
        cpu_s: dict[str, float] = {}
        began_s = 0.0
        for number, order in enumerate([*[tuple(servers)] * UNSCORED, *orders]):
            if number == UNSCORED:
                cpu_s, began_s = {name: server.own_cpu_s() for name, server in servers.items()}, time.monotonic()
            contents = [prompt(rng) for _ in range(REQUESTS_A_TURN)]
            results = {name: asked(servers[name], contents) for name in order}
            times = {
                f"{name}_{what}_s": median_of([getattr(result, f"{what}_s") for result in these])
                for name, these in results.items()
                for what in ("ttft", "tpot")
            }
            if number >= UNSCORED:
                found.append(Turn(**times))
        taken_s = {name: server.own_cpu_s() - cpu_s[name] for name, server in servers.items()}
        run.tell(f"{turns} turns at K = 0")
        return of_turns(found, taken_s, time.monotonic() - began_s, run.seed)


def crossing(run: BenchRun, model: str, options: Mapping[str, Any], phase_s: float) -> Outcome:
    """Under auto, from nothing learned."""
    settings = run.output.resolve() / "settings.yaml"
    settings.write_text(yaml.safe_dump({"mode": "auto", "allowed_num_speculative_tokens": list(ALLOWED)}), encoding="utf-8")
    state = run.output.resolve() / f"state-{run.rng('state').getrandbits(32):x}-{time.time_ns()}"
    ours = [*arguments_of(model, options), "--nightjar-settings", str(settings), "--nightjar-state", str(state)]
    phases: list[Phase] = []
    with running(OURS, ours) as server, HttpClient(server.url) as client:

        def steps_by_k() -> dict[int, int]:
            return {
                total.num_speculative_tokens: total.steps for replica in client.call(STATUS).replicas for total in replica.totals
            }

        for clients in CLIENTS:
            before = steps_by_k()
            results = _clients(server, clients, phase_s, run.rng(f"clients {len(phases)}"))
            failed = sum(bool(result.error) for result in results)
            phases.append(Phase(clients, steps_since(steps_by_k(), before), len(results) - failed, failed))
            run.tell(f"{clients} clients: mean K {phases[-1].mean_k:.2f}")
    return of_phases(phases)


def _clients(server: RunningServer, clients: int, seconds: float, rng: random.Random) -> list[ChatResult]:
    """All that so many clients got, each of which asked until the time was over."""
    ends_s, own = time.monotonic() + seconds, [random.Random(rng.getrandbits(64)) for _ in range(clients)]

    def asks(mine: random.Random) -> list[ChatResult]:
        results = []
        while time.monotonic() < ends_s:
            results.append(ask(server, prompt(mine)))
        return results

    with ThreadPoolExecutor(clients) as pool:
        return [result for results in pool.map(asks, own) for result in results]


def main(
    quick: Annotated[bool, typer.Option("--quick", help="One start, two turns, short phases: a look, no evidence.")] = False,
    only: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(SECTIONS)}. Repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Draws orders and prompts.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for summary.json and raw rows.")] = OUTPUT,
    strict: StrictOption = False,
) -> None:
    """Measure `nightjar serve` beside `vllm serve`, in turns, on a CPU."""
    sections = sections_to_run(only, SECTIONS, {})
    try:
        model, options = pair()
    except ModelError as error:
        raise typer.BadParameter(str(error)) from error
    output.mkdir(parents=True, exist_ok=True)
    effort = effort_of(sections, SECTIONS, is_quick=quick)
    run = BenchRun("serve", seeds=[seed], sections=sections, output=output, effort=effort, subject=f"the pair of {PAIR}")
    rng = run.rng("shared")

    def asks(server: RunningServer) -> ChatResult:
        return ask(server, prompt(rng))

    measured: dict[str, Callable[[], Outcome]] = {
        "start": lambda: start(run, model, options, 1 if quick else ROUNDS),
        "off": lambda: off(run, model, options, 2 if quick else TURNS),
        "crossing": lambda: crossing(run, model, options, 5.0 if quick else PHASE_S),
        "shared": lambda: shared(arguments_of(model, options), output.resolve(), asks, 3.0 if quick else AWAY_S, run.tell),
    }
    try:
        for section in sections:
            run.found(section, measured[section]())
    except (TurnError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    raise typer.Exit(run.end(strict=strict))


if __name__ == "__main__":
    typer.run(main)
