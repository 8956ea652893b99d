"""How much faster is a patched forward pass that repeats only what the patch can change, and how long does a site take?

SmolLM2, prompts of 18 tokens, the output of block 23 replaced at the last token. Ours repeats six blocks at that token,
with the keys and values of the others cached. The peer runs the whole model with a hook, as the paper's code does. The
goal is 20 times. The limit is the ratio of the multiplications. ``--prompts 5000`` also evaluates a TopK autoencoder of
512 features on so many prompts: 80 % of them to rank features and fit the supervised dictionaries, 10 % to edit, 10 %
their counterfactuals.
"""

from __future__ import annotations

import time

import torch
from harness import alternate, finish, parser, print_table, ratio

from weightsmith.analyze import PatchedRuns, Site, TopKSAE, collect_activations, evaluate_dictionary, ioi_task
from weightsmith.embedded import open_model

BATCH, HIDDEN = 128, 576


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--prompts", type=int, default=0, help="evaluate an autoencoder on so many prompts, too")
    arguments.add_argument("--dtype", default="float32", help="of the model, such as bfloat16")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    opened = open_model("embedded:smollm2", dtype=getattr(torch, options.dtype))
    model, site = opened.model, Site.parse("23.resid@end")
    tenth = max(options.prompts // 10, BATCH)
    task = ioi_task(opened.tokenizer, train_prompts=8 * tenth, evaluation_prompts=tenth)
    prompts = task.evaluation[:BATCH]
    patches = collect_activations(model, task.counterfactuals["io"][:BATCH], [site])
    runs = PatchedRuns(model, prompts, [site])
    block = model.model.layers[site.block]

    def replace(module: object, args: object, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, -1] = patches[site].to(output)
        return output

    @torch.no_grad()
    def whole() -> torch.Tensor:
        hook = block.register_forward_hook(replace)
        try:
            mask = prompts.attention_mask.long()
            return (
                model(prompts.input_ids, attention_mask=mask, use_cache=False, logits_to_keep=1).logits[:, -1].float()
            )
        finally:
            hook.remove()

    difference = float((whole() - runs.logits(patches)).abs().max())
    timings = alternate({"whole": whole, "short": lambda: runs.logits(patches)}, rounds=options.rounds)
    print_table(("pass", "seconds"), [(name, timing.median) for name, timing in timings.items()])
    weights = sum(parameter.numel() for parameter in block.parameters())
    blocks, head = len(model.model.layers), model.config.vocab_size * HIDDEN
    tokens = prompts.input_ids.shape[1]
    limit = (blocks * weights * tokens + head) / ((blocks - site.block - 1) * weights + head)
    detail = {}
    if options.prompts:
        sae = TopKSAE(HIDDEN, 512, {"W_enc": torch.randn(HIDDEN, 512), "W_dec": torch.randn(512, HIDDEN)}, k=16)
        wall, busy = time.perf_counter(), time.process_time()
        evaluate_dictionary(model, {"TopK": sae.requires_grad_(False)}, task, [site])
        detail = {"evaluation_s": time.perf_counter() - wall, "evaluation_cpu_s": time.process_time() - busy}
        print_table(("evaluation", "seconds"), [("wall", detail["evaluation_s"]), ("CPU", detail["evaluation_cpu_s"])])
    finish(
        "patched_pass",
        ratio=ratio(timings["whole"], timings["short"]),
        goal=20,
        limit=limit,
        ours=1000 * timings["short"].median / BATCH,
        peer=1000 * timings["whole"].median / BATCH,
        unit="ms per prompt",
        store=options.store,
        largest_difference=difference,
        dtype=options.dtype,
        prompts=options.prompts,
        **detail,
    )


if __name__ == "__main__":
    main()
