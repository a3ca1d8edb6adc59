"""Batches of a split for Python loops, or lists of their images; the C++ trainer uses the same loader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch

from placket import _C
from placket.data.columns import Labels
from placket.data.dataset import DatasetError, Split
from placket.data.resident import resident_pixels

__all__ = ["BatchSampler", "Loader"]


class Loader:
    """Iterates over the batches of an epoch; each new iteration is the next epoch.

    Images are read, decoded and prepared ahead on C++ threads, and a batch's tensors are theirs without a
    copy. What a batch holds depends on ``seed``, epoch and step only, never on ``threads`` or ``prefetch``.
    With ``resident`` the images and pictures are made on that device and lie there, of equal bits.

    A batch of N images (a triplet batch of b triplets has N = 3b rows: anchors, positives, negatives) has

    - ``images``: [N, 3, size, size] float32, normalised, channels_last;
    - ``segmented``: with ``views`` "both", the segmented views of the same crops, [N, 3, size, size];
    - ``labels``: [N, A] int64, each image's first value of every attribute, -1 where it has none;
    - ``classes``: [N, M] bool, which of the M values of all attributes, in order, each image carries;
    - ``attributes``, ``values``: [N] int64, what each row was drawn for; empty for sampler "images";
    - ``pixels``, ``offsets``, ``sizes``: with ``keep_pixels``, the uint8 pictures [h, w, 3] that ``images``
    were
      made from, one after another, the first byte of each, [N] int64, and their heights and widths, [N, 2]
      int64;
    - ``plan``: ``epoch``, and ``images``, [N] int64: which images of the split these are.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch: int,
        sampler: Literal["images", "triplets", "classes", "identities"] = "images",
        shuffle: bool = True,
        drop_last: bool = True,
        triplets: int = 100_000,
        negative_by_value: bool = True,
        exclude_shared: bool = False,
        single_views: bool = False,
        images_of_class: int = 4,
        attribute: str | None = None,
        balance_domains: bool = False,
        steps: int | None = None,
        copies: int = 1,
        preprocess: _C.Preprocess | None = None,
        augment: _C.Augment | None = None,
        keep_pixels: bool = False,
        views: Literal["crop", "segmented", "both"] = "crop",
        seed: int = 0,
        threads: int = 2,
        prefetch: int = 2,
        on_error: Literal["raise", "skip"] = "raise",
        resident: str | torch.device | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Start to load.

        Args:
            split: the images.
            batch: images, or triplets, a step, over all ranks; a multiple of ``world_size``.
            sampler: "images" takes every image once an epoch; "triplets" draws triplets of one attribute each
                (ASEN, ASEN++, RPF: attribute uniform, value uniform, images uniform within it); "classes"
                draws P values of one attribute and K images of each, P x K = ``batch``; "identities" draws P
                products in place of values, which ``values`` then counts.
            shuffle: "images" in a new order each epoch, otherwise in the split's order.
            drop_last: leave out the last images of an epoch where they do not fill a batch.
            triplets: triplets an epoch.
            negative_by_value: draw a negative's value uniformly, then an image of it, as ASEN++ and RPF do;
                otherwise uniformly among all images of other values, as ASEN does.
            exclude_shared: draw no negative that carries the anchor's value too.
            single_views: let a value with one image be drawn, which then comes again where another image of
                the value is due, as another view of itself by augmentation; otherwise such values are left
                out (of triplets, as anchors).
            images_of_class: K of "classes" and "identities"; a value with fewer images gives all of them
                before any again.
            attribute: whose values are the classes; None draws one for each step.
            balance_domains: let the photos of shops and of consumers share the K images of a product evenly,
                the shops' first, each of them once before any again; a product with photos of one kind
                gives all K of that. For "identities" of a split with ``domains``; K must be even.
            steps: of "classes" and "identities", an epoch; None takes as many as the split's images fill.
            copies: of every row of a batch, next to each other, each with an augmentation of its own.
            preprocess: from decoded image to input; by default 224 pixels, short side and centre crop.
            augment: random changes; by default none.
            keep_pixels: fill ``pixels``.
            views: what ``images`` shows. "crop": the crop. "segmented", of a split with masks: the crop,
                after every augmentation, times the share of each place that the region covers, so that the
                rest is 0, the mean of the normalisation. The share is that of the mask brought to the input
                by the same crop, flip and size, bilinear and antialiased; of a region without pixels nothing
                is left. "both": the crop, and ``segmented``.
            seed: of sampling and augmentation.
            threads: that decode.
            prefetch: batches in work or finished ahead.
            on_error: "raise" for an image that cannot be read, or "skip": the next image of the split that
                can be read and carries the value the row was drawn for takes its place, always the same
                one, and ``skipped`` lists it.
            resident: a device, "cuda" or "cpu", whose memory keeps the pixels of the split's whole store as
                long as the data set is open, for all loaders. Batches are cut and resized there, and only a
                few numbers an image are copied. It needs ``interpolation`` "bilinear", ``arithmetic``
                "pillow", and ``color_jitter``, ``grayscale``, ``blur`` and ``erasing`` off.
            rank: which part of each batch to load, from 0.
            world_size: number of parts; together they are the batch of one rank.

        Raises:
            ValueError: an argument is out of range, no attribute can give a triplet, or ``resident`` pixels
                do not fit the device's memory or cannot be prepared as asked.
            DatasetError: the split has no list of filenames, or is no store of pixels to be resident.
        """
        source = make_source(
            "Loader",
            split,
            batch=batch,
            sampler=sampler,
            shuffle=shuffle,
            drop_last=drop_last,
            triplets=triplets,
            negative_by_value=negative_by_value,
            exclude_shared=exclude_shared,
            single_views=single_views,
            images_of_class=images_of_class,
            attribute=attribute,
            balance_domains=balance_domains,
            steps=steps,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        self._source = _C.copied_source(source, copies)
        self._loader = _C.Loader(
            split.image_list(None if resident is None else resident_pixels(split, resident)),
            split.labels.to_native(),
            self._source,
            preprocess=preprocess or _C.Preprocess(),
            augment=augment or _C.Augment(),
            seed=seed,
            keep_pixels=keep_pixels,
            views=views,
            threads=threads,
            prefetch=prefetch,
            skip_unreadable=skips_unreadable("Loader", on_error),
        )
        self._split = split
        self._loaded = 0  # where the core stands
        self._step = 0  # where the next iteration begins, counted over epochs
        self._given = 0  # after the last batch that was given

    def __len__(self) -> int:
        """Batches an epoch."""
        return self._source.steps_per_epoch

    def __iter__(self) -> Iterator[_C.Batch]:
        """Iterate over the next epoch, or over what is left of one after ``load_state_dict``.

        Raises:
            RuntimeError: an image of the batch cannot be read; the text names file and cause.
        """
        first, epoch = self._step, self._step // len(self)
        self._step = (epoch + 1) * len(self)  # where another iteration begins, should this be left
        for step in range(first, (epoch + 1) * len(self)):
            if step != self._loaded:
                self._loader.seek(step)
            self._loaded = step + 1
            batch = self._loader.next()
            self._given = step + 1
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this epoch, from 0."""
        if epoch < 0:
            raise ValueError(f"Loader: epoch must not be negative, got {epoch}")
        self._step = self._given = epoch * len(self)

    def state_dict(self) -> dict[str, int]:
        """Return the position after the last batch that was given, as ``load_state_dict`` takes it."""
        return {"step": self._given, "steps_per_epoch": len(self)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next iteration go on at a position; the batches are those that were still to come.

        Raises:
            ValueError: the position is of a loader with other epochs.
        """
        if state.get("steps_per_epoch") != len(self) or state.get("step", -1) < 0:
            raise ValueError(f"Loader: state must be of epochs of {len(self)} steps, got {dict(state)}")
        self._step = self._given = state["step"]

    @property
    def skipped(self) -> dict[str, str]:
        """The images that could not be read and were replaced so far: the cause by path."""
        return causes_by_path(self._split, self._loader.skipped)

    @property
    def waited(self) -> float:
        """Seconds that iteration has waited for batches since the loader was made."""
        return self._loader.waited


class BatchSampler:
    """The batches of an epoch as lists of images, for ``torch.utils.data.DataLoader(batch_sampler=...)``.

    Each iteration is the next epoch. The batches are those of a ``Loader`` with the same settings, a pure
    function of ``seed``, epoch and step; see there for the arguments. A triplet batch of b triplets has its
    anchors, then its positives, then its negatives.

    Example::

        sampler = placket.data.BatchSampler(split, batch=64, images_of_class=4)
        for images, labels in torch.utils.data.DataLoader(my_dataset, batch_sampler=sampler): ...
    """

    def __init__(
        self,
        split: Split,
        *,
        batch: int,
        sampler: Literal["images", "triplets", "classes", "identities"] = "classes",
        shuffle: bool = True,
        drop_last: bool = True,
        triplets: int = 100_000,
        negative_by_value: bool = True,
        exclude_shared: bool = False,
        single_views: bool = False,
        images_of_class: int = 4,
        attribute: str | None = None,
        balance_domains: bool = False,
        steps: int | None = None,
        roles: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Plan the batches.

        Args:
            split: the images; the DataLoader's data set is indexed as it is.
            roles: give in place of each image (image, attribute, value), ints: what it was drawn for. Such a
                tuple is what the data set's ``__getitem__`` then gets. Not with sampler "images".

        Raises:
            ValueError: an argument is out of range, or no attribute can give a batch.
            DatasetError: no attribute can give a triplet, or the split has no identities.
        """
        if roles and sampler == "images":
            raise ValueError("BatchSampler: roles must be False with sampler 'images', got True")
        self._roles = roles
        self._epoch = 0
        self._source = make_source(
            "BatchSampler",
            split,
            batch=batch,
            sampler=sampler,
            shuffle=shuffle,
            drop_last=drop_last,
            triplets=triplets,
            negative_by_value=negative_by_value,
            exclude_shared=exclude_shared,
            single_views=single_views,
            images_of_class=images_of_class,
            attribute=attribute,
            balance_domains=balance_domains,
            steps=steps,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )

    def __len__(self) -> int:
        """Batches an epoch."""
        return self._source.steps_per_epoch

    def __iter__(self) -> Iterator[list[Any]]:
        first = self._epoch * len(self)
        self._epoch += 1
        for step in range(first, first + len(self)):
            plan = self._source.plan(step)
            images: list[Any] = plan.images.tolist()
            if self._roles:
                images = list(zip(images, plan.attributes.tolist(), plan.values.tolist(), strict=True))
            yield images

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this epoch, from 0."""
        if epoch < 0:
            raise ValueError(f"BatchSampler: epoch must not be negative, got {epoch}")
        self._epoch = epoch


def make_source(
    user: str,
    split: Split,
    *,
    batch: int,
    sampler: str,
    shuffle: bool,
    drop_last: bool,
    triplets: int,
    negative_by_value: bool,
    exclude_shared: bool,
    single_views: bool,
    images_of_class: int,
    attribute: str | None,
    balance_domains: bool,
    steps: int | None,
    seed: int,
    rank: int,
    world_size: int,
) -> _C.BatchSource:
    """Return the plan of a split's batches; ``user`` opens the messages. See ``Loader`` for the rest."""
    if balance_domains and sampler != "identities":
        raise ValueError(f"{user}: balance_domains must be False with sampler '{sampler}', got True")
    if sampler == "images":
        return _C.image_source(
            len(split),
            seed=seed,
            batch=batch,
            shuffle=shuffle,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
        )
    if sampler == "triplets":
        if not single_views:
            _check_variety(split)
        return _C.triplet_source(
            split.labels.to_native(),
            seed=seed,
            batch=batch,
            triplets=triplets,
            negative_by_value=negative_by_value,
            exclude_shared=exclude_shared,
            single_views=single_views,
            rank=rank,
            world_size=world_size,
        )
    if sampler in ("classes", "identities"):
        if batch % images_of_class:
            raise ValueError(
                f"{user}: batch must be a multiple of images_of_class {images_of_class}, got {batch}"
            )
        labels = split.labels if sampler == "classes" else _identity_labels(split, balance_domains)
        return _C.class_source(
            labels.to_native(),
            seed=seed,
            classes=batch // images_of_class,
            images_of_class=images_of_class,
            steps=steps or 0,
            attribute=-1 if attribute is None else split.schema.index(attribute),
            least_images=1 if single_views else 2,
            balance=1 if balance_domains else -1,
            rank=rank,
            world_size=world_size,
        )
    raise ValueError(
        f"{user}: sampler must be 'images', 'triplets', 'classes' or 'identities', got '{sampler}'"
    )


def skips_unreadable(user: str, on_error: str) -> bool:
    """Return whether ``on_error`` is "skip"; raise ValueError, ``user`` first, where it is unknown."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"{user}: on_error must be 'raise' or 'skip', got '{on_error}'")
    return on_error == "skip"


def causes_by_path(split: Split, skipped: Mapping[int, str]) -> dict[str, str]:
    """Return by path what the core keeps by image."""
    images = split.image_list()
    return {images.path(image): cause for image, cause in skipped.items()}


def _identity_labels(split: Split, with_domains: bool) -> Labels:
    """Return the products as the values of one attribute, where asked with the domains as another's."""
    for name, column in (("identities", split.identities), ("domains", split.domains)):
        if column is None and (name == "identities" or with_domains):
            raise DatasetError(f"{split.root}: split '{split.name}' must have {name} to draw, got none")
    assert split.identities is not None
    images = np.flatnonzero(split.identities >= 0)
    attribute, value = np.zeros_like(images), split.identities[images]
    values: tuple[int, ...] = (int(split.identities.max(initial=-1)) + 1,)
    if split.domains is not None and with_domains:
        images = np.concatenate([images, np.arange(len(split))])
        attribute = np.concatenate([attribute, np.ones(len(split), dtype=np.int64)])
        value = np.concatenate([value, split.domains])
        values = (*values, 2)
    return Labels.gather(images, attribute, value, len(split), values)


def _check_variety(split: Split) -> None:
    """The sampler knows attributes by number only; where none can give a triplet, name them."""
    found = []
    for a, name in enumerate(split.schema.names):
        counts = split.labels.counts(a)
        if (counts >= 1).sum() >= 2 and counts.max() >= 2:
            return
        found.append(f"'{name}' with {counts.sum()} labels of {(counts >= 1).sum()}")
    raise DatasetError(
        f"{split.root}: split '{split.name}' must have an attribute with images of two values, two of one "
        f"of them, to give triplets, got {', '.join(found) or 'no labels of any'} values; label more images"
    )
