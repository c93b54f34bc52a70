"""What `explain` tells of one replica, as the HTTP API gives it and every view reads it (policy/status/explanation.py makes it)."""

from __future__ import annotations

from nightjar.policy.wire.cause import Causes
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.record import Record
from nightjar.policy.wire.report import DrafterState, Layer
from nightjar.policy.wire.settings import SettingsVersion


class Statement(Record):
    """What one instance says about a replica's K; of all statements the first with `decides` is why it is what it is.

    `words` say `causes` to people; programs read those. Older releases have words alone.
    """

    who: str
    causes: Causes = ()
    words: str
    decides: bool = False


class KExplanation(Record):
    """One K at the replica's batch bucket. Tokens a second are generated ones; None: nobody predicted or measured it.

    `gain_over_off` is the predicted share above K = 0, `gain_deviation` the standard deviation of its logarithm, wider than what
    the planner acts on where either was not measured (evidence/doubt.py); where two of them exceed the gain there,
    `is_gain_known` is false. `exceeds_limit`: steps may take longer than the limit that concerns this replica. `own_steps` are
    those that this replica measured.
    """

    num_speculative_tokens: int
    predicted_tokens_per_s: float | None = None
    gain_over_off: float | None = None
    gain_deviation: float | None = None
    is_gain_known: bool = True
    measured_tokens_per_s: float | None = None
    clean_steps: float = 0.0
    measured_age_s: float | None = None
    is_imported: bool = False
    exceeds_limit: bool = False
    own_steps: float = 0.0


class Explanation(Record):
    """One replica as of `at_s`, seconds since the epoch. `summary` is the answer in one sentence, `statements` are all reasons.
    `objective` is what its plan is made for, empty where its planner knows none.

    `num_speculative_tokens` ran in the last step that was reported, `planned_num_speculative_tokens` is the plan's for the present
    batch (None: no plan). `arms` are the K of batches from `first_batch_size` to `last_batch_size`; `layers` are those that work.
    `censored_acceptance`: as in a group's status, `acceptance` is of the drafts that were made.
    """

    replica_id: str
    application: str
    node_id: str = ""
    group_id: str
    at_s: float
    report_age_s: float
    summary: str
    decided_by: str
    mode: Mode
    planner: str
    objective: str = ""
    decode_batch_size: int
    first_batch_size: int
    last_batch_size: int
    num_speculative_tokens: int
    planned_num_speculative_tokens: int | None = None
    drafter_state: DrafterState
    layers: tuple[Layer, ...] = ()
    generated_tokens_per_s: float = 0.0
    acceptance: tuple[float, ...] = ()
    censored_acceptance: bool = False
    settings_version: SettingsVersion | None = None
    settings_confirmed: bool | None = None
    estimate_age_s: float | None = None
    statements: tuple[Statement, ...] = ()
    arms: tuple[KExplanation, ...] = ()
