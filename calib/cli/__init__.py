"""Command lines: `videossm-calibrate`, `videossm-compare`, and the options that `videossm-export` shares with them."""
