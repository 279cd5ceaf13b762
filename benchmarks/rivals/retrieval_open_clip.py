"""open_clip: its `ClipLoss`, schedule and step around the towers and projections of mmhf's recipe.

As with its `--lock-text` and `--lock-image`, the towers are frozen; after the first epochs the last stage of the image
tower trains, too, but for the statistics of its batch norm (`--lock-image-unlocked-groups`,
`--lock-image-freeze-bn-stats`). Rates, weight decay and temperature are those with which mmhf trained projections from
random weights best; the last weights are kept.
"""

# user: begin
import math

import pandas as pd
import timm
import torch
from job import read_job
from open_clip import ClipLoss
from open_clip_train.scheduler import cosine_lr
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer

RATE = 3e-3
job = read_job()
torch.manual_seed(job.seed)
rows = pd.read_csv(job.rows, dtype=str, keep_default_na=False)
tokenizer = AutoTokenizer.from_pretrained(job.minilm)


class TwoTowers(nn.Module):
    def __init__(self, width=512):
        super().__init__()
        self.vision = timm.create_model(f"local-dir:{job.lite0}", pretrained=True, num_classes=0)
        self.text = AutoModel.from_pretrained(job.minilm)
        self.image_projection = nn.Linear(2 * self.vision.num_features, width, bias=False)
        self.text_projection = nn.Linear(self.text.config.hidden_size, width, bias=False)
        self.requires_grad_(False)
        self.image_projection.requires_grad_(True)
        self.text_projection.requires_grad_(True)

    def train(self, mode=True):
        super().train(mode)
        self.vision.eval()
        self.text.eval()
        return self

    def unlock(self):
        top = nn.ModuleList([self.vision.blocks[-1], self.vision.conv_head, self.vision.bn2]).requires_grad_(True)
        return list(top.parameters())

    def forward(self, images, input_ids, attention_mask):
        grid = self.vision.forward_features(images)
        image = self.image_projection(torch.cat([grid.mean(dim=(2, 3)), grid.amax(dim=(2, 3))], dim=1))
        hidden = self.text(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1)
        text = self.text_projection((hidden * mask).sum(dim=1) / mask.sum(dim=1))
        return functional.normalize(image, dim=-1), functional.normalize(text, dim=-1)


model = TwoTowers()
settings = resolve_model_data_config(model.vision)
settings |= {"input_size": (3, job.image_size, job.image_size), "crop_pct": 1.0}
transform = create_transform(**settings)


def collate(samples):
    paths, texts = zip(*samples, strict=True)
    images = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=job.max_length, return_tensors="pt")
    return images, tokens["input_ids"], tokens["attention_mask"]


def loader(split, **options):
    chosen = rows[rows.split == split]
    return DataLoader(list(zip(chosen.image, chosen.text, strict=True)), collate_fn=collate, **options)


loss_of, scale = ClipLoss(), torch.tensor(1 / 0.1)
projections = [*model.image_projection.parameters(), *model.text_projection.parameters()]
groups = [{"params": projections, "weight_decay": 3.0}]
for epochs in (job.head_epochs, job.epochs - job.head_epochs):
    batches = loader("train", batch_size=job.batch_size, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    steps = epochs * len(batches)
    schedule = cosine_lr(optimizer, RATE, math.ceil(0.1 * steps), steps)
    model.train()
    for epoch in range(epochs):
        for number, batch in enumerate(batches):
            schedule(epoch * len(batches) + number)
            image_features, text_features = model(*batch)
            loss = loss_of(image_features, text_features, scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    groups = [{"params": projections, "weight_decay": 3.0}, {"params": model.unlock(), "weight_decay": 0.01}]

model.eval()
with torch.inference_mode():
    embeddings = [model(*batch) for batch in loader("test", batch_size=64)]
image_embeddings, text_embeddings = (torch.cat(each).numpy() for each in zip(*embeddings, strict=True))
# user: end
job.answer_embeddings(images=image_embeddings, texts=text_embeddings)
