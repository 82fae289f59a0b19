"""`segship ensemble`: the mean of several networks' probabilities, then labels, as nnUNetv2_ensemble does.

    -i A B -o OUT     A/<case>.npz, B/<case>.npz (with <case>.pkl beside them, or <case>.nii.gz) -> OUT/<case>.nii.gz

Sums are float32 in the order of the folders and divided once, so that ties fall as upstream's. Exclusive classes: the
first largest wins, its place is the label. Regions: where one is above ½ its label is written, in
``regions_class_order``. Source: MIC-DKFZ/nnUNet: nnunetv2/ensembling/ensemble.py,
utilities/label_handling/label_handling.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.datasets.dsb2018_splits import some
from segship.datasets.label_files import ENDINGS, PICTURE_ENDINGS, read_as_volume
from segship.datasets.nnunet_json import find_dataset_json, read_dataset_json
from segship.errors import InputError, OutputError, SegshipError, UsageError
from segship.inference.decode import label_dtype, stacked_labels
from segship.inference.plain_pickle import read_plain_pickle
from segship.inference.volume_formats import affine_from_lps
from segship.inference.volumes import Geometry, Volume, write_labels
from segship.inference.writers import write_bytes, write_npz
from segship.manifest import Regions
from segship.measure.npz_channels import KEY, open_probabilities
from segship.package import open_package

Progress = Callable[[int, int, str], None]
Float = NDArray[np.float32]
REGION_ABOVE = 0.5
SUM_TOLERANCE = 0.01  # of exclusive classes' probabilities, which add up to 1; float16 files included


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How probabilities become labels, and how they are kept."""

    channels: int | None
    """None: nothing says how many there are"""
    regions: tuple[int, ...] | None
    """labels that regions are written as, in order; None: exclusive classes"""
    ending: str | None
    reorient: bool
    proved: bool = True
    """False: nothing says that the classes exclude each other, so their sums have to"""


@dataclass(frozen=True, kw_only=True)
class EnsembleResult:
    done: int
    failed: tuple[tuple[str, str], ...]
    """(case, message)"""
    folders: int
    output: Path
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "failed": [{"case": case, "error": message} for case, message in self.failed],
            "folders": self.folders,
            "output": str(self.output),
            "notes": list(self.notes),
        }


def ensemble(
    folders: Sequence[Path | str],
    output: Path | str,
    *,
    dataset: Path | str | None = None,
    package: Path | str | None = None,
    save_probabilities: bool = False,
    progress: Progress | None = None,
) -> EnsembleResult:
    """Average each case's probabilities over ``folders`` and write its labels into ``output``.

    What the classes are comes from ``package``, from ``dataset`` (a dataset.json), or from the dataset.json in the first
    folder; without any, probabilities that add up to 1 are exclusive classes. ``save_probabilities`` writes the mean's
    npz (and pkl) too. Raises UsageError for folders that do not hold the same cases; a damaged file fails its case only.
    """
    places = [Path(folder) for folder in folders]
    target = Path(output)
    cases = _cases(places)
    if any(place.resolve() == target.resolve() for place in places):
        raise UsageError(f"{target} is one of the folders to average; choose another with -o")
    decision = _decision(places, dataset, package)
    failed: list[tuple[str, str]] = []
    for number, case in enumerate(cases):
        try:
            _one(case, places, target, decision, save_probabilities)
        except OutputError:
            raise  # the next case would fare no better
        except SegshipError as error:
            failed.append((case, str(error)))
        except MemoryError:
            failed.append((case, f"{case} does not fit into this machine's memory"))
        if progress is not None:
            progress(number + 1, len(cases), case)
    notes = () if decision.proved else ("nothing named the classes: probabilities add up to 1, so the largest won",)
    done = len(cases) - len(failed)
    return EnsembleResult(
        done=done, failed=tuple(failed), folders=len(places), output=target, notes=notes if done else ()
    )


def _cases(places: Sequence[Path]) -> list[str]:
    if len(places) < 2:
        raise UsageError("an ensemble needs at least two folders of probabilities: -i DIR1 DIR2 …")
    held: list[set[str]] = []
    for place in places:
        if not place.is_dir():
            raise UsageError(f"there is no folder {place}; check the path")
        held.append({path.stem for path in place.glob("*.npz") if not path.name.startswith(".")})
    every = sorted(set().union(*held))
    if not every:
        raise UsageError(f"{places[0]} holds no <case>.npz; predict with --save-probabilities")
    for place, names in zip(places, held, strict=True):
        absent = [case for case in every if case not in names]
        if absent:
            raise UsageError(
                f"{place} lacks the probabilities of {len(absent)} cases that others hold ({some(absent)})"
            )
    return every


def _decision(places: Sequence[Path], dataset: Path | str | None, package: Path | str | None) -> Decision:
    if package is not None:
        manifest = open_package(package).manifest
        rule, spec = manifest.decode.decision, manifest.input
        if spec.kind != "volume":
            raise UsageError(f"{package} takes pictures; ensembles are of nnU-Net's probabilities")
        return Decision(
            channels=manifest.network.outputs[0].channels,
            regions=rule.order if isinstance(rule, Regions) else None,
            ending=spec.file_ending,
            reorient=spec.reader.endswith("-reorient"),
        )
    about = Path(dataset) if dataset is not None else find_dataset_json(places[0])
    reorient = any("WithReorient" in _text(place / "plans.json") for place in places)
    if about is None:
        return Decision(channels=None, regions=None, ending=None, reorient=reorient, proved=False)
    described = read_dataset_json(about)
    reorient |= described.reorient
    if described.has_regions and described.regions_order is None:
        raise InputError(f"{about} has regions but no regions_class_order; it is not the one that was trained with")
    return Decision(
        channels=len(described.labels) + (0 if described.has_regions else 1),
        regions=described.regions_order if described.has_regions else None,
        ending=described.file_ending,
        reorient=reorient,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _one(case: str, places: Sequence[Path], output: Path, decision: Decision, keep: bool) -> None:
    files = [place / f"{case}.npz" for place in places]
    kept: list[Float] | None = [] if keep else None
    labels = _decided(files, decision, kept)
    ending, volume = _geometry(case, places, labels.shape, decision)
    write_labels(output / f"{case}{ending}", labels, volume)
    if kept is not None:
        write_npz(output / f"{case}.npz", {KEY: np.stack(kept)})
        properties = next((p for place in places if (p := place / f"{case}.pkl").is_file()), None)
        if properties is not None:
            write_bytes(output / properties.name, properties.read_bytes())


def _decided(files: Sequence[Path], decision: Decision, kept: list[Float] | None) -> NDArray[np.unsignedinteger]:
    """(z, y, x) labels of the mean; its classes are added to ``kept`` where that is a list."""
    with ExitStack() as stack:
        opened = [stack.enter_context(open_probabilities(file)) for file in files]
        first = opened[0]
        for other in opened[1:]:
            if other.shape != first.shape:
                raise InputError(
                    f"{other.path} has the shape {other.shape}, {first.path} {first.shape}; they are not of one case"
                )
        if decision.channels is not None and first.shape[0] != decision.channels:
            raise InputError(
                f"{first.path} has {first.shape[0]} classes, where {decision.channels} are named; give the dataset.json or "
                "package that belongs to it"
            )
        mean = _means([one.channels() for one in opened], kept)
        if decision.regions is not None:
            return stacked_labels((one > REGION_ABOVE for one in mean), decision.regions, first.shape[1:])
        return _largest(mean, first.shape, None if decision.proved else first.path)


def _means(streams: Sequence[Iterator[NDArray[np.generic]]], kept: list[Float] | None) -> Iterator[Float]:
    """Each class's mean over the files: float32 sums in order, divided once."""
    for parts in zip(*streams, strict=True):
        total = parts[0].astype(np.float32)
        for part in parts[1:]:
            total += part.astype(np.float32, copy=False)
        total /= np.float32(len(parts))
        if not np.isfinite(total.sum(dtype=np.float64)):
            raise InputError("the probabilities hold NaN or infinity; predict that case again")
        if kept is not None:
            kept.append(total)
        yield total


def _largest(mean: Iterator[Float], shape: tuple[int, ...], unproved: Path | None) -> NDArray[np.unsignedinteger]:
    best = next(mean).copy()
    total = best.copy() if unproved is not None else None
    labels = np.zeros(shape[1:], label_dtype((shape[0] - 1,)))
    for number, channel in enumerate(mean, start=1):
        above = channel > best  # the first of equals stays
        best[above] = channel[above]
        labels[above] = number
        if total is not None:
            total += channel
    if total is not None and float(np.abs(total - 1).max()) > SUM_TOLERANCE:
        raise InputError(
            f"{unproved}: the classes' probabilities do not add up to 1, so they may be regions; say what they are with "
            "--dataset dataset.json or --package"
        )
    return labels


# --------------------------------------------------------------------------------------------- geometry


def _geometry(case: str, places: Sequence[Path], shape: tuple[int, ...], decision: Decision) -> tuple[str, Volume]:
    """(file ending, what `write_labels` needs to put labels into the case's own space)."""
    properties = next((p for place in places if (p := place / f"{case}.pkl").is_file()), None)
    about = _properties(properties) if properties is not None else {}
    reorient = decision.reorient or "reoriented_affine" in about or "original_orientation" in about
    endings = [decision.ending] if decision.ending else [ending for ending in ENDINGS]
    beside = next((p for place in places for ending in endings if (p := place / f"{case}{ending}").is_file()), None)
    if beside is not None:
        found = read_as_volume(beside, reorient=reorient)
        if found.shape != shape:
            raise InputError(f"{beside} has {found.shape} voxels, the probabilities {shape}; they are not of one case")
        ending = next(e for e in ENDINGS if beside.name.lower().endswith(e))
        return decision.ending or ending, found
    ending = decision.ending or ".nii.gz"
    empty = Volume(channels=np.empty((0, *shape), np.float32), spacing=(1.0, 1.0, 1.0), name=case)
    if ending in PICTURE_ENDINGS:
        return ending, empty
    geometry = _placed(about, shape, reorient)
    if geometry is None:
        raise InputError(
            f"{case}: neither {case}.pkl nor {case}{ending} lies beside the probabilities, so where it lies in space is "
            "unknown; copy one of them there (or name the file ending with --dataset, if these are pictures)"
        )
    return ending, replace(empty, geometry=geometry)


def _placed(about: dict[str, Any], shape: tuple[int, ...], reorient: bool) -> Geometry | None:
    """From what either reader of nnU-Net keeps of the case's own file; None where it kept nothing."""
    try:
        if "original_affine" in about:
            affine = np.asarray(about["original_affine"], np.float64).reshape(4, 4)
            axes = 3
        elif "origin" in about:
            lengths = about["sitk_stuff"]["spacing"]
            affine = np.asarray(affine_from_lps(about["origin"], about["direction"], lengths), np.float64)
            axes = min(3, len(lengths))
        else:
            return None
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"the properties of a case cannot be understood ({error}); predict it again") from None
    from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

    turned = None
    if "original_orientation" in about:  # SimpleITK's reader keeps where the turned case lies
        turned = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(about["original_orientation"])))
        affine = affine @ inv_ornt_aff(turned, tuple(reversed(shape)))
    elif reorient:
        turned = ornt_transform(axcodes2ornt("RAS"), io_orientation(affine))
    spacing = tuple(float(np.linalg.norm(affine[:3, axis])) for axis in range(axes))
    return Geometry(shape=tuple(reversed(shape))[:axes], spacing=spacing, affine=affine, turned=turned)


def _properties(path: Path) -> dict[str, Any]:
    found = read_plain_pickle(path)
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no properties of a case; predict it again")
    inner = [found.get(name) for name in ("sitk_stuff", "nibabel_stuff")]
    return {**found, **{key: value for part in inner if isinstance(part, dict) for key, value in part.items()}}
