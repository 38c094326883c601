"""Makes a checkpoint of what train.py wrote.

python training/ssm_vdm/to_checkpoint.py ssm-vdm-shapes out/clip.pt --out models/weights/ssm-vdm-shapes.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from videossm.models.ssm_vdm.model import SsmVdm, save_checkpoint
from videossm.models.ssm_vdm.presets import PRESETS

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", choices=["ssm-vdm-shapes", "ssm-vdm-shapes-stream"])
    parser.add_argument("training", type=Path, help="what train.py wrote")
    parser.add_argument("--last", action="store_true", help="weights of the last iteration, not their average")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    saved = torch.load(arguments.training, weights_only=True)
    model = SsmVdm(PRESETS[arguments.preset]())
    model.load_state_dict(saved["model"] if arguments.last else {**saved["model"], **saved["average"]})
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(model, arguments.out)
