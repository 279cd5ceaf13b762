"""Numbers of several labels a row against scikit-learn's, in time, and the memory of a million rows.

Rounds alternate in one process. Ours are all that a report says: average precision, ROC-AUC, F1 in three ways,
calibration, Brier score, the table of labels and the thresholds. The rival is scikit-learn's functions for the same,
without calibration and thresholds. The aims: at most half of its time, and at most 0.2 of the memory of logits
(float32) and labels beside them, for a million rows of 100 labels.

    python benchmarks/multi_label.py [ROUNDS [ROWS [LABELS [ROWS_OF_MEMORY]]]]
"""

import statistics
import sys
import threading
import time

import numpy as np
import psutil
from sklearn import metrics as sk

from mmhf.evaluation.label_calibration import fit_shared_temperature, label_calibration
from mmhf.evaluation.multi_label import evaluate_multi_label, fit_thresholds, surest_mistakes


def rows_of(count, labels):
    """Logits, and labels of which some are rare."""
    random = np.random.default_rng(0)
    shares = np.geomspace(0.2, 0.002, labels, dtype=np.float32)
    logits = random.standard_normal((count, labels), dtype=np.float32)
    present = np.zeros((count, labels), dtype=np.float32)
    for start in range(0, count, 4096):
        part = slice(start, start + 4096)
        present[part] = random.random(logits[part].shape, dtype=np.float32) < shares
        logits[part] += 2 * present[part] - 2
    return logits, present


def ours(logits, labels, names):
    limits = fit_thresholds(logits, labels)
    return evaluate_multi_label(logits, labels, names, thresholds=limits)


def rival(logits, labels):
    chosen = logits >= 0
    sk.average_precision_score(labels, logits, average=None)
    sk.roc_auc_score(labels, logits, average=None)
    for average in ("micro", "macro", "samples", None):
        sk.precision_recall_fscore_support(labels, chosen, average=average, zero_division=0.0)
    sk.accuracy_score(labels, chosen)
    sk.hamming_loss(labels, chosen)
    chances = 1 / (1 + np.exp(-logits))
    for label in range(labels.shape[1]):
        sk.brier_score_loss(labels[:, label], chances[:, label])
        sk.log_loss(labels[:, label], chances[:, label], labels=[0, 1])


def peak_beside(work):
    """Bytes that the process holds at most beyond what it held before."""
    process, over = psutil.Process(), threading.Event()
    before, most = process.memory_info().rss, 0

    def watch():
        nonlocal most
        while not over.wait(0.02):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    over.set()
    watcher.join()
    return max(most - before, 0)


def main(rounds=3, count=100_000, labels=100, many=1_000_000):
    names = [str(number) for number in range(labels)]
    logits, present = rows_of(count, labels)
    sides = {"ours": lambda: ours(logits, present, names), "scikit-learn": lambda: rival(logits, present)}
    times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            begun = time.process_time()
            side()
            times[name].append(time.process_time() - begun)
    own, theirs = (statistics.median(times[name]) for name in sides)
    print(f"{count:,} rows, {labels} labels: ours {own:.1f} s, scikit-learn {theirs:.1f} s: ratio {own / theirs:.2f}")
    logits, present = rows_of(many, labels)
    held = logits.nbytes + present.nbytes
    begun = time.process_time()

    def everything():
        fit_shared_temperature(logits, present)
        evaluation = ours(logits, present, names)
        label_calibration(evaluation, logits, present)
        surest_mistakes(logits, present)

    beside = peak_beside(everything)
    print(f"{many:,} rows, everything with thresholds and temperature: {time.process_time() - begun:.0f} s")
    told = f"{held / 1e6:.0f} MB of logits and labels, {beside / 1e6:.0f} MB beside them"
    print(f"{told}: memory ratio {beside / held:.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
