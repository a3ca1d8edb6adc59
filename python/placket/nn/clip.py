"""CLIP: an image tower and a text tower that embed into one space."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from placket import _C, checkpoint
from placket.nn.spec_module import SpecModule, TensorSpec

#: Text towers of the published models whose width is not their embedding_dim, or that are deeper than 12.
_PUBLISHED_TEXT = {
    "clip_rn50": "clip_text,width=512,embedding_dim=1024",
    "clip_vit_h_14": "clip_text,width=1024,depth=24,embedding_dim=1024,activation=gelu",
}


class TowerOutput(NamedTuple):
    """What a tower makes of images or texts, with the tokens."""

    embedding: Tensor  #: ``[B, D]``, not normalised
    tokens: Tensor  #: ``[B, 1 + P, D]``: the image, then its P positions; or ``[B, L, D]``: the text's tokens


class ClipOutput(NamedTuple):
    """What CLIP makes of images and texts: the logits are ``scale * image @ text.T``."""

    image: Tensor  #: ``[B, D]``, L2-normalised
    text: Tensor  #: ``[T, D]``, L2-normalised
    scale: Tensor  #: a scalar, ``exp(logit_scale)``


class Clip(SpecModule):
    """CLIP, "Learning Transferable Visual Models From Natural Language Supervision" (ICML 2021).

    ``state_dict()`` has OpenAI's and open_clip's names: ``visual.*`` of the image tower, ``transformer.*``,
    ``token_embedding.weight``, ``positional_embedding``, ``ln_final.*`` and ``text_projection`` of the text
    tower, ``logit_scale``. To freeze a tower: ``model.visual.requires_grad_(False)``, or
    ``requires_grad_(False)`` of each of ``model.text_parameters()``.

    Args:
        image: description of the image tower, ``"name[,key=value...]"``:
            ``clip_vit_{b_32,b_16,l_14,h_14}`` or ``clip_vit`` (``width=``, ``depth=``, ``heads=``, ``mlp=``,
            ``patch=``, ``image=``, ``activation=quick_gelu|gelu``), ``clip_rn{50,101,50x4,50x16,50x64}`` or
            ``clip_resnet,layers=3/4/6/3`` (``width=``, ``heads=``, ``image=``), or a trunk's (see ``Trunk``);
            each with ``embedding_dim=``.
        text: description of the text tower, ``"clip_text"`` with ``width=512``, ``depth=12``, ``heads=``,
            ``mlp=``, ``context=77``, ``vocabulary=49408``, ``embedding_dim=512``,
            ``activation=quick_gelu|gelu``, and ``pool=argmax`` (OpenAI: a text ends at its largest id) or
            ``pool=eos,eos_id=`` (Hugging Face: at the first such id). None takes the published one of a
            published image tower, and for any other a text tower as wide as its embedding.
        preprocess: from decoded image to input, kept with the model; missing keys take the tower's size,
            ``"crop"``, ``"bicubic"`` and the tower's own mean and std.
        generator: of the initial values; None takes torch's default generator, hence ``torch.manual_seed``.

    Attributes:
        logit_scale: the logarithm of what cosines are multiplied by; ln(1 / 0.07) at first.
        freeze_batch_norm: if true, training mode keeps BatchNorm's running statistics, and uses them.

    Raises:
        ValueError: unknown name or key, or towers of two widths of embedding.
    """

    name: ClassVar[str] = "clip"
    visual: nn.Module
    logit_scale: nn.Parameter

    def __init__(
        self,
        image: str = "clip_vit_b_32",
        text: str | None = None,
        *,
        preprocess: Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if text is None:
            width = _C.image_tower_embedding_dim(image)
            published = f"clip_text,width={width},embedding_dim={width}"
            text = _PUBLISHED_TEXT.get(image.partition(",")[0], published)
        super().__init__([TensorSpec(*spec) for spec in _C.clip_spec(image, text)], generator)
        self.image = image
        self.text = text
        self._image_tensors = len(_C.image_tower_spec(image))
        self.freeze_batch_norm = False
        mean, std = _C.image_tower_normalization(image)
        self.preprocess = {
            "size": _C.image_tower_size(image),
            "fit": "crop",
            "target_ratio": 1.25,
            "interpolation": "bicubic",
            "arithmetic": "pillow",
            "orientation": "apply",
            "box_margin": 0.0,
            "mean": list(mean),
            "std": list(std),
            **(preprocess or {}),
        }

    @property
    def embedding_dim(self) -> int:
        """D."""
        return _C.image_tower_embedding_dim(self.image)

    @property
    def context(self) -> int:
        """The most tokens a text may have."""
        return _C.text_tower_context(self.text)

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        return _C.text_tower_vocabulary(self.text)

    def encode_image(self, images: Tensor, *, normalize: bool = False, groups: int = 1) -> Tensor:
        """Return the embeddings ``[B, D]`` of images.

        Args:
            images: ``[B, 3, H, W]``, normalised; sides are multiples of a ViT's patch. The positions are
                resampled where the size is not the tower's own.
            normalize: whether to bring the embeddings to unit length.
            groups: in training, BatchNorm's statistics of this many equal parts of the batch are kept apart,
                as if each were a forward pass of its own.
        """
        embedding, _ = self._image_tower(images, False, groups)
        return F.normalize(embedding, dim=-1) if normalize else embedding

    def encode_text(self, ids: Tensor, *, normalize: bool = False) -> Tensor:
        """Return the embeddings ``[B, D]`` of texts.

        Args:
            ids: ``[B, L]``, int64 or int32, from 0 to below ``vocabulary``, with L from 1 to ``context``:
                texts cut to their longest have the same embeddings at less cost.
            normalize: whether to bring the embeddings to unit length.
        """
        embedding, _, _ = self._text_tower(ids, False)
        return F.normalize(embedding, dim=-1) if normalize else embedding

    def image_tokens(self, images: Tensor, *, groups: int = 1) -> TowerOutput:
        """Return the embeddings of images, and those of their positions, row by row.

        Of a ViT these are the other tokens, normed and projected; of a ResNet what attention to that position
        alone would give (MaskCLIP, ECCV 2022); of a trunk the map's projection.
        """
        return TowerOutput(*self._image_tower(images, True, groups))

    def text_tokens(self, ids: Tensor) -> tuple[TowerOutput, Tensor]:
        """Return the embeddings of texts and of their tokens, and where each text ends.

        Returns:
            The embeddings, and the position ``[B]`` int64 of the token that is a text's embedding. Tokens
            behind it belong to the padding and mean nothing.
        """
        embedding, tokens, end = self._text_tower(ids, True)
        return TowerOutput(embedding, tokens), end

    def forward(self, images: Tensor, ids: Tensor) -> ClipOutput:
        """Embed images ``[B, 3, H, W]`` and texts ``[T, L]``."""
        return ClipOutput(
            self.encode_image(images, normalize=True),
            self.encode_text(ids, normalize=True),
            self.logit_scale.exp(),
        )

    def text_parameters(self) -> Iterator[nn.Parameter]:
        """Return the text tower's parameters."""
        return (p for p in self.tensors()[self._image_tensors : -1] if isinstance(p, nn.Parameter))

    def config_dict(self, preprocess: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the content of a checkpoint's ``config.json``.

        Args:
            preprocess: what goes there instead of ``model.preprocess``.
        """
        return {
            "format": checkpoint.FORMAT,
            "model": {"name": self.name, "image": self.image, "text": self.text},
            "preprocess": dict(self.preprocess if preprocess is None else preprocess),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Make the model that ``config_dict`` describes."""
        fields = config["model"]
        if fields.keys() != {"name", "image", "text"}:
            raise ValueError(
                f"load: model must have the keys image, name, text, got {', '.join(sorted(fields))}"
            )
        return cls(fields["image"], fields["text"], preprocess=config["preprocess"])

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write ``model.safetensors`` and ``config.json``, which ``Clip.load`` reads."""
        checkpoint.save(directory, self.state_dict(), self.config_dict())

    @classmethod
    def load(cls, directory: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Self:
        """Read a model from a checkpoint's folder, in evaluation mode.

        Raises:
            FileNotFoundError, ValueError: the checkpoint is not whole, or not of a CLIP; a tensor is missing,
                unknown, or of another shape.
        """
        config = checkpoint.read_config(directory)
        if config["model"]["name"] != cls.name:
            raise ValueError(
                f"load: model in '{directory}' must be {cls.name}, got '{config['model']['name']}'"
            )
        with torch.device("meta"):
            model = cls.from_config(config)
        checkpoint.fill(model, checkpoint.read_tensors(directory), str(directory))
        return model.eval().to(device)

    def extra_repr(self) -> str:
        return f"'{self.image}', '{self.text}'"

    def _image_tower(self, images: Tensor, tokens: bool, groups: int) -> tuple[Tensor, Tensor]:
        statistics = self.training and not self.freeze_batch_norm
        return cast(
            tuple[Tensor, Tensor],
            torch.ops.placket.image_tower(
                images,
                self.tensors()[: self._image_tensors],
                self.image,
                tokens,
                self.training,
                statistics,
                groups,
            ),
        )

    def _text_tower(self, ids: Tensor, tokens: bool) -> tuple[Tensor, Tensor, Tensor]:
        weights = self.tensors()[self._image_tensors : -1]
        return cast(
            tuple[Tensor, Tensor, Tensor], torch.ops.placket.text_tower(ids, weights, self.text, tokens)
        )


class ClipImageEncoder(nn.Module):
    """A CLIP's ``encode_image`` as a module of its own, for ``torch.export`` and ONNX.

    Args:
        clip: the model, whose parameters it shares.
        normalize: whether to bring the embeddings to unit length.
    """

    def __init__(self, clip: Clip, *, normalize: bool = True) -> None:
        super().__init__()
        self.clip = clip
        self.normalize = normalize

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings ``[B, D]`` of images ``[B, 3, H, W]``."""
        return self.clip.encode_image(images, normalize=self.normalize)


class ClipTextEncoder(nn.Module):
    """A CLIP's ``encode_text`` as a module of its own, for ``torch.export`` and ONNX.

    Args:
        clip, normalize: see ``ClipImageEncoder``.
    """

    def __init__(self, clip: Clip, *, normalize: bool = True) -> None:
        super().__init__()
        self.clip = clip
        self.normalize = normalize

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings ``[B, D]`` of texts ``[B, L]``."""
        return self.clip.encode_text(ids, normalize=self.normalize)
