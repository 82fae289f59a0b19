"""Which of ONNX Runtime's wheels are installed: they all install into one folder, and the last one wins."""

from __future__ import annotations

from importlib import metadata

_WHEELS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-cann",
    "onnxruntime-migraphx",
    "onnxruntime-rocm",
    "onnxruntime-openvino",
)


def wheel_conflict() -> str:
    """What is wrong and what to type when two ONNX Runtime wheels share this environment, else ''.

    Whichever came last wins, mostly unnoticed.
    """
    found = []
    for wheel in _WHEELS:
        try:
            found.append(f"{wheel} {metadata.version(wheel)}")
        except metadata.PackageNotFoundError:
            continue
    if len(found) < 2:
        return ""
    names = " ".join(entry.split()[0] for entry in found)
    return (
        f"two ONNX Runtime wheels in one environment ({', '.join(found)}) overwrite each other: "
        f"pip uninstall {names}, then install the one you want"
    )
