"""Readers of published data layouts, and the generated garments."""
