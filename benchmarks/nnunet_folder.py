"""plans.json and dataset.json of a network as nnU-Net v2 plans it for a 3D CT at 1.5 mm: six stages of 32 to 320 features."""

from __future__ import annotations

from typing import Any

NAME = "nnUNetTrainer__nnUNetPlans__3d_fullres"
SPACING = 1.5
PATCH = 128
FEATURES = (32, 64, 128, 256, 320, 320)
INTENSITIES = {
    "max": 1500.0, "mean": 40.0, "median": 40.0, "min": -1024.0, "percentile_00_5": -900.0, "percentile_99_5": 900.0,
    "std": 250.0,
}  # fmt: skip


def plans() -> dict[str, Any]:
    """plans.json of nnU-Net v2 for this network."""
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    stages = len(FEATURES)
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [PATCH] * 3,
        "median_image_size_in_voxels": [224.0, 202.0, 244.0],
        "spacing": [SPACING] * 3,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": list(FEATURES),
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3, 3, 3]] * stages,
                "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
                "n_conv_per_stage": [2] * stages,
                "n_conv_per_stage_decoder": [2] * (stages - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    return {
        "dataset_name": "Dataset950_Bright",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [3.0] * 3,
        "original_median_shape_after_transp": [112, 101, 122],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": INTENSITIES},
    }


DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "bright": 1},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}
