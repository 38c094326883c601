"""SSM Meets Video Diffusion Models (arXiv 2403.07711): a UNet whose layers over time are state-space models."""

from videossm.models.ssm_vdm.config import SsmVdmConfig
from videossm.models.ssm_vdm.model import SsmVdm, load_checkpoint, save_checkpoint
from videossm.models.ssm_vdm.public import PublicSetting, load_public
from videossm.models.ssm_vdm.step import Decode, Step

__all__ = [
    "Decode",
    "PublicSetting",
    "SsmVdm",
    "SsmVdmConfig",
    "Step",
    "load_checkpoint",
    "load_public",
    "save_checkpoint",
]
