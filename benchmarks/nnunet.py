"""CT file → label file: segship beside nnUNetv2_predict, each run a process of its own; one growing table.

    make interop
    python benchmarks/nnunet.py CT.nii.gz --trained TRAINED -o runs/nnunet.json --markdown runs/nnunet.md

Scene `ct` is a full-size 3d_fullres network (see nnunet_model.py) on a CT at 1.5 mm; scene `trained` is a folder with a
trained nnU-Net v2 model, `images` and `labels`. Every contestant is the command that its users type, on the same files,
with as many threads: start, imports and loading are part of the time. Labels are compared before times are.

A run takes minutes, so everything is kept in the JSON file and what is there is not done again: stop at any time and
go on with the same command. --only takes a part of the contestants, --crop a part of the CT, --tta switches mirroring
on (eight times the work), --scenes one of the scenes; each combination of crop and mirroring is a table of its own.

Targets: fp32 at least 2× with labels equal in 0.9999 of the voxels, int8 at least 5× with a Dice within 0.005 on the
trained folder, a third of the peak memory.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nnunet_parts as parts
from nnunet_folder import NAME

UPSTREAM = "nnUNetv2_predict"
OURS = {
    "openvino-fp32": ("openvino", "fp32"),
    "onnxruntime-fp32": ("onnxruntime", "fp32"),
    "openvino-bf16": ("openvino", "bf16"),
    "openvino-int8": ("openvino", "int8"),
}
SAME = 0.99
"""agreement below which an fp32 row is not the same network and chain; the target is higher"""


@dataclass(frozen=True, kw_only=True)
class Scene:
    name: str
    tables: str
    """key in the notes"""
    images: Path
    model: Path
    """nnU-Net's folder, as upstream opens it"""
    package: Path
    ending: str
    tta: bool
    truth: Path | None = None


# ------------------------------------------------------------------------------------------------ preparation


def ct_scene(options: argparse.Namespace) -> Scene:
    work: Path = options.work
    root = parts.once(work / "Dataset950_Bright", lambda half: make_model(options.ct, half, work))
    model = next(root.iterdir())
    crop = tuple(int(side) for side in options.crop.split(",")) if options.crop else None
    name = "whole" if crop is None else "x".join(map(str, crop))
    images = parts.once(work / "images" / name, lambda half: cut_ct(options.ct, half, crop))
    package = parts.once(work / "ct.segship", lambda half: export(model, half, work, "--sample", str(options.ct)))
    return Scene(
        name="ct", tables=f"CT {name}, {told(options.tta)}", images=images, model=model, package=package,
        ending=".nii.gz", tta=options.tta,
    )  # fmt: skip


def trained_scene(options: argparse.Namespace) -> Scene:
    work, given = options.work, options.trained
    source = next((path.parent for path in sorted(given.glob("*/plans.json"))), None)
    if source is None or not (given / "images").is_dir() or not (given / "labels").is_dir():
        sys.exit(f"{given} needs a model folder, images and labels")
    root = parts.once(work / "Dataset951_Trained", lambda half: copy_model(source, half / source.name))
    package = parts.once(work / "trained.segship", lambda half: export(source, half, work))
    ending = next((given / "labels").iterdir()).suffix
    return Scene(
        name="trained", tables=f"trained folder, {told(options.tta)}", images=given / "images", truth=given / "labels",
        model=next(root.iterdir()), package=package, ending=ending, tta=options.tta,
    )  # fmt: skip


def told(tta: bool) -> str:
    return "mirrored" if tta else "not mirrored"


def make_model(ct: Path, folder: Path, work: Path) -> None:
    say("seeded weights and their first steps")
    script = Path(__file__).with_name("nnunet_model.py")
    parts.spend([sys.executable, str(script), str(ct), str(folder / NAME)], 2, work / "model.log")


def copy_model(source: Path, folder: Path) -> None:
    """Upstream looks for the trainer's class, which a folder trained by an own one does not bring: name the standard one.

    Nothing else of a checkpoint decides a prediction, so only that is kept.
    """
    import torch

    from segship.families.checkpoint import open_pickle

    folder.mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        shutil.copyfile(source / name, folder / name)
    for path in source.glob("fold_*/checkpoint_final.pth"):
        content, _ = open_pickle(path)
        kept = {key: content[key] for key in ("network_weights", "inference_allowed_mirroring_axes")}
        kept["init_args"] = {"configuration": content["init_args"]["configuration"]}
        place = folder / path.parent.name
        place.mkdir()
        torch.save(kept | {"trainer_name": "nnUNetTrainer"}, place / path.name)


def cut_ct(ct: Path, folder: Path, crop: Sequence[int] | None) -> None:
    """The CT's middle, ``crop`` voxels as (z, y, x), under the name that nnU-Net wants."""
    import nibabel

    folder.mkdir(parents=True)
    image: Any = nibabel.load(ct)  # type: ignore[attr-defined]
    if crop is not None:
        gaps = [max(0, (have - want) // 2) for have, want in zip(image.shape, reversed(crop), strict=True)]
        image = image.slicer[tuple(slice(a, a + want) for a, want in zip(gaps, reversed(crop), strict=True))]
    nibabel.save(image, folder / "ct_0000.nii.gz")  # type: ignore[attr-defined]


def export(model: Path, package: Path, work: Path, *more: str) -> None:
    say(f"export {model.name}")
    segship(work / "export.log", "export", str(model), "-o", str(package), "--engine", "openvino", *more)


def add_precision(scene: Scene, precision: str, options: argparse.Namespace) -> None:
    """The package's variant, by the command that a user types; made once."""
    from segship.package import open_package

    if precision == "fp32" or precision in {v.precision for v in open_package(scene.package).manifest.variants}:
        return
    say(f"compile {scene.package.name} --precision {precision}")
    command = ["compile", str(scene.package), "--precision", precision]
    if precision == "int8":
        whole = options.work / "images" / "whole"
        data = scene.images if scene.name == "trained" else parts.once(whole, lambda h: cut_ct(options.ct, h, None))
        command += ["--calibrate", str(data), "--subset", "8" if scene.name == "ct" else "64"]
    segship(options.work / f"compile-{scene.name}-{precision}.log", *command)


def segship(words: Path, *command: str) -> parts.Spent:
    return parts.spend([sys.executable, "-m", "segship", *command, "-q"], 2, words)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------- contestants


def command_of(contestant: str, scene: Scene, output: Path, options: argparse.Namespace) -> list[str]:
    if contestant == UPSTREAM:
        program = parts.INTEROP / "nnUNetv2_predict_from_modelfolder"
        if not program.exists():
            sys.exit(f"{program} is missing; type: make interop")
        found = [str(program), "-i", str(scene.images), "-o", str(output), "-m", str(scene.model), "-f", "0"]
        found += ["-device", "cpu"]
        if options.few_workers:
            found += ["-npp", "1", "-nps", "1"]
        return found if scene.tta else [*found, "--disable_tta"]
    engine, precision = OURS[contestant]
    found = [sys.executable, "-m", "segship", "predict", str(scene.package), "-i", str(scene.images), "-o", str(output)]
    found += ["--engine", engine, "--precision", precision, "--threads", str(options.threads), "-q"]
    return found if scene.tta else [*found, "--no-tta"]


def labels_of(contestant: str, scene: Scene, options: argparse.Namespace) -> Path:
    folder: Path = options.work / "labels" / scene.tables.replace(" ", "_").replace(",", "")
    return folder / contestant


def run(contestant: str, scene: Scene, notes: parts.Notes, options: argparse.Namespace) -> None:
    """One more run of a contestant, unless there are enough."""
    entry = notes.at("tables", scene.tables, contestant)
    if len(entry.get("runs", ())) >= options.repeat:
        return
    if contestant != UPSTREAM:
        add_precision(scene, OURS[contestant][1], options)
    output = labels_of(contestant, scene, options)
    shutil.rmtree(output, ignore_errors=True)
    say(f"{scene.tables}: {contestant}")
    variables = {f"nnUNet_{name}": str(options.work) for name in ("raw", "preprocessed", "results")}
    command = command_of(contestant, scene, output, options)
    spent = parts.spend(command, options.threads, options.work / "logs" / f"{contestant}.log", **variables)
    notes.add(spent, "tables", scene.tables, contestant)


def compare(scene: Scene, notes: parts.Notes, options: argparse.Namespace) -> None:
    """Every contestant's label files against upstream's, and against the truth where there is one."""
    theirs = labels_of(UPSTREAM, scene, options)
    for contestant in [UPSTREAM, *OURS]:
        output, entry = labels_of(contestant, scene, options), notes.at("tables", scene.tables, contestant)
        if not output.is_dir() or not entry.get("runs"):
            continue
        if scene.truth is not None:
            entry["dice"] = parts.mean_dice(output, scene.truth, scene.ending)
        if theirs.is_dir():
            entry["agreement"] = parts.agreement(output, theirs, scene.ending)
            if contestant.endswith("fp32") and entry["agreement"] < SAME:
                sys.exit(f"{contestant}: {entry['agreement']:.4f} of the labels agree; these are not the same networks")
    notes.save()


# ------------------------------------------------------------------------------------------------------ report


def table(name: str, rows: dict[str, Any]) -> str:
    theirs = rows.get(UPSTREAM, {})
    base, memory = parts.middle(theirs, "seconds"), parts.most(theirs, "together_mib")
    header = [name, "runs", "s", "gain", "processor s", "peak MiB, all processes", "of upstream", "largest process",
              "labels equal", "Dice"]  # fmt: skip
    lines = []
    for contestant in [UPSTREAM, *OURS]:
        entry = rows.get(contestant, {})
        if not entry.get("runs"):
            continue
        seconds, peak = parts.middle(entry, "seconds"), parts.most(entry, "together_mib")
        lines.append([
            contestant, str(len(entry["runs"])), parts.number(seconds), parts.number(base / seconds, ".2f", "×"),
            parts.number(parts.middle(entry, "processor_seconds")), parts.number(peak, ".0f"),
            parts.number(peak / memory, ".2f"), parts.number(parts.most(entry, "largest_mib"), ".0f"),
            parts.number(entry.get("agreement", float("nan")), ".6f"), parts.number(entry.get("dice", float("nan")), ".5f"),
        ])  # fmt: skip
    return parts.markdown(header, lines)


def verdicts(name: str, rows: dict[str, Any]) -> list[list[str]]:
    theirs = rows.get(UPSTREAM, {})
    base, memory = parts.middle(theirs, "seconds"), parts.most(theirs, "together_mib")
    nan = float("nan")

    def gain(contestant: str) -> float:
        return base / parts.middle(rows.get(contestant, {}), "seconds")

    def held(contestant: str) -> float:
        return parts.most(rows.get(contestant, {}), "together_mib")

    exact = max(("openvino-fp32", "onnxruntime-fp32"), key=lambda c: (gain(c) == gain(c), gain(c)))
    found = [
        parts.verdict(f"{name}: {exact}, times faster", gain(exact), 2),
        parts.verdict(f"{name}: {exact}, labels equal", rows.get(exact, {}).get("agreement", nan), 0.9999, form=".6f"),
        parts.verdict(f"{name}: openvino-int8, times faster", gain("openvino-int8"), 5),
        *(
            parts.verdict(f"{name}: {c}, memory of upstream's", held(c) / memory, 0.333, at_least=False)
            for c in ("openvino-fp32", "openvino-int8")
        ),
    ]
    if "dice" in theirs:
        drop = theirs["dice"] - rows.get("openvino-int8", {}).get("dice", nan)
        found.append(parts.verdict(f"{name}: int8, Dice lost", drop, 0.005, at_least=False, form=".5f"))
    return found


def report(notes: parts.Notes) -> str:
    tables = notes.data.get("tables", {})
    judged = [line for name, rows in sorted(tables.items()) for line in verdicts(name, rows)]
    header = ["target, file → label file", "measured", "wanted", ""]
    return "\n\n".join([*(table(n, rows) for n, rows in sorted(tables.items())), parts.markdown(header, judged)])


# -------------------------------------------------------------------------------------------------------- main


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ct", type=Path, help="a CT as .nii.gz")
    parser.add_argument("--trained", type=Path, help="folder with a trained v2 model folder, images and labels")
    parser.add_argument("--scenes", default="ct,trained")
    parser.add_argument("--only", default=",".join([UPSTREAM, *OURS]), help="contestants, by their names in the table")
    parser.add_argument("--crop", help="Z,Y,X: the middle of the CT, so many voxels")
    parser.add_argument("--tta", action="store_true", help="with mirroring [without]")
    parser.add_argument(
        "--few-workers", action="store_true", help="upstream with one process for each stage [its three]"
    )
    parser.add_argument("--prepare", action="store_true", help="make models and packages, and run nothing")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each contestant, those kept included [1]")
    parser.add_argument("--threads", type=int, default=2, help="of every contestant [2]")
    parser.add_argument("--work", type=Path, default=Path("runs/nnunet_benchmark"), help="models and packages are kept")
    parser.add_argument("--require", action="store_true", help="exit with 3 when a target is missed")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/nnunet.json"), help="all numbers; gone on with")
    parser.add_argument("--markdown", type=Path, help="the tables as Markdown")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    only = options.only.split(",")
    unknown = set(only) - {UPSTREAM, *OURS}
    if unknown:
        sys.exit(f"there is no contestant {', '.join(sorted(unknown))}; there are {UPSTREAM}, {', '.join(OURS)}")
    notes = parts.Notes(options.output)
    scenes = []
    if "ct" in options.scenes:
        scenes.append(ct_scene(options))
    if "trained" in options.scenes and options.trained is not None:
        scenes.append(trained_scene(options))
    for scene in scenes:
        if options.prepare:
            for contestant in [name for name in only if name in OURS]:
                add_precision(scene, OURS[contestant][1], options)
            continue
        for _ in range(options.repeat):  # in turns: a machine's speed drifts
            for contestant in only:
                run(contestant, scene, notes, options)
                compare(scene, notes, options)
    return parts.finish(notes, report, options)


if __name__ == "__main__":
    sys.exit(main())
