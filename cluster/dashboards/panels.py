"""Dashboards as typed records, and the JSON that Grafana makes of them (its dashboard model, schema version 39).

Only what a dashboard of ours uses is here. What is not said is Grafana's default.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Final, Literal

Json = dict[str, object]

SCHEMA_VERSION: Final = 39
COLUMNS: Final = 24
"""Grafana's grid."""
DATA_SOURCE: Final[Json] = {"type": "prometheus", "uid": "${datasource}"}
TAG: Final = "nightjar"


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression of a panel, and how its series are called."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel. `alarm_above`: a value that is drawn in red from there on. Without `highest` the axis ends where the data does."""

    title: str
    description: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat", "state-timeline"] = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 8
    is_stacked: bool = False
    highest: float | None = None
    alarm_above: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading, laid out from left to right."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top, of the values of one label; All is chosen at first and matches what lacks the label, too."""

    name: str
    label: str
    query: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """One dashboard. `uid` is its identity in every Grafana: at most 40 characters."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]

    @property
    def queries(self) -> Iterator[Query]:
        """Every query of every panel."""
        return (query for row in self.rows for panel in row.panels for query in panel.queries)


def dashboard_text(dashboard: Dashboard) -> str:
    """The dashboard as a file."""
    return json.dumps(dashboard_json(dashboard), indent=2) + "\n"


def dashboard_json(dashboard: Dashboard) -> Json:
    """Grafana's dashboard model, without the id and version that each Grafana gives by itself."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "links": [_link_to_siblings()],
        "annotations": {"list": [_tagged_annotations()]},
        "templating": {"list": [_data_source_variable(), *map(_variable, dashboard.variables)]},
        "panels": list(_laid_out(dashboard.rows)),
    }


def _laid_out(rows: Sequence[Row]) -> Iterator[Json]:
    """Headings and panels with their places: from left to right, and a new line where one does not fit any more."""
    number, top = 1, 0
    for row in rows:
        yield {"id": number, **_heading(row), "gridPos": _place(0, top, COLUMNS, 1)}
        number, top, left, line_height = number + 1, top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                top, left, line_height = top + line_height, 0, 0
            yield {"id": number, **_panel(panel), "gridPos": _place(left, top, panel.width, panel.height)}
            number, left, line_height = number + 1, left + panel.width, max(line_height, panel.height)
        top += line_height


def _heading(row: Row) -> Json:
    return {"type": "row", "title": row.title, "collapsed": False, "panels": []}


def _place(left: int, top: int, width: int, height: int) -> Json:
    return {"x": left, "y": top, "w": width, "h": height}


def _panel(panel: Panel) -> Json:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATA_SOURCE,
        "targets": [_target(letter, query, panel.kind) for letter, query in zip(ascii_uppercase, panel.queries, strict=False)],
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
    }


def _target(letter: str, query: Query, kind: str) -> Json:
    is_instant = kind == "stat"
    return {
        "refId": letter,
        "datasource": DATA_SOURCE,
        "expr": query.expression,
        "legendFormat": query.legend or "__auto",
        "instant": is_instant,
        "range": not is_instant,
    }


def _field(panel: Panel) -> Json:
    steps: list[Json] = [{"color": "green", "value": None}]
    if panel.alarm_above is not None:
        steps.append({"color": "red", "value": panel.alarm_above})
    field: Json = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": [{"type": "special", "options": {"match": "null+nan", "result": {"text": "-"}}}],
    }
    if panel.highest is not None:
        field["max"] = panel.highest
    if panel.kind == "timeseries":
        field["custom"] = _curve(panel)
    return field


def _curve(panel: Panel) -> Json:
    return {
        "fillOpacity": 40 if panel.is_stacked else 5,
        "lineWidth": 1,
        "showPoints": "never",
        "stacking": {"mode": "normal" if panel.is_stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "off" if panel.alarm_above is None else "line"},
    }


_LEGEND: Final[Json] = {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []}
_OPTIONS: Final[dict[str, Json]] = {
    "timeseries": {"legend": _LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}},
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "none",
        "textMode": "auto",
    },
    "state-timeline": {"legend": _LEGEND, "mergeValues": True, "showValue": "never", "tooltip": {"mode": "single", "sort": "none"}},
}


def _link_to_siblings() -> Json:
    """The other dashboards of the same tag, opened with the same choices."""
    return {
        "type": "dashboards",
        "title": "Nightjar",
        "tags": [TAG],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "icon": "external link",
        "url": "",
        "tooltip": "",
    }


def _tagged_annotations() -> Json:
    """What `dashboards push` wrote about restarts and load tests, on every panel."""
    own_source = {"type": "grafana", "uid": "-- Grafana --"}
    return {
        "name": "Restarts and load tests",
        "datasource": own_source,
        "enable": True,
        "hide": False,
        "iconColor": "light-purple",
        "target": {"type": "tags", "tags": [TAG], "matchAny": True, "limit": 500},
    }


def _data_source_variable() -> Json:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "regex": "",
        "refresh": 1,
        "hide": 0,
    }


def _variable(variable: Variable) -> Json:
    return {
        "name": variable.name,
        "label": variable.label,
        "type": "query",
        "datasource": DATA_SOURCE,
        "definition": variable.query,
        "query": {"query": variable.query, "refId": "StandardVariableQuery"},
        "refresh": 2,
        "sort": 1,
        "regex": "",
        "hide": 0,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }
