"""fastai: `vision_learner` and `fine_tune` with their defaults; one epoch frozen, the others not."""

# user: begin
import pandas as pd
from fastai.torch_core import set_seed
from fastai.vision.all import F1Score, ImageDataLoaders, Resize, aug_transforms, vision_learner
from job import read_job

job = read_job()
set_seed(job.seed)
rows = pd.read_csv(job.rows, dtype=str, keep_default_na=False)
known = rows[rows.split != "test"].assign(is_valid=rows.split == "validation")
loaders = ImageDataLoaders.from_df(
    known,
    path="/",
    fn_col="image",
    label_col="label",
    valid_col="is_valid",
    item_tfms=Resize(job.image_size),
    batch_tfms=aug_transforms(),
    bs=job.batch_size,
    num_workers=0,
    device="cpu",
)
learner = vision_learner(loaders, f"local-dir:{job.lite0}", metrics=F1Score(average="macro"), path=job.output)
learner.fine_tune(job.epochs - 1)
answers = learner.get_preds(dl=loaders.test_dl(rows[rows.split == "test"]))[0].argmax(dim=-1)
labels = [loaders.vocab[answer] for answer in answers]
# user: end
job.answer(labels)
