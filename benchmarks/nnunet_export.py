"""The export stage alone: logits on the network's grid → labels on the CT's grid → file, beside nnU-Net's own function.

    make interop
    python benchmarks/nnunet_export.py -o runs/nnunet_export.json --markdown runs/nnunet_export.md

A fake network gives the logits: as many organs as there are classes, ellipsoids whose logit falls off with the
distance from their surface, and smooth noise on top, so that borders look as a trained network leaves them. Both sides
get the same numbers (half precision, as nnU-Net hands them on) and write a .nii.gz under the same geometry; reading
the logits from disk is not timed. Each runs in a process of its own, with as many threads. Agreement comes first.

The default is a CT of 512 × 512 × 300 voxels whose network ran at 1.5 mm (2 and 20 classes), and one of 512 × 512 × 120
for 100 classes, because nnU-Net needs 2 bytes a class and voxel beside 10 a class and voxel of the network's grid.
What is in the JSON file is not measured again: stop at any time and go on with the same command.

Targets: at least 30×, a third of the peak memory, labels equal in 0.9999 of the voxels.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nnunet_parts as parts
import numpy as np
from nnunet_folder import DATASET, NAME, plans

SPACING = (1.0, 0.8, 0.8)
NETWORK_SPACING = 1.5
CASES = {2: (300, 512, 512), 20: (300, 512, 512), 100: (120, 512, 512)}
Shape = tuple[int, int, int]


# ------------------------------------------------------------------------------------------------- fake logits


def fake_logits(path: Path, classes: int, shape: Shape, seed: int = 0) -> None:
    """(K, z, y, x) float16, written class by class: logits of ``classes - 1`` organs and of what is around them."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    out = np.lib.format.open_memmap(path, "w+", np.float16, (classes, *shape))
    axes = np.meshgrid(*(np.arange(side, dtype=np.float32) for side in shape), indexing="ij", sparse=True)
    typical = 0.55 * (np.prod(shape) / max(8, classes)) ** (1 / 3)  # organs fill about a third of the volume
    for k in range(classes):
        coarse = rng.normal(0, 1, [max(2, side // 8) for side in shape]).astype(np.float32)
        zoom = [side / n for side, n in zip(shape, coarse.shape, strict=True)]
        noise = ndimage.zoom(coarse, zoom, order=1, mode="nearest", grid_mode=True)
        if k:
            radii = np.minimum(typical * rng.uniform(0.5, 1.1, 3), np.array(shape) / 2.2)
            middle = [rng.uniform(r, side - r) for r, side in zip(radii, shape, strict=True)]
            away = np.sqrt(sum(((a - m) / r) ** 2 for a, m, r in zip(axes, middle, radii, strict=True)))
            logits = np.clip((1 - away) * np.float32(2 * radii.mean() / 3), -12, 12) + noise
        else:
            logits = noise
        out[k] = logits
    out.flush()


def network_shape(shape: Shape) -> Shape:
    sides = [round(side * spacing / NETWORK_SPACING) for side, spacing in zip(shape, SPACING, strict=True)]
    return sides[0], sides[1], sides[2]


def model_folder(folder: Path, classes: int) -> None:
    """plans.json and dataset.json of a network with so many classes (all that an export needs), and segship's recipe."""
    from segship.families.nnunet_plans import read_plan
    from segship.families.nnunet_recipe import build_recipe

    folder.mkdir(parents=True)
    content = plans()
    content["configurations"]["3d_fullres"]["spacing"] = [NETWORK_SPACING] * 3
    dataset = DATASET | {"labels": {"background": 0} | {f"organ_{k}": k for k in range(1, classes)}}
    (folder / "plans.json").write_text(json.dumps(content))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    plan = read_plan(content, dataset, "3d_fullres")
    recipe = build_recipe(plan, name="fake", parameters=1, members=("fold_0",), mirror_axes=(0, 1, 2), options={})
    (folder / "recipe.json").write_text(recipe.model_dump_json())


def properties(shape: Shape) -> dict[str, Any]:
    """What nnU-Net's preprocessing notes of a case that nothing was cropped from."""
    return {
        "spacing": list(SPACING),
        "shape_before_cropping": list(shape),
        "bbox_used_for_cropping": [[0, side] for side in shape],
        "shape_after_cropping_and_before_resampling": list(shape),
        "sitk_stuff": {
            "spacing": list(reversed(SPACING)), "origin": [0.0, 0.0, 0.0],
            "direction": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        },
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------- our side


def our_export(logits_file: Path, model: Path, shape: Shape, output: Path, repeat: int) -> dict[str, Any]:
    """The same stage as `segship predict` runs it. Scores are float32, as its network stage hands them over; of the
    image only the grid is needed."""
    import nibabel.nifti1  # noqa: F401 - whoever reads the case has loaded it long before

    from segship.inference.volume_chain import Moved, VolumeFrame
    from segship.inference.volume_prediction import VolumePrediction
    from segship.inference.volumes import Volume
    from segship.manifest import Recipe

    recipe = Recipe.model_validate_json((model / "recipe.json").read_text())
    stored = np.load(logits_file, mmap_mode="r")
    scores = np.empty(stored.shape, np.float32)
    for channel, source in zip(scores, stored, strict=True):
        channel[...] = source
    del stored
    resampled = Moved(
        kind="resample", before=shape, after=scores.shape[1:], before_spacing=SPACING,
        after_spacing=(NETWORK_SPACING,) * 3,
    )  # fmt: skip
    volume = Volume(channels=np.broadcast_to(np.float32(0), (1, *shape)), spacing=SPACING, name="case")
    frame = VolumeFrame(name="case", shape=shape, spacing=SPACING, moved=(resampled,))
    before = parts.forget_peak()
    seconds, shares, spent = [], [], []
    for _ in range(repeat):
        start, spent_before = time.perf_counter(), time.process_time()
        found = VolumePrediction(scores=scores, frame=frame, recipe=recipe, volume=volume)
        _ = found.labels
        middle = time.perf_counter()
        found.save(output)
        seconds.append(time.perf_counter() - start)
        spent.append(time.process_time() - spent_before)
        shares.append(middle - start)
    return {
        "seconds": seconds,
        "decide_seconds": shares,
        "processor_seconds": spent,
        "before_mib": before,
        "peak_mib": parts.own_peak_mib(),
    }


# ---------------------------------------------------------------------------------------------------- running


def run(side: str, classes: int, options: argparse.Namespace, notes: parts.Notes) -> None:
    """One side's turns for one number of classes, unless they are there already."""
    shape = options.shape or CASES.get(classes, CASES[2])
    entry = notes.at(name_of(classes, shape), side)
    repeat = options.repeat or (3 if classes < 10 else 2 if classes < 50 else 1)
    if len(entry.get("seconds", ())) >= repeat:
        return
    work: Path = options.work
    key = f"{classes}-{'x'.join(map(str, shape))}"
    model = parts.once(work / key / NAME, lambda half: model_folder(half, classes))
    logits = parts.once(work / key / "logits.npy", lambda half: fake_logits(half, classes, network_shape(shape)))
    told = work / key / "properties.json"
    told.write_text(json.dumps(properties(shape)))
    print(f"{name_of(classes, shape)}: {side}", file=sys.stderr, flush=True)
    output = work / key / side
    if side == "nnunetv2":
        python = parts.INTEROP / "python"
        if not python.exists():
            sys.exit(f"{python} is missing; type: make interop")
        command = [str(python), str(parts.WORKERS / "nnunet_export_worker.py"), str(logits), str(model), str(told),
                   str(output), str(repeat), str(options.threads)]  # fmt: skip
    else:
        command = [sys.executable, __file__, "--child", str(logits), str(model), str(output) + ".nii.gz",
                   "--shape", ",".join(map(str, shape)), "--repeat", str(repeat)]  # fmt: skip
    command = parts.pinned(command, options.threads)
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, env=parts.settings(options.threads))
    if done.returncode:
        entry["ended"] = done.returncode
        notes.save()
        print(f"{side} ended with {done.returncode} (-9 and 137: killed for its memory)", file=sys.stderr)
        return
    entry.update(json.loads(done.stdout.splitlines()[-1]))
    theirs, own = work / key / "nnunetv2.nii.gz", work / key / "segship.nii.gz"
    if theirs.exists() and own.exists():
        place = notes.at(name_of(classes, shape), "segship")
        place["agreement"] = float((parts.read_label_file(theirs) == parts.read_label_file(own)).mean())
        place["file_bytes"] = {"segship": own.stat().st_size, "nnunetv2": theirs.stat().st_size}
    notes.save()


def name_of(classes: int, shape: Shape) -> str:
    return f"{classes} classes, {' × '.join(map(str, shape))}"


# ----------------------------------------------------------------------------------------------------- report


def report(notes: parts.Notes) -> str:
    header = ["logits → label file", "nnU-Net s", "segship s", "of it writing", "gain", "in processor time", "nnU-Net peak MiB",
              "segship peak MiB", "of nnU-Net's", "labels equal"]  # fmt: skip
    rows, judged = [], []
    cases = {name: sides for name, sides in notes.data.items() if name != "about"}
    for name, sides in sorted(cases.items(), key=lambda item: int(item[0].split()[0])):
        theirs, ours = sides.get("nnunetv2", {}), sides.get("segship", {})
        nan = float("nan")
        a, b = (float(np.median(side["seconds"])) if "seconds" in side else nan for side in (theirs, ours))
        p, q = (float(np.median(side["processor_seconds"])) if "seconds" in side else nan for side in (theirs, ours))
        writing = b - float(np.median(ours["decide_seconds"])) if "seconds" in ours else nan
        held, own = theirs.get("peak_mib", nan), ours.get("peak_mib", nan)
        same = ours.get("agreement", nan)
        rows.append([
            name, "killed" if "ended" in theirs and a != a else parts.number(a, ".2f"), parts.number(b, ".3f"),
            parts.number(writing, ".3f"), parts.number(a / b, ".1f", "×"), parts.number(p / q, ".1f", "×"), parts.number(held, ".0f"),
            parts.number(own, ".0f"), parts.number(own / held, ".2f"), parts.number(same, ".6f"),
        ])  # fmt: skip
        judged += [
            parts.verdict(f"{name}: times faster", a / b, 30, form=".1f"),
            parts.verdict(f"{name}: memory of nnU-Net's", own / held, 0.333, at_least=False),
            parts.verdict(f"{name}: labels equal", same, 0.9999, form=".6f"),
        ]
    targets = parts.markdown(["target, logits → label file", "measured", "wanted", ""], judged)
    return f"{parts.markdown(header, rows)}\n\n{targets}"


def shape_of(text: str) -> Shape:
    z, y, x = (int(side) for side in text.split(","))
    return z, y, x


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", default="2,20,100")
    parser.add_argument("--only", default="nnunetv2,segship")
    parser.add_argument("--shape", type=shape_of, metavar="Z,Y,X", help="of the CT [see above]")
    parser.add_argument("--repeat", type=int, help="turns of each side [3; 2 from 10 classes, 1 from 50]")
    parser.add_argument("--threads", type=int, default=2, help="of both sides [2]")
    parser.add_argument("--work", type=Path, default=Path("runs/nnunet_export"), help="logits and label files")
    parser.add_argument("--require", action="store_true", help="exit with 3 when a target is missed")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/nnunet_export.json"), help="gone on with")
    parser.add_argument("--markdown", type=Path, help="the tables as Markdown")
    parser.add_argument("--child", nargs=3, type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.child:
        logits, model, output = options.child
        print(json.dumps(our_export(logits, model, options.shape, output, options.repeat)))
        return 0
    notes = parts.Notes(options.output)
    for classes in map(int, options.classes.split(",")):
        for side in options.only.split(","):
            run(side, classes, options, notes)
    return parts.finish(notes, report, options)


if __name__ == "__main__":
    sys.exit(main())
