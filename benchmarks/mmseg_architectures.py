"""Which of mmseg's architectures become packages: each built by mmseg from its own config, seeded weights, exported, proved.

    make interop-mmseg          (installs .interop/mmseg, then runs this; about 40 minutes on two cores in all)
    .interop/mmseg/bin/python benchmarks/mmseg_architectures.py -o runs/mmseg_architectures.json --markdown docs/mmseg-architectures.md

An architecture passes when `segship export` writes its package: every engine's logits equal PyTorch's at the export size
and, for a dynamic package, at two more sizes and in a batch. What is not dynamic is tried at one fixed size. Architectures
that stand in the JSON already are not run again, and `--minutes` ends after the one under way, so it can go in pieces.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent / "interop")  # not this folder: benchmarks/mmseg.py would hide mmseg

import mmseg_worker as worker  # noqa: E402
import torch  # noqa: E402

SCALE = (256, 128)
"""width, height that the test pipeline fits pictures into"""
LARGER = {"MobileNetV3-LRASPP": (1024, 512)}
"""where that is too small: its head pools squares of 49 × 49 pixels of the map of stride 8"""
ENGINES = ("openvino", "onnxruntime")
CITYSCAPES = "4xb2-80k_cityscapes-512x1024"
ARCHITECTURES = {
    "FCN-ResNet18": f"fcn/fcn_r18-d8_{CITYSCAPES}.py",
    "FCN-HRNet18-small": f"hrnet/fcn_hr18s_{CITYSCAPES}.py",
    "FCN-UNet": "unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py",
    "DeepLabV3-UNet": "unet/unet_s5-d16_deeplabv3_4xb4-40k_chase-db1-128x128.py",
    "PSPNet-UNet": "unet/unet-s5-d16_pspnet_4xb4-40k_chase-db1-128x128.py",
    "OCRNet-HRNet18-small": f"ocrnet/ocrnet_hr18s_{CITYSCAPES}.py",
    "DeepLabV3-ResNet18": f"deeplabv3/deeplabv3_r18-d8_{CITYSCAPES}.py",
    "DeepLabV3+-ResNet18": f"deeplabv3plus/deeplabv3plus_r18-d8_{CITYSCAPES}.py",
    "PSPNet-ResNet18": f"pspnet/pspnet_r18-d8_{CITYSCAPES}.py",
    "UPerNet-ResNet18": "upernet/upernet_r18_4xb2-80k_cityscapes-512x1024.py",
    "Semantic FPN-ResNet50": "sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py",
    "MobileNetV2-FCN": "mobilenet_v2/mobilenet-v2-d8_fcn_4xb2-80k_cityscapes-512x1024.py",
    "MobileNetV3-LRASPP": "mobilenet_v3/mobilenet-v3-d8-s_lraspp_4xb4-320k_cityscapes-512x1024.py",
    "ResNeSt101-FCN": "resnest/resnest_s101-d8_fcn_4xb2-80k_cityscapes-512x1024.py",
    "BiSeNetV1-ResNet18": "bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024.py",
    "BiSeNetV2": "bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py",
    "STDC1": "stdc/stdc1_4xb12-80k_cityscapes-512x1024.py",
    "DDRNet23-slim": "ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py",
    "PIDNet-S": "pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py",
    "Fast-SCNN": "fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py",
    "ICNet-ResNet18": "icnet/icnet_r18-d8_4xb2-80k_cityscapes-832x832.py",
    "ERFNet": "erfnet/erfnet_fcn_4xb4-160k_cityscapes-512x1024.py",
    "CGNet": "cgnet/cgnet_fcn_4xb4-60k_cityscapes-680x680.py",
    "SegFormer-B0": "segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py",
    "Segmenter-ViT-T": "segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py",
    "Swin-T-UPerNet": "swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
    "SegNeXt-T": "segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py",
    "CCNet-ResNet50": f"ccnet/ccnet_r50-d8_{CITYSCAPES}.py",
    "DANet-ResNet50": f"danet/danet_r50-d8_{CITYSCAPES}.py",
    "Non-local-ResNet50": f"nonlocal_net/nonlocal_r50-d8_{CITYSCAPES}.py",
    "GCNet-ResNet50": f"gcnet/gcnet_r50-d8_{CITYSCAPES}.py",
    "EncNet-ResNet50": f"encnet/encnet_r50-d8_{CITYSCAPES}.py",
    "PointRend-ResNet50": "point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py",
    "ConvNeXt-T-UPerNet": "convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py",
}
Row = dict[str, Any]


def configs() -> Path:
    import mmseg

    return Path(mmseg.__file__).parent / ".mim" / "configs"


def small_config(name: str, folder: Path) -> Path:
    """The architecture's own config with pictures of SCALE (or LARGER); everything else is as mmseg has it."""
    scale = LARGER.get(name, SCALE)
    base = configs() / ARCHITECTURES[name]
    path = folder / "config.py"
    path.write_text(
        f"_base_ = [{str(base)!r}]\n"
        f"test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale={scale}, keep_ratio=True), "
        "dict(type='PackSegInputs')]\n"
        "test_dataloader = dict(dataset=dict(pipeline=test_pipeline))\n"
    )
    return path


def one(name: str, picture: Path) -> Row:
    """What becomes of one architecture; a refusal is a result."""
    from segship.convert.export import export
    from segship.errors import SegshipError

    start = time.monotonic()
    row: Row = {"config": ARCHITECTURES[name]}
    with tempfile.TemporaryDirectory(prefix="segship-mmseg-") as place:
        folder = Path(place)
        try:
            config = small_config(name, folder)
            size = LARGER.get(name, (512, 256))
            row |= worker.make_checkpoint(str(config), str(folder / "net.pth"), str(picture), size=size)
            options = {"config": str(config), "generic": True}
            found = export(
                folder / "net.pth",
                folder / "net.segship",
                family="mmseg",
                options=options,
                sample=picture,
                engines=ENGINES,
            )
        except SegshipError as error:
            row |= {"result": "refused", "why": tidy(error, place)}
        except Exception as error:  # of mmseg, while it builds or runs the network
            traceback.print_exc()
            row |= {"result": "not built", "why": f"{type(error).__name__}: {tidy(error, place)[:300]}"}
        else:
            manifest = found.package.manifest
            network = [r for r in found.parity if not r.shared_code]
            row |= {
                "result": "dynamic" if manifest.network.size is None else "fixed " + "×".join(map(str, manifest.network.size)),
                "multiple": manifest.network.size_multiple[0], "stride": manifest.network.outputs[0].stride,
                "largest": max(r.max_abs for r in network),
                "allowed": max(r.tolerance for r in network),
                "engines": sorted({r.engine for r in network}),
                "why": tidy(" ".join((*found.warnings, *found.notes)), place),
            }  # fmt: skip
    return row | {"seconds": round(time.monotonic() - start, 1)}


def tidy(text: object, place: str) -> str:
    """One line without this machine's temporary folders."""
    line = " ".join(str(text).replace(place, "…").split())
    return re.sub(r"/\S*/segship-[^/\s]+/", "…/", line)


def markdown(found: dict[str, Row], versions: dict[str, str]) -> str:
    passed = sum(row["result"].startswith(("dynamic", "fixed")) for row in found.values())
    lines = [
        "# Which of mmseg's architectures become packages",
        "",
        f"Written by `make interop-mmseg`: {passed} of {len(found)} architectures, each built by mmseg from its own config "
        f"(pictures fitted into {SCALE[0]}×{SCALE[1]}, or larger where a head insists on it), seeded weights, exported through "
        "`segship export --generic`.",
        "",
        "- **dynamic**: every engine's logits equal PyTorch's at the export size, at two more sizes and in a batch.",
        "- **fixed**: they do at the export size alone, so the package keeps that size; pictures are resized to it.",
        "- **refused**: no package is written; the line says why. **not built**: mmseg itself could not build or run it here.",
        "",
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}.",
        "",
        "| architecture | parameters | result | sizes, stride | largest difference (allowed) | engines |",
        "| --- | ---: | --- | --- | --- | --- |",
    ]
    for name, row in found.items():
        count = f"{row['parameters'] / 1e6:.1f} M" if "parameters" in row else "–"
        if "largest" in row:
            sizes = f"multiples of {row['multiple']}, {row['stride']}"
            cells = [row["result"], sizes, f"{row['largest']:.1e} ({row['allowed']:.1e})", ", ".join(row["engines"])]
        else:
            why = tidy(row["why"], "\0").split(", the current sys.path")[0].replace("|", "/")
            cells = [f"{row['result']}: {why}", "–", "–", "–"]
        lines.append(f"| {name} | {count} | " + " | ".join(cells) + " |")
    left = [name for name in ARCHITECTURES if name not in found]
    lines += ["", f"Not run yet: {', '.join(left)}."] if left else []
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, nargs="?", help="a picture for the proof [a bundled one]")
    parser.add_argument("--only", help="some of the architectures, by name, separated by commas")
    parser.add_argument("--again", action="store_true", help="run those that stand in the JSON too")
    parser.add_argument("--minutes", type=float, help="begin no further architecture after so many minutes")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/mmseg_architectures.json"))
    parser.add_argument("--markdown", type=Path, help="the table as Markdown")
    parser.add_argument("--list", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    from segship.convert.export import bundled_sample
    from segship.inference.writers import write_bytes
    from segship.package import dump_json

    options = parse(arguments)
    names = options.only.split(",") if options.only else list(ARCHITECTURES)
    unknown = [name for name in names if name not in ARCHITECTURES]
    if unknown or options.list:
        print("\n".join(ARCHITECTURES))
        return 2 if unknown else 0
    found: dict[str, Row] = json.loads(options.output.read_text())["found"] if options.output.exists() else {}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        picture = options.picture or Path(folder, "sample.png")
        if options.picture is None:
            picture.write_bytes(bundled_sample())
        for name in names:
            if name in found and not options.again:
                continue
            if options.minutes and time.monotonic() - start > 60 * options.minutes:
                print("time is up; the same command goes on", file=sys.stderr)
                break
            torch.manual_seed(0)
            found[name] = one(name, picture)
            print(
                f"{name}: {found[name]['result']} in {found[name]['seconds']:.0f} s {found[name]['why'][:200]}",
                flush=True,
            )
            ordered = {name: found[name] for name in ARCHITECTURES if name in found}
            write_bytes(options.output, dump_json({"found": ordered, "versions": worker.about()}))
            if options.markdown:
                write_bytes(options.markdown, markdown(ordered, worker.about()).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
