"""What the extension was built for: written by CMake, compared with the running torch at import."""

TORCH: str
PYTHON: str
CUDA: bool
JPEG: bool
