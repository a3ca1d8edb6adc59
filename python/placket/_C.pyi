"""placket's C++ core; its operators are torch.ops.placket.*"""

class RpfConfig:
    """Configuration of RPF; see csrc/models/rpf.h."""

    attributes: int
    trunk: str
    patch_trunk: str
    attribute_dim: int
    embedding_dim: int
    hidden_dim: int
    heads: int
    dropout: float
    project_background: bool
    def __init__(self) -> None: ...

# Name, shape, initializer, scale, whether it is a buffer.
_Spec = tuple[str, tuple[int, ...], str, float, bool]

def rpf_spec(config: RpfConfig) -> list[_Spec]:
    """The tensors of RPF, in the order its operators take them."""

def trunk_spec(trunk: str) -> list[_Spec]:
    """The tensors of a trunk, in the order placket::trunk_features takes them."""

def trunk_channels(trunk: str) -> int:
    """Channels of a trunk's map."""

def trunk_normalization(trunk: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of RGB in [0, 1] that a trunk's weights were made with."""
