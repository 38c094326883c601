"""Serves the streams of a plan: a page, an API, a WebSocket for each stream. Command line: `videossm-serve`."""
