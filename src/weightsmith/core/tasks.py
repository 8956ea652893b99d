"""Tasks of the Language Model Evaluation Harness (``lm-eval``) as measures of a model.

A task is the harness's name of one (``arc_easy``), or a YAML file of its format:

.. code-block:: yaml

    task: capitals
    dataset_path: json
    dataset_kwargs: {data_files: {test: capitals.jsonl}}
    test_split: test
    output_type: multiple_choice
    doc_to_text: "The capital of {{country}} is"
    doc_to_choice: "{{cities}}"
    doc_to_target: "{{right}}"
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from weightsmith.core import progress
from weightsmith.core.caller import random_state_kept
from weightsmith.core.data import context_length
from weightsmith.core.errors import CalibrationError, HyperparameterError, MissingDependencyError
from weightsmith.core.models import evaluation_mode

__all__ = ["check_tasks", "measure_tasks"]

NAMES = {"acc": "accuracy", "acc_norm": "normalized_accuracy"}
"""Metrics of the harness that have a longer name here."""
SUFFIXES = (".yaml", ".yml")


def check_tasks(tasks: Sequence[str]) -> None:
    """Refuse tasks that cannot be measured, before anything runs: a file that is missing, or no harness.

    Raises
    ------
    CalibrationError
        If a YAML file does not exist.
    MissingDependencyError
        If there are tasks and ``lm-eval`` is not installed.
    """
    for task in tasks:
        if task.endswith(SUFFIXES) and not Path(task).is_file():
            raise CalibrationError(f"there is no task file {task}")
    if tasks and importlib.util.find_spec("lm_eval") is None:
        raise MissingDependencyError("tasks need lm-eval, which is not installed", do="pip install 'weightsmith[eval]'")


def measure_tasks(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    samples: int | None = None,
    shots: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, float]:
    """Measure a causal language model on tasks of the evaluation harness.

    Texts longer than the model's context lose their beginning, as the harness has it.

    Parameters
    ----------
    model : nn.Module
        A Hugging Face causal language model.
    tokenizer : object
        Its tokenizer; it is not changed.
    tasks : sequence of str
        Names that the harness knows, groups included, or YAML files, whose tasks have different names. A file may run
        Python code that it names.
    samples : int, optional
        Measure on the first so many samples of each task only.
    shots : int, optional
        Solved examples before each question; the task's own number by default.
    batch_size : int, default: 8
        Texts per forward pass.
    seed : int, default: 0
        Of the examples that are drawn.

    Returns
    -------
    dict of str to float
        ``"TASK METRIC"``, such as ``"arc_easy accuracy"``, and its standard error with ``_spread`` at the end.

    Raises
    ------
    CalibrationError
        If a task is not known, two have the same name, the harness cannot measure one, such as for lack of its data, or
        the model is no causal language model with a tokenizer.
    HyperparameterError
        If a number is out of range.
    MissingDependencyError
        If ``lm-eval`` is not installed.

    Examples
    --------
    >>> measure_tasks(nn.Linear(2, 2), None, [])
    {}
    """
    for name, value, least in (("samples", samples, 1), ("shots", shots, 0), ("batch_size", batch_size, 1)):
        if value is not None and value < least:
            raise HyperparameterError(name, found=value, expected=f">= {least}")
    if not tasks:
        return {}
    check_tasks(tasks)
    if tokenizer is None or not getattr(model, "can_generate", lambda: False)():
        raise CalibrationError(
            "tasks of the harness", found=type(model).__name__, expected="a causal language model with its tokenizer"
        )
    with random_state_kept():  # the harness draws from the global generators and seeds them
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        specs, manager = _known(tasks)
        with evaluation_mode(model), _harness(tasks):
            found = simple_evaluate(
                model=HFLM(
                    pretrained=model,
                    tokenizer=deepcopy(tokenizer),  # the harness gives it a token for padding
                    batch_size=batch_size,
                    max_length=context_length(model),
                ),
                tasks=specs,
                task_manager=manager,
                limit=samples,
                num_fewshot=shots,
                log_samples=False,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
    return _measures(found["results"])


def _known(tasks: Sequence[str]) -> tuple[list[str], Any]:
    """The tasks' names or files, and the harness's list of tasks; its own thousands are read where one is asked for."""
    from lm_eval.tasks import TaskManager

    tasks = list(dict.fromkeys(tasks))
    names = [_name_in(task) if task.endswith(SUFFIXES) else task for task in tasks]
    if doubled := [name for name, count in Counter(names).items() if count > 1]:
        both = [task for task, name in zip(tasks, names, strict=True) if name == doubled[0]]
        do = "Give each file's task a name of its own."
        raise CalibrationError(f"two tasks named {doubled[0]!r}", found=" and ".join(both), do=do)
    files = [Path(task).resolve() for task in tasks if task.endswith(SUFFIXES)]
    folders = [str(folder) for folder in dict.fromkeys(file.parent for file in files)]  # groups name others in them
    manager = TaskManager(include_path=folders or None, include_defaults=len(files) < len(tasks))
    unknown = [task for task in tasks if not task.endswith(SUFFIXES) and task not in manager.all_tasks]
    if unknown:
        raise CalibrationError(
            f"the harness knows no task {unknown[0]!r}", do="`lm-eval ls tasks` lists them; or name a YAML file."
        )
    # a file by its path: another one in its folder may have a task of the same name
    return [str(Path(task).resolve()) if task.endswith(SUFFIXES) else task for task in tasks], manager


@contextlib.contextmanager
def _harness(tasks: Sequence[str]) -> Iterator[None]:
    """Say which tasks the harness failed on; its progress bars are silent where ours are."""
    silent = contextlib.redirect_stderr(io.StringIO()) if progress.is_silent() else contextlib.nullcontext()
    try:
        with silent:
            yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        what = f"the harness cannot measure {', '.join(tasks)}"
        do = "Mind the columns, splits and metrics that the task names, and the paths of its data."
        raise CalibrationError(what, found=f"{type(error).__name__}: {error}".rstrip(": "), do=do) from error


def _name_in(file: str) -> str:
    """The name of the task or group that a YAML file describes."""
    try:
        content = yaml.load(Path(file).read_text("utf-8"), _Names)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CalibrationError(f"task file {file} is not YAML", found=str(error).splitlines()[0]) from error
    name = (content.get("task") or content.get("group")) if isinstance(content, dict) else None
    if not isinstance(name, str):
        raise CalibrationError(f"task file {file}", found=f"task {name!r}", expected="the task's name under 'task'")
    return name


class _Names(yaml.SafeLoader):
    """Reads a task file without the Python functions that it may name."""


_Names.add_multi_constructor("!", lambda loader, suffix, node: None)


def _measures(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The harness's numbers under names of ours.

    Examples
    --------
    >>> _measures({"arc": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.1, "exact_match,strict": 1.0}})
    {'arc accuracy': 0.5, 'arc accuracy_spread': 0.1, 'arc (strict) exact_match': 1.0}
    """
    measures = {}
    for task, numbers in results.items():
        for key, value in numbers.items():
            metric, _, how = key.partition(",")
            if not how or not isinstance(value, (int, float)):
                continue
            spread = metric.endswith("_stderr")
            metric = metric.removesuffix("_stderr")
            name = f"{task} {'' if how == 'none' else f'({how}) '}{NAMES.get(metric, metric)}"
            measures[f"{name}_spread" if spread else name] = float(value)
    return measures
