"""scikit-learn: logistic regression on frozen features of EfficientNet-Lite0.

Its strength and the weights of the classes are those with the best macro-F1 on the validation rows.
"""

# user: begin
import itertools

import pandas as pd
import timm
import torch
from job import read_job
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.data import create_transform, resolve_model_data_config

job = read_job()
rows = pd.read_csv(job.rows, dtype=str, keep_default_na=False)
encoder = timm.create_model(f"local-dir:{job.lite0}", pretrained=True, num_classes=0).eval()
settings = resolve_model_data_config(encoder)
settings |= {"input_size": (3, job.image_size, job.image_size), "crop_pct": 1.0}
transform = create_transform(**settings)
features = []
with torch.inference_mode():
    for start in range(0, len(rows), 64):
        images = [transform(Image.open(path).convert("RGB")) for path in rows.image[start : start + 64]]
        features.append(encoder(torch.stack(images)))
features = torch.cat(features).numpy()
train, validation, test = (rows.split == name for name in ("train", "validation", "test"))

best, best_score = None, -1.0
for strength, weight in itertools.product((1e-4, 1e-3, 1e-2, 1e-1), (None, "balanced")):
    regression = LogisticRegression(C=strength, class_weight=weight, max_iter=500)
    classifier = make_pipeline(StandardScaler(), regression).fit(features[train], rows.label[train])
    score = f1_score(rows.label[validation], classifier.predict(features[validation]), average="macro")
    if score > best_score:
        best, best_score = classifier, score
labels = best.predict(features[test])
# user: end
job.answer(labels)
