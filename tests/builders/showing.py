"""What a browser shows of a stream."""

from __future__ import annotations

import base64
import io

import av
import numpy as np

from videossm.models.shapes.vocabulary import COLOURS

# Of [selector, count]: what the clock says beside `count` frames on a canvas, and they as PNG in base64.
PICTURES = """async ([selector, count]) => {
  const canvas = document.querySelector(selector), clock = canvas.parentElement.querySelector(".clock");
  const found = [];
  let last = "";
  while (found.length < count) {
    await new Promise(requestAnimationFrame);
    if (clock.textContent === last) continue;
    last = clock.textContent;
    found.push([last, canvas.toDataURL("image/png").split(",")[1]]);
  }
  return found;
}"""


def decoded(found: list[list[str]]) -> tuple[list[str], np.ndarray]:
    """What PICTURES found: the clock's texts, and the frames [T, H, W, 3]."""
    frames = [next(av.open(io.BytesIO(base64.b64decode(png))).decode(video=0)) for _, png in found]
    return [text for text, _ in found], np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def colours_in(frames: np.ndarray) -> set[str]:
    """The colours that cover 2% of a frame or more, as every object does, well drawn or not.

    The detector wants one clear object, which in the first chunks after a change of prompt is not always there.
    """
    names = list(COLOURS)
    distances = np.abs(frames[..., None, :].astype(int) - np.array([COLOURS[name] for name in names])).max(-1)
    shares = (distances < 30).mean(axis=(1, 2))  # [T, colours]
    return {name for name, share in zip(names, shares.max(0), strict=True) if share >= 0.02}
