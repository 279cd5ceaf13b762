"""AutoGluon: `MultiModalPredictor` with its medium-quality preset and EfficientNet-Lite0 as the image model."""

# user: begin
import pandas as pd
from autogluon.multimodal import MultiModalPredictor
from job import read_job

job = read_job()
rows = pd.read_csv(job.rows, dtype=str, keep_default_na=False)
train, validation, test = (
    rows.loc[rows.split == name, ["image", "label"]] for name in ("train", "validation", "test")
)
predictor = MultiModalPredictor(
    label="label", problem_type="multiclass", eval_metric="f1_macro", path=f"{job.output}/model"
)
predictor.fit(
    train,
    tuning_data=validation,
    presets="medium_quality",
    column_types={"image": "image_path"},
    seed=job.seed,
    hyperparameters={
        "model.names": ["timm_image"],
        "model.timm_image.checkpoint_name": job.lite0,
        "model.timm_image.image_size": job.image_size,
        "model.timm_image.image_norm": "inception",
        "optim.max_epochs": job.epochs,
        "env.batch_size": job.batch_size,
        "env.per_gpu_batch_size": job.batch_size,
        "env.num_gpus": 0,
        "env.num_workers": 0,
        "env.num_workers_inference": 0,
    },
)
labels = predictor.predict(test[["image"]])
# user: end
job.answer(labels)
