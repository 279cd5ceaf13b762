"""Public data sets that recipes are made for: what they consist of, where that is, and what others report on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A file or folder of a data set.

    Attributes:
        path (`str`): Below the data set's folder.
        address (`str`): What it is fetched from, or the page that says how it is had where `by_hand` is true.
        by_hand (`bool`): It has to be asked for, or lies where programs cannot fetch it.
        size (`str`): Of what is fetched, for people.
        member (`str`): What is taken of an archive: the path of a file or of a folder in it. Absent: no archive.
        rows (`int`): Of a table, or images of a JSON file. Absent: not known, as for the other counts.
        images (`int`): Image files in a folder.
        classes (`int`): Folders in a folder.
        is_named_by_md5 (`bool`): Each image is called by the MD5 of its content.
    """

    path: str
    address: str
    by_hand: bool = False
    size: str = ""
    member: str | None = None
    rows: int | None = None
    images: int | None = None
    classes: int | None = None
    is_named_by_md5: bool = False


@dataclass(frozen=True)
class Figure:
    """A number that somebody else reports; mmhf has not measured it.

    Attributes:
        model (`str`): Of what.
        value (`str`): With its metric.
        protocol (`str`): How it was measured.
        source (`str`): Where it stands.
    """

    model: str
    value: str
    protocol: str
    source: str


@dataclass(frozen=True)
class PublicData:
    """A data set that recipes are made for.

    Attributes:
        title (`str`): One line.
        licence (`str`): By which it may be used, in its authors' words where they say it.
        page (`str`): Its authors' own.
        parts (`Sequence[Part]`): What lies in its folder.
        recipes (`Mapping[str, Sequence[str]]`): Recipe → the overrides that it needs, with `{folder}` for the folder.
        figures (`Sequence[Figure]`): What others report.
        hint (`str`): What else to know before fetching it.
    """

    title: str
    licence: str
    page: str
    parts: Sequence[Part]
    recipes: Mapping[str, Sequence[str]]
    figures: Sequence[Figure]
    hint: str = ""

    def overrides(self, recipe: str, folder: str) -> list[str]:
        """What the recipe needs to find the data in this folder."""
        return [override.format(folder=folder) for override in self.recipes[recipe]]


_IN_FOLDER = ("data.path={folder}",)
_ISIC = "isic-challenge-data.s3.amazonaws.com/2020/ISIC_2020_Training"

PUBLIC_DATA: Mapping[str, PublicData] = {
    "flickr30k": PublicData(
        title="31,783 photographs from Flickr with five captions each (Young et al., 2014), in Karpathy's splits",
        licence="the photographs under Flickr's terms of use, for non-commercial research and education only",
        page="https://shannon.cs.illinois.edu/DenotationGraph/",
        parts=[
            Part(
                "dataset_flickr30k.json",
                "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
                size="36 MB",
                member="dataset_flickr30k.json",
                rows=31_014,
            ),
            Part(
                "flickr30k-images",
                "https://shannon.cs.illinois.edu/DenotationGraph/",
                by_hand=True,
                size="4 GB",
                images=31_783,
            ),
        ],
        recipes={
            "flickr30k/dual_encoder_fast": _IN_FOLDER,
            "flickr30k/dual_encoder_vit_b16": _IN_FOLDER,
            "flickr30k/dual_encoder_pretrained": _IN_FOLDER,
            "flickr30k/captioner_clip_qwen3": _IN_FOLDER,
            "flickr30k/captioner_clip_qwen3_lora": _IN_FOLDER,
        },
        figures=[
            Figure(
                "CLIP ViT-L/14 at 336 pixels, not trained on it",
                "recall@1 0.880 image → text, 0.687 text → image",
                "1,000 test images, 5,000 captions",
                "Radford et al., 2021, table 13",
            ),
            Figure(
                "VSE++, ResNet-152 fine-tuned on it",
                "recall@1 0.529 image → text, 0.396 text → image",
                "1,000 test images, 5,000 captions",
                "Faghri et al., 2018",
            ),
            Figure(
                "CLIP ViT-B/16 from scratch on 3,000,000 pairs from the web, not trained on it",
                "recall@1 0.122 image → text, 0.064 text → image",
                "1,000 test images, 5,000 captions",
                "Lai et al., 2024 (VeCLIP)",
            ),
        ],
        hint="with data.path=null a recipe fetches photographs and captions from the Hub instead (4 GB)",
    ),
    "fakeddit": PublicData(
        title="682,661 posts of Reddit with image and title, labelled 2, 3 and 6 ways (Nakamura et al., 2020)",
        licence="not stated by its authors; posts and images belong to who made them",
        page="https://github.com/entitize/Fakeddit",
        parts=[
            *(
                Part(
                    f"multimodal_{split}.tsv",
                    "https://drive.google.com/drive/folders/1DQSGFSLOP22xhL-Px4tFpde3eYpCq7bQ",
                    by_hand=True,
                    rows=rows,
                )
                for split, rows in (("train", 564_000), ("validate", 59_342), ("test_public", 59_319))
            ),
            Part(
                "public_image_set",
                "https://drive.google.com/drive/folders/1jU7qgDqU1je9Y0PMKJ_f31yXRo5uWGFm",
                by_hand=True,
                images=682_661,
            ),
        ],
        recipes=dict.fromkeys(("fakeddit/v1.6", "fakeddit/v1.7", "fakeddit/v1.8", "fakeddit/staged"), _IN_FOLDER),
        figures=[
            Figure(
                "BERT and ResNet-50, both trained, the larger of each pair of features",
                "accuracy 0.8909 (2 classes), 0.8588 (6 classes)",
                "test_public, posts with image and title",
                "Nakamura et al., 2020",
            )
        ],
        hint="the tables are those of multimodal_only_samples, version 2.0; some images are broken or missing",
    ),
    "plant_village": PublicData(
        title="54,305 photographs of single leaves, healthy or with one of 26 diseases, 14 crops, 38 classes",
        licence="open access (Hughes and Salathé, 2015); cite Mohanty et al., 2016",
        page="https://github.com/spMohanty/PlantVillage-Dataset",
        parts=[
            Part(
                "color",
                "https://github.com/spMohanty/PlantVillage-Dataset/archive/refs/heads/master.zip",
                size="2 GB or more",
                member="PlantVillage-Dataset-master/raw/color",
                images=54_305,
                classes=38,
            )
        ],
        recipes={
            f"plant_disease/{name}": ("data.path={folder}/color",)
            for name in ("efficientnet_b0", "mobilenetv3", "resnet50")
        },
        figures=[
            Figure(
                "GoogLeNet from ImageNet, all trained",
                "accuracy 0.9935, mean F1 0.9934",
                "20 % held out at random, photographs of a leaf kept together; colour",
                "Mohanty et al., 2016",
            )
        ],
        hint="several photographs show one leaf: splits at random flatter every model",
    ),
    "fitzpatrick17k": PublicData(
        title="16,577 clinical photographs of 114 skin conditions with the type of skin (Groh et al., 2021)",
        licence="annotations CC BY-NC-SA 3.0; photographs belong to the two atlases they come from",
        page="https://github.com/mattgroh/fitzpatrick17k",
        parts=[
            Part(
                "fitzpatrick17k.csv",
                "https://raw.githubusercontent.com/mattgroh/fitzpatrick17k/main/fitzpatrick17k.csv",
                size="4 MB",
                rows=16_577,
            ),
            Part(
                "images",
                "https://github.com/mattgroh/fitzpatrick17k",
                by_hand=True,
                images=16_577,
                is_named_by_md5=True,
            ),
        ],
        recipes={
            "dermatology/fusion": (
                "data.path={folder}",
                "data.version=null",
                "~data.tables",
                "data.tables={{fitzpatrick17k: {{table: fitzpatrick17k.csv, images: images}}}}",
            )
        },
        figures=[
            Figure(
                "VGG-16 from ImageNet with a new head",
                "accuracy about 0.20 (114 classes)",
                "20 % held out at random",
                "Groh et al., 2021",
            )
        ],
        hint="rows have the photographs' addresses, many of them dead; the authors send all of them after a form",
    ),
    "isic2020": PublicData(
        title="33,126 dermoscopic photographs of 2,056 patients, 584 melanomas (Rotemberg et al., 2021)",
        licence="CC BY-NC 4.0",
        page="https://challenge2020.isic-archive.com/",
        parts=[
            Part("train.csv", f"https://{_ISIC}_GroundTruth.csv", size="2 MB", rows=33_126),
            Part("images", f"https://{_ISIC}_JPEG.zip", size="23 GB", member="train", images=33_126),
        ],
        recipes={
            "dermatology/fusion": (
                "data.path={folder}",
                "data.version=null",
                "~data.tables",
                "data.tables={{isic2020: {{table: train.csv, images: images}}}}",
            )
        },
        figures=[
            Figure(
                "18 EfficientNets and others with metadata, averaged",
                "ROC-AUC 0.949 (melanoma or not)",
                "the challenge's hidden test images",
                "Ha et al., 2020, first of the challenge",
            )
        ],
        hint="nearly all photographs but those of melanomas have no diagnosis, which recipes read as no label",
    ),
}
"""Name → the data set."""
