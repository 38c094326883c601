"""What a plan costs on a device, by counting: `videossm-inspect PLAN --cost`. Nothing here runs an engine."""
