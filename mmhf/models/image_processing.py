"""Stock image processors for a recipe's backbone and image size."""

from __future__ import annotations

from transformers import CLIPImageProcessor

from mmhf.models.backbones import ImageStatistics, image_statistics, load_encoder_config
from mmhf.recipe.schema import DataSectionBase, VisionEncoderSection


def build_image_processor(statistics: ImageStatistics, *, image_size: int, resize: str) -> CLIPImageProcessor:
    """Image processor for square images.

    Args:
        statistics ([`ImageStatistics`]): Mean, standard deviation and resampling of the encoder.
        image_size (`int`): Side in pixels.
        resize (`str`): `squash` ignores the aspect ratio; `crop` resizes the shorter side and crops the centre.
    """
    square = {"height": image_size, "width": image_size}
    return CLIPImageProcessor(
        size={"shortest_edge": image_size} if resize == "crop" else square,
        do_center_crop=resize == "crop",
        crop_size=square,
        image_mean=list(statistics.mean),
        image_std=list(statistics.std),
        resample=statistics.interpolation,
    )


def image_processor_of(section: VisionEncoderSection, data_section: DataSectionBase) -> CLIPImageProcessor:
    """Image processor for the image encoder and image size of a recipe.

    Raises:
        `InputError`: a file of the backbone cannot be fetched.
    """
    config = load_encoder_config(section.backbone, pretrained=section.pretrained, modality="image")
    statistics = image_statistics(section.backbone, config, pretrained=section.pretrained)
    return build_image_processor(statistics, image_size=data_section.image_size, resize=data_section.resize)
