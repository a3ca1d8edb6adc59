"""Readers of published data layouts, batches of images, and the generated garments."""
