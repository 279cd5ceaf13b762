"""What a family of models says of itself: one record, read by Hub, inference, demo, model cards and `mmhf` itself.

Each package in `mmhf/models/` is a family and holds its record as `FAMILY`; there is no other list of families. A
record names classes and imports none of them, so that all records can be read without torch.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmhf import models

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Family:
    """One family of models.

    Classes are given as `MODULE:CLASS`; a module of the family's own folder needs no package in front.

    Args:
        package (`str`): The family's package, `__name__` where the record is written.
        model_type (`str`): `model_type` of its configs.
        task (`str`): `task` of its recipes; `image-captioning` is the class `ImageCaptioning` in
            `mmhf/tasks/image_captioning.py`.
        config, model (`str`): Its classes.
        pipeline_task (`str`): What `pipeline()` is asked for.
        card_call (`str`): How its model card calls that pipeline.
        subject (`str`): What answers in the demo, made of model, processor and the captions to choose from.
        processor (`str`, *optional*): Its class; absent: a stock image processor.
        auto_classes (`tuple[str, ...]`): Auto classes of transformers that load the model.
        name_table (`str`, *optional*): Table in transformers' `modeling_auto` by which a stock pipeline knows models.
        pipeline (`str`, *optional*): Its own pipeline; absent: a stock one.
        pipeline_inputs (`str`): What its own pipeline takes, as transformers names it: `multimodal` or `image`.
        pipeline_tag (`str`, *optional*): The Hub's name of what the model does; absent: it has none.
        predictor (`str`, *optional*): What turns batches into columns of a table (`mmhf predict`); absent: nothing.
        embedder (`str`, *optional*): What turns images and texts into embeddings (`mmhf embed`); absent: nothing.
        graphs (`str`, *optional*): What makes graphs of it (`mmhf export`); absent: nothing.
    """

    package: str
    model_type: str
    task: str
    config: str
    model: str
    pipeline_task: str
    card_call: str
    subject: str
    processor: str | None = None
    auto_classes: tuple[str, ...] = ("AutoModel",)
    name_table: str | None = None
    pipeline: str | None = None
    pipeline_inputs: str = "multimodal"
    pipeline_tag: str | None = None
    predictor: str | None = None
    embedder: str | None = None
    graphs: str | None = None

    @property
    def classes(self) -> dict[str, str]:
        """Name of each public class → the module that it is in: config, model, processor."""
        targets = (self.where(name) for name in ("config", "model", "processor"))
        return {target[1]: target[0] for target in targets if target is not None}

    def where(self, name: str) -> tuple[str, str] | None:
        """Module and class of any of the record's classes, such as `config`, `processor` or `predictor`."""
        target = vars(self)[name]
        if target is None:
            return None
        module, _, class_name = target.partition(":")
        return module if module.startswith("mmhf.") else f"{self.package}.{module}", class_name

    def load(self, name: str) -> Any:
        """The class of that name, as in `where`, once transformers knows the family.

        Raises:
            `ValueError`: the family has none.
        """
        target = self.where(name)
        if target is None:
            raise ValueError(f"{self.model_type} has no {name}")
        self.register()
        return getattr(importlib.import_module(target[0]), target[1])

    def attribute(self, name: str) -> Any:
        """One of `classes`: the `__getattr__` of the family's package."""
        if name not in self.classes:
            raise AttributeError(f"module {self.package!r} has no attribute {name!r}")
        self.register()
        return getattr(importlib.import_module(self.classes[name]), name)

    def register(self) -> None:
        """Make the family's classes known to transformers' Auto classes and stock pipelines."""
        _register(self)


@functools.cache
def families() -> dict[str, Family]:
    """Every family by its model type."""
    packages = [each.name for each in pkgutil.iter_modules(models.__path__) if each.ispkg]
    records = [importlib.import_module(f"{models.__name__}.{name}").FAMILY for name in packages]
    return {record.model_type: record for record in records}


def family_of(model: PreTrainedModel) -> Family:
    """The family that a model belongs to."""
    return families()[model.config.model_type]


def family_of_task(task: str) -> Family | None:
    """The family that recipes of a task make; None for the task of no family."""
    return next((family for family in families().values() if family.task == task), None)


def register_families() -> None:
    """Make every family known to transformers' Auto classes and stock pipelines."""
    for family in families().values():
        family.register()


@functools.cache
def _register(family: Family) -> None:
    import transformers
    from transformers.models.auto import modeling_auto

    from mmhf.models.naflex import NaflexImageProcessor

    found = {name: getattr(importlib.import_module(module), name) for name, module in family.classes.items()}
    classes = [found[target.partition(":")[2]] for target in (family.config, family.model)]
    config_class, model_class = classes
    transformers.AutoConfig.register(family.model_type, config_class)
    # A stock image processor names its class, and Auto classes look among those of models.
    transformers.AutoImageProcessor.register(
        config_class, image_processor_classes={"torchvision": NaflexImageProcessor}, exist_ok=True
    )
    for auto_class in family.auto_classes:
        getattr(transformers, auto_class).register(config_class, model_class)
    if family.processor is not None:
        transformers.AutoProcessor.register(config_class, found[family.processor.partition(":")[2]])
    if family.name_table is not None:
        # transformers 5.24: a stock pipeline looks here, and not at what is registered.
        vars(modeling_auto)[family.name_table][family.model_type] = model_class.__name__
