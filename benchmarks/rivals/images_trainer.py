"""transformers: `Trainer` fine-tunes EfficientNet-Lite0 with AdamW, a cosine and label smoothing.

The weights are those of the epoch with the best macro-F1 on the validation rows.
"""

# user: begin
import pandas as pd
import torch
from datasets import Dataset
from job import read_job
from PIL import Image
from sklearn.metrics import f1_score
from torchvision.transforms import v2
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments, set_seed

job = read_job()
set_seed(job.seed)
rows = pd.read_csv(job.rows, dtype=str, keep_default_na=False)
names = sorted(rows.label.unique())
model = AutoModelForImageClassification.from_pretrained(job.lite0, num_labels=len(names), ignore_mismatched_sizes=True)
statistics = model.config.pretrained_cfg
last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(statistics["mean"], statistics["std"])]
resize = v2.Resize((job.image_size, job.image_size), v2.InterpolationMode.BICUBIC)
augmented, plain = v2.Compose([resize, v2.RandomHorizontalFlip(), *last]), v2.Compose([resize, *last])


def dataset(split, transform):
    def read(batch):
        images = [transform(Image.open(path).convert("RGB")) for path in batch["image"]]
        return {"pixel_values": images, "labels": [names.index(label) for label in batch["label"]]}

    chosen = rows.loc[rows.split == split, ["image", "label"]]
    return Dataset.from_pandas(chosen, preserve_index=False).with_transform(read)


def metrics(prediction):
    answers = prediction.predictions.argmax(axis=-1)
    return {"f1_macro": f1_score(prediction.label_ids, answers, average="macro", zero_division=0)}


arguments = TrainingArguments(
    output_dir=job.output,
    num_train_epochs=job.epochs,
    per_device_train_batch_size=job.batch_size,
    per_device_eval_batch_size=64,
    learning_rate=1e-3,
    lr_scheduler_type="cosine",
    warmup_steps=0.1,
    weight_decay=1e-4,
    label_smoothing_factor=0.1,
    eval_strategy="epoch",
    save_strategy="epoch",
    save_total_limit=1,
    load_best_model_at_end=True,
    metric_for_best_model="f1_macro",
    remove_unused_columns=False,
    seed=job.seed,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
trainer = Trainer(
    model=model,
    args=arguments,
    train_dataset=dataset("train", augmented),
    eval_dataset=dataset("validation", plain),
    compute_metrics=metrics,
)
trainer.train()
answers = trainer.predict(dataset("test", plain)).predictions.argmax(axis=-1)
labels = [names[answer] for answer in answers]
# user: end
job.answer(labels)
