"""scikit-learn: logistic regression on frozen features of EfficientNet-Lite0 and MiniLM.

Variant `concatenated` has them side by side; `products` has all products of their first principal components, too,
without which a linear model cannot see whether image and text go together. Its strength is the one with the best
accuracy on the validation rows.
"""

# user: begin
import numpy as np
import pandas as pd
import timm
import torch
from job import read_job
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.data import create_transform, resolve_model_data_config
from transformers import AutoModel, AutoTokenizer

job = read_job()
rows = pd.read_csv(job.rows, dtype=str, keep_default_na=False)
vision = timm.create_model(f"local-dir:{job.lite0}", pretrained=True, num_classes=0).eval()
settings = resolve_model_data_config(vision)
settings |= {"input_size": (3, job.image_size, job.image_size), "crop_pct": 1.0}
transform = create_transform(**settings)
text, tokenizer = AutoModel.from_pretrained(job.minilm).eval(), AutoTokenizer.from_pretrained(job.minilm)
features = []
with torch.inference_mode():
    for start in range(0, len(rows), 64):
        batch = rows[start : start + 64]
        images = vision(torch.stack([transform(Image.open(path).convert("RGB")) for path in batch.image]))
        tokens = tokenizer(
            list(batch.text), padding=True, truncation=True, max_length=job.max_length, return_tensors="pt"
        )
        mask = tokens.attention_mask.unsqueeze(-1)
        texts = (text(**tokens).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)
        features.append((images, texts))
images, texts = (torch.cat(each).numpy() for each in zip(*features, strict=True))
train, validation, test = ((rows.split == name).to_numpy() for name in ("train", "validation", "test"))
inputs = [images, texts]
if job.variant == "products":
    first, second = (PCA(48, whiten=True, random_state=0).fit(each[train]).transform(each) for each in inputs)
    inputs.append((first[:, :, None] * second[:, None, :]).reshape(len(rows), -1))
inputs = np.concatenate(inputs, axis=1)

best, best_score = None, -1.0
for strength in (1e-4, 1e-3, 1e-2, 1e-1):
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))
    classifier.fit(inputs[train], rows.label[train])
    score = classifier.score(inputs[validation], rows.label[validation])
    if score > best_score:
        best, best_score = classifier, score
labels = best.predict(inputs[test])
# user: end
job.answer(labels)
