"""The table of all methods: what each does, the paper it comes from, how to call it, what its claim is.

The command line, the recipe, the docs and the tests are driven by this table. Importing it loads no heavy dependency:
a method's code is named by text and imported when it is used.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightsmith.core.errors import WeightsmithError

__all__ = ["METHODS", "VERBS", "Command", "Method", "commands", "find", "load"]

VERBS = {
    "analyze": "Measure weights, change nothing",
    "predict": "Weights nobody trained",
    "grow": "Other sizes from trained weights",
    "merge": "One network from several",
    "adapt": "Fine-tune a few weights well",
    "sparsify": "Fewer weights, fewer activations",
    "quantize": "Few levels, real devices",
    "train": "Losses, sample weights, parametrisations that shape training",
    "continual": "Learn the next task, keep the last",
    "forget": "Take something out",
    "search": "Architectures with shared weights",
    "dictionary": "Sparse codes and factors as scikit-learn estimators",
    "apps": "Whole products built on the verbs",
}


@dataclass(frozen=True)
class Command:
    """A function that the command line and recipes offer.

    Attributes
    ----------
    entry : str
        ``"module:function"``.
    summary : str
        What it does, one line.
    """

    entry: str
    summary: str

    @property
    def verb(self) -> str:
        """The verb it is called under: the folder it lives in.

        Examples
        --------
        >>> Command("weightsmith.analyze:condition", "").verb
        'analyze'
        """
        return self.entry.partition(":")[0].split(".")[1]


@dataclass(frozen=True)
class Method:
    """One row of the catalog: one paper.

    Attributes
    ----------
    slug : str
        Short name; also names the docs page and the claim.
    verb : str
        The folder it lives in, one of :data:`VERBS`.
    module : str
        Where its code is, or will be.
    summary : str
        What it does for the user, one line.
    paper : str
        Title of the paper.
    year : int
        Year of the first public version.
    reference : str
        ``arXiv:`` id.
    claim : str
        What its claim experiment is about, one line.
    commands : mapping of str to Command
        The functions by the name they are called on the command line and in recipes.
    classes : sequence of str
        What it offers in Python beside them, ``"module:name"``: optimizers, losses, adapters, estimators. A method
        without commands and classes is planned.
    """

    slug: str
    verb: str
    module: str
    summary: str
    paper: str
    year: int
    reference: str
    claim: str
    commands: Mapping[str, Command] = field(default_factory=dict)
    classes: Sequence[str] = ()

    @property
    def planned(self) -> bool:
        """Whether there is no code yet."""
        return not self.commands and not self.classes

    @property
    def claim_module(self) -> str:
        """The module whose ``run`` is the claim's experiment."""
        return f"weightsmith.claims.{self.slug.replace('-', '_')}"

    @property
    def url(self) -> str:
        """The paper's address."""
        return f"https://arxiv.org/abs/{self.reference.removeprefix('arXiv:')}"


def commands(verb: str | None = None) -> dict[str, Method]:
    """Return every command that can be run, by name, of one verb or of all.

    Examples
    --------
    >>> sorted(commands("predict"))
    ['d2nwg', 'd2nwg-layers', 'know']
    """
    return {name: m for m in METHODS for name, command in m.commands.items() if verb in (None, command.verb)}


def find(name: str) -> Method:
    """Return the method with this slug or this command.

    Raises
    ------
    WeightsmithError
        If there is none; the message names the nearest.

    Examples
    --------
    >>> find("wanda").slug
    'dsnot'
    """
    rows = {**commands(), **{method.slug: method for method in METHODS}}
    if name not in rows:
        near = difflib.get_close_matches(name, rows, n=1)
        do = f"Did you mean {near[0]!r}?" if near else "`weightsmith methods` lists them."
        raise WeightsmithError(f"no method {name!r}", do=do)
    return rows[name]


def load(entry: str) -> Callable[..., Any]:
    """Import ``"module:function"``.

    Examples
    --------
    >>> load("weightsmith.catalog:find") is find
    True
    """
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


METHODS: tuple[Method, ...] = (
    Method(
        slug="phase-zoo",
        verb="analyze",
        module="weightsmith.analyze.phases",
        summary="Tell which phase of the loss landscape a model is in, and so which downstream methods will work on it",
        paper="A Model Zoo on Phase Transitions in Neural Networks",
        year=2025,
        reference="arXiv:2504.18072",
        claim="Output similarity across seeds orders a grid of models as test accuracy and mergeability do",
    ),
    Method(
        slug="rich-lazy",
        verb="analyze",
        module="weightsmith.analyze.rich_lazy",
        summary="Measure how far training moved the features, and set it beforehand by the rank of the initial weights",
        paper="How connectivity structure shapes rich and lazy learning in neural circuits",
        year=2023,
        reference="arXiv:2310.08513",
        claim="Kernel alignment rises with the rank of the initial recurrent weights",
    ),
    Method(
        slug="sae-eval",
        verb="analyze",
        module="weightsmith.analyze.sae_eval",
        summary="Judge a sparse dictionary of activations against a supervised one on a task with known attributes",
        paper="Towards Principled Evaluations of Sparse Autoencoders for Interpretability and Control",
        year=2024,
        reference="arXiv:2405.08366",
        claim="Supervised dictionaries edit a known attribute more accurately than sparse autoencoders",
    ),
    Method(
        slug="know",
        verb="predict",
        module="weightsmith.predict._know",
        summary="Predict the weights that more data would have given, by running measured forgetting backwards",
        paper="Learning from Oblivion: Predicting Knowledge-Overflowed Weights via Retrodiction of Forgetting",
        year=2025,
        reference="arXiv:2508.05059",
        claim="Predicted weights transfer better than trained ones; on clean images a shrink does as well",
        commands={
            "know": Command(
                "weightsmith.predict:know", "Predict better weights from five checkpoints of measured forgetting"
            )
        },
    ),
    Method(
        slug="d2nwg",
        verb="predict",
        module="weightsmith.predict._d2nwg",
        summary="Draw ready-to-use weights for a new data set from a diffusion model trained on a zoo of networks",
        paper="Diffusion-Based Neural Network Weights Generation",
        year=2024,
        reference="arXiv:2402.18153",
        claim="Drawn heads work for new sets of known classes, not for new classes; plain regression does as well",
        commands={
            "d2nwg": Command("weightsmith.predict:d2nwg", "Draw weights for a new task from a zoo of trained networks"),
            "d2nwg-layers": Command(
                "weightsmith.predict:d2nwg_layers",
                "Draw a model's layers anew, one by one, and keep those that lower a loss",
            ),
        },
        classes=("weightsmith.predict:WeightDiffusion", "weightsmith.predict:WeightZoo"),
    ),
    Method(
        slug="learngene-sws",
        verb="grow",
        module="weightsmith.grow._learngene",
        summary="Distil a large model into a few shared stage blocks and unroll them into any depth",
        paper="Exploring Learngene via Stage-wise Weight Sharing for Initializing Variable-sized Models",
        year=2024,
        reference="arXiv:2404.16897",
        claim="Shared blocks unroll beyond their depth better than unshared ones; one shared block does as well",
        commands={
            "learngene": Command(
                "weightsmith.grow:learngene", "Distil into a few shared blocks that unroll to any depth"
            ),
            "expand": Command("weightsmith.grow:expand", "Give a model any number of blocks, each a copy of its own"),
        },
        classes=(
            "weightsmith.grow:Learngene",
            "weightsmith.grow:LinearExpansion",
        ),
    ),
    Method(
        slug="mixturegrowth",
        verb="grow",
        module="weightsmith.grow._mixture_growth",
        summary="Double a network's width by re-mixing the weight templates that two half-width members have learned",
        paper="MixtureGrowth: Growing Neural Networks by Recombining Learned Parameters",
        year=2023,
        reference="arXiv:2311.04251",
        claim="At equal cost grown networks, Net2Net and training from scratch end within a point of each other",
        commands={
            "mixture-growth": Command(
                "weightsmith.grow:mixture_growth",
                "Double the inner width of a transformer's MLPs from two members",
            ),
        },
        classes=("weightsmith.grow:MixtureGrowth",),
    ),
    Method(
        slug="bang",
        verb="merge",
        module="weightsmith.merge._wise_ft",
        summary="Average a pretrained and a fine-tuned model for robustness, balanced in their confidence",
        paper="Spurious Feature Diversification Improves Out-of-distribution Generalization",
        year=2023,
        reference="arXiv:2309.17230",
        claim="Smoothing during fine-tuning adds a point to the average under corruption; a smaller alpha does too",
        commands={
            "wise-ft": Command("weightsmith.merge:wise_ft", "Average a pretrained and a fine-tuned checkpoint on disk"),
            "scale-adapter": Command(
                "weightsmith.merge:scale_adapter",
                "Average a LoRA-tuned network with its base: the adapter alone, scaled",
            ),
            "soup": Command(
                "weightsmith.merge:soup", "Average checkpoints on disk: the uniform soup, or a weighted one"
            ),
            "task-arithmetic": Command(
                "weightsmith.merge:task_arithmetic", "Add what each fine-tuning changed to the base network"
            ),
            "slerp": Command(
                "weightsmith.merge:slerp",
                "Interpolate two checkpoints along the arc between their directions",
            ),
            "fisher": Command(
                "weightsmith.merge:fisher",
                "Average two checkpoints by how much predictions depend on each weight",
            ),
            "bang": Command(
                "weightsmith.merge:bang", "Fine-tune with mixup and smoothed labels, then average with the start"
            ),
            "sweep": Command(
                "weightsmith.merge:sweep", "Measure every average of two networks, at home and on drifted data"
            ),
        },
        classes=("weightsmith.merge:MixupCollator", "weightsmith.merge:ZeroShotHead"),
    ),
    Method(
        slug="weight-matching",
        verb="merge",
        module="weightsmith.merge._weight_matching",
        summary="Permute one model's neurons so that two independently trained models can be averaged, and say why",
        paper="Analysis of Linear Mode Connectivity via Permutation-Based Weight Matching",
        year=2024,
        reference="arXiv:2402.04051",
        claim="Matching takes most of the loss barrier between two independently trained networks away",
        commands={
            "weight-matching": Command(
                "weightsmith.merge:weight_matching",
                "Put another network's units in this one's order and average the two",
            ),
            "rebasin": Command(
                "weightsmith.merge:rebasin",
                "Put one checkpoint's units in another's order and average the two on disk",
            ),
            "mode-connectivity": Command(
                "weightsmith.analyze:mode_connectivity",
                "Compare two networks' weights: distance, alignment, spectra by layer",
            ),
        },
        classes=("weightsmith.merge:PermutationSpec",),
    ),
    Method(
        slug="bone",
        verb="adapt",
        module="weightsmith.adapt._bone",
        summary="Adapter that updates each block of a frozen weight by a block-affine map, merged at no cost",
        paper="Bone: Block Affine Transformation as Parameter Efficient Fine-tuning Methods for Large Language Models",
        year=2024,
        reference="arXiv:2409.15371",
        claim="At one learning rate and equal parameters it trains faster than LoRA; with tuned rates the lead goes",
        commands={
            "bone": Command("weightsmith.adapt:bone", "Fine-tune blocks that transform frozen weights, then merge them")
        },
        classes=("weightsmith.adapt:BoneConfig",),
    ),
    Method(
        slug="kappatune",
        verb="adapt",
        module="weightsmith.adapt._kappatune",
        summary="Choose the weights to fine-tune by their condition number, to forget less without old data",
        paper="The Condition Number as a Scale-Invariant Proxy for Information Encoding in Neural Units",
        year=2025,
        reference="arXiv:2506.16289",
        claim="At equal parameters and task loss, how much low-condition targets forget against random ones",
        commands={
            "kappatune": Command(
                "weightsmith.adapt:kappatune",
                "Train the best-conditioned matrices by LoRA of a matched rank",
            ),
            "condition": Command(
                "weightsmith.analyze:condition", "Condition number of every matrix, read from the files"
            ),
        },
        classes=(
            "weightsmith.analyze:condition_report",
            "weightsmith.analyze:compare_forgetting",
        ),
    ),
    Method(
        slug="lift",
        verb="adapt",
        module="weightsmith.adapt._lift",
        summary="Optimizer that fine-tunes only the weights that are largest after low-rank approximation",
        paper="LIFT the Veil for the Truth: Principal Weights Emerge after Rank Reduction for Reasoning-Focused "
        "Supervised Fine-Tuning",
        year=2025,
        reference="arXiv:2506.00772",
        claim="Five per cent of the weights, chosen after rank reduction, learn a scarce task better than all",
        commands={
            "lift": Command("weightsmith.adapt:lift", "Fine-tune the 5 % largest weights of a low-rank approximation")
        },
        classes=("weightsmith.adapt:LIFTAdamW",),
    ),
    Method(
        slug="dsnot",
        verb="sparsify",
        module="weightsmith.sparsify._dsnot",
        summary="Improve a pruned model by swapping pruned and kept weights per row, without gradients",
        paper="Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs",
        year=2023,
        reference="arXiv:2310.08915",
        claim="After magnitude pruning at 50 % the swaps at least halve perplexity; after Wanda they lower it by 5 %",
        commands={
            "dsnot": Command("weightsmith.sparsify:dsnot", "Prune, then swap pruned and kept weights row by row"),
            "wanda": Command(
                "weightsmith.sparsify._shared.pruning:wanda", "Prune by weight times the norm of its input"
            ),
            "sparsegpt": Command(
                "weightsmith.sparsify._shared.pruning:sparsegpt", "Prune and update what is left in closed form"
            ),
            "magnitude": Command(
                "weightsmith.sparsify._shared.pruning:magnitude", "Prune the smallest weights; needs no data"
            ),
        },
    ),
    Method(
        slug="wina",
        verb="sparsify",
        module="weightsmith.sparsify._wina",
        summary="Skip the weight columns that matter least for each token: sparse activations, faster decoding",
        paper="WINA: Weight Informed Neuron Activation for Accelerating Large Language Model Inference",
        year=2025,
        reference="arXiv:2505.19427",
        claim="Choosing columns by activation times column norm loses less than by activation alone",
        commands={
            "wina": Command(
                "weightsmith.sparsify._wina.method:wina", "Skip columns by activation times column norm, per token"
            ),
            "teal": Command("weightsmith.sparsify._wina.method:teal", "Skip columns by activation alone, per token"),
        },
    ),
    Method(
        slug="modhifi",
        verb="sparsify",
        module="weightsmith.sparsify.modhifi",
        summary="Keep the few channels that reconstruct each layer's output, or remove those that serve one class",
        paper="ModHiFi: Identifying High Fidelity predictive components for Model Modification",
        year=2025,
        reference="arXiv:2511.19566",
        claim="Compensation rescues structured pruning from synthetic data; greedy subsets beat single-channel scores",
    ),
    Method(
        slug="spdf",
        verb="sparsify",
        module="weightsmith.sparsify._spdf",
        summary="Pre-train with most weights frozen at zero, then fine-tune all of them densely",
        paper="SPDF: Sparse Pre-training and Dense Fine-tuning for Large Language Models",
        year=2023,
        reference="arXiv:2303.10464",
        claim="Dense fine-tuning recovers more of the loss of sparse pre-training than sparse fine-tuning",
        commands={
            "spdf": Command("weightsmith.sparsify:spdf", "Train with most weights held at zero, then with all of them")
        },
        classes=("weightsmith.sparsify:StaticSparsity",),
    ),
    Method(
        slug="ofq",
        verb="quantize",
        module="weightsmith.quantize.ofq",
        summary="Train transformers at two to four bits without weights that oscillate between levels",
        paper="Oscillation-free Quantization for Low-bit Vision Transformers",
        year=2023,
        reference="arXiv:2302.02210",
        claim="Confidence-guided annealing lowers oscillation and weight error at two, three and four bits",
    ),
    Method(
        slug="synapse-rule",
        verb="quantize",
        module="weightsmith.quantize.synapse",
        summary="Train weights that are pairs of imperfect analogue conductances, one identical pulse at a time",
        paper="Adaptive Learning Rule for Hardware-based Deep Neural Networks Using Electronic Synapse Devices",
        year=2017,
        reference="arXiv:1707.06381",
        claim="On non-linear devices unidirectional updates keep accuracy that bidirectional ones lose",
    ),
    Method(
        slug="pld",
        verb="train",
        module="weightsmith.train._pld",
        summary="Distillation loss that ranks all classes as the teacher does, in one term",
        paper="PLD: A Choice-Theoretic List-Wise Knowledge Distillation",
        year=2025,
        reference="arXiv:2506.12542",
        claim="A student beats the one trained by cross-entropy and KL, each at its best temperature",
        commands={"pld": Command("weightsmith.train:pld", "Train a student to rank all classes as its teacher does")},
        classes=("weightsmith.train:PLDLoss",),
    ),
    Method(
        slug="loss-reweighting",
        verb="train",
        module="weightsmith.train._loss_reweighting",
        summary="Weight each training sample by its current loss, from the same forward pass",
        paper="Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining",
        year=2025,
        reference="arXiv:2502.06733",
        claim="Down-weighting easy samples lowers test loss when half of the data are redundant",
        commands={
            "loss-reweighting": Command(
                "weightsmith.train:loss_reweighting",
                "Train with samples weighted by their current loss",
            )
        },
        classes=("weightsmith.train:LossReweighter",),
    ),
    Method(
        slug="meta-rescaling",
        verb="train",
        module="weightsmith.train._meta_rescaling",
        summary="Learn during training how much each sample should count when labels may be wrong",
        paper="Learning from Noisy Labels via Self-Taught On-the-Fly Meta Loss Rescaling",
        year=2024,
        reference="arXiv:2412.12955",
        claim="Under 30 % flipped labels accuracy at the last epoch rises and the weights find the flipped samples",
        commands={
            "meta-rescaling": Command(
                "weightsmith.train:meta_rescaling", "Train a classifier on labels that may be wrong"
            )
        },
        classes=("weightsmith.train:MetaRescaler",),
    ),
    Method(
        slug="weight-compander",
        verb="train",
        module="weightsmith.train._weight_compander",
        summary="Train each weight through a bounded odd function, so that no weight dominates and few are dead",
        paper="Weight Compander: A Simple Weight Reparameterization for Regularization",
        year=2023,
        reference="arXiv:2306.16993",
        claim="The trained network survives the loss of its largest or of random weights far better",
        commands={
            "weight-compander": Command(
                "weightsmith.train:weight_compander",
                "Train every weight through a bounded odd function, and fold it away",
            )
        },
        classes=("weightsmith.train:compand",),
    ),
    Method(
        slug="classp",
        verb="continual",
        module="weightsmith.continual.classp",
        summary="Optimizer of the AdaGrad family that forgets less when tasks arrive one after another",
        paper="CLASSP: a Biologically-Inspired Approach to Continual Learning through Adjustment Suppression and "
        "Sparsity Promotion",
        year=2024,
        reference="arXiv:2405.09637",
        claim="After a second task the first is remembered better than with SGD, Adam and tuned EWC",
    ),
    Method(
        slug="dkvb",
        verb="continual",
        module="weightsmith.continual.dkvb",
        summary="Put nearest-key look-up with learnable values behind a frozen encoder: new tasks touch only their own",
        paper="Discrete Key-Value Bottleneck",
        year=2022,
        reference="arXiv:2207.11240",
        claim="Classes that arrive in turn end at the accuracy of training on all of them at once",
    ),
    Method(
        slug="weight-aligning",
        verb="continual",
        module="weightsmith.continual.weight_aligning",
        summary="Rescale the classifier rows of newly learned classes, so that old classes are not drowned out",
        paper="Maintaining Discrimination and Fairness in Class Incremental Learning",
        year=2019,
        reference="arXiv:1911.07053",
        claim="With a small memory, aligned and distilled training beats both of its parts alone",
    ),
    Method(
        slug="wagle",
        verb="forget",
        module="weightsmith.forget.wagle",
        summary="Score each weight for carrying what must be forgotten, and unlearn through the chosen ones only",
        paper="WAGLE: Strategic Weight Attribution for Effective and Modular Unlearning in Large Language Models",
        year=2024,
        reference="arXiv:2410.17509",
        claim="Masks protect other knowledge at equal forgetting; attribution is not better than random masks here",
    ),
    Method(
        slug="regression-unlearning",
        verb="forget",
        module="weightsmith.forget.regression",
        summary="Remove the influence of chosen samples from a regression network in a few epochs",
        paper="Deep Regression Unlearning",
        year=2022,
        reference="arXiv:2210.08196",
        claim="Predictions on forgotten samples come as close to retraining as a second retraining does, nearly",
    ),
    Method(
        slug="memorization-curvature",
        verb="forget",
        module="weightsmith.forget.curvature_edit",
        summary="Keep the high-curvature part of MLP weights, and the model stops reciting what it memorised",
        paper="From Memorization to Reasoning in the Spectrum of Loss Curvature",
        year=2025,
        reference="arXiv:2510.24256",
        claim="Wrong labels learned by heart are forgotten and the true ones return, which SVD truncation cannot do",
    ),
    Method(
        slug="dual-process",
        verb="forget",
        module="weightsmith.forget.active_forgetting",
        summary="Reset token embeddings during early training, so that the model uses context for unknown tokens",
        paper="Dual Process Learning: Controlling Use of In-Context vs. In-Weights Strategies with Weight Forgetting",
        year=2024,
        reference="arXiv:2406.00053",
        claim="Temporary forgetting solves unseen tokens from context and keeps common ones in the weights",
    ),
    Method(
        slug="tanglenas",
        verb="search",
        module="weightsmith.search.tangle_nas",
        summary="Search widths, depths and kernels by gradient in one weight-entangled network",
        paper="Weight-Entanglement Meets Gradient-Based Neural Architecture Search",
        year=2023,
        reference="arXiv:2312.10440",
        claim="Superposed choices compute the same as separate ones at a fraction of time and memory",
    ),
    Method(
        slug="sdl",
        verb="dictionary",
        module="weightsmith.dictionary._supervised",
        summary="One low-rank dictionary that reconstructs the features and predicts the label, beside covariates",
        paper="Supervised Dictionary Learning with Auxiliary Covariates",
        year=2022,
        reference="arXiv:2206.06774",
        claim="With two atoms it classifies better than factorising first, at little extra reconstruction error",
        classes=("weightsmith.dictionary:SupervisedDictionaryClassifier",),
    ),
    Method(
        slug="online-odl",
        verb="dictionary",
        module="weightsmith.dictionary._online_orthogonal",
        summary="Learn an orthonormal sparsifying basis from a stream, one small SVD per mini-batch",
        paper="Online Orthogonal Dictionary Learning Based on Frank-Wolfe Method",
        year=2021,
        reference="arXiv:2103.01484",
        claim="Recovers the true basis from a stream without a penalty to tune, faster than mini-batch dictionaries",
        classes=("weightsmith.dictionary._online_orthogonal.method:OnlineOrthogonalDictionary",),
    ),
    Method(
        slug="prosper",
        verb="dictionary",
        module="weightsmith.dictionary._prosper",
        summary="Probabilistic sparse coding that learns dictionary, prior and noise, also for masking causes",
        paper="ProSper -- A Python Library for Probabilistic Sparse Coding with Non-Standard Priors and Superpositions",
        year=2019,
        reference="arXiv:1908.06843",
        claim="Finds bars and their prior where ICA and L1 dictionaries miss most, if their penalty is not tuned",
        classes=tuple(
            f"weightsmith.dictionary._prosper:{name}" for name in ("BSC", "TSC", "DSC", "MCA", "MMCA", "GSC")
        ),
    ),
    Method(
        slug="deepfood",
        verb="apps",
        module="weightsmith.apps.kitchen.deepfood",
        summary="Food photo to ranked dishes by fine-tuning a pretrained image network, with optional boxes",
        paper="DeepFood: Deep Learning-Based Food Image Recognition for Computer-Aided Dietary Assessment",
        year=2016,
        reference="arXiv:1606.05675",
        claim="Pretrained features beat hand-crafted ones, and a crop to the food beats the full photo",
    ),
    Method(
        slug="meal-kit",
        verb="apps",
        module="weightsmith.apps.kitchen.meal_kit",
        summary="Meal photo to ingredients with portions and calories, scaled to any number of servings",
        paper="Calorie Aware Automatic Meal Kit Generation from an Image",
        year=2021,
        reference="arXiv:2112.09839",
        claim="Calories composed from unit and portion beat direct prediction of the same target",
    ),
    Method(
        slug="recipe-ner",
        verb="apps",
        module="weightsmith.apps.kitchen.recipe_ner",
        summary="Free recipe text to structured ingredients, utensils and an ordered list of events",
        paper="A Named Entity Based Approach to Model Recipes",
        year=2020,
        reference="arXiv:2004.12184",
        claim="A small sequence tagger beats the majority tag on each source; transfer across sources is weak",
    ),
    Method(
        slug="caloraify",
        verb="apps",
        module="weightsmith.apps.kitchen.caloraify",
        summary="Food photo and question to an ingredient list with amounts, and calories from a nutrition table",
        paper="CaLoRAify: Calorie Estimation with Visual-Text Pairing and LoRA-Driven Visual Language Models",
        year=2024,
        reference="arXiv:2412.09936",
        claim="Look-up that knows units survives noisy ingredient text; look-up by name alone does not",
    ),
    Method(
        slug="phenotagger",
        verb="apps",
        module="weightsmith.apps.phenotype.phenotagger",
        summary="Clinical text to Human Phenotype Ontology terms with offsets, without labelled training text",
        paper="PhenoTagger: A Hybrid Method for Phenotype Concept Recognition using Human Phenotype Ontology",
        year=2020,
        reference="arXiv:2009.08478",
        claim="Dictionary and classifier together beat the dictionary, which beats the classifier",
    ),
)
