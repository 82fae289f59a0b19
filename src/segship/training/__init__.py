"""Training of the two worlds that also train here: UNet++ (`unetplusplus`) and MLPerf's 3D U-Net (`unet3d_mlperf`).

Files called ``mlperf_*`` belong to the second; `data`, `augment`, `losses`, `schedules`, `validation`, `averages`, `norms`,
`precision`, `options` and `release` to the first. Both share `runs`, `distributed`, `launcher` and `worker`.
"""
