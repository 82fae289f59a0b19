"""nnU-Net's export stage as a worker process of benchmarks/nnunet_export.py; runs in nnunetv2's own environment.

    python nnunet_export_worker.py LOGITS.npy MODEL_FOLDER PROPERTIES.json OUTPUT(without ending) REPEAT THREADS

Logits are read into half numbers, as nnU-Net's predictor hands them over; then its own function resamples, decides and
puts them back, and its own reader-writer writes. One JSON line on stdout: seconds of each turn, memory in MiB.
"""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager


def memory(what):
    return int(re.search(rf"^{what}:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) / 1024


def main():
    logits_file, model, properties_file, output, repeat, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    folder = Path(model)
    dataset = json.loads((folder / "dataset.json").read_text())
    plans = PlansManager(json.loads((folder / "plans.json").read_text()))
    configuration = plans.get_configuration("3d_fullres")
    labels = plans.get_label_manager(dataset)
    properties = json.loads(Path(properties_file).read_text())
    stored = np.load(logits_file, mmap_mode="r")
    logits = np.empty(stored.shape, np.float16)
    for channel, source in zip(logits, stored, strict=True):
        channel[...] = source
    del stored
    Path("/proc/self/clear_refs").write_text("5")  # a new high-water mark
    before = memory("VmRSS")
    seconds, shares, spent = [], [], []
    for _ in range(int(repeat)):
        start, spent_before = time.perf_counter(), time.process_time()
        found = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, plans, configuration, labels, properties, num_threads_torch=int(threads)
        )
        middle = time.perf_counter()
        plans.image_reader_writer_class().write_seg(found, output + dataset["file_ending"], properties)
        seconds.append(time.perf_counter() - start)
        shares.append(middle - start)
        spent.append(time.process_time() - spent_before)
    peak = memory("VmHWM")
    found = {"seconds": seconds, "decide_seconds": shares, "processor_seconds": spent}
    print(json.dumps(found | {"before_mib": before, "peak_mib": peak}))


if __name__ == "__main__":
    main()
