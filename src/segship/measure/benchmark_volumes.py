"""What `segship benchmark` times of packages that take volumes.

    windows     prepared windows of one case through all members of the network, a batch at a time
    the case    prepared, through all its windows and mirrorings, without reading and writing
    the files   the case's files → label file: reading, preprocessing, windows, decoding, writing

The case is the first of the inputs, or the package's golden sample written to files. Answers are compared before times
are taken, without mirroring, which repeats the same network.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segship.errors import UsageError
from segship.inference import tiling as windows
from segship.inference import volume_formats
from segship.inference.predictor import Predictor
from segship.inference.volume_cases import Case, find_cases
from segship.inference.volume_files import write_case
from segship.inference.volume_network import TileOptions
from segship.inference.volume_predictor import VolumePredictor
from segship.inference.volumes import Volume, sample_volume
from segship.inference.writers import write_bytes
from segship.manifest import Manifest, VolumeInput
from segship.measure.agreement import Reference
from segship.measure.environment import executed_by
from segship.measure.rows import Answer, Setting
from segship.measure.timing import Call
from segship.package import Package


def one_case(package: Package, inputs: Sequence[Path | str] | Path | str | None, scratch: Path) -> tuple[Case, str]:
    """The case that is timed, and what it is in words. UsageError where there is none."""
    spec = package.manifest.input
    assert isinstance(spec, VolumeInput)
    if inputs is None:
        golden = package.golden()
        if golden is None:
            raise UsageError("the package has no golden sample; name the files of a case, or a folder")
        volume, previous = sample_volume(golden.input_bytes)
        if previous is not None:
            raise UsageError("a cascade's golden sample has no first stage to run; name a case with --inputs")
        files = write_sample(volume, spec, scratch)
        return Case(name="sample", files=tuple(files)), f"the package's golden sample, {_size(volume.shape)} voxels"
    cases, problems = find_cases([inputs] if isinstance(inputs, str | Path) else inputs, spec)
    if not cases:
        raise UsageError(f"no whole case among the inputs: {problems[0]}")
    more = f", the first of {len(cases)}" if len(cases) > 1 else ""
    return cases[0], f"case {cases[0].name}{more}"


def write_sample(volume: Volume, spec: VolumeInput, folder: Path) -> list[Path]:
    """A case that came as arrays as files that the package's reader takes, one a channel or all in one."""
    folder.mkdir(parents=True, exist_ok=True)
    if spec.reader == "image-2d":
        planes = np.clip(np.rint(volume.channels[:, 0]), 0, 255).astype(np.uint8)
        pictures = [planes.transpose(1, 2, 0)] if spec.channel_files == "one-file" else list(planes)
        return [_save_picture(picture, folder / f"sample_{n:04d}.png") for n, picture in enumerate(pictures)]
    if spec.reader == "tiff-3d":
        return [_save_tiff(c, volume.spacing, folder / f"sample_{n:04d}.tif") for n, c in enumerate(volume.channels)]
    return [
        _save_nifti(c, volume.spacing, spec, folder / f"sample_{n:04d}.nii.gz") for n, c in enumerate(volume.channels)
    ]


def _save_picture(pixels: np.ndarray, path: Path) -> Path:
    from PIL import Image

    Image.fromarray(np.ascontiguousarray(pixels if pixels.ndim == 2 or pixels.shape[2] > 1 else pixels[..., 0])).save(
        path
    )
    return path


def _save_tiff(channel: np.ndarray, spacing: Sequence[float], path: Path) -> Path:
    write_bytes(path, volume_formats.encode_tiff(np.ascontiguousarray(channel, np.float32)))
    z, y, x = spacing
    write_bytes(volume_formats.spacing_beside(path), volume_formats.encode_spacing((z, y, x)))
    return path


def _save_nifti(channel: np.ndarray, spacing: Sequence[float], spec: VolumeInput, path: Path) -> Path:
    import nibabel

    stored = spec.reader == "nibabel-stored"  # the file's axes are the network's
    array = channel if stored else channel.transpose(2, 1, 0)
    zooms = list(spacing) if stored else list(reversed(spacing))
    nibabel.save(nibabel.Nifti1Image(np.asarray(array, np.float32), np.diag([*zooms, 1.0])), path)
    return path


def remarks(manifest: Manifest) -> list[str]:
    """What the numbers count."""
    members = len(manifest.network.members)
    if members == 1:
        return []
    return [f"a window goes through all {members} members of the ensemble: windows/s counts it once"]


@dataclass(frozen=True)
class Work:
    """The calls of one batch size."""

    predictors: Mapping[Setting, Predictor]
    case: Case
    batch: int
    tiles: TileOptions
    scratch: Path

    def answers(self) -> dict[Setting, Answer]:
        """Every setting's answer against the first fp32 setting's, without mirroring."""
        opened = self._opened()
        reference = next((s for s in opened if s.precision == "fp32"), next(iter(opened)))
        plain = replace(self._tiles(), mirror=False)
        expected = opened[reference](self.case, tiles=plain)
        kept = Reference()
        kept.keep(self.case.name, expected)
        answers = {}
        for setting, predictor in opened.items():
            found = expected if setting == reference else predictor(self.case, tiles=plain)
            answers[setting] = Answer(
                executed=executed_by(predictor, self.case),
                max_abs=float(np.abs(np.asarray(found.scores, np.float32) - expected.scores).max()),
                likeness=float(kept.agreement(self.case.name, found) or 0.0),
            )
        return answers

    def network_calls(self) -> dict[Setting, Call]:
        """One batch of windows, spread over the case."""
        opened = self._opened()
        x = self._windows(next(iter(opened.values())))
        return {
            setting: Call(run=lambda p=predictor: p.network(x), items=self.batch, streams=setting.streams)  # type: ignore[misc]
            for setting, predictor in opened.items()
        }

    def case_calls(self) -> dict[Setting, Call]:
        """The prepared case through all its windows."""
        opened, tiles = self._opened(), self._tiles()
        prepared = next(iter(opened.values())).prepare(self.case)
        return {
            setting: Call(run=lambda p=predictor: p.scores(prepared, tiles), items=1)  # type: ignore[misc]
            for setting, predictor in opened.items()
        }

    def file_calls(self) -> dict[Setting, Call]:
        """The case from its files to its label file."""
        return {
            setting: Call(run=lambda p=predictor: self._whole(p), items=1)  # type: ignore[misc]
            for setting, predictor in self._opened().items()
        }

    def _whole(self, predictor: VolumePredictor) -> None:
        spec = predictor.manifest.input
        assert isinstance(spec, VolumeInput)
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            found = predictor(self.case, tiles=self._tiles())
            write_case(found, Path(folder), self.case.name, spec.file_ending)

    def _tiles(self) -> TileOptions:
        return replace(self.tiles, batch=self.batch)

    def _opened(self) -> dict[Setting, VolumePredictor]:
        opened = {}
        for setting, predictor in self.predictors.items():
            assert isinstance(predictor, VolumePredictor)
            opened[setting] = predictor
        return opened

    def _windows(self, predictor: VolumePredictor) -> np.ndarray:
        """(batch, C, *window) float32."""
        x, tiling = predictor.prepare(self.case).x, predictor.manifest.tiling
        assert tiling is not None
        flat = len(tiling.window) == 2
        planes = [np.ascontiguousarray(x[:, z]) for z in _spread(x.shape[1], self.batch)] if flat else [x]
        found = []
        for number in range(self.batch):
            padded, _ = windows.pad(planes[number % len(planes)], tiling)
            starts = windows.window_starts(padded.shape[1:], tiling)
            chosen = _spread(len(starts), self.batch)[number % self.batch]
            found.append(windows.cut(padded, starts[chosen], tiling))
        return np.ascontiguousarray(np.stack(found), np.float32)


def _spread(count: int, wanted: int) -> list[int]:
    """``wanted`` numbers below ``count``, evenly spread; repeated where there are fewer."""
    return [int(i) for i in np.linspace(0, count - 1, wanted).round()]


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
