"""RaF-CLIP: regions of garments and the words for them in one space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from placket import _C, checkpoint
from placket.nn.clip import Clip, TowerOutput
from placket.nn.composition import Composed, Composition
from placket.nn.model import Attended, Learning, Model, Pictures, Views
from placket.schema import Attribute, AttributeSchema
from placket.text import Prompts, Tokenizer

T = TypeVar("T")
WHOLE = "image"
"""The space of the embeddings themselves, beside those of the attributes."""
_MOST_SCALE = 100.0
_AT_ONCE = 256  # prompts


class RafClip(Clip, Model):
    """RaF-CLIP (Journal of Donghua University (English Edition) 2024, 41(4), doi
    10.19884/j.1672-5220.202405006): CLIP's towers, aligned with regions of garments.

    Published is that cropped and segmented regions are aligned with texts of their category and attributes by
    contrastive learning, that users search by category and attributes, and that attributes can be added by
    their text alone. Ours are the losses (csrc/train/systems/region_text.h), the prompts
    (``placket.text.Prompts``), the mean of both views, the towers' sizes, and the space of an attribute:

        p_v = softmax over the values v of ``scale * cos(image, words of v)``,   embedding = (sqrt(p_v))_v

    whose cosine says how far two images are taken for garments of one value
    (``torch.ops.placket.word_spaces``). Each attribute is such a space of an index, and "image", the
    embedding itself, is one more, for queries of words.

    Args:
        schema: the attributes, none of them called "image".
        trunk: description of the image tower, see ``Clip``'s ``image``.
        text: of the text tower; None takes ``Clip``'s for a published image tower, and for any other one as
            wide as its embedding; both for the tokenizer's vocabulary.
        vocabulary: the tokenizer, or the path of CLIP's vocabulary file. A checkpoint keeps it.
        prompts: what the values are called; a file, or a language that is shipped.
        category: the attribute whose values are kinds of garment, which the other prompts then name; None
            where there is none.
        views: what of a region is embedded: its crop, the crop with all but the region blanked ("segmented"),
            or the mean of both. An image without a mask is its crop.
        preprocess, generator: see ``Clip``.

    Raises:
        ValueError: the towers do not fit each other or the vocabulary, an attribute is called "image" or has
            more values than the embedding is wide, or ``category`` is none.
    """

    name: ClassVar[str] = "raf_clip"
    vocabulary_file: Tensor

    def __init__(
        self,
        schema: AttributeSchema,
        trunk: str = "clip_vit_b_16",
        text: str | None = None,
        *,
        vocabulary: Tokenizer | str,
        prompts: Prompts | str = "en",
        category: str | None = None,
        views: Views = "crop",
        preprocess: Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        tokenizer = vocabulary if isinstance(vocabulary, Tokenizer) else Tokenizer.load(vocabulary)
        if text is None:
            width = _C.image_tower_embedding_dim(trunk)
            text = f"clip_text,width={width},embedding_dim={width},vocabulary={len(tokenizer)}"
        said = prompts if isinstance(prompts, Prompts) else Prompts.load(prompts)
        content = torch.frombuffer(bytearray(tokenizer.to_bytes()), dtype=torch.uint8)
        self._make(schema, trunk, text, content, said, category, views, preprocess, generator)
        if len(tokenizer) != self.vocabulary:
            raise ValueError(
                f"raf_clip: text must have the vocabulary of the tokenizer, {len(tokenizer)}, got "
                f"{self.vocabulary}"
            )

    def _make(
        self,
        schema: AttributeSchema,
        trunk: str,
        text: str,
        vocabulary_file: Tensor,
        prompts: Prompts,
        category: str | None,
        views: Views,
        preprocess: Mapping[str, Any] | None,
        generator: torch.Generator | None,
    ) -> None:
        if WHOLE in schema.names:
            raise ValueError(f"raf_clip: attributes must not be called '{WHOLE}', which is a space too")
        if views not in ("crop", "segmented", "both"):
            raise ValueError(f"raf_clip: views must be crop, segmented or both, got '{views}'")
        if category is not None:
            schema.index(category)
        super().__init__(trunk, text, preprocess=preprocess, generator=generator)
        for attribute in schema.attributes:
            if len(attribute.values) > self.embedding_dim:
                raise ValueError(
                    f"raf_clip: '{attribute.name}' must have at most as many values as the embedding is "
                    f"wide, {self.embedding_dim}, got {len(attribute.values)}"
                )
        self.schema = schema
        self.prompts = prompts
        self.category = category
        self.views = views
        self.register_buffer("vocabulary_file", vocabulary_file)
        self.composition: Composition | None = None
        self._made: dict[str, tuple[Any, Any]] = {}  # see _kept

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of its towers."""
        return ("image", "text")

    @property
    def spaces(self) -> dict[str, int]:
        """Dimensions of its spaces: the number of values of each attribute, and of "image"."""
        return {**{a.name: len(a.values) for a in self.schema.attributes}, WHOLE: self.embedding_dim}

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, of the vocabulary that the model keeps."""
        file = self.vocabulary_file
        return self._kept("tokenizer", [file], lambda: Tokenizer.from_bytes(file.cpu().numpy().tobytes()))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings ``[N, D]``, L2-normalised, of texts, by the tokenizer it keeps."""
        return self.encode_text(self.text_ids(texts).to(self.logit_scale.device), normalize=True)

    def text_ids(self, texts: Sequence[str]) -> Tensor:
        """Return the ids ``[N, L]`` of texts by the tokenizer it keeps, L of the longest."""
        return _cut(self.tokenizer(texts, self.context))

    def text_words(self, ids: Tensor) -> tuple[TowerOutput, Tensor]:
        """Return the embeddings of texts and of their words, and where words are, ``[N, L]`` bool.

        Args:
            ids: ``[N, L]``, see ``text_ids``.
        """
        out, end = self.text_tokens(ids.to(self.logit_scale.device))
        return out, torch.arange(ids.shape[1], device=end.device) <= end[:, None]

    def words(self) -> Tensor:
        """Return the embeddings ``[M, D]``, L2-normalised, of the values of all attributes in order.

        Each is the mean of those of its prompts, which name no category. Without gradients they are kept
        until a weight changes.
        """
        if torch.is_grad_enabled():
            return self._embed_values()
        return self._kept("words", [*self.text_parameters()], self._embed_values)

    def _embed_values(self) -> Tensor:
        device = self.logit_scale.device
        ids, rows = self.value_prompts()
        wanted = rows[:, -1]
        parts = [
            self.encode_text(ids[part].to(device), normalize=True)
            for part in wanted.flatten().split(_AT_ONCE)
        ]
        return F.normalize(torch.cat(parts).unflatten(0, wanted.shape).mean(0), dim=1)

    def embed_views(self, images: Tensor, segmented: Tensor | None = None) -> Tensor:
        """Return the mean ``[B, D]`` of the unit embeddings of the views of regions.

        Args:
            images: ``[B, 3, H, W]``, the crops.
            segmented: the same with all but the regions blanked.
        """
        views = [view for view in (images, segmented) if view is not None and view.numel()]
        return torch.stack([self.encode_image(view, normalize=True) for view in views]).mean(0)

    def score_values(self, images: Tensor, segmented: Tensor | None = None) -> Tensor:
        """Return the mean cosine ``[B, M]`` of the views of regions to the words of each value."""
        return self.embed_views(images, segmented) @ self.words().T

    def encode(
        self,
        images: Tensor,
        attributes: Sequence[str | int],
        pictures: Pictures | None = None,
        segmented: Tensor | None = None,
    ) -> Tensor:
        """Return the embeddings ``[B, K, D]``, L2-normalised, of images in each of K spaces.

        A space of fewer dimensions than D has zeros behind them.

        Args:
            images, segmented: see ``embed_views``.
            attributes: names of spaces, or numbers among them.
            pictures: not needed.
        """
        ids = self.space_numbers(attributes)
        scale = self.logit_scale.exp().clamp(max=_MOST_SCALE)
        rows = torch.ops.placket.word_spaces(
            self.embed_views(images, segmented), self.words(), list(self.schema.value_counts), scale
        )
        return cast(Tensor, rows[:, ids])

    @property
    def predicts(self) -> bool:
        """Whether it estimates the values of attributes: by their words."""
        return True

    @property
    def predicts_by_embedding(self) -> bool:
        """Whether it does so from embeddings alone: under an attribute these are the roots of ``p_v``."""
        return True

    def probabilities_of(self, embeddings: Tensor, attribute: str | int) -> Tensor:
        """Return ``p_v`` of embeddings under an attribute; see ``Model.probabilities_of``."""
        return embeddings[:, : len(self.schema[attribute].values)].square()

    def class_probabilities(
        self,
        images: Tensor,
        attributes: Sequence[str | int],
        pictures: Pictures | None = None,
        segmented: Tensor | None = None,
    ) -> list[Tensor]:
        """Return ``p_v`` of the values of each attribute; see ``Model.class_probabilities``.

        Args:
            images, segmented: see ``embed_views``.
            attributes: names or ids of the schema.
            pictures: not needed.
        """
        roots = self.encode(images, self.schema.indices(attributes), pictures, segmented)
        return [self.probabilities_of(roots[:, i], attribute) for i, attribute in enumerate(attributes)]

    @property
    def attends(self) -> bool:
        """Whether it says where in an image it sees each attribute: by the words of its values."""
        return True

    @property
    def box_threshold(self) -> float:
        """A fifth of a map's range, as is customary for class activation maps (Zhou et al., CVPR 2016)."""
        return 0.2

    def value_maps(self, images: Tensor) -> Tensor:
        """Return what each position adds to the lead of each value over its attribute's others.

        ``t_p . (w_v - mean of the other values' w)`` of a position's embedding t_p and the words w of the
        values: a class activation map (Zhou et al., CVPR 2016). For a trunk its mean over positions is, times
        the length of the image's embedding, v's cosine less the mean of the others'; towers that do not take
        the mean of their positions are read as if they did. Of an attribute's only value it is ``t_p . w``.

        Args:
            images: ``[B, 3, H, W]``, normalised; crops, since the ground of segmented ones would count too.

        Returns:
            ``[B, M, h, w]`` float32, M the values of all attributes in order.
        """
        leads = [
            own if len(own) == 1 else (own - own.mean(0)) * (len(own) / (len(own) - 1))
            for own in self.words().float().split(self.schema.value_counts)
        ]
        tokens = self.image_tokens(images).tokens[:, 1:].float()
        height = round((tokens.shape[1] * images.shape[2] / images.shape[3]) ** 0.5)
        return cast(Tensor, (torch.cat(leads) @ tokens.mT).unflatten(2, (height, -1)))

    def attend(
        self, images: Tensor, attributes: Sequence[str | int], pictures: Pictures | None = None
    ) -> Attended:
        """Embed crops and return what speaks for the likeliest value of each attribute; see ``Model.attend``.

        The attention is the positive part of that value's ``value_maps``; the same everywhere where nothing
        speaks for it.
        """
        ids = self.schema.indices(attributes)
        embedding, maps = self.encode(images, ids), self.value_maps(images).split(self.schema.value_counts, 1)
        row = torch.arange(len(images), device=images.device)
        likeliest = torch.stack([maps[i][row, embedding[:, k].argmax(1)] for k, i in enumerate(ids)], 1)
        found = likeliest.relu()
        total = found.sum((2, 3), keepdim=True)
        even = torch.full_like(found, 1 / found[0, 0].numel())
        return Attended(embedding, torch.where(total > 0, found / total.clamp_min(1e-30), even))

    def with_composition(self, composition: Composition) -> Self:
        """Let a composition, AGCN for example, join images and texts for ``compose``; the model keeps it.

        Raises:
            ValueError: it is made for embeddings of another width.
        """
        if composition.dims != self.embedding_dim:
            raise ValueError(
                f"raf_clip: composition must be of {self.embedding_dim} dimensions, got {composition.dims}"
            )
        self.composition = composition.to(self.logit_scale.device).train(self.training)
        return self

    def compose(self, images: Tensor, texts: Sequence[str], segmented: Tensor | None = None) -> Composed:
        """Return queries for garments like the images, but as the texts say, for the space "image".

        Args:
            images, segmented: see ``embed_views``.
            texts: B of them.

        Returns:
            Queries ``[B, D]``, L2-normalised, by the model's composition; their sum where it has none.

        Raises:
            ValueError: the composition reads positions of images, and there are segmented views.
        """
        if self.reads_tokens and segmented is not None and segmented.numel():
            raise ValueError(
                "raf_clip: segmented must be absent with a composition that reads positions of images, got "
                f"shape {list(segmented.shape)}"
            )
        if not self.reads_tokens:
            return cast(Composed, self.composer(self.embed_views(images, segmented), self.embed_texts(texts)))
        image = self.image_tokens(images)
        text, words = self.text_words(self.text_ids(texts))
        return cast(
            Composed,
            self.composer(image.embedding, text.embedding, image.tokens[:, 1:], text.tokens, words),
        )

    @property
    def composer(self) -> Composition:
        """What composes: its own composition, or the sum where it has none."""
        return self.composition or Composition("sum", self.embedding_dim).to(self.logit_scale.device)

    @property
    def reads_tokens(self) -> bool:
        """Whether its composition reads positions of images and words of texts beside the embeddings."""
        return self.composer.reads_tokens

    def system(self, learning: Learning | None = None) -> _C.System:
        """Return the C++ side; see ``Model.system``.

        Raises:
            ValueError: there are extra losses, which it does not take.
        """
        (learning or Learning()).no_extra_losses(self.name)
        ids, rows = self.value_prompts()
        return _C.region_text_system(
            image=self.image,
            text=self.text,
            category=-1 if self.category is None else self.schema.index(self.category),
            tensors={**dict(self.named_parameters()), **dict(self.named_buffers())},
            values=list(self.schema.value_counts),
            prompts=ids,
            prompt_rows=rows,
        )

    def value_prompts(self) -> tuple[Tensor, Tensor]:
        """Return what the values are called.

        Returns:
            ids ``[T, L]`` of all prompts, each once, and rows ``[K, C + 1, M]`` of it: variant k of value m
            for garments of category c, the last c for those whose category is not known.
        """
        return self._kept("prompts", [self.vocabulary_file], self._value_prompts)

    def _value_prompts(self) -> tuple[Tensor, Tensor]:
        categories: tuple[str | None, ...] = (None,)
        if self.category is not None:
            categories = (*self.schema[self.schema.index(self.category)].values, None)
        said = [
            [
                self._say(attribute, value, category)
                for attribute in self.schema.attributes
                for value in attribute.values
            ]
            for category in categories
        ]
        variants = max(len(texts) for row in said for texts in row)
        places: dict[str, int] = {}
        rows = [
            [[places.setdefault(texts[k % len(texts)], len(places)) for texts in row] for row in said]
            for k in range(variants)
        ]
        return _cut(self.tokenizer(list(places), self.context)), torch.tensor(rows)

    def _kept(self, what: str, of: Sequence[Tensor], make: Callable[[], T]) -> T:
        """Return what is made of tensors, made again once one of them has changed."""
        key = [(tensor.data_ptr(), tensor._version) for tensor in of]
        if what not in self._made or self._made[what][0] != key:
            self._made[what] = key, make()
        return cast(T, self._made[what][1])

    def __getstate__(self) -> dict[str, Any]:
        # A copy makes its own: its tensors lie elsewhere, and a tokenizer cannot be copied.
        return {**self.__dict__, "_made": {}}

    def _say(self, attribute: Attribute, value: str, category: str | None) -> tuple[str, ...]:
        if attribute.name == self.category:
            return self.prompts.category(value)
        return self.prompts.attribute(attribute.name, value, category)

    def with_attributes(self, attributes: Mapping[str, Sequence[str]]) -> Self:
        """Return a model of the same weights that knows further attributes, by their words alone.

        Example::

            longer = model.with_attributes({"closure": ["zip", "buttons", "laces"]})

        Args:
            attributes: names of the new ones and of their values.

        Raises:
            ValueError: one is known already, or none is given.
        """
        if not attributes:
            raise ValueError("extend: attributes must be at least one, got none")
        added = tuple(Attribute(name, tuple(values)) for name, values in attributes.items())
        config = self.config_dict()
        config["schema"] = AttributeSchema(self.schema.attributes + added).to_dict()
        with torch.device("meta"):
            longer = type(self).from_config(config)
        checkpoint.fill(longer, {n: t.detach().clone() for n, t in self.state_dict().items()}, self.name)
        return longer.train(self.training)

    def config_dict(self, preprocess: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the content of a checkpoint's ``config.json``; see ``Model.config_dict``."""
        return {
            "format": checkpoint.FORMAT,
            "model": {
                "name": self.name,
                "trunk": self.image,
                "text": self.text,
                "category": self.category,
                "views": self.views,
                "prompts": self.prompts.source,
                "composition": None if self.composition is None else self.composition.name,
                "vocabulary_bytes": len(self.vocabulary_file),
            },
            "schema": self.schema.to_dict(),
            "preprocess": dict(self.preprocess if preprocess is None else preprocess),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Make the model that ``config_dict`` describes; its vocabulary comes with the tensors."""
        fields = dict(config["model"])
        known = {"name", "trunk", "text", "category", "views", "prompts", "composition", "vocabulary_bytes"}
        if fields.keys() != known:
            raise ValueError(
                f"load: model must have the keys {', '.join(sorted(known))}, got {', '.join(sorted(fields))}"
            )
        model = cls.__new__(cls)
        model._make(
            AttributeSchema.from_dict(config["schema"]),
            fields["trunk"],
            fields["text"],
            torch.zeros(fields["vocabulary_bytes"], dtype=torch.uint8),
            Prompts.of(fields["prompts"]),
            fields["category"],
            fields["views"],
            config["preprocess"],
            None,
        )
        if fields["composition"] is not None:
            model.with_composition(Composition(fields["composition"], model.embedding_dim))
        return model


def _cut(ids: Tensor) -> Tensor:
    """Return ids ``[N, L]`` without the columns behind the longest text, which cost and mean nothing."""
    used = int((ids != 0).any(0).sum())
    return ids[:, : max(used, 1)]
