"""A package as a segmentor of MMSegmentation 1.x: its Runner and ``tools/test.py`` score it like one of their own networks.

Named by ``custom_imports`` in a config that ``segship mmseg-eval-config`` writes. mmseg loads, resizes, normalises and
flips as its config says, the package's graph answers on any engine, and mmseg brings the logits to the picture's own size
and scores them; so what mmseg prints is what it would print for the network that the package was made from. Importing this
module needs mmseg, mmengine and mmcv or mmcv-lite (``mmcv_stub`` stands in for the operators that mmcv-lite lacks).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from segship.families.mmcv_stub import install_stub

install_stub()

from mmseg.models.segmentors import BaseSegmentor  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402

from segship.inference.predictor import Predictor  # noqa: E402
from segship.integrations.mmseg_chain import Chain, check_preprocessor, head_logits, read_chain  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor


@MODELS.register_module()
class SegshipSegmentor(BaseSegmentor):
    """``package`` is a .segship of a picture network; ``precision``, ``engine``, ``device`` and ``threads`` as in `segship.load`.

    ``data_preprocessor`` is the config's own. Raises UsageError where it normalises otherwise than the package's network
    was exported for, and what `Predictor.open` raises.
    """

    def __init__(
        self,
        package: str,
        precision: str = "fp32",
        engine: str | None = None,
        device: str = "cpu",
        threads: int | None = None,
        data_preprocessor: Any = None,
        init_cfg: Any = None,
        train_cfg: Any = None,
        test_cfg: Any = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=None)
        self.predictor = Predictor.open(package, precision=precision, engine=engine, device=device, threads=threads)
        self.chain: Chain = read_chain(self.predictor.manifest)
        self._fit_preprocessor()
        self.align_corners = self.chain.align_corners
        self.out_channels = self.chain.channels
        self.num_classes = len(self.predictor.manifest.labels)
        self.decode_head = SimpleNamespace(
            threshold=self.chain.threshold, num_classes=self.num_classes, align_corners=self.align_corners
        )

    def predict(self, inputs: Tensor, data_samples: Any = None) -> Any:
        """(N, C, h, w) normalised by the config's data_preprocessor to mmseg's samples with ``pred_sem_seg``."""
        metas = [sample.metainfo for sample in data_samples] if data_samples is not None else []
        return self.postprocess_result(self.encode_decode(inputs, metas), data_samples)

    def encode_decode(self, inputs: Tensor, batch_data_samples: Any = None) -> Tensor:
        """Logits (N, K, h, w) on the grid of ``inputs``, windows averaged where the package slides."""
        import torch

        x = inputs.detach().cpu().numpy().astype(np.float32, copy=False)
        logits = [head_logits(self.predictor, self.chain, case) for case in x]
        return torch.from_numpy(np.stack(logits)).to(inputs.device)

    def _forward(self, inputs: Tensor, data_samples: Any = None) -> Tensor:
        import torch

        x = inputs.detach().cpu().numpy().astype(np.float32, copy=False)
        return torch.from_numpy(self.predictor.network(x)).to(inputs.device)

    def extract_feat(self, inputs: Tensor) -> Any:
        raise NotImplementedError("a package gives logits, no features; test with it, and train the network itself")

    def loss(self, inputs: Tensor, data_samples: Any) -> Any:
        raise NotImplementedError("a package cannot be trained; train the network itself and export it again")

    def aug_test(self, batch_inputs: Any, batch_img_metas: Any) -> Any:
        raise NotImplementedError("test-time augmentation is SegTTAModel's in mmseg 1.x: tools/test.py --tta")

    def _fit_preprocessor(self) -> None:
        """Hold the config's preprocessor against the package; where the normalisation lies inside the graph, leave it out here."""
        theirs = self.data_preprocessor
        constants = None
        if getattr(theirs, "_enable_normalize", False):
            constants = theirs.mean.flatten().tolist(), theirs.std.flatten().tolist()
        normalises = check_preprocessor(self.chain, constants, bool(getattr(theirs, "channel_conversion", False)))
        if constants is not None:
            theirs._enable_normalize = normalises
