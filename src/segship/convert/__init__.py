"""From a source to a package, and from a package to its precisions. No run of a package needs what stands here.

Start at `export` (a checkpoint becomes a package; `export_volume` for volumes) and `precision` (a package gains fp16,
bf16, int8 or int16). What they share: `checks`, `parity` (the proof stage by stage), `calibration`, `gate` and `judge` (is
the loss allowed?), and `onnx_*` (changes to graphs). Whatever is true of one world only belongs into `segship.families`.
"""
