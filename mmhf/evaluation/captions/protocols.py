"""What each number of a caption evaluation is."""

from __future__ import annotations

_ROUGE_SCORE = (
    "by rouge-score: F1, tokens are lower-case runs of a-z and 0-9 (other scripts have no tokens), no stemmer, the "
    "best of the references for each image; mean over images, 0 to 1."
)
_TOKENS = (
    "mmhf's Java-free tokens after the Penn Treebank (as pycocoevalcap: lower case, no punctuation; other than there, "
    "emoji are kept and scripts without spaces are cut into characters)"
)
_BLEU = (
    "with COCO's definition: {orders} of the whole corpus, clipped by the references, brevity penalty against the "
    f"closest reference length; {_TOKENS}; all references; 0 to 1."
)

CAPTION_PROTOCOLS: dict[str, str] = {
    "loss": "Mean cross-entropy, in nats, of each token of a reference and of its end-of-text token, given the image "
    "and the tokens before; padding and prefix excluded.",
    "rouge1": f"ROUGE-1 (words in common) {_ROUGE_SCORE}",
    "rouge2": f"ROUGE-2 (pairs of words in common) {_ROUGE_SCORE}",
    "rougeL": f"ROUGE-L (longest common subsequence of words) {_ROUGE_SCORE}",
    "rougeL_coco": "ROUGE-L with COCO's definition: F with beta = 1.2 of the best precision and the best recall over "
    f"an image's references; {_TOKENS}; mean over images, 0 to 1.",
    "bleu1": f"BLEU-1 {_BLEU.format(orders='precision of words')}",
    "bleu2": f"BLEU-2 {_BLEU.format(orders='geometric mean of the precisions of 1- and 2-grams')}",
    "bleu3": f"BLEU-3 {_BLEU.format(orders='geometric mean of the precisions of 1- to 3-grams')}",
    "bleu4": f"BLEU-4 {_BLEU.format(orders='geometric mean of the precisions of 1- to 4-grams')}",
    "cider": "CIDEr-D with COCO's definition: tf-idf cosine of 1- to 4-grams, clipped, sigma = 6, times 10, document "
    f"frequencies from the references of the evaluated images; {_TOKENS}; mean over references and images, 0 to 10.",
    "meteor": "METEOR by nltk (not the Java METEOR 1.5 of pycocoevalcap): words, Porter stems and WordNet synonyms, "
    f"alpha 0.9, beta 3, gamma 0.5, the best of the references; {_TOKENS}; mean over images, 0 to 1.",
    "clipscore": "CLIPScore, without references: 2.5 x max(0, cosine) of a CLIP's image embedding and the embedding "
    "of 'A photo depicts' and the caption, cut to the text encoder's length; mean over images. Depends on the CLIP.",
}
"""How each number of `caption_metrics` is defined (and `loss`, which Trainer computes)."""

BOOTSTRAP_PROTOCOL = (
    "Intervals hold 95 % of 1,000 bootstrap resamples of the images (percentiles; the model, the references of an "
    "image and CIDEr's document frequencies stay as they are)."
)
"""How the intervals of `evaluate_captions` are made."""
