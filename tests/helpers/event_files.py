"""TensorBoard's event files, read by TensorBoard's own reader, next to the metrics.jsonl that they are made of."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from tests.helpers.tiny import rows

Point = tuple[str, int, float | str]  # tag, step or tokens, value


def read_values(run: Path) -> list[tuple[int, Summary.Value]]:
    """The step and the value of every record, also of those that TensorBoard would not show."""
    files = sorted(run.glob("*tfevents*"))
    events = (event for file in files for event in EventFileLoader(str(file)).Load())
    return [(event.step, value) for event in events for value in event.summary.value]


def hyperparameters(run: Path) -> dict[str, float | str | bool]:
    """The settings that TensorBoard's table of runs shows."""
    [content] = (
        value.metadata.plugin_data.content
        for _, value in read_values(run)
        if value.metadata.plugin_data.plugin_name == "hparams"
    )
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in settings.items()}


def logged_points(run: Path) -> list[Point]:
    """The scalars and texts of a run's event files."""
    points = [(value.tag, step, make_ndarray(value.tensor).item()) for step, value in read_values(run)[1:]]
    return [(tag, step, value.decode() if isinstance(value, bytes) else value) for tag, step, value in points]


def expected_points(run: Path, tokens_read: Callable[[int], int]) -> list[Point]:
    """The scalars and texts that a run's metrics.jsonl stands for; `tokens_read`: from finished steps to tokens."""
    points: list[Point] = []
    for row in rows(run):
        step, kind = row.pop("step"), row.pop("kind")
        row.pop("tokens", None)
        if kind == "event":
            event = row.pop("event")
            text = event + "".join(f", {key} {value}" for key, value in row.items())
            points.append((f"event/{event}", step, f"    {text}"))
            continue
        for key, value in row.items():
            if key == "answers":
                value = "\n\n".join(answer["prompt"] + answer["answer"] for answer in value)
            if isinstance(value, str):
                points.append((kind, step, "\n".join(f"    {line}" for line in value.split("\n"))))
            elif value is not None:
                value = np.float32(value).item()
                points += [(f"{kind}/{key}", step, value), (f"vs_tokens/{kind}/{key}", tokens_read(step), value)]
    return points


def assert_events_equal_metrics(run: Path, tokens_read: Callable[[int], int]) -> None:
    """Check that the event files hold each value of metrics.jsonl once, and nothing else."""
    logged, expected = Counter(logged_points(run)), Counter(expected_points(run, tokens_read))
    assert expected
    different = {"only in the event files": logged - expected, "only in metrics.jsonl": expected - logged}
    assert not any(different.values()), {name: points.most_common(3) for name, points in different.items()}
