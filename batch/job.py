"""Many videos on many processes and machines: Ray Data over actors that each hold one loaded plan.

Ray starts an actor that died anew, on another machine if need be, and gives it the row that it was at; the row goes on
from its state. A row that fails is told in its result and ends nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videossm.batch.folder import Folder, fetched
from videossm.batch.rows import Request
from videossm.batch.video import make_video
from videossm.runtime.backends import device_index
from videossm.runtime.errors import BackendError, UserError
from videossm.runtime.loaded_plan import LoadedPlan
from videossm.runtime.machine import probe_machine
from videossm.runtime.plan import Plan
from videossm.runtime.preflight import check_run, remarks

_RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is told to anybody, unless the user wants it
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its own warnings are no affair of who reads ours
    "RAY_raylet_start_wait_time_s": "180",  # on a busy machine its own 60 are too few
}


@dataclass(frozen=True)
class Job:
    """What every worker is told. `plan` and `output`: paths that every machine sees, or what fsspec opens.

    `device`: `cpu`, or `cuda` for whichever GPU Ray gives a worker; None for the plan's own. `threads`: of a CPU.
    """

    plan: str
    output: str
    device: str | None = None
    threads: int = 1

    def resources(self, on_gpu: bool) -> dict[str, int]:
        """What Ray sets aside for a worker."""
        return {"num_cpus": 1, "num_gpus": 1} if on_gpu else {"num_cpus": self.threads}


class Worker:
    """One plan on one GPU or on a CPU's threads; Ray calls it with a row at a time."""

    def __init__(self, job: Job) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="videossm-")
        plan = Plan.open(fetched(job.plan, Path(self._scratch.name)))
        threads = job.threads if plan.manifest.backend == "onnxruntime" and job.device != "cuda" else None
        self._loaded = LoadedPlan(plan, job.device, threads)
        self._folder = Folder(job.output)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        request: Request = pickle.loads(row["request"])
        try:
            result = make_video(self._loaded, request, self._folder)
        except UserError as error:
            result = {"id": request.id, "error": str(error)}
        except Exception as error:  # of a library: this row's affair, too
            result = {"id": request.id, "error": f"{type(error).__name__}: {error}"}
        return {"line": row["line"], "result": json.dumps(result)}  # as text: Arrow's columns have one type each


def preflight(job: Job) -> tuple[list[str], list[str]]:
    """What keeps the machine that this runs on from running the plan, and what to expect of it there; lines each."""
    with tempfile.TemporaryDirectory(prefix="videossm-") as scratch:
        try:
            plan = Plan.open(fetched(job.plan, Path(scratch)))
            index = None if job.device is None else device_index(job.device)
            machine = probe_machine((plan.manifest.backend,), () if index is None else (index,))
            problems = [str(problem) for problem in check_run(plan, machine, job.device)]
        except UserError as error:  # Ray would make a traceback of it
            return [str(error)], []
        return problems, remarks(plan, machine, job.device)


class Cluster:
    """Ray, on this machine if `address` is None. Closed by `with`. Raises BackendError where it is not reached."""

    def __init__(self, address: str | None, job: Job, on_gpu: bool) -> None:
        self._job, self._resources = job, job.resources(on_gpu)
        self._kind = "GPU" if on_gpu else "CPU"
        for name, value in _RAY_SETTINGS.items():
            os.environ.setdefault(name, value)
        import ray

        here = {"include_dashboard": False} if address is None else {}
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level="error", **here)
        except Exception as error:  # Ray has no common base class of them
            why = " ".join(str(error).split())[:200]
            got = "none" if address is None else address
            raise BackendError(f"--address: got {got}, where Ray does not answer ({why}); check it") from error

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *raised: object) -> None:
        import ray

        ray.shutdown()

    def slots(self) -> int:
        """Workers that fit on it."""
        import ray

        have = ray.cluster_resources()
        return int(have.get(self._kind, 0) // self._resources[f"num_{self._kind.lower()}s"])

    def preflight(self) -> tuple[list[str], list[str]]:
        """`preflight` where a worker would run."""
        import ray

        answer: tuple[list[str], list[str]] = ray.get(
            ray.remote(preflight).options(**self._resources).remote(self._job)
        )
        return answer

    def results(self, rows: Sequence[tuple[int, Request]], workers: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Line and result of each row, in the order in which they are done."""
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        items = [{"line": line, "request": pickle.dumps(request)} for line, request in rows]
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        pool = ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1)  # a row waits for any of them
        made = ray.data.from_items(items, override_num_blocks=len(items)).map(
            Worker,
            fn_constructor_args=(self._job,),
            compute=pool,
            **self._resources,
        )
        for row in made.iter_rows():
            yield row["line"], json.loads(row["result"])
