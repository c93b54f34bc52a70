"""Which replicas find a pod with GPUs for them. Pure: pods and demands in, findings out.

A replica that no pod can hold waits for ever, and nothing fails meanwhile. Whether all of them fit is bin packing, and what Serve
and Ray's autoscaler make of it depends on the order of events. So there are two answers: an error where no arrangement at all
holds them, and a warning where one pass of placing the largest first, or of spreading, leaves some without a pod. GPUs alone are
counted: not CPUs, memory or labels, nor what applications without a model take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from math import isfinite
from typing import Any, Final

from nightjar.deployments.configuration.check.findings import Finding, Place
from nightjar.deployments.configuration.check.rayservice import ACCELERATOR_PREFIX, PACK_VARIABLE, PodGroup, ServicePods

AUTO_REPLICAS: Final = 100
"""The most replicas that Serve asks for by itself where `num_replicas` is `auto` (Ray 2.60, AutoscalingConfig.default)."""
PACKS: Final = f'it packs them with {PACK_VARIABLE}: "1" in env of the head, if no model is placed by bundles'
"""As Serve decides (Ray 2.60, deployment_scheduler.py, _use_pack_strategy)."""


@dataclass(frozen=True, slots=True)
class Demand:
    """The GPUs that the replicas of one model ask for."""

    where: Place
    replicas: int  # as many as the configuration names
    bundles: tuple[Fraction, ...]  # GPUs of one replica: each bundle needs its own in one pod, several may be in several pods
    accelerator: str | None = None  # type that they must be of
    most_in_a_pod: int | None = None  # bundles of this model that one pod may hold; None: as many as fit
    at_most: int = 0  # replicas that Serve may ask for by itself; more than `replicas` where `num_replicas` is auto
    is_loose: bool = False  # placed by bundles that need not be together: with such a model Serve packs none


@dataclass(frozen=True, slots=True)
class _Pods:
    """Equal pods with equally many GPUs left."""

    number: int
    free: Fraction | None  # GPUs of each; None: not known
    accelerators: frozenset[str] | None  # types that a replica may find there; None: any
    held: int = 0  # bundles in each of the demand that is being placed

    def has_room(self, demand: Demand, size: Fraction) -> bool:
        is_of_type = demand.accelerator is None or self.accelerators is None or demand.accelerator in self.accelerators
        is_below_cap = demand.most_in_a_pod is None or self.held < demand.most_in_a_pod
        return is_of_type and is_below_cap and (self.free is None or self.free >= size)


def demand_of(
    where: Place, options: Mapping[str, Any], bundles: Sequence[float], strategy: object = None, accelerator: object = None
) -> Demand | None:
    """What Serve asks Ray for on behalf of a deployment with these options, whose replicas need these bundles of GPUs.

    `strategy`: of the placement group that holds them; None: there is none. The answer is None where there is no GPU, or no number.
    """
    if not all(map(isfinite, bundles)):
        return None
    sizes = tuple(Fraction(str(gpus)) for gpus in bundles if gpus > 0)
    scaling, number = options.get("autoscaling_config"), options.get("num_replicas")
    replicas = scaling.get("max_replicas") if isinstance(scaling, Mapping) else None
    is_auto = number == "auto" and replicas is None
    if replicas is None:
        replicas = 1 if is_auto or number is None else number
    if not sizes or isinstance(replicas, bool) or not isinstance(replicas, int):
        return None
    at_most = AUTO_REPLICAS if is_auto else replicas
    cap = at_most if strategy == "STRICT_SPREAD" else options.get("max_replicas_per_node")
    return Demand(
        where=where,
        replicas=replicas,
        bundles=(sum(sizes, Fraction(0)),) if strategy == "STRICT_PACK" else sizes,
        accelerator=str(accelerator) if accelerator else None,
        most_in_a_pod=cap if isinstance(cap, int) else None,
        at_most=at_most,
        is_loose=strategy not in (None, "STRICT_PACK"),
    )


def replicas_in_words(options: Mapping[str, Any], gpus: float, accelerator: object) -> str:
    """How many replicas Serve runs of a deployment with these options, and what one needs; `gpus` are those of one replica.

    >>> replicas_in_words({"autoscaling_config": {"max_replicas": 8}}, 2.0, "L4"), replicas_in_words({}, 0.0, None)
    ('1 to 8; each needs GPU 2 of type L4', '1; each needs no GPU')
    """
    scaling, number = options.get("autoscaling_config"), options.get("num_replicas")
    if isinstance(scaling, Mapping) or number == "auto":
        bounds = scaling if isinstance(scaling, Mapping) else {}
        most = bounds.get("max_replicas", AUTO_REPLICAS if number == "auto" else 1)
        number = f"{bounds.get('min_replicas', 1)} to {most}"
    needs = f"GPU {gpus:g}" if gpus else "no GPU"
    return f"{number or 1}; each needs {needs}{f' of type {accelerator}' if accelerator else ''}"


def placement_findings(service: ServicePods, demands: Sequence[Demand]) -> list[Finding]:
    """Replicas that no arrangement holds, or else those that may wait; and groups whose GPUs could not be counted."""
    found = [*_not_even_one(service, demands)] or [*_more_than_fit(service, demands)] or [*_may_wait(service, demands)]
    return [*found, *(_uncounted(group) for group in service.groups if demands and group.gpus is None)]


def _uncounted(group: PodGroup) -> Finding:
    message = (
        f"the GPUs of {group.name} were not counted ({group.gpus_source}), so nothing is said of replicas that may be there; write "
        "num-gpus into its rayStartParams, which Ray's autoscaler needs, too"
    )
    return Finding("warning", (), message)


def _not_even_one(service: ServicePods, demands: Sequence[Demand]) -> Iterator[Finding]:
    for demand in demands:
        one = replace(_whole_gpus(demand), replicas=1, most_in_a_pod=demand.most_in_a_pod and 1)
        if _num_waiting(_pods(service), _made_easier([one])):
            yield Finding("error", demand.where, _why_none(service, demand))


def _why_none(service: ServicePods, demand: Demand) -> str:
    needed = max(demand.bundles)
    large = [group for group in service.groups if group.gpus is None or group.gpus >= needed]
    if not large:
        largest = max((group.gpus or 0 for group in service.groups), default=0)
        return (
            f"one replica needs {_asks(demand)}, and the largest of workerGroupSpecs has {largest}: it would wait for ever; give a "
            "group larger pods, or lower tensor_parallel_size"
        )
    if not any(not group.accelerators or demand.accelerator in {None, *group.accelerators} for group in large):
        named = sorted(set().union(*(group.accelerators for group in large)))
        return (
            f"one replica needs {_asks(demand)}, and such pods have {', '.join(named)}: it would wait for ever; add a group of its "
            "type, or correct accelerator_type"
        )
    return (
        f"one replica needs {_asks(demand)}, and there will be no pod for it: it would wait for ever; {_way_out(service, demand)}"
    )


def _more_than_fit(service: ServicePods, demands: Sequence[Demand]) -> Iterator[Finding]:
    """What waits in every arrangement: of one model; else of all models of one GPU type; else of all models.

    Placing the largest first is the best arrangement where each size divides the next larger one and all pods are as good, so what
    it leaves over leaves nothing to doubt. Where sizes do not, they are taken as smaller than they are.
    """
    pods = _pods(service)
    alone = {demand: _num_waiting(pods, _made_easier([_whole_gpus(demand)])) for demand in demands}
    for demand, waiting in alone.items():
        if waiting:
            message = (
                f"{waiting} of {demand.replicas} replicas would wait for ever: each needs {_asks(demand)}, and there is room for "
                f"{demand.replicas - waiting}; {_way_out(service, demand)}"
            )
            yield Finding("error", demand.where, message)
    types = sorted({demand.accelerator for demand in demands if demand.accelerator})
    for accelerator in () if any(alone.values()) else (*types, None):
        together = [demand for demand in demands if accelerator in {None, demand.accelerator}]
        easier = [replace(demand, accelerator=accelerator, most_in_a_pod=None) for demand in together]
        if waiting := _num_waiting(pods, _made_easier(easier)):
            largest = max(together, key=lambda demand: demand.replicas * sum(demand.bundles))
            total = Fraction(sum(demand.replicas * sum(demand.bundles) for demand in together))
            message = (
                f"all replicas{f' on {accelerator}' if accelerator else ''} together need {_gpus(total)}, and the pods do not hold "
                f"{waiting} of them, which would wait for ever; {_way_out(service, largest)}"
            )
            yield Finding("error", largest.where, message)
            return


def _may_wait(service: ServicePods, demands: Sequence[Demand]) -> Iterator[Finding]:
    """What waits in one arrangement, and perhaps in another does not."""
    whole = [_whole_gpus(demand) for demand in demands]
    as_asked = [replace(demand, replicas=demand.at_most) for demand in whole]
    known, guessed = _pods(service), _pods(service, guesses=True)
    spreads = not service.is_autoscaled and (not service.packs or any(demand.is_loose for demand in demands))
    for pods, wanted, spread, why in (
        (known, whole, False, "placing the largest first leaves no pod for them; add pods, or ask for fewer"),
        (guessed, whole, False, "node selectors leave no pod of their type for them; add pods, or correct accelerator_type"),
        (known, whole, spreads, f"Serve spreads replicas over all pods; {PACKS}"),
        (known, as_asked, False, "num_replicas: auto lets Serve ask for so many; write max_replicas into autoscaling_config"),
    ):
        left_over = _left_over(pods, wanted, spread=spread)
        for demand, one, left in zip(demands, wanted, left_over, strict=True):
            if left:
                number = f"{_num_replicas(one, left)} of {one.replicas} replicas may wait for ever"
                yield Finding("warning", demand.where, f"{number}: each needs {_asks(demand)}, and {why}")
        if any(left_over):
            return


def _way_out(service: ServicePods, demand: Demand) -> str:
    """What makes room: what the autoscaler has to be told, or more pods."""
    for group in service.groups:
        is_large = group.gpus is None or group.gpus >= max(demand.bundles)
        is_other = bool(group.accelerators) and demand.accelerator not in {None, *group.accelerators}
        if not is_large or is_other or group.most == group.started:
            continue
        missing = []
        if group.gpus and not group.scaler_sees_gpus:
            missing.append(f'num-gpus: "{group.gpus}" into its rayStartParams (it does not count {group.gpus_source})')
        if demand.accelerator and not group.accelerators:
            missing.append(_named(group, demand.accelerator))
        if missing:
            return (
                f"Ray's autoscaler adds no pod of {group.name}, because it knows only what is written there: write "
                f"{' and '.join(missing)}"
            )
    if service.is_autoscaled:
        return "raise maxReplicas, or ask for fewer"
    return "raise replicas of a group (KubeRay keeps that many; maxReplicas is for an autoscaler), or ask for fewer"


def _named(group: PodGroup, accelerator: str) -> str:
    name = f"{ACCELERATOR_PREFIX}{accelerator}"
    if group.resources_field == "resources":
        return f'"{name}": "1" into its resources'
    return f'resources: "\'{{\\"{name}\\": 1}}\'" into its rayStartParams'


def _pods(service: ServicePods, *, guesses: bool = False) -> list[_Pods]:
    """Those that KubeRay starts, with whichever GPUs are in them, and those that Ray's autoscaler may add, with what it knows."""
    found = []
    for group in service.groups:
        free = None if group.gpus is None else Fraction(group.gpus)
        likely = frozenset({group.likely}) if guesses and group.likely else None
        found.append(_Pods(group.started, free, group.accelerators or likely))
        if group.scaler_sees_gpus or group.gpus is None:
            found.append(_Pods(group.most - group.started, free, None if free is None else group.accelerators))
    return [pods for pods in found if pods.number and pods.free != 0]


def _num_waiting(pods: Sequence[_Pods], demands: Sequence[Demand]) -> int:
    """Replicas without a pod."""
    return sum(_num_replicas(demand, left) for demand, left in zip(demands, _left_over(pods, demands), strict=True))


def _num_replicas(demand: Demand, bundles: int) -> int:
    return -(-bundles // len(demand.bundles))


def _left_over(pods: Sequence[_Pods], demands: Sequence[Demand], *, spread: bool = False) -> list[int]:
    """Bundles of each demand that find no pod: the largest first into the fullest pod, or the smallest into the emptiest.

    Of equal pods as many are filled at once as there are equal bundles for them. Pods that serve fewer types come first.
    """
    left_over = [0] * len(demands)
    sizes = Counter((size, number) for number, demand in enumerate(demands) for size in demand.bundles)
    types = {demand.accelerator for demand in demands if demand.accelerator}

    def rank(row: _Pods) -> tuple[bool, Fraction, Fraction]:
        free = row.free or Fraction(0)
        num_types = Fraction(len(types if row.accelerators is None else types & row.accelerators))
        return row.free is None, -free if spread else num_types, num_types if spread else free

    def turn(item: tuple[Fraction, int]) -> tuple[Fraction, bool, int]:
        size, number = item
        return (size if spread else -size), demands[number].accelerator is None, number

    rows = list(pods)
    for size, number in sorted(sizes, key=turn):
        demand = demands[number]
        rows = [replace(row, held=0) for row in rows]
        left = sizes[size, number] * demand.replicas
        while left and (open_rows := [row for row in rows if row.has_room(demand, size)]):
            row = min(open_rows, key=rank)
            if row.free is None:
                left = 0
                break
            rows.remove(row)
            each = 1 if spread else int(row.free // size)
            if demand.most_in_a_pod is not None:
                each = min(each, demand.most_in_a_pod - row.held)
            num_full = min(row.number, left // each)
            last = left - num_full * each if num_full < row.number else 0
            left -= num_full * each + last
            filled = ((num_full, each), (int(last > 0), last), (row.number - num_full - (last > 0), 0))
            rows += [replace(row, number=n, free=row.free - k * size, held=row.held + k) for n, k in filled if n]
        left_over[number] += left
    return left_over


def _whole_gpus(demand: Demand) -> Demand:
    """Parts of a GPU as large as they are in fact: two of 0.6 need a GPU each."""
    return replace(demand, bundles=tuple(size if size >= 1 else Fraction(1, int(1 // size)) for size in demand.bundles))


def _made_easier(demands: Sequence[Demand]) -> list[Demand]:
    """The same where each size divides the next larger one; otherwise sizes rounded down to powers of two, which do."""
    sizes = sorted({size for demand in demands for size in demand.bundles})
    if all((large / small).denominator == 1 for small, large in pairwise(sizes)):
        return list(demands)
    return [replace(demand, bundles=tuple(map(_power_of_two_below, demand.bundles))) for demand in demands]


def _power_of_two_below(size: Fraction) -> Fraction:
    power = Fraction(1)
    while power > size:
        power /= 2
    while power * 2 <= size:
        power *= 2
    return power


def _asks(demand: Demand) -> str:
    """What a replica needs, in words."""
    of_type = f" of type {demand.accelerator}" if demand.accelerator else ""
    if len(demand.bundles) == 1:
        return f"{_gpus(demand.bundles[0])}{of_type} in one pod"
    parts = (f"{number} x {float(size):g}" for size, number in Counter(demand.bundles).items())
    return f"{' + '.join(parts)} GPUs{of_type}"


def _gpus(number: Fraction) -> str:
    return f"{float(number):g} GPU{'' if number == 1 else 's'}"
