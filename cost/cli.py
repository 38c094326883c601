"""`videossm-inspect`: what is in a plan, and what it costs on a device."""

from __future__ import annotations

import click

from videossm.cost.devices import find_device
from videossm.runtime.cli import Command, print_json, print_text
from videossm.runtime.errors import UserError
from videossm.runtime.plan import Plan
from videossm.runtime.preflight import device_bytes
from videossm.runtime.summary import report_summary, state_bytes, summary_lines

DEVICE = "h200"


@click.command(cls=Command)
@click.argument("plan", type=click.Path())
@click.option("--cost", is_flag=True, help="Count what it computes and moves instead, and estimate its time.")
@click.option("--device", help=f"With --cost: the device, as rtx4090; {DEVICE} if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def inspect(plan: str, cost: bool, device: str | None, as_json: bool) -> None:
    """Verifies PLAN and shows its engines, tensors, states, schedule, versions, and what its precision costs."""
    if device is not None and not cost:
        raise UserError(f"--device: got {device} without --cost, expected both; add it, or leave the device out")
    opened = Plan.open(plan)
    if cost:
        _print_cost(opened, device or DEVICE, as_json)
    elif as_json:
        manifest = opened.manifest
        more = {"state_bytes": state_bytes(manifest), "device_bytes": device_bytes(manifest)}
        more["report_summary"] = report_summary(opened)
        print_json({"path": str(opened.path), "identity": opened.identity, **more, **manifest.model_dump()})
    else:
        print_text("\n".join(summary_lines(opened)))


def _print_cost(plan: Plan, device: str, as_json: bool) -> None:
    from videossm.calib.packages import export_packages

    with export_packages("videossm-inspect --cost"):
        from videossm.cost.estimate import read_costs
        from videossm.cost.page import as_json as values_of
        from videossm.cost.page import lines
    found, manifest = find_device(device), plan.manifest
    costs = read_costs(plan)
    if as_json:
        print_json({"path": str(plan.path), "identity": plan.identity, **values_of(manifest, costs, found)})
    else:
        print_text("\n".join([f"{plan.name}  {manifest.precision}  {plan.path}", *lines(manifest, costs, found)]))


if __name__ == "__main__":
    inspect()
