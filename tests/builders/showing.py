"""What a browser shows of a stream."""

from __future__ import annotations

import base64
import io

import av
import numpy as np

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
