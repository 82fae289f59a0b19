"""rembg as a worker process of benchmarks/u2net.py; runs in rembg's own environment and imports nothing of segship.

One JSON request a line on stdin, one JSON answer a line on stdout. ``run`` does what ``rembg p -om`` does for a
folder: one session, one file after the other, the file's bytes in, a PNG of the mask out.
"""

import json
import sys
from importlib import metadata
from pathlib import Path

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
    names = ("rembg", "onnxruntime", "pillow", "scikit-image", "numpy")
    return {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in names}


REQUESTS = {"open": open_model, "run": run, "about": about}

if __name__ == "__main__":
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever the library prints must not get between the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = REQUESTS[request.pop("do")](**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
