"""What only a GPU can show: `pytest -m gpu tests/test_export_gpu.py`."""

from __future__ import annotations

import numpy as np
import pytest
from exporting import calibration, traced, unseen

from bossnet_zoo.export.onnx import write_onnx
from bossnet_zoo.export.report import TOLERANCES, compare, require_parity
from bossnet_zoo.export.sessions import open_session
from bossnet_zoo.export.tensorrt import build_engine

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_engine_answers_like_pytorch(tmp_path, package, precision):
    pytest.importorskip(package, reason=f"the engine needs {package}")
    write_onnx(traced(), tmp_path / "x.onnx", precision, runtime="tensorrt", calibration=calibration())
    build_engine(tmp_path / "x.onnx", tmp_path / "x.engine", package)
    session = open_session(tmp_path / "x.engine")
    (images,) = unseen(60)[:1]
    parity = compare(traced().deployed.answer(images), session(images))
    # TensorRT multiplies float32 in TF32, with 10 bits of mantissa.
    tolerance = TOLERANCES["fp16" if precision == "fp32" else precision]
    require_parity([parity], parity, tolerance, session.runtime)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnx_runtime_on_cuda_answers_like_pytorch(tmp_path, precision):
    write_onnx(traced(), tmp_path / "x.onnx", precision)
    session = open_session(tmp_path / "x.onnx", "cuda")
    images = np.concatenate(unseen())
    parity = compare(traced().deployed.answer(images), session(images))
    require_parity([parity], parity, TOLERANCES["fp16"], session.runtime)
    assert session.runtime == "ONNX Runtime, CUDA"
