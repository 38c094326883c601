"""A plan's engines on a device, loaded once for any number of rollouts."""

from __future__ import annotations

from videossm.runtime.backends import Backend, open_backend
from videossm.runtime.manifest import Manifest
from videossm.runtime.plan import Plan
from videossm.runtime.preflight import require_memory
from videossm.runtime.prompt import open_tokenizer


class LoadedPlan:
    """`Rollout(loaded, prompt)` and `Rollout.resume(loaded, path)` share its engines, all in one thread.

    Closed by `with` or `close`, which ends the rollouts over it.
    """

    def __init__(
        self,
        plan: Plan,
        device: str | None = None,
        threads: int | None = None,
        backend: Backend | None = None,
        provider: str | None = None,
    ) -> None:
        """`device`, `threads`, `provider`: see `open_backend`. `backend`: an open one in place of the plan's own.

        An open `backend` stays open when this is closed.
        Raises BackendError, PlanError for a broken tokenizer, PreflightError for too little memory.
        """
        self.plan = plan
        self.tokenizer = open_tokenizer(plan)
        self.closed = False
        self._owns_backend = backend is None
        self.backend = backend or open_backend(plan.manifest, device, threads, provider)
        try:
            require_memory(plan.manifest, self.backend.device)
            self.engines = {
                name: self.backend.load(name, spec, plan.path / spec.file)
                for name, spec in plan.manifest.engines.items()
            }
        except BaseException:
            self.close()
            raise

    @property
    def manifest(self) -> Manifest:
        return self.plan.manifest

    def __enter__(self) -> LoadedPlan:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives back what was taken of the device. Frames that were read stay."""
        if self._owns_backend:
            self.closed = True
            self.backend.close()
