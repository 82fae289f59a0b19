"""rembg as a worker process of benchmarks/u2net.py; runs in rembg's own environment and imports nothing of segship.

One JSON request a line on stdin, one JSON answer a line on stdout. ``run`` does what ``rembg p -om`` does for a
folder: one session, one file after the other, the file's bytes in, a PNG of the mask out.
"""

from pathlib import Path

import answering
from rembg import new_session, remove

sessions = {}


def open_model(name, model_path):
    sessions[name] = new_session("u2net_custom", model_path=model_path)
    return {"providers": sessions[name].inner_session.get_providers()}


def run(name, files, output):
    for file in map(Path, files):
        mask = remove(file.read_bytes(), session=sessions[name], only_mask=True)
        (Path(output) / f"{file.stem}.png").write_bytes(mask)
    return {}


def about():
    return answering.versions("rembg", "onnxruntime", "pillow", "scikit-image", "numpy")


REQUESTS = {"open": open_model, "run": run, "about": about}

if __name__ == "__main__":
    answering.answer(REQUESTS)
