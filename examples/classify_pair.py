"""Ask a fusion classifier about a drawing with its own name, and with another's.

python examples/classify_pair.py releases/quickstart/v0.1
"""

import io
import sys

from PIL import Image

import mmhf
from mmhf.sample_data import read_sample


def main(model: str) -> None:
    classify = mmhf.pipeline("image-text-classification", model=model)
    drawings = {row["caption"]: row for row in read_sample("test").to_pylist()}
    for drawn, named in (("elephant", "elephant"), ("elephant", "butterfly")):
        image = Image.open(io.BytesIO(drawings[drawn]["image"]["bytes"]))
        text = " ".join([named, *drawings[named]["keywords"]])
        best = classify({"image": image, "text": text})[0]
        sys.stdout.write(f"the drawing “{drawn}”, called “{text}”: {best['label']} ({best['score']:.2f})\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
