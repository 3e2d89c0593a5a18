"""Published methods as compositions: each a loss, a target, a weight and a coefficient, by name.

A method returns the terms of an experiment, `Experiment(objective=methods.taid(), ...)`, and its text is the whole
method: copy it and change it. What it needs beside them is in its docstring: teacher (a whole distribution unless it
says otherwise), references (further frozen models), signals (arrays of the batch), controllers (under the names of
knobs). Methods that generate text during training are here with their loss alone.
"""

from typing import Any, Literal

from jaxdistill.losses.adaptive_kl import AdaptiveKL
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.decoupled_kd import DecoupledKD
from jaxdistill.losses.dual_space import DualSpace
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.jensen_shannon import JensenShannon
from jaxdistill.losses.labels import MixLabel, PromoteLabel, UniformTail
from jaxdistill.losses.objective import Term
from jaxdistill.losses.paired import Gold, PairedSortedL1
from jaxdistill.losses.policy_weights import OverGap, OverRewardStd, Preference
from jaxdistill.losses.reverse_kl import ReverseKL
from jaxdistill.losses.sampled import SampledCrossEntropy
from jaxdistill.losses.sinkhorn import Sinkhorn
from jaxdistill.losses.skew import DifficultySkew, SkewForwardKL, SkewReverseKL
from jaxdistill.losses.sorted_l1 import SortedL1
from jaxdistill.losses.top_k import Tail, TopKDivergence
from jaxdistill.losses.total_variation import NegativeLogAcceptance, TotalVariation
from jaxdistill.losses.transforms import Average, Chain, Extrapolate, Interpolate, L1Gap, Noise, SetUniform, Temper
from jaxdistill.losses.truncate import Clip
from jaxdistill.losses.weights import (
    LargestGap,
    Length,
    Product,
    Signal,
    TokenScaled,
)

Terms = dict[str, Term]


def word_kd(label: float = 0.5, temperature: float = 1.0) -> Terms:
    """label CE + (1 - label) T^2 KL(p || q) (Hinton et al. 2015; Kim & Rush 2016, arXiv 1606.07947). Needs a teacher.

    Sequence-level KD is `supervised` on text that the teacher wrote.
    """
    return {"ce": Term(CrossEntropy(), label), "kl": Term(ForwardKL(temperature), 1 - label)}


def supervised() -> Terms:
    """CE on the token of the data; with text from a teacher, sequence-level KD (arXiv 1606.07947). Needs no teacher."""
    return {"ce": Term(CrossEntropy())}


def gkd(beta: float = 0.5) -> Terms:
    """JSD(beta) on given text: GKD without its own generations (lambda = 0, arXiv 2306.13649). Needs a teacher."""
    return {"jsd": Term(JensenShannon(beta))}


def distillspec(divergence: Any = TotalVariation()) -> Terms:
    """A divergence chosen by task and decoding (DistillSpec, arXiv 2310.08461), on given text. Needs a teacher."""
    return {"divergence": Term(divergence)}


def distillm(alpha: float = 0.1) -> Terms:
    """KL(p || alpha p + (1 - alpha) q) (DistiLLM, arXiv 2402.03898). Needs a teacher."""
    return {"skew": Term(SkewForwardKL(alpha))}


def distillm_reverse(alpha: float = 0.1) -> Terms:
    """KL(q || alpha q + (1 - alpha) p) (DistiLLM, arXiv 2402.03898). Needs a teacher."""
    return {"skew": Term(SkewReverseKL(alpha))}


def taid() -> Terms:
    """KL to softmax((1 - t) z_student + t z_teacher) (arXiv 2501.16937).

    Needs a teacher and the controller taid_t=TaidTime("taid").
    """
    return {"taid": Term(ForwardKL(), target=Interpolate("taid_t"))}


def self_evolution(label: float = 0.5, alpha: float = 0.5, threshold: float = 1.0) -> Terms:
    """Skewed KL to label and teacher mixed, skewed on difficult tokens alone (arXiv 2412.15303). Needs a teacher.

    The constants are ours: the paper's are not public.
    """
    return {"skew": Term(DifficultySkew(alpha, threshold=threshold), target=MixLabel(label))}


def sinkd(weight: float = 8e-4, window: int = 8) -> Terms:
    """CE + KL + weight * Sinkhorn distance of windows of positions (SinKD, arXiv 2402.17110). Needs a teacher."""
    return {"ce": Term(CrossEntropy()), "kl": Term(ForwardKL()), "sinkhorn": Term(Sinkhorn(window), weight)}


def uld(weight: float = 1.5) -> Terms:
    """CE + weight * L1 distance of sorted probabilities (ULD, arXiv 2402.12030). Needs a teacher."""
    return {"ce": Term(CrossEntropy()), "sorted_l1": Term(SortedL1(), weight)}


def mined(label: float = 0.0, temperature: float = 2.0) -> Terms:
    """T^2 KL(p || q) on chunks of one token a side, p in the ids nearest by edit distance; CE on the others (MinED).

    The baseline of ALM (arXiv 2503.20083), after FuseLLM (arXiv 2401.10491). `label` CE on all tokens is added. Needs a
    teacher with another tokenizer: Across(match="nearest").
    """
    terms = {
        "kl": Term(ForwardKL(temperature), weight=Signal("paired")),
        "ce_unpaired": Term(CrossEntropy(), weight=Signal("unpaired")),
    }
    return terms | ({"ce": Term(CrossEntropy(), label)} if label else {})


def uld_aligned(weight: float = 1.5, at: Literal["single", "begin", "row"] = "single") -> Terms:
    """CE + weight * L1 of sorted probabilities where both predict one piece (after ULD, arXiv 2402.12030).

    at="row" is the published form. Needs a teacher with another tokenizer: Across.
    """
    return {"ce": Term(CrossEntropy()), "uld": Term(PairedSortedL1(at), weight)}


def gold(beta: float = 0.5, label: float = 0.0) -> Terms:
    """GOLD's hybrid of names and ranks before each chunk, without its own generations; `label` CE is added.

    Patino et al. 2025, with TRL's defaults. Needs a teacher with another tokenizer: Across(match="same").
    """
    return {"gold": Term(Gold(beta))} | ({"ce": Term(CrossEntropy(), label)} if label else {})


def dskd(label: float = 0.5) -> Terms:
    """label CE + (1 - label) DSKD with cross-model attention (arXiv 2406.17328).

    Needs a teacher with another tokenizer: Across. Projections are trained beside the student.
    """
    return {"ce": Term(CrossEntropy(), label), "dskd": Term(DualSpace(), 1 - label)}


def align_distil(beta: float = 0.1, scale: float = 10.0) -> Terms:
    """beta / w KL(q || softmax(z + w (z - z_reverse))), w = scale |p - p_reverse|_1 + 0.001 (arXiv 2503.02832).

    Needs a DPO model as teacher and, as reference "reverse", one of swapped preferences.
    """
    gap = L1Gap(scale)
    weight = Product((Length(), OverGap("reverse", gap, beta)))
    return {"rkl": Term(ReverseKL(), target=Extrapolate("reverse", weight=gap), weight=weight)}


def unilogit(forget: str = "forget", retain: str = "retain") -> Terms:
    """KL(q || q with q_label = 1/V) where tokens are to be forgotten, CE elsewhere (arXiv 2505.06027).

    Needs no teacher; two signals, masks of the tokens to forget and to retain.
    """
    forgetting = Term(ReverseKL(), target=SetUniform(), weight=Signal(forget))
    return {"forget": forgetting, "ce": Term(CrossEntropy(), weight=Signal(retain))}


def swing(temperature: str = "temperature_BL", noise: float = 0.1) -> Terms:
    """KL to softmax(z / tau + noise n), tau higher the more private a token is (Swing, arXiv 2212.08349).

    Needs a teacher, and as signals tau and "index_BL", the number of each token. Only the abstract was at hand, so the
    form is ours: tau = 1 + (tau_max - 1) s for a privacy score s in [0, 1].
    """
    return {"kl": Term(ForwardKL(), target=Chain((Temper(temperature), Noise(noise))))}


def redi(alpha: float = 0.8) -> Terms:
    """-log q(chosen) / |chosen| + alpha log q(rejected) / |rejected| (REDI, arXiv 2505.24850). Needs no teacher.

    Signals "chosen" and "rejected", 1 on the tokens of such an answer and 0 elsewhere; "segment" where rows are packed.
    """
    chosen, rejected = (Product((Length(), Signal(name))) for name in ("chosen", "rejected"))
    return {"chosen": Term(CrossEntropy(), weight=chosen), "rejected": Term(CrossEntropy(), -alpha, weight=rejected)}


def tsld(tau: float = 10.0) -> Terms:
    """sum_t w_t KL_t, w = softmax over the sequence of the teacher's CE / tau (arXiv 2308.06744). Needs a teacher."""
    return {"kl": Term(ForwardKL(), weight=TokenScaled(tau))}


def adaspec(fraction: float = 0.4, reference: str = "draft") -> Terms:
    """KL where it most exceeds a reference draft's (AdaSPEC, arXiv 2510.19779). Needs a teacher and that reference."""
    return {"kl": Term(ForwardKL(), weight=LargestGap(reference, fraction))}


def online_speculative(signal: str = "rejected") -> Terms:
    """KL(p || q) on the positions where drafts were rejected (OSD, arXiv 2310.07177). Needs a teacher and that mask."""
    return {"kl": Term(ForwardKL(), weight=Signal(signal))}


def online_speculative_mixed(signal: str = "rejected") -> Terms:
    """0.9 KL(p || q) + 0.1 KL(q || p) on rejected positions: what the code of arXiv 2310.07177 calls "jsd".

    Needs a teacher and the mask.
    """
    kl, rkl = (Term(loss, coef, weight=Signal(signal)) for loss, coef in ((ForwardKL(), 0.9), (ReverseKL(), 0.1)))
    return {"kl": kl, "rkl": rkl}


def total_variation() -> Terms:
    """TV(p, q), one minus the acceptance rate of speculative decoding (arXiv 2310.08461). Needs a teacher."""
    return {"tv": Term(TotalVariation())}


def tvd_plus_plus() -> Terms:
    """TV with its reward normalised over the batch (TVD++, arXiv 2403.00858). Needs a teacher."""
    return {"tv": Term(TotalVariation(), weight=OverRewardStd())}


def log_acceptance() -> Terms:
    """-log(1 - TV(p, q)), as draft models are trained in vllm-project/speculators. Needs a teacher."""
    return {"acceptance": Term(NegativeLogAcceptance())}


def llava_mod_mimic() -> Terms:
    """CE to the teacher's probabilities, as KL (LLaVA-MoD, arXiv 2408.15881, stage 1, text side). Needs a teacher."""
    return {"kl": Term(ForwardKL())}


def llava_mod_preference(beta: float = 0.1) -> Terms:
    """DPO with the teacher as reference (LLaVA-MoD, arXiv 2408.15881, stage 2). Needs a teacher.

    Signals "preference" and "pair", as `policy_weights.Preference` has them.
    """
    return {"dpo": Term(CrossEntropy(), weight=Preference(beta))}


def iterated_self_distillation(label: float = 0.5) -> Terms:
    """KL to label 1[y] + (1 - label) p, p the model of the round before (arXiv 2102.13088). Needs it as teacher."""
    return {"kl": Term(ForwardKL(), target=MixLabel(label))}


def baby_llama(references: tuple[str, ...] = ("second",), label: float = 0.5, temperature: float = 2.0) -> Terms:
    """label CE + (1 - label) T^2 KL to the mean of teachers' logits (BabyLlama, arXiv 2308.02019). Needs them all."""
    kl = Term(ForwardKL(temperature), 1 - label, target=Average(references, of="logit"))
    return {"ce": Term(CrossEntropy(), label), "kl": kl}


def mt_dnn(references: tuple[str, ...] = ("second",)) -> Terms:
    """CE + KL to the mean of teachers' probabilities (MT-DNN ensembles, arXiv 1904.09482). Needs all of them."""
    return {"ce": Term(CrossEntropy()), "kl": Term(ForwardKL(), target=Average(references, of="probability"))}


def dynamic_logit_fusion(weight: float | str = 1.0) -> Terms:
    """KL to softmax(z + weight (z_tuned - z_base)) (arXiv 2406.15480), as a target for training.

    Needs a large teacher and a small model before and after tuning, references "base" and "tuned".
    """
    return {"kl": Term(ForwardKL(), target=Extrapolate("base", toward="tuned", weight=weight))}


def decoupled_kd(alpha: float = 1.0, beta: float = 0.5) -> Terms:
    """alpha TCKD + beta NCKD (DKD, arXiv 2203.08679). Needs a teacher."""
    return {"dkd": Term(DecoupledKD(alpha, beta))}


def adaptive_kl(mu: float = 0.5) -> Terms:
    """Forward and reverse KL weighed by the gap on head and tail (arXiv 2404.02657). Needs a teacher."""
    return {"akl": Term(AdaptiveKL(mu))}


def minifinetuning(margin: float = 0.2) -> Terms:
    """KL to the teacher with the label promoted to lead by `margin` (MFT, arXiv 2506.15702).

    Needs a teacher: the model before tuning.
    """
    return {"kl": Term(ForwardKL(), target=PromoteLabel(margin))}


def clipped_kl(low: float = 0.0, high: float = 0.95) -> Terms:
    """KL over a band of the teacher's mass, and the label (DAC-KL with fixed bounds, arXiv 2407.10068).

    Needs a teacher.
    """
    return {"kl": Term(ForwardKL(), target=Clip(low, high))}


def top_k(tail: Tail | Literal["uniform"] = "bucket", temperature: float = 1.0) -> Terms:
    """KL to a cached teacher's top K with one of five tails (arXiv 2503.16870). Needs TopK targets.

    "bucket" is the ghost token, "label" the naive fix, "uniform" label smoothing.
    """
    if tail == "uniform":
        return {"kl": Term(ForwardKL(temperature), target=UniformTail())}
    return {"kl": Term(TopKDivergence(ForwardKL(temperature), tail))}


def random_sampling_kd() -> Terms:
    """CE to tokens sampled from the teacher (RS-KD, arXiv 2503.16870). Needs Sampled targets."""
    return {"rs": Term(SampledCrossEntropy())}
