"""transformers: `Trainer` fine-tunes EfficientNet-Lite0 and MiniLM below a fusion head, with two learning rates.

The head sees both projections, their products and differences, as in mmhf's recipe. The weights are those of the epoch
with the best accuracy on the validation rows.
"""

# user: begin
import pandas as pd
import timm
import torch
from datasets import Dataset
from job import read_job
from PIL import Image
from torch import nn
from torch.nn import functional
from torchvision.transforms import v2
from transformers import AutoModel, AutoTokenizer, Trainer, TrainingArguments, set_seed

job = read_job()
set_seed(job.seed)
rows = pd.read_csv(job.rows, dtype=str, keep_default_na=False)
names = sorted(rows.label.unique())
tokenizer = AutoTokenizer.from_pretrained(job.minilm)


class PairClassifier(nn.Module):
    def __init__(self, width=256):
        super().__init__()
        self.vision = timm.create_model(f"local-dir:{job.lite0}", pretrained=True, num_classes=0)
        self.text = AutoModel.from_pretrained(job.minilm)
        self.image_projection = nn.Linear(self.vision.num_features, width)
        self.text_projection = nn.Linear(self.text.config.hidden_size, width)
        self.head = nn.Sequential(nn.Linear(4 * width, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, len(names)))

    def forward(self, pixel_values, input_ids, attention_mask, labels=None):
        hidden = self.text(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1)
        text = self.text_projection((hidden * mask).sum(dim=1) / mask.sum(dim=1))
        image = self.image_projection(self.vision(pixel_values))
        image, text = functional.normalize(image, dim=-1), functional.normalize(text, dim=-1)
        logits = self.head(torch.cat([image, text, image * text, (image - text).abs()], dim=-1))
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


model = PairClassifier()
statistics = model.vision.pretrained_cfg
last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(statistics["mean"], statistics["std"])]
resize = v2.Resize((job.image_size, job.image_size), v2.InterpolationMode.BICUBIC)
augmented, plain = v2.Compose([resize, v2.RandomHorizontalFlip(), *last]), v2.Compose([resize, *last])


def dataset(split, transform):
    def read(batch):
        images = [transform(Image.open(path).convert("RGB")) for path in batch["image"]]
        return {**batch, "image": images}

    chosen = rows.loc[rows.split == split, ["image", "text", "label"]]
    return Dataset.from_pandas(chosen, preserve_index=False).with_transform(read)


def collate(samples):
    texts = [sample["text"] for sample in samples]
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=job.max_length, return_tensors="pt")
    labels = torch.tensor([names.index(sample["label"]) for sample in samples])
    images = torch.stack([sample["image"] for sample in samples])
    return {
        "pixel_values": images,
        "input_ids": tokens["input_ids"],
        "attention_mask": tokens["attention_mask"],
        "labels": labels,
    }


def metrics(prediction):
    return {"accuracy": (prediction.predictions.argmax(axis=-1) == prediction.label_ids).mean()}


encoders = [*model.vision.parameters(), *model.text.parameters()]
others = [*model.image_projection.parameters(), *model.text_projection.parameters(), *model.head.parameters()]
optimizer = torch.optim.AdamW([{"params": encoders, "lr": 1e-4}, {"params": others, "lr": 1e-3}], weight_decay=0.01)
arguments = TrainingArguments(
    output_dir=job.output,
    num_train_epochs=job.epochs,
    per_device_train_batch_size=job.batch_size,
    per_device_eval_batch_size=64,
    lr_scheduler_type="cosine",
    warmup_steps=0.1,
    eval_strategy="epoch",
    save_strategy="epoch",
    save_total_limit=1,
    load_best_model_at_end=True,
    metric_for_best_model="accuracy",
    remove_unused_columns=False,
    seed=job.seed,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
trainer = Trainer(
    model=model,
    args=arguments,
    data_collator=collate,
    train_dataset=dataset("train", augmented),
    eval_dataset=dataset("validation", plain),
    compute_metrics=metrics,
    optimizers=(optimizer, None),
)
trainer.train()
answers = trainer.predict(dataset("test", plain)).predictions.argmax(axis=-1)
labels = [names[answer] for answer in answers]
# user: end
job.answer(labels)
