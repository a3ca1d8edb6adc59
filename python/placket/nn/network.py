"""What the networks of attribute-specific retrieval have in common: branches, crops, embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from placket import _C, checkpoint, ops
from placket.nn.model import Attended, Learning, Model, Pictures, full_preprocess, take_options
from placket.nn.spec_module import SpecModule, TensorSpec
from placket.nn.trunk import IMAGENET_MEAN, IMAGENET_STD, Trunk, channels_of
from placket.schema import AttributeSchema


@dataclass(frozen=True)
class NetworkConfig:
    """What a network is made of; each method's own configuration adds what its heads need.

    Attributes:
        attributes: how many the model knows.
        trunk: description of the region branch's trunk, ``"module,channels=C"`` for a caller's own module.
        patch_trunk: the same of the patch branch; empty for the region branch alone.
        patch_size: side of the patch branch's crops in pixels.
        box_threshold: share of the attention map's range above which a position counts as region.
        region_weight: share (beta) of the region branch in the joint similarity, 0 to 1.
        adapters_from: the first attribute that the model was extended by (``placket.extend``); 0: none.
        adapter_rank: of the adapters that these have.
        learned_classes: values of all attributes, of each of which every branch learns a centre by the losses
            ``region_classify`` and ``patch_classify``; 0: none.
        class_temperature: of the probabilities of values by these centres.
    """

    attributes: int
    trunk: str
    patch_trunk: str = ""
    patch_size: int = 224
    box_threshold: float = 0.1
    region_weight: float = 1.0
    adapters_from: int = 0
    adapter_rank: int = 64
    learned_classes: int = 0
    class_temperature: float = 1 / 16

    def __post_init__(self) -> None:
        if self.patch_size < 1:
            raise ValueError(f"network: patch_size must be at least 1, got {self.patch_size}")
        if not 0 <= self.box_threshold < 1:
            raise ValueError(f"network: box_threshold must be in [0, 1), got {self.box_threshold}")
        if not 0 <= self.region_weight <= 1:
            raise ValueError(f"network: region_weight must be from 0 to 1, got {self.region_weight}")
        if not self.class_temperature > 0:
            raise ValueError(f"network: class_temperature must be positive, got {self.class_temperature}")

    @property
    def head(self) -> str:
        """Return the description of the region branch's head (csrc/models/head.h)."""
        raise NotImplementedError

    @property
    def patch_head(self) -> str:
        """Return that of the patch branch's head, for networks that have one."""
        raise NotImplementedError

    @property
    def classes(self) -> int:
        """Return of how many classes (values of all attributes) it keeps centres; 0 for none."""
        return 0

    def for_schema(self, schema: AttributeSchema) -> Self:
        """Return the same for other attributes."""
        learned = sum(schema.value_counts) if self.learned_classes else 0
        return dataclasses.replace(self, attributes=len(schema), learned_classes=learned)

    def native(self) -> _C.NetworkConfig:
        """Return the part that the C++ core knows."""
        config = _C.NetworkConfig()
        config.attributes = self.attributes
        config.trunk = self.trunk
        adapters = ""
        if self.adapters_from:
            adapters = f",adapters_from={self.adapters_from},adapter_rank={self.adapter_rank}"
        config.head = self.head + adapters
        config.patch_trunk = self.patch_trunk
        config.patch_head = self.patch_head + adapters if self.patch_trunk else ""
        config.classes = self.classes
        config.learned_classes = self.learned_classes
        return config


def describe(name: str, **settings: object) -> str:
    """Return a head's description, ``"name,key=value,..."``."""
    texts = (f"{key}={str(value).lower()}" for key, value in settings.items())
    return ",".join([name, *texts])


class NetworkOutput(NamedTuple):
    """What a network makes of images; ``*`` is ``[B]`` or ``[B, K]``, as the attributes were given."""

    embedding: Tensor  #: ``[*, D]`` L2-normalised: of both branches, or of the region branch alone
    region: Tensor  #: ``[*, E]`` region branch's (ASEN++: global branch's), not normalised
    patch: Tensor | None  #: ``[*, E]`` patch branch's (ASEN++: local branch's), not normalised
    background: Tensor | None  #: ``[*, E]`` what the attention leaves out, from RPF in training
    attention: Tensor | None  #: ``[*, h, w]``, sums to 1; None for a method without attention
    box: Tensor | None  #: ``[*, 4]`` int64 x0 y0 x1 y1 of the crop, x1 y1 exclusive
    class_embedding: Tensor | None = None  #: ``[B, M, F]`` of every class, not normalised; None: has none
    class_logits: Tensor | None = None  #: ``[B, M]`` of the probability that the image carries the class


class Branch(nn.Module):
    """A trunk and the head on its map, and maybe ``centres [classes, E]`` that it learns."""

    centres: nn.Parameter | None

    def __init__(self, trunk: nn.Module, head: SpecModule) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.register_parameter("centres", None)


class AttributeNetwork(Model):
    """Base of the methods: a region branch and maybe a patch branch, each a trunk and a head.

    Args:
        schema: the attributes.
        config: of the method.
        trunk: the region branch's trunk: a description (see ``Trunk``), or any module from images
            ``[B, 3, H, W]`` to a map ``[B, C, h, w]``.
        patch: the same for the patch branch; None for a network without one.
        preprocess: from decoded image to input, kept with the model: ``size, fit, target_ratio,
            interpolation, arithmetic, orientation, box_margin, mean, std``; missing keys take 224,
            ``"crop"``, 1.25, ``"bilinear"``, ``"pillow"``, ``"apply"``, 0 and the trunk's own mean and std.
        generator: of the initial values; None takes torch's default generator, hence ``torch.manual_seed``.

    Raises:
        ValueError: a trunk's description or a size does not fit.
    """

    config_type: ClassVar[type[NetworkConfig]]

    def __init__(
        self,
        schema: AttributeSchema,
        config: NetworkConfig,
        trunk: str | nn.Module,
        patch: str | nn.Module | None,
        preprocess: Mapping[str, Any] | None,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.schema = schema
        self.config = config
        native = config.native()
        self._heads = native.head, native.patch_head
        #: Whether it represents images by each class (attribute value) too.
        self.has_classes = bool(_C.head_classes(native.head))
        specs = [TensorSpec(*spec) for spec in _C.network_spec(native)]

        def part(prefix: str) -> SpecModule:
            own = [s._replace(name=s.name.removeprefix(prefix)) for s in specs if s.name.startswith(prefix)]
            return SpecModule(own, generator)

        self.attribute_embedding = part("attribute_embedding.")
        for spec in specs:
            if spec.name == "class_centres":
                self.register_buffer(spec.name, torch.zeros(spec.shape))
        self.region = Branch(_make_trunk(trunk, generator), part("region.head."))
        if patch is not None:
            self.patch = Branch(_make_trunk(patch, generator), part("patch.head."))
        if config.learned_classes:
            self.learn_classes(config.class_temperature)
        self.preprocess = full_preprocess(
            getattr(self.region.trunk, "mean", IMAGENET_MEAN),
            getattr(self.region.trunk, "std", IMAGENET_STD),
            preprocess,
        )

    @property
    def embedding_dim(self) -> int:
        """D of ``NetworkOutput.embedding``."""
        return sum(_C.head_embedding_dim(head) for head in self._heads if head)

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of its branches."""
        return ("region", "patch") if self.config.patch_trunk else ("region",)

    @property
    def needs_pictures(self) -> bool:
        """Whether it has a patch branch, whose crops are cut from the images at full resolution."""
        return bool(self.config.patch_trunk)

    @property
    def blocks(self) -> int:
        """How many branches' embeddings the embedding joins."""
        return len(self.branches)

    @property
    def is_native(self) -> bool:
        """Whether the trunks are built-in ones, which C++ can run."""
        return all(isinstance(getattr(self, branch).trunk, Trunk) for branch in self.branches)

    @property
    def attends(self) -> bool:
        """Whether it has an attention map for each attribute, hence boxes and crops."""
        return _C.head_attends(self._heads[0])

    @property
    def box_threshold(self) -> float:
        """Share of an attention map's range above which a position counts as region."""
        return self.config.box_threshold

    def attend(
        self, images: Tensor, attributes: Sequence[str | int], pictures: Pictures | None = None
    ) -> Attended:
        """Embed images under attributes and return the region branch's attention; see ``Model.attend``."""
        if not self.attends:
            return super().attend(images, attributes, pictures)
        ids = torch.tensor(self.schema.indices(attributes), device=images.device)
        out = self(images, ids.expand(len(images), -1), pictures)
        assert out.attention is not None
        return Attended(out.embedding, out.attention.float())

    def forward(
        self,
        images: Tensor,
        attributes: Tensor | str | int | Sequence[str | int],
        pictures: Pictures | None = None,
        *,
        patch: bool = True,
        background: bool | None = None,
        groups: int = 1,
    ) -> NetworkOutput:
        """Embed images under attributes.

        Args:
            images: ``[B, 3, H, W]``, normalised.
            attributes: the attribute of every image; or one for each image, ``[B]``; or K for each image,
                ``[B, K]``. Names or ids.
            pictures: the images at full resolution, for the patch branch's crops. Without them the crops are
                cut from ``images`` themselves, bilinear and without antialiasing.
            patch: whether to run the patch branch, where the model has one.
            background: whether to compute the background embedding, where the method has one; None does in
                training mode.
            groups: in training, BatchNorm's statistics of this many equal parts of the batch are kept apart:
                with anchors, positives and negatives one after another, 3 gives what three forward passes
                would.
        """
        ids = self._ids(attributes, images)
        out = self._embed(
            images,
            ids if ids.dim() == 2 else ids.unsqueeze(1),
            pictures,
            patch,
            self.training if background is None else background,
            groups,
        )
        if ids.dim() == 1:
            one = [None if x is None else x.squeeze(1) for x in out[:-2]]
            out = NetworkOutput(*one, *out[-2:])  # type: ignore[arg-type, call-arg]
        return out

    def encode(
        self, images: Tensor, attributes: Sequence[str | int], pictures: Pictures | None = None
    ) -> Tensor:
        """Return the embeddings ``[B, K, D]`` of images under each of K attributes; the trunk runs once."""
        ids = torch.tensor(self.schema.indices(attributes), device=images.device)
        return self._embed(images, ids, pictures, True, False, 1).embedding

    def learn_classes(self, temperature: float = NetworkConfig.class_temperature) -> None:
        """Give each branch a centre of every class, which the losses ``..._classify`` learn.

        A ``Trainer`` does so for a stage with such a loss. The centres are parameters ``region.centres`` and
        ``patch.centres [classes, E]``, the values of all attributes in the schema's order, zero before a loss
        has learned them; those that are there already stay.

        Args:
            temperature: of ``class_probabilities``; the loss's is ``1 / LossConfig.classify_scale``.
        """
        count = sum(self.schema.value_counts)
        self.config = dataclasses.replace(self.config, learned_classes=count, class_temperature=temperature)
        for name, head in zip(self.branches, self._heads, strict=False):
            branch: Branch = getattr(self, name)
            if branch.centres is None:
                like = next(self.parameters())
                branch.centres = nn.Parameter(like.new_zeros(count, _C.head_embedding_dim(head)))

    def learned_centres(self, attribute: str | int) -> Tensor:
        """Return the centres ``[values, D]`` of an attribute's values in the space of embeddings.

        Of unit length; zero for a value whose centre was never learned, and with two branches shorter for one
        that only one of them has learned.

        Raises:
            ValueError: it learns none.
        """
        region = self.region.centres
        if region is None:
            raise ValueError(f"{self.name}: model must learn class centres, got one that does not")
        patch = self.patch.centres if self.config.patch_trunk else None
        parts: Sequence[Tensor] = joint_embedding(region, patch, self.config.region_weight).split(
            self.schema.value_counts
        )
        return parts[self.schema.index(attribute)]

    @property
    def predicts(self) -> bool:
        """Whether it estimates the values of attributes: by class logits, or by centres."""
        return self.has_classes or self.predicts_by_embedding

    @property
    def predicts_by_embedding(self) -> bool:
        """Whether it does so from embeddings alone: by centres."""
        return self.config.learned_classes > 0 and not self.has_classes

    def probabilities_of(self, embeddings: Tensor, attribute: str | int) -> Tensor:
        """Estimate values by the softmax of ``cos(z, centre) / class_temperature``."""
        centres = self.learned_centres(attribute).to(embeddings.device)
        return assignment(embeddings, centres, self.config.class_temperature)

    def class_probabilities(
        self, images: Tensor, attributes: Sequence[str | int], pictures: Pictures | None = None
    ) -> list[Tensor]:
        """Estimate the value of each attribute; see ``Model.class_probabilities``.

        By the softmax of the logits of the attribute's classes, where the model has logits, otherwise from
        the embedding (``probabilities_of``).
        """
        ids = self.schema.indices(attributes)
        if self.predicts_by_embedding:
            embeddings = self.encode(images, attributes, pictures)
            return [self.probabilities_of(embeddings[:, i], attribute) for i, attribute in enumerate(ids)]
        if not self.has_classes:
            return super().class_probabilities(images, attributes, pictures)
        # Logits are of all classes, whatever attribute is asked.
        first = torch.zeros(1, dtype=torch.int64, device=images.device)
        logits = self._embed(images, first, None, False, False, 1).class_logits
        assert logits is not None
        parts = logits.float().split(self.schema.value_counts, 1)
        return [parts[attribute].softmax(1) for attribute in ids]

    def patch_embedding(self, crops: Tensor, attributes: Tensor, groups: int = 1) -> Tensor:
        """Return the patch embeddings ``[V, E]`` of crops ``[V, 3, S, S]`` under attributes ``[V]``."""
        features = _features(self.patch.trunk, crops, groups)
        ids = attributes.unsqueeze(1)
        return self._head(self.patch, self._heads[1], features, ids, False, groups)[0].squeeze(1)

    def config_dict(self, preprocess: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the content of a checkpoint's ``config.json``.

        Args:
            preprocess: what goes there instead of ``model.preprocess``.
        """
        return {
            "format": checkpoint.FORMAT,
            "model": {"name": self.name, **dataclasses.asdict(self.config)},
            "schema": self.schema.to_dict(),
            "preprocess": dict(self.preprocess if preprocess is None else preprocess),
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], trunk: nn.Module | None = None, patch: nn.Module | None = None
    ) -> Self:
        """Make the model that ``config_dict`` describes; ``trunk`` and ``patch`` are a caller's modules."""
        schema = AttributeSchema.from_dict(config["schema"])
        fields = {key: value for key, value in config["model"].items() if key != "name"}
        known = {field.name for field in dataclasses.fields(cls.config_type)}
        if fields.keys() != known:
            raise ValueError(
                f"load: model must have the keys {', '.join(sorted(known))}, got {', '.join(sorted(fields))}"
            )
        made = cls.config_type(**fields)
        if made.attributes != len(schema):
            raise ValueError(
                f"load: attributes must be the {len(schema)} of the schema, got {made.attributes}"
            )
        for key, description, module in (("trunk", made.trunk, trunk), ("patch", made.patch_trunk, patch)):
            if module is None and description.startswith("module,"):
                raise ValueError(f"load: {key} must be the module that the model was made with, got none")
            if module is not None and not description.startswith("module,"):
                raise ValueError(f"load: {key} must be left out for a model with trunk '{description}'")
        own_patch = (patch or made.patch_trunk) if made.patch_trunk else None
        return cls.of(schema, made, trunk or made.trunk, own_patch, config["preprocess"], None)

    @classmethod
    def of(
        cls,
        schema: AttributeSchema,
        config: NetworkConfig,
        trunk: str | nn.Module,
        patch: str | nn.Module | None,
        preprocess: Mapping[str, Any] | None,
        generator: torch.Generator | None,
    ) -> Self:
        """Make a model of the method's configuration; see ``AttributeNetwork``."""
        model = cls.__new__(cls)
        AttributeNetwork.__init__(model, schema, config, trunk, patch, preprocess, generator)
        return model

    def system(self, learning: Learning | None = None) -> _C.System:
        """Return the C++ side; see ``Model.system``.

        Raises:
            ValueError: a trunk is a module of the caller's, which C++ cannot run.
        """
        if not self.is_native:
            raise ValueError(
                "Trainer: trunks must be built-in ones, got a module of the caller's; train it in a "
                "Python loop"
            )
        learning = learning or Learning()
        options = take_options(_C.AttributeOptions(), learning.loss)
        for key in ("region_weight", "box_threshold", "patch_size"):
            setattr(options, key, getattr(self.config, key))
        tensors: dict[str, Tensor] = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return _C.attribute_system(
            self.config.native(),
            options,
            tensors,
            list(self.schema.value_counts),
            _C.Preprocess(**self.preprocess),
            learning.seed,
            dict(learning.extra_losses),
        )

    def _ids(self, attributes: Tensor | str | int | Sequence[str | int], images: Tensor) -> Tensor:
        if isinstance(attributes, (str, int)):
            attributes = [attributes] * images.shape[0]
        if not isinstance(attributes, Tensor):
            attributes = torch.tensor(self.schema.indices(attributes), device=images.device)
        if attributes.dim() not in (1, 2) or attributes.shape[0] != images.shape[0]:
            raise ValueError(
                f"{self.name}: attributes must have shape [B] or [B, K] with B = {images.shape[0]}, "
                f"got {list(attributes.shape)}"
            )
        return attributes

    def _embed(
        self,
        images: Tensor,
        ids: Tensor,
        pictures: Pictures | None,
        use_patch: bool,
        use_background: bool,
        groups: int,
    ) -> NetworkOutput:
        """Embed under ids ``[B, K]``, or ``[K]``: the same for every image, and projected once."""
        config = self.config
        features = _features(self.region.trunk, images, groups)
        class_embedding = class_logits = None
        if self.has_classes:
            region, attention, class_embedding, class_logits = self._class_head(features, ids, groups)
            background = region.new_empty(0)
        else:
            region, attention, background = self._head(
                self.region, self._heads[0], features, ids, use_background, groups
            )
        patch = box = None
        if use_patch and config.patch_trunk:
            flat_box, crops = self._crops(images, attention.detach(), pictures)
            views = attention.shape[:2]
            patch = self.patch_embedding(crops, ids.expand(views).reshape(-1), groups).view(*views, -1)
            box = flat_box.view(*views, 4)
        return NetworkOutput(
            joint_embedding(region, patch, config.region_weight),
            region,
            patch,
            background if background.numel() else None,
            attention if attention.numel() else None,
            box,
            class_embedding,
            class_logits,
        )

    def _head(
        self, branch: Branch, head: str, features: Tensor, ids: Tensor, background: bool, groups: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run a head: embedding, attention and background; what it does not have is an empty tensor."""
        out = torch.ops.placket.attribute_head(
            *self._given(branch, features, ids), head, background, *self._mode(branch, groups)
        )
        return cast(tuple[Tensor, Tensor, Tensor], out)

    def _class_head(
        self, features: Tensor, ids: Tensor, groups: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run a head with a class sub-network: embedding, attention, class embedding and class logits."""
        out = torch.ops.placket.class_head(
            *self._given(self.region, features, ids), self._heads[0], *self._mode(self.region, groups)
        )
        return cast(tuple[Tensor, Tensor, Tensor, Tensor], out)

    def _given(
        self, branch: Branch, features: Tensor, ids: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor, list[Tensor]]:
        """Return what a head computes with: map, attribute table, attributes and weights."""
        return features, next(self.attribute_embedding.parameters(), None), ids, branch.head.tensors()

    def _mode(self, branch: Branch, groups: int) -> tuple[bool, bool, int]:
        """Return whether dropout is on, whether BatchNorm takes the batch's statistics, of how many parts."""
        frozen = isinstance(branch.trunk, Trunk) and branch.trunk.freeze_batch_norm
        return self.training, self.training and not frozen, groups

    def _crops(self, images: Tensor, attention: Tensor, pictures: Pictures | None) -> tuple[Tensor, Tensor]:
        """Boxes ``[V, 4]`` and crops ``[V, 3, S, S]`` of maps ``[B, K, h, w]``, V = B K."""
        size = self.config.patch_size
        count, per_image = attention.shape[:2]
        image_index = torch.arange(count, device=images.device).repeat_interleave(per_image)
        if pictures is None:
            sizes = torch.tensor(images.shape[2:], device=images.device).expand(count, 2)
        else:
            sizes = pictures.sizes
        maps = attention.flatten(0, 1).float()
        box = self.region_boxes(maps, sizes[image_index])
        if pictures is None:
            return box, crop_input(images, box, image_index, size)
        crops = ops.crop_resize(
            pictures.pixels,
            pictures.offsets,
            pictures.sizes,
            box,
            image_index,
            size,
            size,
            self.preprocess["mean"],
            self.preprocess["std"],
        )
        return box, crops.to(images.dtype)


def assignment(embeddings: Tensor, centres: Tensor, temperature: float) -> Tensor:
    """Return the softmax of ``cos(z, centre) / temperature`` over the classes that have a centre.

    Args:
        embeddings: ``[n, E]``; normalised inside.
        centres: ``[values, E]`` unit rows, zero for a class without one.
        temperature: above 0.

    Returns:
        ``[n, values]``, 0 for classes without a centre, 0 for all where none has one.
    """
    seen = centres.any(dim=1)
    scores = F.normalize(embeddings, dim=1) @ centres.T.to(embeddings.dtype) / temperature
    return scores.masked_fill(~seen, -torch.inf).softmax(1) if seen.any() else scores * 0


def joint_embedding(region: Tensor, patch: Tensor | None, region_weight: float) -> Tensor:
    """Join the branches so that the dot product is ``beta cos(region) + (1 - beta) cos(patch)``.

    Args:
        region: ``[..., E]``.
        patch: ``[..., E]``, or None: the result is the normalised region embedding.
        region_weight: beta, from 0 to 1.

    Returns:
        ``[..., 2 E]``, L2-normalised: ``[sqrt(beta) r, sqrt(1 - beta) p]`` of the normalised embeddings.
    """
    region = F.normalize(region, dim=-1)
    if patch is None:
        return region
    return torch.cat(
        [region * region_weight**0.5, F.normalize(patch, dim=-1) * (1 - region_weight) ** 0.5], -1
    )


def crop_input(images: Tensor, box: Tensor, image_index: Tensor, size: int) -> Tensor:
    """Cut boxes from input tensors: bilinear, without antialiasing, the border repeated outside.

    Args:
        images: ``[B, 3, H, W]``.
        box: ``[V, 4]``, x0 y0 x1 y1 in pixels of the input, x1 y1 exclusive.
        image_index: ``[V]``, the image of each box.
        size: side of the crops.
    """
    height, width = images.shape[2:]
    centres = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) / size
    x0, y0, x1, y1 = box.to(images.dtype).unsqueeze(2).unbind(1)
    x = (x0 + centres * (x1 - x0)) * (2 / width) - 1
    y = (y0 + centres * (y1 - y0)) * (2 / height) - 1
    shape = (-1, size, size)
    grid = torch.stack([x.unsqueeze(1).expand(shape), y.unsqueeze(2).expand(shape)], dim=-1)
    return F.grid_sample(images[image_index], grid, padding_mode="border", align_corners=False)


def describe_trunk(trunk: str | nn.Module, channels: int | None = None) -> str:
    """Return the description of a trunk: its own, or that of a caller's module with so many channels."""
    if isinstance(trunk, Trunk):
        return trunk.name
    if isinstance(trunk, str):
        return trunk
    return f"module,channels={channels or channels_of(trunk)}"


def _make_trunk(trunk: str | nn.Module, generator: torch.Generator | None) -> nn.Module:
    return Trunk(trunk, generator) if isinstance(trunk, str) else trunk


def _features(trunk: nn.Module, images: Tensor, groups: int) -> Tensor:
    if isinstance(trunk, Trunk):
        return cast(Tensor, trunk(images, groups))
    if groups != 1:
        raise ValueError(f"network: groups must be 1 with a module of the caller's as trunk, got {groups}")
    return cast(Tensor, trunk(images))
