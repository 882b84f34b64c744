"""What an experiment measured, as the card of a released model has it."""

from collections.abc import Mapping

from huggingface_hub import EvalResult


def measured_values(
    values: Mapping[str, float], task_name: str, dataset_name: str, dataset_type: str, dataset_split: str | None = None
) -> tuple[list[str], list[EvalResult]]:
    """Measured values by their names, `what: metric (unit)`: lines of a Markdown table, and metadata."""
    results = [
        EvalResult(
            task_type="graph-ml",
            task_name=task_name,
            dataset_name=dataset_name,
            dataset_type=dataset_type,
            dataset_split=dataset_split,
            metric_type=name.rpartition(": ")[2].split(" (")[0],
            metric_name=name,
            metric_value=round(value, 4),
        )
        for name, value in values.items()
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {value:.4f} |" for name, value in values.items())], results
