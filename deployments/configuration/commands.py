"""`nightjar check` and `nightjar migrate`: what they print, a checked model in words among it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from nightjar.deployments.configuration.check.engine_facts import model_configuration
from nightjar.deployments.configuration.check.hosted import HostedModel
from nightjar.deployments.configuration.check.memory_estimate import GIB, MemoryEstimate, ModelSize
from nightjar.deployments.configuration.check.report import Report, check_text
from nightjar.deployments.configuration.check.rules import CheckedModel
from nightjar.deployments.configuration.check.source import SourceError
from nightjar.deployments.configuration.migrate.adoption import KEEP_HOST_OPTION
from nightjar.deployments.configuration.migrate.change import Change, plan_change, read_text
from nightjar.deployments.drafter_kinds import kind_of
from nightjar.deployments.engine.environment import no_gpu_here
from nightjar.deployments.steering_level import Steered, level_at_start
from nightjar.policy.wire.report import Layer, SteeringLevel

app = typer.Typer()

TOUCHED: Final[Mapping[Layer, str]] = {
    Layer.STEERING: "scheduler_cls, the table of K by batch size, capture sizes where it has graph tiers, one method of EngineCore",
    Layer.SLEEPING: "worker_cls, the call that drafts, and in steps in which the draft sleeps the scheduler's look-ahead and slots",
    Layer.HEADS: "worker_cls, and the call that drafts",
    Layer.LENDING: "the number of KV blocks, the block pool, the memory of draft and KV cache",
}
"""What each changes of vLLM, beside the user's own arguments."""


@app.command()
def check(
    files: Annotated[
        list[Path], typer.Argument(help="Serve config files, or RayService manifests; - for standard input.", metavar="FILE...")
    ],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors and warnings alone.")] = False,
) -> None:
    """Check configuration files off-line: types, ranges, impossible combinations; runner, graphs and memory of each model.

    Needs neither Ray nor vLLM nor a GPU. Exit code 1 if any file has an error; warnings and advice fail nothing.
    """
    num_errors = 0
    for file in files:
        try:
            report = check_text(read_text(str(file)), no_gpu_here=no_gpu_here())
        except (OSError, UnicodeDecodeError) as error:
            typer.echo(f"{file}: error: cannot be read ({error})")
            num_errors += 1
            continue
        num_errors += report.num_errors
        _print(str(file), report, quiet=quiet)
    if num_errors:
        raise typer.Exit(1)


@app.command()
def migrate(
    source: Annotated[
        str,
        typer.Argument(
            help="A file with a Serve config, a RayService or a `vllm serve` command; - for standard input; or the command "
            "itself, in quotes.",
            metavar="FILE|COMMAND",
        ),
    ],
    remove: Annotated[bool, typer.Option("--remove", help="Take Nightjar out again.")] = False,
    keep_host: Annotated[
        bool, typer.Option(KEEP_HOST_OPTION, help="ray.serve.llm goes on serving, with its models, adapters and routers, steered.")
    ] = False,
    write: Annotated[bool, typer.Option("--write", help="Write what the diff shows.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write there instead.", show_default="the source, or a new file beside it")
    ] = None,
) -> None:
    """Show as a diff how Nightjar goes into a configuration, or out of it again. Comments and formatting stay.

    A `vllm serve` command becomes a Serve config of its own, and taken out again the same command.
    """
    try:
        change = plan_change(source, remove=remove, keep_host=keep_host, output=output)
        if write:
            change.write()
    except (SourceError, OSError, UnicodeDecodeError) as error:
        line = f":{error.line}" if isinstance(error, SourceError) else ""
        name = source.partition("\n")[0] or "''"
        typer.echo(f"{name}{line}: error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(change.diff(), nl=False)
    for note in _notes(change, remove=remove, keep_host=keep_host, written=write):
        typer.echo(note, err=True)


def _notes(change: Change, *, remove: bool, keep_host: bool, written: bool) -> Iterator[str]:
    if not change.changes_something:
        yield "nothing to change"
        return
    yield f"{'written: ' if written else 'with --write this goes to '}{change.path}"
    if keep_host and not remove:
        yield "the cluster's image needs nightjar-serve beside ray[llm]; docs/serve-llm.md says what is steered there"
        yield from (f"who may call {line} (docs/security.md)" for line in check_text(change.after).doors)
    elif not remove:
        yield "the cluster's image needs nightjar-serve[gpu] (or [cpu]); `nightjar check` says what the file means"


def _print(file: str, report: Report, *, quiet: bool) -> None:
    for finding in report.findings:
        if not quiet or finding.severity != "advice":
            typer.echo(finding.text(file))
    if quiet:
        return
    for model in report.models:
        typer.echo("\n".join(["", *describe(model)]))
    for hosted in report.hosted:
        typer.echo("\n".join(["", *describe_hosted(hosted)]))
    counts = {
        severity: sum(finding.severity == severity for finding in report.findings) for severity in ("error", "warning", "advice")
    }
    for door in report.doors:
        typer.echo(f"\nwho may call {door} (docs/security.md)")
    of_what = ", of what was read" if report.not_read else ""
    typer.echo(f"\n{file}: errors {counts['error']}, warnings {counts['warning']}, advice {counts['advice']}{of_what}")
    for unread in report.not_read:
        typer.echo(f"  not read: {unread}")


def describe(model: CheckedModel) -> list[str]:
    """Lines for people."""
    config, outlook = model.config, model.outlook
    facts, arguments = outlook.facts, outlook.arguments
    steered = level_at_start(arguments)
    steering = steered.in_words()
    if steered.level in {SteeringLevel.FULLY, SteeringLevel.WITHOUT_SLEEPING}:
        scheduling = "asynchronous" if facts.async_scheduling else "synchronous"
        steering += f"; K from 0 to {facts.max_num_speculative_tokens}, {scheduling} scheduling{_ranks(model)}"
    rows = [
        ("model", f"{config.model_source} as {config.model_loading_config.model_id}"),
        ("drafter", f"{facts.drafter_kind}{f' {config.draft_source}' if config.draft_source else ''}"),
        ("steering", steering),
        ("replicas", model.deployed.replicas),
        *_layers(model, steered),
        ("runner", outlook.runner),
        ("graphs", outlook.graphs),
        *_memory(model.memory, _room_is_of(model)),
    ]
    if arguments.notice:
        rows.append(("notice", arguments.notice))
    return [f"application {model.name}", *(f"  {name:<9} {text}" for name, text in rows)]


def describe_hosted(model: HostedModel) -> list[str]:
    """Lines for people."""
    rows = (("model", model.model), ("drafter", model.drafter), ("steering", model.steering), ("replicas", model.replicas))
    return [f"application {model.application}, served by ray.serve.llm", *(f"  {name:<9} {text}" for name, text in rows)]


def _ranks(model: CheckedModel) -> str:
    """That an engine has several ranks, each steered by itself, which those of a mixture of experts are not."""
    size = model.outlook.facts.data_parallel_size
    if size == 1:
        return ""
    is_known = bool(model_configuration(model.config.model_source))
    return f"; {size} ranks, each by itself{'' if is_known else ', if the target is no mixture of experts'}"


def _layers(model: CheckedModel, steered: Steered) -> list[tuple[str, str]]:
    """The layers of this drafter, those that are on with what they touch, the others with the reason."""
    config, arguments = model.config, model.outlook.arguments
    kind = kind_of(model.outlook.facts.drafter_kind)
    lines = [f"{layer.value}: {TOUCHED[layer]}" for layer in steered.layers]
    if not lines:
        return [("layers", "none: nothing of vLLM is touched" if arguments.serving_plainly else "none: its steps are observed")]
    if kind.layer is not None and kind.layer not in steered.layers and arguments.why_never_asleep:
        lines.append(f"{kind.layer.value} is off: {arguments.why_never_asleep}")
    if kind.can_sleep and Layer.LENDING not in steered.layers:
        lines.append(f"lending is off: draft_offload is {config.draft_offload}")
    return [("layers" if number == 0 else "", line) for number, line in enumerate(lines)]


def _room_is_of(model: CheckedModel) -> str:
    """Where the room for KV comes from, if from a variable."""
    from_variable = model.outlook.facts.on_cpu and model.kwargs.kv_cache_memory_bytes is None
    return " of VLLM_CPU_KVCACHE_SPACE" if from_variable else ""


def _memory(memory: MemoryEstimate, of_what: str) -> list[tuple[str, str]]:
    rows = []
    if memory.target is not None:
        rows.append(("weights", f"{_gib(memory.target.weight_bytes)} target{_draft(memory.draft)}, on each rank"))
        rows.append(("KV", f"{_per_token(memory.target)} target{_draft_kv(memory.draft)}; blocks of {memory.block_tokens} tokens"))
    if memory.kv_bytes is not None and memory.base_blocks is not None:
        tokens = memory.base_blocks * memory.block_tokens
        room = f"{_gib(memory.kv_bytes)}{of_what}"
        rows.append(("blocks", f"at most {memory.base_blocks} in {room}, {tokens} tokens, before activations and graphs"))
    if memory.lent_blocks is not None:
        rows.append(
            ("offload", f"would lend {memory.lent_blocks} blocks, {memory.lent_blocks * memory.block_tokens} tokens of the target")
        )
    return rows + [("memory", f"not estimated: {reason}") for reason in memory.unknown]


def _draft(size: ModelSize | None) -> str:
    return f", {_gib(size.weight_bytes)} draft" if size else ""


def _draft_kv(size: ModelSize | None) -> str:
    return f", {_per_token(size)} draft" if size else ""


def _per_token(size: ModelSize) -> str:
    return f"{size.kv_bytes_per_token / 1024:.1f} KiB per token"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB"
