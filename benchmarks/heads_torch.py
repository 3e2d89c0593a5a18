"""The alternatives of heads.py in PyTorch, on one GPU beside JAX: its compiler, and Liger's fused losses if installed.

They work on the same arrays (by DLPack, without a copy) and give programs by (name, "forward" or "with gradients").
"""

import importlib.util
import math
from collections.abc import Callable

import jax
import torch
from programs import Program

from jaxdistill.head import Head


def tensors(head: Head) -> tuple[torch.Tensor, torch.Tensor]:
    """(h [tokens, D], w [V, D])."""
    h_TD, w_VD = (torch.from_dlpack(x) for x in jax.block_until_ready((head.h_BLD, head.w_VD)))
    return h_TD.reshape(-1, h_TD.shape[-1]), w_VD


def cross_entropy(head: Head, label_BL: jax.Array) -> dict[tuple[str, str], Program]:
    """The sum over tokens, compiled and by Liger's kernel."""
    h_TD, w_VD = (x.detach().requires_grad_() for x in tensors(head))
    label_T = torch.from_dlpack(jax.block_until_ready(label_BL)).reshape(-1).long()

    @torch.compile
    def whole(h_TD, w_VD):
        return torch.nn.functional.cross_entropy((h_TD @ w_VD.T).float(), label_T, reduction="sum")

    programs = both_ways("torch.compile", whole, h_TD, w_VD)
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        programs |= both_ways("Liger", lambda h_TD, w_VD: liger(w_VD, h_TD, label_T), h_TD, w_VD)
    return programs


def forward_kl(head: Head, teacher: Head) -> dict[tuple[str, str], Program]:
    """From whole logits, compiled, and by Liger's chunks (its JSD at beta = 0, without labels)."""
    h_TD, w_VD = (x.detach().requires_grad_() for x in tensors(head))
    h_teacher_TD, w_teacher_VD = tensors(teacher)

    @torch.compile
    def whole(h_TD, w_VD):
        log_q_TV = torch.log_softmax((h_TD @ w_VD.T).float(), dim=-1)
        log_p_TV = torch.log_softmax((h_teacher_TD @ w_teacher_VD.T).float(), dim=-1)
        return torch.nn.functional.kl_div(log_q_TV, log_p_TV, reduction="sum", log_target=True)

    programs = both_ways("torch.compile", whole, h_TD, w_VD)
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        liger = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0)
        label_T = torch.zeros(len(h_TD), dtype=torch.long, device=h_TD.device)
        programs |= both_ways(
            "Liger", lambda h_TD, w_VD: liger(h_TD, w_VD, h_teacher_TD, w_teacher_VD, label_T), h_TD, w_VD
        )
    return programs


def both_ways(name: str, loss: Callable, *tensors: torch.Tensor) -> dict[tuple[str, str], Program]:
    """The loss alone, and with its gradients."""

    def forward():
        with torch.no_grad():
            value = loss(*tensors)
        torch.cuda.synchronize()
        return value, None

    def gradients():
        value = loss(*tensors)
        found = torch.autograd.grad(value, tensors)
        torch.cuda.synchronize()
        return value, found

    return {
        (name, kind): Program(call, peak(call)) for kind, call in (("forward", forward), ("with gradients", gradients))
    }


def peak(call: Callable) -> int | float:
    """Bytes by which the allocator rises above its inputs and results in one call; infinite where it runs out."""
    try:
        call()  # compiles and chooses kernels
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _, found = call()
        results = sum(x.nbytes for x in found or ())
        return torch.cuda.max_memory_allocated() - before - results
    except torch.OutOfMemoryError:
        return math.inf
