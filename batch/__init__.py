"""Makes the videos of many rows: on this machine or a cluster, with Ray Data. Command line: `videossm-batch`."""

from videossm.batch.folder import Folder
from videossm.batch.rows import BadRow, Request, read_rows
from videossm.batch.video import make_video

__all__ = ["BadRow", "Folder", "Request", "make_video", "read_rows"]
