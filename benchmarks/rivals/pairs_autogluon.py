"""AutoGluon: `MultiModalPredictor` with its medium-quality preset, EfficientNet-Lite0 and MiniLM below its fusion."""

# user: begin
import pandas as pd
from autogluon.multimodal import MultiModalPredictor
from job import read_job

job = read_job()
rows = pd.read_csv(job.rows, dtype=str, keep_default_na=False)
columns = ["image", "text", "label"]
train, validation, test = (rows.loc[rows.split == name, columns] for name in ("train", "validation", "test"))
predictor = MultiModalPredictor(
    label="label", problem_type="binary", eval_metric="accuracy", path=f"{job.output}/model"
)
predictor.fit(
    train,
    tuning_data=validation,
    presets="medium_quality",
    column_types={"image": "image_path", "text": "text"},
    seed=job.seed,
    hyperparameters={
        "model.names": ["timm_image", "hf_text", "fusion_mlp"],
        "model.timm_image.checkpoint_name": job.lite0,
        "model.timm_image.image_size": job.image_size,
        "model.timm_image.image_norm": "inception",
        "model.hf_text.checkpoint_name": job.minilm,
        "model.hf_text.pooling_mode": "mean",
        "model.hf_text.max_text_len": job.max_length,
        "optim.max_epochs": job.epochs,
        "env.batch_size": job.batch_size,
        "env.per_gpu_batch_size": job.batch_size,
        "env.num_gpus": 0,
        "env.num_workers": 0,
        "env.num_workers_inference": 0,
    },
)
labels = predictor.predict(test[["image", "text"]])
# user: end
job.answer(labels)
