"""Image-text fusion classifier: two encoders and a table's columns, one space, one way to fuse, one head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from mmhf.features.parts import TEXT, VISION, FeaturePart
from mmhf.models.attention_masks import padding_mask
from mmhf.models.classification_loss import calibrated
from mmhf.models.encoders import pool_text_output
from mmhf.models.fusion.column_features import ColumnFeatures
from mmhf.models.fusion.configuration_fusion import FusionConfig
from mmhf.models.fusion.fusion_layers import Fusion, encode_present, projection, zero_missing
from mmhf.models.targets import last_layer, target_of
from mmhf.models.text_tables import TableEncoder, embed_tokens, load_table_encoder
from mmhf.models.tower import TOWER, TowerModel, TowerOutput, encoder_output


@dataclass
class FusionOutput(TowerOutput):
    """Output of [`FusionForImageTextClassification`].

    Attributes:
        loss (`Tensor`, *optional*): Scalar, when labels were given.
        logits (`Tensor`): (B, num_labels), divided by the config's temperature, or the numbers themselves.
        image_embeds (`Tensor`): (B, embedding_dim), as they were fused.
        text_embeds (`Tensor`): (B, embedding_dim), as they were fused.
        columns_embeds (`Tensor`, *optional*): (B, embedding_dim), likewise, where the model reads columns.
        modalities (`Tensor`): (B, 2), 1 where the row's image and text were looked at, else 0; with columns (B, 3).
        text_model_output, vision_model_output (`BaseModelOutputWithPooling`, *optional*): The encoders' own outputs,
            when hidden states or attentions were asked for and the encoder was run.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    columns_embeds: Tensor | None = None
    modalities: Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None


class FusionForImageTextClassification(TowerModel):
    """Classify pairs of an image and a text, with columns of a table where the config has them.

    Args:
        config ([`FusionConfig`]): Shapes and loss.
        vision (`PreTrainedModel`, *optional*): Image encoder with weights; absent = fresh from `config.vision_config`.
        text (`PreTrainedModel`, *optional*): Text encoder with weights; absent = fresh from `config.text_config`. With
            `config.text_table` there is none: `forward` is given `text_features` from the table, and where it is given
            `input_ids`, the encoder that made the table is loaded, used, and not saved.
    """

    config_class = FusionConfig
    input_modalities = ["image", "text"]
    parts = {
        "vision": TOWER,
        "text": TOWER,
        "columns": ("columns_projection.",),
        "fusion": ("vision_projection.", "text_projection.", "fusion."),
        "head": ("head.", "auxiliary_heads."),
    }

    def __init__(
        self, config: FusionConfig, vision: PreTrainedModel | None = None, text: PreTrainedModel | None = None
    ) -> None:
        super().__init__(config)
        self.vision_output = self._describe_tower("vision", config.vision_pooling)
        self.text_output = self._describe_tower("text", config.text_pooling)
        self.vision = self._tower("vision", vision, self.vision_output)
        self.text: Any = None
        if config.text_table is None:
            self.text = self._tower("text", text, self.text_output)
        # In a list, so that it is not registered as a part of the model.
        self._table_encoder: list[PreTrainedModel] = []
        self.vision_projection = projection(
            self.vision_output.width,
            config.embedding_dim,
            hidden_dims=config.image_hidden_dims,
            activation=config.image_activation,
            dropout=config.image_dropout,
        )
        self.text_projection = projection(
            self.text_output.width,
            config.embedding_dim,
            hidden_dims=config.text_hidden_dims,
            activation=config.text_activation,
            dropout=config.text_dropout,
        )
        self.columns_projection: nn.Module | None = None
        if config.columns is not None:
            self.columns_projection = projection(
                ColumnFeatures.from_dict(config.columns).width,
                config.embedding_dim,
                hidden_dims=config.columns_hidden_dims,
                activation=config.columns_activation,
                dropout=config.columns_dropout,
            )
        self.fusion = Fusion(config)
        self.head = last_layer(config, self.fusion.output_width)
        self.auxiliary_heads = nn.ModuleDict(
            {modality: last_layer(config, config.embedding_dim) for modality in sorted(config.auxiliary_weights)}
        )
        self.loss = target_of(config).make_loss(config)
        self.post_init()

    @classmethod
    def from_encoders(
        cls, config: FusionConfig, *, vision: PreTrainedModel, text: PreTrainedModel | None
    ) -> FusionForImageTextClassification:
        """Put a fresh head on two encoders; they are used, not copied, and keep their weights."""
        return cls(config, vision=vision, text=text)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Pooled output of the text encoder: (B, T) → (B, text width)."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if self.text is None:
            encoder: Any = self._encoder_of_table()
            features = embed_tokens(encoder.to(input_ids.device), input_ids, attention_mask, self.config.text_pooling)
            return features.to(self.dtype)
        return self._read_text(input_ids, attention_mask)[0]

    def _read_text(self, input_ids: Tensor, attention_mask: Tensor, **asked: bool) -> tuple[Tensor, Any]:
        """Pooled output of the model's own text encoder, and that encoder's whole output."""
        mask = padding_mask(self.text, attention_mask)
        output = self.text(input_ids=input_ids, attention_mask=mask, return_dict=True, **asked)
        return pool_text_output(output, attention_mask, self.config.text_pooling), output

    def feature_parts(self) -> tuple[FeaturePart, ...]:
        """The image encoder and the text encoder, each with its pooling, where there is one that is not masked."""
        masked = {"image": VISION, "text": TEXT}.get(self.config.mask or "")
        own = (VISION, TEXT) if self.config.text_table is None else (VISION,)
        return tuple(part for part in own if part is not masked)

    def classify(
        self,
        image_features: Tensor,
        text_features: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
        columns: Tensor | None = None,
        columns_mask: Tensor | None = None,
        *,
        other_views: Sequence[Tensor] = (),
    ) -> FusionOutput:
        """From the encoders' pooled outputs to logits and loss; the arguments are those of `forward`.

        `other_views` are features of further views of the images: the answers are averaged over all of them.
        """
        embeds = [self.vision_projection(image_features), self.text_projection(text_features)]
        masks = [image_mask, text_mask]
        if self.columns_projection is not None:
            if columns is None:
                width = ColumnFeatures.from_dict(self.config.columns).width
                columns, columns_mask = self._absent(width, image_features)
            embeds.append(self.columns_projection(columns.to(self.dtype)))
            masks.append(columns_mask)
        elif columns is not None:
            raise ValueError("the model reads no columns, but columns are given")
        if self.config.normalize:
            embeds = [functional.normalize(each, dim=-1) for each in embeds]
        modalities = torch.stack(list(map(self._present, self.config.fused_modalities, masks, embeds)), dim=1)
        is_masked = self.config.mask is not None or any(mask is not None for mask in masks)
        # Learnt stand-ins are part of every batch's graph, so that they always have a gradient.
        if is_masked or self.config.stand_in == "learnt":
            embeds = self._fill(embeds, modalities)
        logits = self.head(self.fusion(*embeds))
        if other_views:
            views = [self.vision_projection(features) for features in other_views]
            if self.config.normalize:
                views = [functional.normalize(each, dim=-1) for each in views]
            seen = [self._fill([each], modalities)[0] if is_masked else each for each in views]
            logits = self.loss.average([logits, *(self.head(self.fusion(each, *embeds[1:])) for each in seen)])
        loss = None
        if labels is not None:
            loss = self.loss(logits, labels, num_items_in_batch)
            loss = loss + self._auxiliary_loss(embeds, modalities, labels, num_items_in_batch)
        image_embeds, text_embeds, *others = embeds
        return FusionOutput(
            loss=loss,
            logits=calibrated(self.loss.outputs(logits), self.config.calibration_temperature),
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            columns_embeds=others[0] if others else None,
            modalities=modalities.long(),  # transformers' common tests subtract outputs
        )

    def classify_embeds(self, embeds: Sequence[Tensor], modalities: Tensor) -> Tensor:
        """Logits (B, num_labels) of embeddings as `FusionOutput` holds them, with some taken away.

        Args:
            embeds (`Sequence[Tensor]`): (B, embedding_dim) of images, of texts and, where there are any, of columns.
            modalities (`Tensor`): (B, 2) or (B, 3), True where the image, the text and the columns may be seen.
        """
        fused = self.fusion(*self._fill(embeds, modalities))
        return calibrated(self.loss.outputs(self.head(fused)), self.config.calibration_temperature)

    def _fill(self, embeds: Sequence[Tensor], modalities: Tensor) -> list[Tensor]:
        return [self.fusion.fill(each, modalities[:, place], modality=place) for place, each in enumerate(embeds)]

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
        image_features: Tensor | None = None,
        text_features: Tensor | None = None,
        image_hidden: Tensor | None = None,
        image_rows: Tensor | None = None,
        text_rows: Tensor | None = None,
        columns: Tensor | None = None,
        columns_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> FusionOutput:
        """Classify a batch.

        Args:
            pixel_values (`Tensor`, *optional*): (B, 3, H, W), normalised as the image encoder expects; absent = no row
                has an image.
            input_ids (`Tensor`, *optional*): (B, T); absent = no row has a text.
            attention_mask (`Tensor`, *optional*): (B, T); absent = no padding.
            labels (`Tensor`, *optional*): (B,), class ids; -100 = no loss for this row. With several labels a row, (B,
                num_labels) of 0, 1 and, without a loss, -100. With numbers to learn, (B, num_labels) of these, or (B,)
                where it is one; NaN = no loss.
            num_items_in_batch (`Tensor` or `int`, *optional*): What the loss is divided by; absent, the batch's count.
            image_mask, text_mask, columns_mask (`Tensor`, *optional*): (B,), 1 where the row has an image, a text,
                columns, and 0 where it is missing: its place is taken by the stand-in of the config. Absent = no row
                lacks it.
            image_features, text_features (`Tensor`, *optional*): (B, width of the encoder's pooled output), instead
                of `pixel_values`, of `input_ids`: what `image_features`, `text_features` made of them. Those of rows
                that lack the modality are not looked at.
            image_hidden (`Tensor`, *optional*): (B, ...), instead of `pixel_values`: the image encoder's features at
                the boundary that [`HasFeatureParts`]'s `use_part` was told.
            image_rows, text_rows (`Tensor`, *optional*): (n,), the rows in which `image_mask`, `text_mask` is 1, for
                who knows them: to look for them in a mask on a GPU is to wait for it.
            columns (`Tensor`, *optional*): (B, width), what [`ColumnFeatures`] made of each row's columns; absent = no
                row has any.
            output_hidden_states, output_attentions (`bool`, *optional*): Also the encoders' own outputs with hidden
                states, attentions; encoders are then run on all rows. Absent = as the config says.
            return_dict (`bool`, *optional*): False = a tuple; absent = as the config says.

        In eval mode, `logits` and `loss` are of the mean over the config's `views`; all else is of the image as it is.

        Raises:
            `ValueError`: neither images nor texts, nor features of either; attentions of a timm encoder; features of
                images where the config has `views`.
        """
        asked = self._asked(output_hidden_states, output_attentions)
        vision = text = None
        given = _first(pixel_values, image_features, image_hidden, input_ids, text_features, columns)
        if given is None:
            raise ValueError("the model needs pixel_values, input_ids or both, or their features")
        other_views: list[Tensor] = []
        if self.config.mask == "image" or _first(pixel_values, image_features, image_hidden) is None:
            image_features, image_mask = self._absent(self.vision_output.width, given)
        else:
            views = self._other_views(pixel_values, image_features, image_hidden)
            other_views = [encode_present(self.image_features, image_mask, image_rows, view) for view in views]
            image_features, vision = self._seen_in_rows(
                pixel_values, image_features, image_hidden, present=image_mask, rows=image_rows, asked=asked
            )
        if self.config.mask == "text" or _first(input_ids, text_features) is None:
            text_features, text_mask = self._absent(self.text_output.width, given)
        else:
            text_features, text = self._read_in_rows(
                input_ids, attention_mask, text_features, present=text_mask, rows=text_rows, asked=asked
            )
        output = self.classify(
            image_features,
            text_features,
            labels,
            num_items_in_batch,
            image_mask,
            text_mask,
            columns=columns,
            columns_mask=columns_mask,
            other_views=other_views,
        )
        output.text_model_output = None if text is None else encoder_output(text)
        output.vision_model_output = None if vision is None else encoder_output(vision)
        return output

    def _seen_in_rows(
        self,
        pixel_values: Tensor | None,
        image_features: Tensor | None,
        image_hidden: Tensor | None,
        *,
        present: Tensor | None,
        rows: Tensor | None,
        asked: dict[str, bool],
    ) -> tuple[Tensor, Any]:
        """As `_seen`, with zeros in the rows that lack an image."""
        if image_hidden is not None:
            image_hidden = zero_missing(image_hidden, present)
            return encode_present(self.resumed_image_features, present, rows, image_hidden), None
        if pixel_values is not None and image_features is None and not asked:
            return encode_present(self.image_features, present, rows, pixel_values), None
        features, output = self._seen(pixel_values, image_features, None, **asked)
        assert features is not None
        return zero_missing(features, present), output

    def _read_in_rows(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        text_features: Tensor | None,
        *,
        present: Tensor | None,
        rows: Tensor | None,
        asked: dict[str, bool],
    ) -> tuple[Tensor, Any]:
        """Features of the texts, with zeros in the rows that lack one, and the encoder's whole output if asked for."""
        if text_features is not None:
            return zero_missing(text_features, present), None
        assert input_ids is not None
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if asked and self.text is not None:
            features, output = self._read_text(input_ids, attention_mask, **asked)
            return zero_missing(features, present), output
        return encode_present(self.text_features, present, rows, input_ids, attention_mask), None

    def _encoder_of_table(self) -> PreTrainedModel:
        if not self._table_encoder:
            table = TableEncoder.from_dict(self.config.text_table or {})
            self._table_encoder.append(load_table_encoder(table, self.config.text_config))
        return self._table_encoder[0]

    def _present(self, modality: str, mask: Tensor | None, embeds: Tensor) -> Tensor:
        """(B,) bool, which rows' modality is looked at."""
        is_masked = self.config.mask == modality
        if mask is None or is_masked:
            return torch.full(embeds.shape[:1], not is_masked, dtype=torch.bool, device=embeds.device)
        return mask.bool()

    def _absent(self, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, width) and mask (B,) of a modality that no row has; as many rows as `like` has."""
        features = torch.zeros(like.shape[0], width, dtype=self.dtype, device=like.device)
        return features, torch.zeros(like.shape[0], dtype=torch.bool, device=like.device)

    def _auxiliary_loss(
        self,
        embeds: Sequence[Tensor],
        modalities: Tensor,
        labels: Tensor,
        num_items_in_batch: Tensor | int | None,
    ) -> Tensor | float:
        """Weighted sum of the losses of each modality's own classifier.

        Rows that lack the modality add nothing. The sum is divided by what the main loss is divided by, so that this
        loss, too, is the same however a step's rows are cut into batches.
        """
        divisor = self.loss.count(labels) if num_items_in_batch is None else num_items_in_batch
        total: Tensor | float = 0.0
        for place, (modality, own) in enumerate(zip(self.config.fused_modalities, embeds, strict=True)):
            if modality in self.auxiliary_heads:
                present = modalities[:, place]
                loss = self.loss(self.auxiliary_heads[modality](own), self.loss.hide(labels, present), divisor)
                total = total + self.config.auxiliary_weights[modality] * loss
        return total

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """New layers as transformers starts them; the encoders start their own."""
        super()._init_weights(module)
        if isinstance(module, Fusion):
            if module.strategy == "weighted_sum":
                init.zeros_(module.modality_weights)
            if module.stand_ins is not None:
                init.zeros_(module.stand_ins)


def _first(*tensors: Tensor | None) -> Tensor | None:
    return next((tensor for tensor in tensors if tensor is not None), None)
