"""Twelve seconds of video that change their prompt on the way: `make demo` first, for the plan."""

from videossm.runtime import Plan, Rollout
from videossm.runtime.sinks import open_sink

plan = Plan.open("out/engine.plan")
stream = plan.manifest.stream
with (
    open_sink("out/minimal.mp4", stream.width, stream.height, stream.fps) as sink,
    Rollout(plan, prompt="a red circle bounces on gray", seed=7) as rollout,
):
    for chunk in rollout:  # endless; chunk.frames: uint8 [batch, T, H, W, 3]
        sink.write(chunk.frames[0])
        if chunk.index == 15:
            rollout.set_prompt("a green square moves left on white")
        if chunk.index == 31:
            break
