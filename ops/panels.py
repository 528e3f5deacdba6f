"""Panels and dashboards as Grafana keeps them: what stands where, on which thresholds, by which queries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

#: Columns of Grafana's grid.
_COLUMNS = 24
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel.

    Attributes:
        title: what it shows.
        queries: expressions in PromQL by legend.
        unit: Grafana's name of the unit.
        kind: `timeseries`, `stat` or `table`.
        width: in columns of the grid.
        warn: from this value up it is orange.
        alarm: from this value up it is red.
        low: smaller is worse: below `alarm` it is red, below `warn` orange.
    """

    title: str
    queries: Mapping[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    warn: float | None = None
    alarm: float | None = None
    low: bool = False

    @property
    def height(self) -> int:
        """Rows of the grid."""
        return 4 if self.kind == "stat" else 8

    def steps(self) -> list[dict[str, Any]]:
        """Thresholds, as Grafana wants them."""
        if self.low:
            pairs = [(None, "red"), (self.alarm, "orange"), (self.warn, "green")]
        else:
            pairs = [(None, "green"), (self.warn, "orange"), (self.alarm, "red")]
        first, *others = pairs
        return [{"value": value, "color": color} for value, color in (first, *(p for p in others if p[0] is not None))]

    def as_dict(self, number: int, x: int, y: int) -> dict[str, Any]:
        """Grafana's JSON."""
        defaults: dict[str, Any] = {"unit": self.unit, "thresholds": {"mode": "absolute", "steps": self.steps()}}
        if self.kind == "timeseries":
            defaults |= {"min": 0, "custom": {"fillOpacity": 8, "showPoints": "never", "spanNulls": False}}
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "datasource": _SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": {"legend": {"displayMode": "list", "placement": "bottom"}} if self.kind == "timeseries" else {},
            "targets": [
                {
                    "refId": chr(ord("A") + place),
                    "datasource": _SOURCE,
                    "expr": expression,
                    "legendFormat": legend,
                    "instant": self.kind != "timeseries",
                    "range": self.kind == "timeseries",
                }
                for place, (legend, expression) in enumerate(self.queries.items())
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """One dashboard; panels stand in rows, each row under its heading."""

    uid: str
    title: str
    rows: Mapping[str, Sequence[Panel]]
    #: Values of a variable, by its name.
    variables: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Grafana's JSON."""
        return {
            "uid": self.uid,
            "title": self.title,
            "tags": ["warren"],
            "schemaVersion": 39,
            "editable": False,
            "refresh": "15s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "links": [{"type": "dashboards", "tags": ["warren"], "title": "Warren", "asDropdown": False}],
            "templating": {"list": [_datasource(), *(_variable(*item) for item in self.variables.items())]},
            "panels": list(_placed(self.rows)),
        }


def _placed(rows: Mapping[str, Sequence[Panel]]) -> Iterator[dict[str, Any]]:
    """Panels from left to right, and a new line where one does not fit."""
    number, y = 1, 0
    for heading, panels in rows.items():
        grid = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
        yield {"id": number, "type": "row", "title": heading, "collapsed": False, "gridPos": grid, "panels": []}
        number, x, y, height = number + 1, 0, y + 1, 0
        for panel in panels:
            if x + panel.width > _COLUMNS:
                x, y, height = 0, y + height, 0
            yield panel.as_dict(number, x, y)
            number, x, height = number + 1, x + panel.width, max(height, panel.height)
        y += height


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}}


def _variable(name: str, values: Sequence[str]) -> dict[str, Any]:
    """A choice of the table's names; all of them at first."""
    everything = {"text": "All", "value": "$__all", "selected": True}
    return {
        "name": name,
        "label": name,
        "type": "custom",
        "query": ",".join(values),
        "options": [everything, *({"text": value, "value": value, "selected": False} for value in values)],
        "current": everything,
        "includeAll": True,
        "allValue": ".+",
        "multi": True,
    }
