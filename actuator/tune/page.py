"""A study as one page that stands alone: how the search went, what mattered, and each trial."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_LOGARITHMIC = {"learning_rate", "epsilon_last", "buffer", "beta", "gamma"}


def page(trials: list[dict[str, Any]], weights: dict[str, float]) -> str:
    """HTML, with the plots drawn into it, of what `search.rows` and `search.importances` tell of a study."""
    complete = [t for t in trials if t["state"] == "complete"]
    plots = {"How the search went": _plot(lambda axes: _history(axes, complete))}
    plots["On the way"] = _plot(lambda axes: _courses(axes, trials))
    if weights:
        plots["What mattered"] = _plot(lambda axes: _bars(axes, weights))
    for name in sorted({name for t in complete for name in t["params"]}):
        plots[name] = _plot(lambda axes, name=name: _slice(axes, complete, name))  # type: ignore[misc] # bound at once
    templates = Environment(loader=PackageLoader("trimtab.actuator.tune"), autoescape=True, undefined=StrictUndefined)
    ordered = sorted(trials, key=lambda t: (t["score"] is None, t["score"] or 0.0))
    return templates.get_template("study.html").render(trials=ordered, plots=plots)


def _plot(draw: Callable[[Axes], None]) -> Markup:
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    draw(figure.subplots())
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    # The page is HTML: the drawing alone, without its XML head.
    return Markup(text[text.index("<svg") :])  # noqa: S704 - matplotlib made it of numbers and of our own names


def _history(axes: Axes, trials: list[dict[str, Any]]) -> None:
    numbers, scores = [t["number"] for t in trials], [t["score"] for t in trials]
    best = [min(scores[: k + 1]) for k in range(len(scores))]
    axes.plot(numbers, scores, "o", markersize=4)
    axes.plot(numbers, best, drawstyle="steps-post")
    axes.set(xlabel="trial", ylabel="score (lower is better)")


def _courses(axes: Axes, trials: list[dict[str, Any]]) -> None:
    for trial in trials:
        steps = sorted(trial["course"])
        style = "-" if trial["state"] == "complete" else ":"
        axes.plot(steps, [trial["course"][s] for s in steps], style, linewidth=1, alpha=0.7)
    axes.set(xlabel="part of the training", ylabel="score")


def _bars(axes: Axes, weights: dict[str, float]) -> None:
    names = sorted(weights, key=weights.__getitem__)
    axes.barh(names, [weights[n] for n in names])
    axes.set(xlabel="share of the score's variance")


def _slice(axes: Axes, trials: list[dict[str, Any]], name: str) -> None:
    axes.plot([t["params"][name] for t in trials], [t["score"] for t in trials], "o", markersize=4)
    axes.set(xlabel=name, ylabel="score", xscale="log" if name in _LOGARITHMIC else "linear")
