"""The forms that `benchmarks/bench_forward.py` compares compute the same."""

from __future__ import annotations

import bench_forward
import timm
import torch


def test_written_out_attention_gives_the_same_logits():
    torch.manual_seed(0)
    model = timm.create_model("test_bossnet_t").eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1)
    naive, images = bench_forward.written_out(model), torch.randn(2, 3, 64, 64)
    attentions = [type(module).__name__ for module in naive.modules() if "Attention" in type(module).__name__]
    assert attentions == ["WrittenOutAttention"] * 2
    with torch.inference_mode():
        torch.testing.assert_close(naive(images), model(images), rtol=1e-4, atol=1e-5)
